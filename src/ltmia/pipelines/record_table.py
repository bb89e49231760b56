"""The columns of `records.parquet`: one row per text, in input order."""

import secrets
from hashlib import sha256
from typing import Any

import numpy as np
import pyarrow as pa

from ltmia.evaluation.calibration import AuditDecisions
from ltmia.pipelines.labelled import LabelledTexts
from ltmia.pipelines.scoring import ScoredTexts


def record_columns(
    data: LabelledTexts,
    scored: ScoredTexts,
    scores: dict[str, np.ndarray],
    decisions: AuditDecisions,
) -> dict[str, Any]:
    """Lay out records.parquet; groups are hashed with a salt that is thrown away, so that they cannot be looked up."""
    p_values, q_values = (np.full(len(data.texts), np.nan) for _ in range(2))
    flagged = np.zeros(len(data.texts), np.bool_)
    held_out = data.n_members + decisions.held_out_rows
    for rows, part in (
        (np.arange(data.n_members), decisions.members),
        (held_out, decisions.held_out),
    ):
        p_values[rows], q_values[rows], flagged[rows] = part.p_values, part.q_values, part.flagged
    salt = secrets.token_bytes(16)
    groups = data.texts.groups or (None,) * len(data.texts)
    hashed = [None if g is None else sha256(salt + g.encode()).hexdigest()[:12] for g in groups]
    return {
        "id": list(data.texts.ids),
        "label": data.labels,
        "group": pa.array(hashed, pa.string()),
        "n_tokens": scored.n_tokens,
        **{f"score_{name}": values for name, values in scores.items()},
        "p_value": p_values,
        "q_value": q_values,
        "flagged": flagged,
        "reason": pa.array(list(scored.reasons), pa.string()),
    }


def clean_text(text: str) -> str:
    """Return a text as UTF-8 can hold it: a lone surrogate becomes "?"."""
    return text.encode("utf-8", "replace").decode("utf-8")
