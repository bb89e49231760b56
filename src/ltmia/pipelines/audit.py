"""The audit: score members and non-members with every attack, measure, decide, check, and write it all down."""

import secrets
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from hashlib import sha256
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from jaxtyping import Int64

from ltmia.attacks.table import ATTACKS, CONTROL, LEARNED, fast_attacks, select_attacks
from ltmia.classifier.combinations import SUMMARY_SCORES
from ltmia.classifier.membership import MembershipClassifier, shipped_classifier
from ltmia.data.duplicates import compare_sets, kept_rows
from ltmia.data.reading import content_id
from ltmia.errors import ConfigError, DataError
from ltmia.evaluation.calibration import AuditDecisions, judge_audit
from ltmia.evaluation.controls import bag_of_words
from ltmia.evaluation.files import write_records, write_results
from ltmia.evaluation.intervals import measure_attack
from ltmia.evaluation.results import DataInfo, Results, Timing
from ltmia.evaluation.set_test import collection_test
from ltmia.evaluation.validity import verdict
from ltmia.lm.pair import Pair
from ltmia.pipelines.checks import Findings, check_validity
from ltmia.pipelines.extraction import ExtractionConfig
from ltmia.pipelines.identity import PairIdentity
from ltmia.pipelines.scoring import ScoredTexts, score_to_store
from ltmia.pipelines.storing import Report, silent
from ltmia.records import Texts
from ltmia.report.page import write_report
from ltmia.runtime import environment


@dataclass(frozen=True, slots=True, kw_only=True)
class AuditConfig:
    """What decides the numbers of an audit."""

    attacks: str = "fast"
    """"fast", or names with commas."""
    classifier: str | None = None
    """Folder or hub id; the shipped one when None."""
    fdr: float = 0.05
    """False discovery rate to flag records at."""
    max_length: int = 128
    """Tokens read of each text."""
    batch_size: int = 16
    """Texts of full length per forward pass."""
    seed: int = 0
    """Of resampling, folds and calibration split."""
    deduplicate: bool = False
    """Leave out repeats within and across the two sets."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AuditResult:
    """What an audit found, and where it is written."""

    results: Results
    records: pa.Table
    folder: Path


@dataclass(frozen=True, slots=True, kw_only=True)
class LabelledTexts:
    """Members first, then non-members."""

    texts: Texts
    n_members: int
    groups: Int64[np.ndarray, " texts"] | None

    @property
    def labels(self) -> Int64[np.ndarray, " texts"]:
        """1 for members, 0 for non-members."""
        return np.repeat([1, 0], [self.n_members, len(self.texts) - self.n_members])


def audit(
    pair: Pair,
    members: Texts | Sequence[str],
    nonmembers: Texts | Sequence[str],
    out: Path | str,
    *,
    config: AuditConfig | None = None,
    report: Report = silent,
    command: str | None = None,
) -> AuditResult:
    """Audit a fine-tuned model: which of its training texts can be told from texts it never saw?

    Re-running with the same models, texts and options resumes. Writes `results.json`, `records.parquet`,
    `report.html` and `store/` into `out`.

    Args:
        pair: Target and reference.
        members: Texts the target was fine-tuned on.
        nonmembers: Texts of the same kind that it never saw.
        out: Folder for the results.
        config: What decides the numbers.
        report: Told the progress.
        command: Command line to write down; this process's when None.

    Raises:
        DataError: If there are no texts at all.
        ConfigError: If an attack is unknown.
    """
    started = time.perf_counter()
    config = config or AuditConfig()
    folder = Path(out)
    folder.mkdir(parents=True, exist_ok=True)
    names = select_attacks(config.attacks)
    data = _labelled(as_texts(members), as_texts(nonmembers), config.deduplicate)
    classifier = _classifier(config.classifier) if LEARNED in names else None
    identity = PairIdentity.of(pair)
    scored = score_to_store(
        pair,
        data.texts,
        folder / "store",
        _extraction(config, names),
        identity=identity,
        classifier=classifier,
        report=report,
    )
    scores = {name: scored.scores[name] for name in names if name in scored.scores}
    control = bag_of_words(data.texts.texts, data.labels, data.groups, config.seed)
    scores[CONTROL] = control.scores
    measured = {
        name: measure_attack(*_by_label(values, data), **_groups_by_label(data), seed=config.seed)
        for name, values in scores.items()
    }
    judge = LEARNED if LEARNED in scores else next(iter(scores))
    decisions = judge_audit(
        *_by_label(scores[judge], data),
        attack=judge,
        fdr=config.fdr,
        nonmember_groups=None if data.groups is None else data.groups[data.n_members :],
        seed=config.seed,
    )
    members_scores, nonmember_scores = _by_label(scores[judge], data)
    groups = _groups_by_label(data)
    set_test = collection_test(
        members_scores,
        nonmember_scores,
        candidate_groups=groups["member_groups"],
        nonmember_groups=groups["nonmember_groups"],
        seed=config.seed,
    )
    found = Findings(
        control=control,
        blind=measured[CONTROL].auc,
        judge=scores[judge],
        smallest_p=decisions.summary.smallest_p,
    )
    validity = check_validity(pair, data, scored, found, classifier=classifier, config=config)
    seconds = time.perf_counter() - started
    results = Results(
        ltmia_version=version("ltmia"),
        kind="audit",
        created=datetime.now(UTC),
        command=command or " ".join(sys.argv),
        settings=asdict(config),
        environment=environment(),
        target=identity.target,
        reference=identity.reference,
        tokenizer=identity.tokenizer,
        data=_data_info(data, scored),
        attacks=measured,
        decisions=decisions.summary,
        set_test=set_test,
        validity=validity,
        verdict=verdict(judge, measured[judge], decisions.summary, validity.blind),
        timing=_timing(seconds, data, scored),
    )
    records = write_records(_record_columns(data, scored, scores, decisions), folder)
    write_results(results, folder)
    write_report(folder)
    return AuditResult(results=results, records=records, folder=folder)


def as_texts(texts: Texts | Sequence[str]) -> Texts:
    """Take plain strings as texts with ids made from their content."""
    if isinstance(texts, Texts):
        return texts
    ids = [f"{content_id(text)}-{i}" for i, text in enumerate(texts)]
    return Texts(texts=tuple(texts), ids=tuple(ids))


def _labelled(members: Texts, nonmembers: Texts, deduplicate: bool) -> LabelledTexts:
    if not len(members) and not len(nonmembers):
        raise DataError("neither members nor non-members were given: nothing to audit")
    if deduplicate:
        kept = kept_rows(compare_sets(members.texts, nonmembers.texts))
        members, nonmembers = members.take(kept.members), nonmembers.take(kept.nonmembers)
    groups = None
    if members.groups is not None and nonmembers.groups is not None:
        _, groups = np.unique([*members.groups, *nonmembers.groups], return_inverse=True)
    texts = Texts(
        texts=members.texts + nonmembers.texts,
        ids=members.ids + nonmembers.ids,
        groups=None if groups is None else (*(members.groups or ()), *(nonmembers.groups or ())),
        source=f"{members.source}, {nonmembers.source}",
    )
    return LabelledTexts(texts=texts, n_members=len(members), groups=groups)


def _classifier(source: str | None) -> MembershipClassifier:
    return shipped_classifier() if source is None else MembershipClassifier.from_pretrained(source)


def _extraction(config: AuditConfig, names: Sequence[str]) -> ExtractionConfig:
    """Ask the shared pass for the attacks wanted, and for those the classifier leans on."""
    slow = [name for name in names if ATTACKS[name].group == "slow"]
    if slow:
        raise ConfigError(
            f"{', '.join(slow)}: attacks that need passes of their own are not part of an audit yet; use --attacks fast"
        )
    needed = set(names) | (set(SUMMARY_SCORES) if LEARNED in names else set())
    return ExtractionConfig(
        attacks=fast_attacks([name for name in ATTACKS if name in needed]),
        max_length=config.max_length,
        batch_size=config.batch_size,
    )


def _by_label(scores: np.ndarray, data: LabelledTexts) -> tuple[np.ndarray, np.ndarray]:
    return scores[: data.n_members], scores[data.n_members :]


def _groups_by_label(data: LabelledTexts) -> dict[str, Any]:
    if data.groups is None:
        return {"member_groups": None, "nonmember_groups": None}
    members, nonmembers = _by_label(data.groups, data)
    return {"member_groups": members, "nonmember_groups": nonmembers}


def _data_info(data: LabelledTexts, scored: ScoredTexts) -> DataInfo:
    return DataInfo(
        n_members=data.n_members,
        n_nonmembers=len(data.texts) - data.n_members,
        n_unscorable=sum(reason is not None for reason in scored.reasons),
        n_groups=None if data.groups is None else len(np.unique(data.groups)),
    )


def _timing(seconds: float, data: LabelledTexts, scored: ScoredTexts) -> Timing:
    return Timing(
        seconds=seconds,
        texts_per_second=len(data.texts) / seconds,
        forward_seconds=scored.clock.forward.seconds,
        feature_seconds=scored.clock.feature_seconds,
    )


def _record_columns(
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
