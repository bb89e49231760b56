"""A lower bound on the privacy loss of a training run, from how well its members can be guessed."""

import math

import numpy as np
from scipy.stats import beta

from ltmia.evaluation.roc import Scores, measurable
from ltmia.evaluation.section import Measure

CONFIDENCE = 0.95
SHARES = (1 / 64, 1 / 32, 1 / 16, 1 / 8, 1 / 4, 1 / 2)
"""Numbers of guesses to try, as shares of all records; the confidence is divided among them."""
FEWEST_RECORDS = 20


def epsilon_lower_bound(members: Scores, nonmembers: Scores, *, by_coins: bool = False, seed: int = 0) -> Measure:
    """Return an epsilon that the training run exceeds with 95 % confidence, for pure differential privacy, in nats.

    One-run audit (Steinke, Nasr and Jagielski 2023, arXiv 2305.08846, theorem 5.2 at delta = 0): if each record was
    trained on by the toss of a fair coin and training is epsilon-DP, then of r guesses at most
    Binomial(r, e^eps / (1 + e^eps)) are right. The bound is the Clopper-Pearson limit of the share of right guesses,
    turned into epsilon. The texts with the highest scores are guessed to be members; in half of the tries, those with
    the lowest are also guessed to be non-members. The confidence is divided among all numbers of guesses.

    Members and non-members must have been drawn at random from one pool. If no fair coin was tossed for each text, the
    larger set is cut at random to the size of the smaller one.

    Args:
        members: Scores; NaN is left out.
        nonmembers: Scores; NaN is left out.
        by_coins: Whether a fair coin was tossed for each text; then nothing is cut.
        seed: Seed of the split into halves, and of the order of ties.
    """
    members, nonmembers = measurable(members), measurable(nonmembers)
    rng = np.random.default_rng(seed)
    if not by_coins:
        n = min(len(members), len(nonmembers))
        members, nonmembers = (rng.choice(part, n, replace=False) for part in (members, nonmembers))
    scores = np.concatenate([members, nonmembers])
    if len(scores) < FEWEST_RECORDS:
        how = "" if by_coins else " of equal numbers"
        return Measure(reason=f"{len(scores)} records{how}; at least {FEWEST_RECORDS} are needed")
    is_member = np.repeat([True, False], [len(members), len(nonmembers)])
    shuffled = rng.permutation(len(scores))
    order = shuffled[np.argsort(-scores[shuffled], kind="stable")]
    right = is_member[order]
    bound = _best_bound(right)
    return Measure(value=bound, low=bound)


def largest_bound(n_members: int, n_nonmembers: int) -> float:
    """Return the bound that this many records would give if all members outscored all non-members."""
    n = min(n_members, n_nonmembers)
    return _best_bound(np.repeat([True, False], n)) if 2 * n >= FEWEST_RECORDS else 0.0


def _best_bound(right: np.ndarray) -> float:
    """Return the largest bound over all numbers of guesses; `right` is True for members, in order of falling scores."""
    n = len(right)
    tries = [(k, both) for k in sorted({max(1, round(share * n)) for share in SHARES}) for both in (False, True)]
    level = (1 - CONFIDENCE) / len(tries)
    return max(_bound(*_guess(right, k, both=both), level) for k, both in tries)


def _guess(right: np.ndarray, k: int, *, both: bool) -> tuple[int, int]:
    """Return how many guesses are right, and how many there are."""
    top = int(right[:k].sum())
    if not both:
        return top, k
    k_low = min(k, len(right) - k)
    return top + int((~right[len(right) - k_low :]).sum()), k + k_low


def _bound(n_right: int, n_guesses: int, level: float) -> float:
    if n_right == 0:
        return 0.0
    share = float(beta.ppf(level, n_right, n_guesses - n_right + 1))
    return max(math.log(share / (1 - share)), 0.0)
