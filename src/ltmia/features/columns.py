"""The columns of each feature version, by name and in order.

`published` is the form of the LT-MIA paper (arXiv 2604.03199), 7k + 14 columns, for comparison with its figures.
`logratio` is ours: only log-probabilities and their ratios. It does not depend on a constant added to all logits, on
the tail of the vocabulary, or on k for its width. `excess` adds the log-ratio expected from other texts, see
`expectation`. `lite` has the columns that remain if a server gives only log-probabilities
and ranks of the true token and of the few most likely ones.
"""

from collections.abc import Mapping

from ltmia.errors import ConfigError

DEFAULT_K = 20
"""Top and bottom tokens kept per position, as published."""

LOGRATIO_TOP = 3
"""Top tokens that `logratio` describes one by one; the others enter as mean and standard deviation."""


def published_columns(k: int) -> tuple[str, ...]:
    """Return the names of the published form's columns: truth, head, tail, loss, sequence."""
    truth = ["target_logit_truth", "reference_logit_truth", "target_rank", "reference_rank"]
    head = [
        f"{name}_{i}"
        for i in range(1, k + 1)
        for name in (
            "top_target_logit",
            "top_reference_logit",
            "top_reference_rank",
            "reference_top_target_rank",
        )
    ]
    tail = [
        f"{name}_{i}"
        for i in range(1, k + 1)
        for name in ("bottom_target_logit", "bottom_reference_logit", "bottom_reference_rank")
    ]
    loss = ["target_loss", "reference_loss", "loss_difference"]
    sequence = [f"{statistic}_{name}" for name in loss for statistic in ("mean", "std")] + ["sum_loss_difference"]
    return (*truth, *head, *tail, *loss, *sequence)


LOGRATIO_COLUMNS = (
    "target_logp",
    "reference_logp",
    "log_ratio",
    "log_ratio_tanh",
    "log_ratio_tanh4",
    "log_ratio_asinh",
    "target_rank",
    "reference_rank",
    "rank_gain",
    "target_p",
    "reference_p",
    "p_gain",
    "target_hit",
    "reference_hit",
    "target_entropy",
    "reference_entropy",
    "entropy_gain",
    "target_surprise",
    "reference_surprise",
    "surprise_gain",
    "divergence",
    "reverse_divergence",
    "target_ratio_spread",
    "reference_ratio_spread",
    "ratio_surprise_target",
    "ratio_surprise_reference",
    "log_ratio_scaled",
    "target_top_gap",
    "reference_top_gap",
    *(f"top_log_ratio_{i}" for i in range(1, LOGRATIO_TOP + 1)),
    "top_log_ratio_mean",
    "top_log_ratio_spread",
    *(f"top_reference_rank_{i}" for i in range(1, LOGRATIO_TOP)),
    *(f"reference_top_target_rank_{i}" for i in range(1, LOGRATIO_TOP)),
)

EXPECTATION_COLUMNS = (
    "excess",
    "excess_tanh",
    "excess_tanh3",
    "expected_log_ratio",
    "token_count",
    "pair_count",
)

EXCESS_COLUMNS = (*LOGRATIO_COLUMNS, *EXPECTATION_COLUMNS)

LITE_TOP = 3
"""The target's most likely tokens whose log-probabilities `lite` reads."""

LITE_COLUMNS = (
    *LOGRATIO_COLUMNS[: LOGRATIO_COLUMNS.index("target_entropy")],
    "target_top_gap",
    "reference_top_gap",
    *(f"target_top_logp_{i}" for i in range(1, LITE_TOP + 1)),
    "reference_top_logp",
    *EXPECTATION_COLUMNS,
)

_FULL_INPUTS = (
    "reference_logp",
    "reference_rank",
    "reference_hit",
    "reference_entropy",
    "reference_surprise",
    "reference_ratio_spread",
    "reference_top_gap",
    "divergence",
    "reverse_divergence",
    "top_log_ratio_mean",
    "top_log_ratio_spread",
    *(f"top_log_ratio_{i}" for i in range(1, LOGRATIO_TOP + 1)),
    *(f"top_reference_rank_{i}" for i in range(1, LOGRATIO_TOP)),
    *(f"reference_top_target_rank_{i}" for i in range(1, LOGRATIO_TOP)),
)
_LITE_INPUTS = ("reference_logp", "reference_rank", "reference_hit", "reference_top_gap")

EXPECTATIONS: Mapping[str, tuple[str, ...]] = {"full": _FULL_INPUTS, "lite": _LITE_INPUTS}
"""Columns that the expected log-ratio is learned from, by kind of expectation. None of them
reveals the target's log-probability of the true token, which would reveal D_t; `lite` reads nothing of the target."""

FEATURE_VERSIONS = ("published", "logratio", "excess", "lite")


def expectation_of(version: str) -> str:
    """Return the kind of expectation that goes with a feature version; some read it in their hand-made attacks only."""
    return "lite" if version == "lite" else "full"


def reads_recordings(version: str) -> bool:
    """Say whether recorded log-probabilities (`ltmia.records.SERVED`) suffice for features of a version."""
    return version == "lite"


def needs_expectation(version: str) -> bool:
    """Say whether features of a version cannot be made without an expectation."""
    return version in ("excess", "lite")


def feature_columns(version: str, k: int = DEFAULT_K) -> tuple[str, ...]:
    """Return the column names of a feature version.

    Raises:
        ConfigError: If there is no such version.
    """
    if version == "published":
        return published_columns(k)
    if version == "logratio":
        return LOGRATIO_COLUMNS
    if version == "excess":
        return EXCESS_COLUMNS
    if version == "lite":
        return LITE_COLUMNS
    raise ConfigError(f"unknown feature version {version!r}; available: {', '.join(FEATURE_VERSIONS)}")
