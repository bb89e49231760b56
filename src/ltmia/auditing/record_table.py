"""The columns of `records.parquet`: one row per text, in input order."""

import hmac
from collections.abc import Mapping
from hashlib import sha256
from typing import Any

import numpy as np
import pyarrow as pa

from ltmia.auditing.group_table import names_of_groups
from ltmia.auditing.text_sets import TextSets
from ltmia.auditing.token_shares import share_columns
from ltmia.evaluation.calibration import AuditDecisions
from ltmia.records import Texts
from ltmia.scoring.stored_scores import ScoredTexts


def published_ids(texts: Texts, salt: bytes) -> list[str]:
    """Return the ids that go into the records: the user's own unchanged, others made with the salt.

    Args:
        texts: What is audited.
        salt: Random bytes from the private folder. Nobody can check a guess at a text against an id without them.
    """
    return [_salted(salt, "text", name)[:16] if name in texts.made_ids else name for name in texts.ids]


def hashed_groups(data: TextSets, salt: bytes) -> list[str | None]:
    """Return the salted hash of each text's group; None without groups."""
    groups = data.texts.groups or (None,) * len(data.texts)
    return [None if group is None else _salted(salt, "group", group)[:12] for group in groups]


def _salted(salt: bytes, kind: str, name: str) -> str:
    return hmac.new(salt, f"{kind}:{name}".encode("utf-8", "surrogatepass"), sha256).hexdigest()


def flagged_hashes(data: TextSets, hashed: list[str | None], decisions: AuditDecisions) -> list[str] | None:
    """Return the hashes of the groups flagged as a whole; None without groups."""
    if decisions.groups is None:
        return None
    names = names_of_groups(data, hashed)
    return sorted(names[number] for number in decisions.groups.flagged.tolist())


def record_columns(
    data: TextSets,
    scored: ScoredTexts,
    scores: Mapping[str, np.ndarray],
    decisions: AuditDecisions,
    ids: list[str],
    groups: list[str | None],
) -> dict[str, Any]:
    """Return the columns of records.parquet; texts to judge come first."""
    p_values, q_values = (np.full(len(data.texts), np.nan) for _ in range(2))
    flagged = np.zeros(len(data.texts), np.bool_)
    held_out = data.n_judged + decisions.held_out_rows
    for rows, part in (
        (np.arange(data.n_judged), decisions.members),
        (held_out, decisions.held_out),
    ):
        p_values[rows], q_values[rows], flagged[rows] = part.p_values, part.q_values, part.flagged
    # A repeat shares the decision on the first of its kind.
    p_values, q_values, flagged = (values[data.originals] for values in (p_values, q_values, flagged))
    return {
        "id": ids,
        "label": pa.array(data.labels, pa.int64()),
        "group": pa.array(groups, pa.string()),
        "n_tokens": scored.n_tokens,
        **{f"score_{name}": values for name, values in scores.items()},
        "p_value": p_values,
        "q_value": q_values,
        "flagged": flagged,
        "reason": pa.array(list(scored.reasons), pa.string()),
        **share_columns(scored, np.arange(data.n_judged, len(data.texts))),
    }
