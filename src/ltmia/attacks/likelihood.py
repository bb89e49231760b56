"""Attacks that read log-probabilities of one or both models: loss, zlib, difference, ratio, Min-K% and others.

Every function returns a score that is higher for a more likely member, and NaN where nothing can be measured.
"""

import zlib as zlib_module

import numpy as np

from ltmia.attacks.evidence import TextEvidence, reads

SPREAD_FLOOR = 1e-4
"""Smallest standard deviation of log p to divide by, in nats; as in the published Gap-K% code."""


@reads("target_logp")
def loss(evidence: TextEvidence) -> float:
    """Return the mean log-probability under the target (Yeom et al. 2018, arXiv 1709.01604)."""
    return float(evidence.target_logp.mean())


@reads("target_logp", "text")
def zlib(evidence: TextEvidence) -> float:
    """Return the mean log-probability over the compressed size in bytes (Carlini et al. 2021, arXiv 2012.07805)."""
    size = len(zlib_module.compress(evidence.text.encode("utf-8", "surrogatepass")))
    return float(evidence.target_logp.mean()) / size


@reads("target_logp", "reference_logp")
def difference(evidence: TextEvidence) -> float:
    """Return the mean of D_t = log p_T - log p_R, the reference's mean loss minus the target's.

    LiRA with the pretrained model as its only reference is this same score (arXiv 2203.03929).
    """
    return float(evidence.log_ratio.mean())


@reads("target_logp", "reference_logp")
def ratio(evidence: TextEvidence) -> float:
    """Return minus (mean loss of the target / mean loss of the reference); NaN if the reference's loss is zero."""
    reference = float(evidence.reference_logp.mean())
    return -float(evidence.target_logp.mean()) / reference if reference else np.nan


@reads("target_logp")
def min_k(evidence: TextEvidence, fraction: float = 0.2) -> float:
    """Return the mean of the lowest `fraction` of the log-probabilities, at least one (arXiv 2310.16789)."""
    return _mean_of_lowest(evidence.target_logp, fraction)


@reads("target_logp", "target_entropy", "target_spread")
def min_k_plus_plus(evidence: TextEvidence, fraction: float = 0.2) -> float:
    """Return Min-K% of log-probabilities standardised by their own distribution (arXiv 2404.02936).

    z_t = (log p(x_t) - mu_t) / sigma_t, with mu_t and sigma_t the mean and standard deviation of log p under p, the
    target's own next-token distribution. mu_t is minus the entropy.
    """
    surplus = evidence.target_logp + evidence.tokens.target_entropy
    return _mean_of_lowest(surplus / _spread(evidence), fraction)


@reads("target_logp")
def dc_pdd(evidence: TextEvidence, ceiling: float = 0.01) -> float:
    """Return the mean of min(p(x_t) log(1 / f(x_t)), ceiling) over first occurrences (Zhang et al., EMNLP 2024).

    f is the smoothed frequency of a token among all texts of the audit; the paper counts an outside corpus.
    """
    _, first = np.unique(evidence.token_ids, return_index=True)
    # exp(-inf) is exactly 0, so no floor is needed here.
    probability = np.exp(evidence.tokens.target_logp[first].astype(np.float64))
    rarity = -evidence.token_frequencies.log_frequency[evidence.token_ids[first]]
    return float(np.minimum(probability * rarity, ceiling).mean())


@reads("target_logp", "target_entropy")
def surp(evidence: TextEvidence, fraction: float = 0.4, entropy_below: float = 2.0) -> float:
    """Return the mean log-probability of tokens the target got wrong with confidence (SURP, arXiv 2407.21248).

    These tokens are among the lowest `fraction` of the text's log-probabilities (at least one, ties included), at
    positions where the target's entropy is below `entropy_below` nats. NaN for a text without such a token.
    """
    logp = evidence.target_logp
    highest = np.sort(logp)[_n_lowest(len(logp), fraction) - 1]
    chosen = (logp <= highest) & (evidence.tokens.target_entropy < entropy_below)
    return float(logp[chosen].mean()) if chosen.any() else np.nan


@reads("target_logp", "top_logp", "target_spread")
def gap_k(evidence: TextEvidence, fraction: float = 0.2, window: int = 3) -> float:
    """Return the mean of the lowest windowed gaps to the most likely token (Gap-K%, arXiv 2601.19936).

    g_t = (log p(x_t) - max_v log p(v)) / sigma_t, with sigma_t as in Min-K%++, averaged in sliding windows; the lowest
    `fraction` of the windows counts. A text shorter than the window is not smoothed. The formula is
    that of the authors' project page; window, fraction and rule for short texts are those of their code for WikiMIA.
    """
    gaps = (evidence.target_logp - evidence.tokens.top_logp[:, 0]) / _spread(evidence)
    if len(gaps) >= window:
        gaps = np.convolve(gaps, np.full(window, 1 / window), "valid")
    return _mean_of_lowest(gaps, fraction)


def _spread(evidence: TextEvidence) -> np.ndarray:
    return np.maximum(evidence.tokens.target_spread.astype(np.float64), SPREAD_FLOOR)


def _n_lowest(n: int, fraction: float) -> int:
    """Count the lowest `fraction` of n values; a short text still has its lowest one."""
    return max(1, int(fraction * n))


def _mean_of_lowest(values: np.ndarray, fraction: float) -> float:
    return float(np.sort(values)[: _n_lowest(len(values), fraction)].mean())
