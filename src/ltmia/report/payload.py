"""Data for the page's script: the table of records and, if they were revealed, tokens; packed to stay small.

Numbers go as base64 of little-endian arrays, repeated strings as a list of distinct ones and indices into it. Any
string may be hostile: it is cut to a length a cell can hold, and nothing in the JSON can end the script element.
"""

import base64
import json
from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
from markupsafe import Markup

from ltmia.evaluation.token_bands import THIRDS, USUAL
from ltmia.report.words import CONTROL

MOST_RECORDS = 20_000
"""Largest number of records in the page; those with the highest scores are kept. Indices into them fit 16 bits."""
LONGEST_TEXT = 120
"""Characters of an id, group or reason in the page."""
LONGEST_TOKEN = 40
MILLI = 1000
"""Per-token numbers are kept in thousandths."""
SHARES = 65_534
"""Resolution of a share; the value above it says "not measured"."""
NO_SHARE = 255
"""Stands for a percentage of tokens that is not known."""


def page_data(records: pa.Table, tokens: pa.Table | None, attack: str) -> dict[str, Any]:
    """Return the data that the script reads.

    Args:
        records: Table of `records.parquet`.
        tokens: Table of `tokens.parquet`, only if the tokens were revealed: their numbers reveal the text.
        attack: The one that decided.
    """
    scores = records[f"score_{attack}"].to_numpy().astype(np.float64)
    rows = _shown_rows(scores)
    shown = records.take(pa.array(rows))
    return {
        "total": len(scores),
        "attack": attack,
        "id": [_cut(text, LONGEST_TEXT) for text in shown["id"].to_pylist()],
        "kind": _kinds(shown),
        "group": _distinct(shown["group"].to_pylist()),
        "reason": _distinct(shown["reason"].to_pylist()),
        "tokens": _packed(shown["n_tokens"].to_numpy(), "<u4"),
        "score": _packed(scores[rows], "<f4"),
        "p": _packed(shown["p_value"].to_numpy(), "<f4"),
        "q": _packed(shown["q_value"].to_numpy(), "<f4"),
        "flagged": "".join("1" if flag else "0" for flag in shown["flagged"].to_pylist()),
        "above": _shares_below(records, rows),
        "bands": _bands(shown),
        "strips": None if tokens is None else _strips(tokens, rows),
    }


def embedded_json(value: Any) -> Markup:
    """Return JSON that is safe inside a script element, even with hostile strings."""
    # ASCII only, so U+2028 and its like are escapes already.
    text = json.dumps(value, ensure_ascii=True, allow_nan=False, separators=(",", ":"))
    for character in "<>&":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return Markup(text)  # noqa: S704  escaped above


def _shown_rows(scores: np.ndarray) -> np.ndarray:
    if len(scores) <= MOST_RECORDS:
        return np.arange(len(scores))
    return np.sort(np.argsort(-np.nan_to_num(scores, nan=-np.inf), kind="stable")[:MOST_RECORDS])


def _kinds(records: pa.Table) -> str:
    """Write one letter per record: Member, Non-member, Candidate."""
    return "".join({1: "M", 0: "N"}.get(label, "C") for label in records["label"].to_pylist())


def _distinct(values: Sequence[str | None]) -> dict[str, Any]:
    """Number the distinct strings; 0 stands for none."""
    names = sorted({value for value in values if value is not None})
    number = {name: i for i, name in enumerate(names, 1)}
    index = np.array([0 if value is None else number[value] for value in values])
    return {"names": [_cut(name, LONGEST_TEXT) for name in names], "index": _packed(index, "<u2")}


def _shares_below(records: pa.Table, rows: np.ndarray) -> dict[str, str]:
    """Say for each attack and record which share of the non-members scores lower: alike for all attacks."""
    nonmember = np.array([label == 0 for label in records["label"].to_pylist()], np.bool_)
    packed = {}
    for name in records.column_names:
        attack = name.removeprefix("score_")
        if attack in (name, CONTROL):
            continue
        scores = records[name].to_numpy().astype(np.float64)
        known = np.sort(scores[nonmember & ~np.isnan(scores)])
        share = np.searchsorted(known, scores[rows], side="left") / max(len(known), 1)
        coded = np.where(np.isnan(scores[rows]) | (not len(known)), SHARES + 1, np.rint(share * SHARES))
        packed[attack] = _packed(coded, "<u2")
    return packed


def _bands(records: pa.Table) -> dict[str, Any]:
    """Lay out which percent of each record's tokens lies in each band, and its strongest third."""
    percent = np.array([records[column].to_numpy() for column in USUAL], np.float64)
    known = ((percent >= 0) & (percent <= 100)).all(axis=0)
    thirds = [third[0] if third in THIRDS else "-" for third in records["strongest_third"].to_pylist()]
    return {
        "usual": list(USUAL.values()),
        "percent": _packed(np.where(known, percent, NO_SHARE).T, "u1"),
        "third": "".join(thirds),
    }


def _strips(tokens: pa.Table, rows: np.ndarray) -> dict[str, Any]:
    """Lay out per-token numbers end to end, in thousandths."""
    place = {int(row): i for i, row in enumerate(rows)}
    kept = [i for i, row in enumerate(tokens["row"].to_pylist()) if row in place]
    tokens = tokens.take(pa.array(kept, pa.int64()))
    return {
        "records": [place[row] for row in tokens["row"].to_pylist()],
        "counts": [len(values) for values in tokens["difference"].to_pylist()],
        "difference": _thousandths(tokens["difference"]),
        "attribution": _thousandths(tokens["attribution"]) if "attribution" in tokens.column_names else None,
        "words": [[_cut(word, LONGEST_TOKEN) for word in words] for words in tokens["token"].to_pylist()],
    }


def _thousandths(lists: pa.ChunkedArray) -> str:
    values = np.array([v for part in lists.to_pylist() for v in part], np.float64)
    return _packed(np.clip(np.rint(np.nan_to_num(values) * MILLI), -32_000, 32_000), "<i2")


def _packed(values: np.ndarray, dtype: str) -> str:
    return base64.b64encode(np.ascontiguousarray(values, dtype=dtype).tobytes()).decode("ascii")


def _cut(text: str, longest: int) -> str:
    return text if len(text) <= longest else text[: longest - 1] + "…"
