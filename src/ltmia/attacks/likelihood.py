"""Attacks that read log-probabilities of one or both models: loss, zlib, difference, ratio, Min-K% and kin.

Every function returns a score that is higher for a more likely member, and NaN where nothing can be measured.
"""

import zlib as zlib_module

import numpy as np

from ltmia.attacks.evidence import TextEvidence

LOGP_FLOOR = -1000.0
"""An impossible token (-inf) counts as this log-probability, so that means stay ordered."""
SPREAD_FLOOR = 1e-6
"""Smallest standard deviation to divide by."""


def loss(evidence: TextEvidence) -> float:
    """Return the mean log-probability under the target (Yeom et al. 2018, arXiv 1709.01604)."""
    return _mean(_floored(evidence.tokens.target_logp))


def zlib(evidence: TextEvidence) -> float:
    """Return the mean log-probability over the compressed size in bytes (Carlini et al. 2021, arXiv 2012.07805)."""
    size = len(zlib_module.compress(evidence.text.encode("utf-8", "surrogatepass")))
    return loss(evidence) / size


def difference(evidence: TextEvidence) -> float:
    """Return the mean of D_t = log p_T - log p_R, the reference's mean loss minus the target's.

    LiRA with the pretrained model as its only reference is this same score (arXiv 2203.03929).
    """
    tokens = evidence.tokens
    return _mean(_floored(tokens.target_logp)) - _mean(_floored(tokens.reference_logp))


def ratio(evidence: TextEvidence) -> float:
    """Return minus the target's mean loss over the reference's."""
    reference = _mean(_floored(evidence.tokens.reference_logp))
    return -_mean(_floored(evidence.tokens.target_logp)) / reference if reference else np.nan


def min_k(evidence: TextEvidence, fraction: float = 0.2) -> float:
    """Return the mean of the lowest `fraction` of the log-probabilities, at least one (arXiv 2310.16789)."""
    return _mean_of_lowest(_floored(evidence.tokens.target_logp), fraction)


def min_k_plus_plus(evidence: TextEvidence, fraction: float = 0.2) -> float:
    """Return Min-K% of log-probabilities standardised by their own distribution (arXiv 2404.02936).

    z_t = (log p(x_t) - mu_t) / sigma_t, with mu_t and sigma_t the mean and standard deviation of log p under p.
    """
    tokens = evidence.tokens
    spread = np.maximum(tokens.target_spread, SPREAD_FLOOR)
    return _mean_of_lowest((_floored(tokens.target_logp) + tokens.target_entropy) / spread, fraction)


def dc_pdd(evidence: TextEvidence, ceiling: float = 0.01) -> float:
    """Return the mean of min(p(x_t) log(1 / f(x_t)), ceiling) over first occurrences (Zhang et al., EMNLP 2024).

    f is the smoothed frequency of a token among all texts of the audit; the paper counts an outside corpus.
    """
    _, first = np.unique(evidence.token_ids, return_index=True)
    p = np.exp(evidence.tokens.target_logp[first].astype(np.float64))
    surprise = -evidence.token_frequencies.log_frequency[evidence.token_ids[first]]
    return _mean(np.minimum(p * surprise, ceiling))


def surp(evidence: TextEvidence, fraction: float = 0.4, entropy_below: float = 2.0) -> float:
    """Return the mean log-probability of surprising tokens at confident positions (SURP, arXiv 2405.11930).

    Those in the lowest `fraction` of the text's log-probabilities where the target's entropy is below
    `entropy_below` nats. A text without such a token holds no surprise at all: 0, the highest score.
    """
    logp = _floored(evidence.tokens.target_logp)
    if not len(logp) or np.isnan(logp).any():
        return np.nan
    chosen = (logp <= np.quantile(logp, fraction)) & (evidence.tokens.target_entropy < entropy_below)
    return _mean(logp[chosen]) if chosen.any() else 0.0


def gap_k(evidence: TextEvidence, fraction: float = 0.2, window: int = 6) -> float:
    """Return the mean of the lowest windowed gaps log p(x_t) - max_v log p(v) (after Gap-K%, arXiv 2601.19936).

    Only the abstract's description could be followed: the gap between the most likely and the true token, averaged
    in sliding windows, the lowest share of windows kept. Compare with care.
    """
    tokens = evidence.tokens
    gaps = _floored(tokens.target_logp) - tokens.top_logp[:, 0]
    if not len(gaps):
        return np.nan
    width = min(window, len(gaps))
    return _mean_of_lowest(np.convolve(gaps, np.full(width, 1 / width), "valid"), fraction)


def _floored(logp: np.ndarray) -> np.ndarray:
    return np.maximum(logp.astype(np.float64), LOGP_FLOOR)


def _mean(values: np.ndarray) -> float:
    return float(values.mean()) if len(values) else np.nan


def _mean_of_lowest(values: np.ndarray, fraction: float) -> float:
    """Mean of the lowest max(1, int(fraction * T)) values; a short text still has its lowest one."""
    if np.isnan(values).any():
        return np.nan
    return _mean(np.sort(values)[: max(1, int(fraction * len(values)))])
