"""Scoring for claimants: candidates of unknown membership against texts surely not used."""

import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

import pyarrow as pa

from ltmia.attacks.table import ATTACKS, LEARNED, select_attacks
from ltmia.audit.audit import AuditResult, data_info, timing_of
from ltmia.audit.checks import Findings, check_validity
from ltmia.audit.labelled import LabelledTexts, as_texts, label_texts
from ltmia.audit.record_table import flagged_hashes, hashed_groups, record_columns
from ltmia.audit.token_table import token_columns
from ltmia.classifier.membership import chosen_classifier
from ltmia.errors import ConfigError, DataError
from ltmia.evaluation.calibration import AuditDecisions, judge_candidates
from ltmia.evaluation.controls import bag_of_words
from ltmia.evaluation.files import write_records, write_results, write_tokens
from ltmia.evaluation.intervals import measure_attack
from ltmia.evaluation.results import Results, SetTest
from ltmia.evaluation.set_test import collection_test
from ltmia.evaluation.verdict import set_sentence, verdict
from ltmia.folders import hold_folder
from ltmia.models.batching import BatchSize
from ltmia.models.pair import Pair
from ltmia.progress import Report, silent
from ltmia.records import Texts
from ltmia.report.page import write_report
from ltmia.runtime import environment
from ltmia.scoring.audited_pair import AuditedPair, audited
from ltmia.scoring.stored_scores import (
    ScoredTexts,
    Scorer,
    StoredTexts,
    extraction_config,
    score_to_store,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class ScoreConfig:
    """What decides the numbers."""

    attack: str = LEARNED
    """The one attack whose scores decide: choosing among several afterwards would spoil the error rates."""
    classifier: str | None = None
    """"full" or "lite", which come along, a folder or a hub id; full when None."""
    fdr: float = 0.05
    """False discovery rate to flag candidates at."""
    max_length: int = 128
    """Token ids read of each text."""
    batch_size: BatchSize = 16
    """Texts of full length per forward pass."""
    seed: int = 0
    """Of permutations and folds."""


def score(
    pair: Pair | AuditedPair,
    candidates: Texts | Sequence[str],
    nonmembers: Texts | Sequence[str],
    out: Path | str,
    *,
    config: ScoreConfig | None = None,
    scorer: Scorer = score_to_store,
    report: Report = silent,
) -> AuditResult:
    """Judge candidates: was each of them, and were they as a whole, used to fine-tune the target?

    Re-running with the same models, texts and options resumes. Writes `results.json`, `records.parquet`,
    `tokens.parquet`, `report.html` and `store/` into `out`.

    Args:
        pair: Target and reference, by `load_pair` or `load_recorded_pair`.
        candidates: Texts that may have been used.
        nonmembers: Texts of the same kind that were surely not; all of them calibrate.
        out: Folder for the results.
        config: What decides the numbers.
        scorer: What scores the texts: this process, by way of `out/store`, or `ray_scoring.RayScorer`.
        report: Told the progress.

    Raises:
        DataError: If there are no candidates, or no non-members to judge them against.
        ConfigError: If the attack is unknown or not one that a single pass serves, or recordings hold too little for
            it, or another run is at work in `out`.
    """
    with hold_folder(Path(out)):
        return _score(
            audited(pair),
            as_texts(candidates),
            as_texts(nonmembers),
            Path(out),
            config or ScoreConfig(),
            scorer,
            report,
        )


def _score(
    pair: AuditedPair,
    candidates: Texts,
    nonmembers: Texts,
    folder: Path,
    config: ScoreConfig,
    scorer: Scorer,
    report: Report,
) -> AuditResult:
    started = time.perf_counter()
    data = label_texts(candidates, nonmembers, deduplicate=False)
    if not 0 < data.n_members < len(data.texts):
        raise DataError("candidates and texts surely not used are both needed, at least one of each")
    _check_attack(config.attack)
    classifier = chosen_classifier(config.classifier) if config.attack == LEARNED else None
    pair.refuse([config.attack], None if classifier is None else classifier.feature_version)
    identity = pair.identity()
    scored = scorer(
        pair,
        data.texts,
        folder / "store",
        extraction_config(
            (config.attack, "difference"),
            classifier,
            max_length=config.max_length,
            batch_size=config.batch_size,
            k=pair.k,
        ),
        identity=identity,
        classifier=classifier,
        report=report,
    )
    decisions, set_test = _decide(data, scored, config)
    control = bag_of_words(data.texts.texts, data.labels, data.groups, config.seed)
    findings = Findings(
        control=control,
        blind=measure_attack(*data.by_label(control.scores), **data.groups_by_label, seed=config.seed).auc,
        judge=scored.scores[config.attack],
        decisions=decisions.summary,
        attacks=(config.attack,),
        labelled=False,
    )
    validity = check_validity(pair.models, data, scored, findings, classifier=classifier, config=config)
    hashed = hashed_groups(data)
    groups = flagged_hashes(data, hashed, decisions)
    results = Results(
        ltmia_version=version("ltmia"),
        kind="score",
        created=datetime.now(UTC),
        command=" ".join(sys.argv),
        settings=asdict(config),
        environment=environment(),
        target=identity.target,
        reference=identity.reference,
        tokenizer=identity.tokenizer,
        data=data_info(data, scored, labelled=False),
        attacks={},
        decisions=decisions.summary.model_copy(update={"flagged_groups": groups}),
        set_test=set_test,
        validity=validity,
        verdict=verdict({}, decisions.summary, validity) + set_sentence(set_test),
        timing=timing_of(time.perf_counter() - started, data, scored),
    )
    columns = record_columns(data, scored, {config.attack: scored.scores[config.attack]}, decisions, hashed)
    columns["label"] = pa.array([None] * data.n_members + [0] * (len(data.texts) - data.n_members), pa.int64())
    records = write_records(columns, folder)
    if isinstance(scored, StoredTexts):  # a cluster keeps scores alone
        write_tokens(token_columns(scored, scored.scores[config.attack], classifier=classifier), folder)
    write_results(results, folder)
    write_report(folder)
    return AuditResult(results=results, records=records, folder=folder)


def _check_attack(name: str) -> None:
    chosen = select_attacks(name)
    if len(chosen) != 1 or not (chosen[0] == LEARNED or ATTACKS[chosen[0]].fast):
        raise ConfigError(f"{name}: expected one attack that a single pass serves, such as {LEARNED} or difference")


def _decide(data: LabelledTexts, scored: ScoredTexts, config: ScoreConfig) -> tuple[AuditDecisions, SetTest]:
    candidates, nonmembers = data.by_label(scored.scores[config.attack])
    groups = data.groups_by_label
    named = {"candidate_groups": groups["member_groups"], "nonmember_groups": groups["nonmember_groups"]}
    decisions = judge_candidates(candidates, nonmembers, attack=config.attack, fdr=config.fdr, **named)
    return decisions, collection_test(candidates, nonmembers, **named, seed=config.seed)
