"""docs/features.md against the code: every column of every feature version, in order, with its formula."""

import re
from pathlib import Path

import numpy as np
import pytest

from ltmia.features.columns import FEATURE_VERSIONS, feature_columns
from ltmia.features.per_token import per_token_features
from ltmia.features.store import FeatureStore
from ltmia.records import Expectation, TokenStatistics

PAGE = (Path(__file__).parents[2] / "docs" / "features.md").read_text("utf-8")
ROW = re.compile(r"^\| `(\w+?)(?:_\{i\}`, i = 1 to (\w+)|`) \| `(.+?)` \|", re.M)
K = 20


def table(version: str) -> dict[str, tuple[str, int | None]]:
    """Every column that the page describes: its formula, and the i it stands for."""
    section = PAGE.split(f"\n## `{version}`\n")[1].split("\n## ")[0]
    described: dict[str, tuple[str, int | None]] = {}
    rows = ROW.findall(section)
    assert len(rows) == section.count("\n| `"), "a row that is not read"
    for name, last, formula in rows:
        numbers = range(1, (K if last == "k" else int(last)) + 1) if last else [None]
        for i in numbers:
            described[name if i is None else f"{name}_{i}"] = (formula, i)
    return described


def names(tokens: TokenStatistics, vocab_size: int) -> dict[str, object]:
    """What the page says that the names in its formulas are."""

    def limited(ratio: np.ndarray) -> np.ndarray:
        return np.clip(ratio, -30, 30)

    def std(values: np.ndarray) -> float:
        return float(np.sqrt(values.var() + 1e-6))

    return {
        "__builtins__": {},
        "lT": np.maximum(tokens.target_logp, -30),
        "lR": np.maximum(tokens.reference_logp, -30),
        "lT_exact": tokens.target_logp,
        "lR_exact": tokens.reference_logp,
        "D": limited(tokens.log_ratio),
        "D_exact": tokens.log_ratio,
        "rT": tokens.target_rank,
        "rR": tokens.reference_rank,
        "hT": tokens.target_entropy,
        "hR": tokens.reference_entropy,
        "sT": tokens.target_spread,
        "sR": tokens.reference_spread,
        "KL": tokens.divergence,
        "LK": tokens.reverse_divergence,
        "uT": tokens.target_ratio_spread,
        "uR": tokens.reference_ratio_spread,
        "gap": tokens.normalizer_gap,
        "top_lT": _from_one(tokens.top_logp),
        "bestT": tokens.top_logp[:, 0],
        "bestR": tokens.reference_top_logp,
        "top_D": _from_one(limited(tokens.top_log_ratio)),
        "low_D": _from_one(limited(tokens.bottom_log_ratio)),
        "top_rank": _from_one(tokens.top_reference_rank),
        "low_rank": _from_one(tokens.bottom_reference_rank),
        "other_rank": _from_one(tokens.reference_top_target_rank),
        "logrank": lambda rank: np.log(1 + rank) / np.log(vocab_size + 1),
        "z": lambda x, mean, spread: np.clip((x - mean) / np.maximum(spread, 0.001), -20, 20),
        "mean": np.mean,
        "std": std,
        "sum": np.sum,
        "mean_top": lambda block: block[1:].mean(axis=0),
        "std_top": lambda block: block[1:].std(axis=0),
        "min": np.minimum,
        "max": np.maximum,
        "exp": np.exp,
        "sqrt": np.sqrt,
        "tanh": np.tanh,
        "asinh": np.arcsinh,
    }


def expected(expectation: Expectation) -> dict[str, object]:
    """What the page says of what other texts tell."""
    return {
        "E": expectation.log_ratio,
        "spread": expectation.spread,
        "n_token": expectation.token_count,
        "n_pair": expectation.pair_count,
        "limit20": lambda value: np.clip(value, -20, 20),
        "log": np.log,
    }


def _from_one(block: np.ndarray) -> np.ndarray:
    """Turn (pred, k) into k columns counted from 1; there is no column 0."""
    return np.concatenate([np.full((1, len(block)), np.nan), block.T])


def test_every_feature_version_has_its_table() -> None:
    assert re.findall(r"^## `(\w+)`$", PAGE, re.M) == sorted(FEATURE_VERSIONS)


@pytest.mark.parametrize("version", FEATURE_VERSIONS)
def test_every_column_is_described_by_the_formula_it_has(version: str, materials: Path) -> None:
    described = table("logratio") | table(version) if version == "excess" else table(version)
    columns = feature_columns(version, K)
    assert sorted(described) == sorted(columns)
    if version != "published":
        assert tuple(described) == columns
    store = FeatureStore(materials / "audit" / "private" / "store")
    for row in (0, 70, 150):
        text = store.statistics([row])
        tokens = text.tokens
        values = per_token_features(text, version=version).values[0]
        assert len(values) == len(tokens) > 20
        assert text.expectation is not None
        known = names(tokens, text.vocab_size) | expected(text.expectation)
        for column, (formula, i) in described.items():
            said = np.broadcast_to(eval(formula, known, {"i": i}), len(tokens)).astype(np.float64)
            got = values[:, columns.index(column)]
            np.testing.assert_allclose(said, got, rtol=1e-4, atol=1e-5, err_msg=f"{column}: {formula}")
