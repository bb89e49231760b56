"""The audit: score members and non-members with every attack, measure, decide, check, and write it all down."""

import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pyarrow as pa
from matplotlib.axes import Axes

from ltmia.attacks.multi_pass import SHOTS, Shots
from ltmia.attacks.table import CONTROL, LEARNED, select_attacks
from ltmia.audit.checks import Findings, check_validity
from ltmia.audit.labelled import LabelledTexts, as_texts, label_texts
from ltmia.audit.record_table import clean_text, flagged_hashes, hashed_groups, record_columns
from ltmia.audit.token_table import token_columns
from ltmia.classifier.membership import chosen_classifier
from ltmia.evaluation.calibration import AuditDecisions, judge_audit
from ltmia.evaluation.controls import ControlScores, bag_of_words
from ltmia.evaluation.epsilon import epsilon_lower_bound
from ltmia.evaluation.files import write_records, write_results, write_tokens
from ltmia.evaluation.intervals import measure_attack
from ltmia.evaluation.results import AttackResult, DataInfo, Results, SetTest, Timing
from ltmia.evaluation.set_test import collection_test
from ltmia.evaluation.verdict import verdict
from ltmia.features.store import FeatureStore
from ltmia.folders import hold_folder
from ltmia.models.batching import BatchSize
from ltmia.models.pair import Pair
from ltmia.progress import Report, silent
from ltmia.records import Texts
from ltmia.report.notebook import results_html, roc_axes
from ltmia.report.page import write_report
from ltmia.runtime import environment
from ltmia.scoring.audited_pair import AuditedPair, audited
from ltmia.scoring.multi_pass import ProbingConfig, probe_texts
from ltmia.scoring.stored_scores import ScoredTexts, extraction_config, score_to_store

SHOTS_DRAWN = 5 * SHOTS
"""Texts of each kind that may become shots; those too long for the models are passed over."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AuditConfig:
    """What decides the numbers of an audit."""

    attacks: str = "fast"
    """"fast", "recorded", "all", or names with commas."""
    classifier: str | None = None
    """"full" or "lite", which come along, a folder or a hub id; full when None."""
    fdr: float = 0.05
    """False discovery rate to flag records at."""
    max_length: int = 128
    """Tokens read of each text."""
    batch_size: BatchSize = 16
    """Texts of full length per forward pass."""
    seed: int = 0
    """Of resampling, folds and calibration split."""
    deduplicate: bool = False
    """Leave out repeats within and across the two sets."""
    reveal: bool = False
    """Write the texts and their tokens into the records and the report."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AuditResult:
    """What an audit found, and where it is written."""

    results: Results
    records: pa.Table
    folder: Path

    def plot_roc(self, axes: Axes | None = None) -> Axes:
        """Draw the ROC curves of the strongest attacks and the control, both axes logarithmic; return the axes.

        Raises:
            DataError: If membership is not known, as after `score`.
        """
        return roc_axes(self.results, self.records, axes)

    def _repr_html_(self) -> str:
        return results_html(self.results, self.folder)


def audit(
    pair: Pair | AuditedPair,
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
    `tokens.parquet`, `report.html` and `store/` into `out`.

    Args:
        pair: Target and reference, by `load_pair` or `load_recorded_pair`.
        members: Texts the target was fine-tuned on.
        nonmembers: Texts of the same kind that it never saw.
        out: Folder for the results.
        config: What decides the numbers.
        report: Told the progress.
        command: Command line to write down; this process's when None.

    Raises:
        DataError: If there are no texts at all.
        ConfigError: If an attack is unknown, or recordings hold too little for it, or another run is at work in `out`.
    """
    with hold_folder(Path(out)):
        return _audit(
            audited(pair), as_texts(members), as_texts(nonmembers), Path(out), config or AuditConfig(), report, command
        )


def _audit(
    pair: AuditedPair,
    members: Texts,
    nonmembers: Texts,
    folder: Path,
    config: AuditConfig,
    report: Report,
    command: str | None,
) -> AuditResult:
    started = time.perf_counter()
    names = select_attacks(config.attacks)
    data = label_texts(members, nonmembers, config.deduplicate)
    classifier = chosen_classifier(config.classifier) if LEARNED in names else None
    pair.refuse(names, None if classifier is None else classifier.feature_version, reveal=config.reveal)
    identity = pair.identity()
    scored = score_to_store(
        pair,
        data.texts,
        folder / "store",
        extraction_config(names, classifier, max_length=config.max_length, batch_size=config.batch_size, k=pair.k),
        identity=identity,
        classifier=classifier,
        report=report,
    )
    probed = {} if pair.models is None else _probe(pair.models, data, names, config, scored.store, report)
    measured = _measure(data, {**scored.scores, **probed}, names, config)
    findings = Findings(
        control=measured.control,
        blind=measured.attacks[CONTROL].auc,
        judge=measured.scores[measured.judge],
        decisions=measured.decisions.summary,
        attacks=names,
    )
    validity = check_validity(pair.models, data, scored, findings, classifier=classifier, config=config)
    hashed = hashed_groups(data)
    groups = flagged_hashes(data, hashed, measured.decisions)
    decisions = measured.decisions.summary.model_copy(update={"flagged_groups": groups})
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
        data=data_info(data, scored),
        attacks=measured.attacks,
        decisions=decisions,
        set_test=measured.set_test,
        epsilon=epsilon_lower_bound(*data.by_label(measured.scores[measured.judge]), seed=config.seed),
        validity=validity,
        verdict=verdict(measured.attacks, measured.decisions.summary, validity),
        timing=timing_of(time.perf_counter() - started, data, scored),
    )
    columns = record_columns(data, scored, measured.scores, measured.decisions, hashed)
    if config.reveal:
        columns["text"] = [clean_text(text) for text in data.texts.texts]
    records = write_records(columns, folder)
    tokens = token_columns(
        scored,
        measured.scores[measured.judge],
        classifier=classifier,
        revealed=(pair.models, data.texts, config.max_length) if config.reveal and pair.models else None,
    )
    write_tokens(tokens, folder)
    write_results(results, folder)
    write_report(folder)
    return AuditResult(results=results, records=records, folder=folder)


def _probe(
    pair: Pair,
    data: LabelledTexts,
    names: Sequence[str],
    config: AuditConfig,
    store: FeatureStore,
    report: Report,
) -> dict[str, np.ndarray]:
    """Score with the attacks that need passes of their own; what is finished is kept beside the store."""
    return probe_texts(
        pair,
        data.texts.texts,
        names,
        ProbingConfig(max_length=config.max_length, batch_size=config.batch_size, shots=_shots(data, config.seed)),
        folder=store.folder.parent / "probes",
        fingerprint=str(store.manifest["fingerprint"]),
        report=report,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Measured:
    """What the scores alone say."""

    scores: dict[str, np.ndarray]
    attacks: dict[str, AttackResult]
    control: ControlScores
    judge: str
    """The attack that decides: the learned one where it took part."""
    decisions: AuditDecisions
    set_test: SetTest


def _measure(
    data: LabelledTexts, found: Mapping[str, np.ndarray], names: Sequence[str], config: AuditConfig
) -> _Measured:
    control = bag_of_words(data.texts.texts, data.labels, data.groups, config.seed)
    scores = {name: found[name] for name in names if name in found}
    judge = LEARNED if LEARNED in scores else next(iter(scores), CONTROL)
    scores[CONTROL] = control.scores
    groups = data.groups_by_label
    members, nonmembers = data.by_label(scores[judge])
    return _Measured(
        scores=scores,
        attacks={
            name: measure_attack(*data.by_label(values), **groups, seed=config.seed) for name, values in scores.items()
        },
        control=control,
        judge=judge,
        decisions=judge_audit(
            members,
            nonmembers,
            attack=judge,
            fdr=config.fdr,
            **groups,
            seed=config.seed,
        ),
        set_test=collection_test(
            members,
            nonmembers,
            candidate_groups=groups["member_groups"],
            nonmember_groups=groups["nonmember_groups"],
            seed=config.seed,
        ),
    )


def _shots(data: LabelledTexts, seed: int) -> Shots:
    """Draw texts of known membership to put before others; they are left out where they would be scored themselves."""
    rng = np.random.default_rng(seed)
    members, nonmembers = (
        tuple(texts[i] for i in rng.permutation(len(texts))[:SHOTS_DRAWN]) for texts in data.by_label(data.texts.texts)
    )
    return Shots(members=members, nonmembers=nonmembers)


def data_info(data: LabelledTexts, scored: ScoredTexts, *, labelled: bool = True) -> DataInfo:
    """Count texts of each kind; without labels those that come first are candidates."""
    first = "n_members" if labelled else "n_candidates"
    return DataInfo(
        **{"n_members": 0, first: data.n_members},
        n_nonmembers=len(data.texts) - data.n_members,
        n_unscorable=sum(reason is not None for reason in scored.reasons),
        n_cut=_n_cut(scored.truncated),
        n_groups=None if data.groups is None else len(np.unique(data.groups)),
    )


def _n_cut(truncated: Sequence[bool | None]) -> int | None:
    """Count the texts that go on behind what is read of them; None if of some that is not known."""
    known = [cut for cut in truncated if cut is not None]
    return sum(known) if len(known) == len(truncated) else None


def timing_of(seconds: float, data: LabelledTexts, scored: ScoredTexts) -> Timing:
    """Say where the time went."""
    return Timing(
        seconds=seconds,
        texts_per_second=len(data.texts) / seconds,
        forward_seconds=scored.clock.forward.seconds,
        feature_seconds=scored.clock.feature_seconds,
    )
