"""The last step of `audit` and `score`: checks what was measured and writes every file."""

import sys
import time
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from typing import Any

import numpy as np
import pyarrow as pa
from jaxtyping import Float64

from ltmia.attacks.table import Observer
from ltmia.auditing.checks import MeasuredScores, check_validity
from ltmia.auditing.drawing_out import extraction_of, suffix_columns, suffixes_of
from ltmia.auditing.group_table import group_columns
from ltmia.auditing.measured import Measured
from ltmia.auditing.near_verbatim import ContinuedTexts, continued_columns, near_verbatim_of
from ltmia.auditing.question import AuditResult, Question
from ltmia.auditing.record_table import (
    flagged_hashes,
    hashed_groups,
    published_ids,
    record_columns,
)
from ltmia.auditing.scored_sets import ScoredSets
from ltmia.auditing.secrets import private_span_columns, secrets_of, span_columns
from ltmia.auditing.text_sets import TextSets
from ltmia.auditing.token_table import token_columns
from ltmia.auditing.update import UpdateReading
from ltmia.evaluation.audit_folder import Run
from ltmia.evaluation.files import (
    forget_revealed,
    forget_spans,
    write_groups,
    write_records,
    write_results,
    write_spans,
    write_tokens,
)
from ltmia.evaluation.results import DataInfo, ObserverResult, Results, SetTest, Timing, Validity
from ltmia.evaluation.set_test import collection_test
from ltmia.evaluation.verdict import set_sentence, verdict
from ltmia.records import without_surrogates
from ltmia.report.page import write_report
from ltmia.runtime import environment
from ltmia.scoring.audited_pair import AuditedPair
from ltmia.scoring.identity import PairIdentity
from ltmia.scoring.stored_scores import ScoredTexts, StoredTexts
from ltmia.shown_names import shown_command, shown_path


def assemble(
    pair: AuditedPair,
    question: Question,
    scored: ScoredSets,
    measured: Measured,
    run: Run,
    *,
    continued: ContinuedTexts | None = None,
    command: str | None = None,
) -> AuditResult:
    """Check an audit, and write its results, records, tokens and report into the run's folder.

    Args:
        pair: Target and reference.
        question: The texts, and what is asked about them.
        scored: Scores of the texts.
        measured: Figures and decisions from these scores.
        run: Folder for the results, held by this process.
        continued: Texts that were continued, if that was asked for.
        command: Command line to write down; this process's when None.
    """
    sets, texts = question.sets, scored.texts
    set_test = _set_test(sets, measured.scores[measured.judge], question.config.seed)
    validity = _check(pair, question, scored, measured)
    sections = question.subject.sections(sets, measured.scores[measured.judge], question.config.seed)
    about = [section.sentence for section in sections.values()]
    sentence = " ".join([*about, verdict(measured.attacks, measured.decisions.summary, validity)])
    hashed = hashed_groups(sets, run.private.salt())
    suffixes = suffixes_of(texts, sets)
    columns = suffix_columns(suffixes, len(sets.texts))
    columns |= continued_columns(continued, len(sets.texts), reveal=question.reveal)
    records = _write_tables(pair, question, scored, measured, columns, hashed, run)
    results = Results(
        **_provenance(question, scored.identity, scored.lengths, command),
        run_id=run.run_id,
        data=data_info(sets, texts),
        attacks=dict(measured.attacks),
        decisions=measured.decisions.summary.model_copy(
            update={"flagged_groups": flagged_hashes(sets, hashed, measured.decisions)}
        ),
        observers={**_not_tried(scored.update), **measured.observers},
        update=scored.update.info,
        training_run=scored.update.run_info,
        extraction=extraction_of(suffixes, texts, sets),
        near_verbatim=near_verbatim_of(continued),
        secrets=secrets_of(scored.secrets, question.config),
        set_test=set_test,
        epsilon=measured.epsilon,
        validity=validity,
        verdict=sentence + set_sentence(set_test) if question.kind == "score" else sentence,
        timing=_timing(time.perf_counter() - scored.started + texts.clock.earlier, sets, texts),
        reused=texts.clock.reused,
        **sections,
    )
    write_results(results, run.folder)
    write_report(run.folder)
    if not question.reveal:
        forget_revealed(run)
    return AuditResult(results=results, records=records, folder=run.folder)


def _not_tried(update: UpdateReading) -> dict[Observer, ObserverResult]:
    """Say why an observer was not tried; an attacker with checkpoints is named only if there are any."""
    reasons: dict[Observer, str | None] = {"weights": update.reason, "training_run": update.run_reason}
    return {observer: ObserverResult(reason=reason) for observer, reason in reasons.items() if reason is not None}


def _check(
    pair: AuditedPair,
    question: Question,
    scored: ScoredSets,
    measured: Measured,
) -> Validity:
    found = MeasuredScores(
        control=measured.control,
        blind=measured.control_auc,
        judge=measured.scores[measured.judge],
        decisions=measured.decisions.summary,
        attacks=question.attacks,
    )
    return check_validity(
        pair,
        question.sets,
        scored.texts,
        found,
        classifier=scored.classifier,
        max_length=question.max_length,
        seed=question.config.seed,
    )


def _provenance(
    question: Question, identity: PairIdentity, lengths: Mapping[str, int | None], command: str | None
) -> dict[str, Any]:
    return {
        "ltmia_version": version("ltmia"),
        "kind": question.kind,
        "created": datetime.now(UTC),
        "command": command or shown_command(sys.argv),
        "settings": question.config.settings | _named(question) | dict(lengths),
        "environment": environment(),
        "target": identity.target,
        "reference": identity.reference,
        "tokenizer": identity.tokenizer,
    }


def _named(question: Question) -> dict[str, str | None]:
    """Return the files that options name, without the machine's folders."""
    classifier, spans = question.config.classifier, question.config.spans
    named = {"classifier": None if classifier is None else shown_path(classifier)}
    return named if spans is None else named | {"spans": shown_path(spans)}


def _set_test(sets: TextSets, scores: Float64[np.ndarray, " texts"], seed: int) -> SetTest:
    """Test whether the texts to judge, as a collection, score higher than the non-members."""
    judged_groups, nonmember_groups = sets.split_groups
    return collection_test(
        *sets.split(sets.once(scores)), candidate_groups=judged_groups, nonmember_groups=nonmember_groups, seed=seed
    )


def data_info(sets: TextSets, scored: ScoredTexts) -> DataInfo:
    """Count texts of each kind."""
    _, repeated = sets.split(sets.repeats)
    _, scorable = sets.split(np.array([reason is None for reason in scored.reasons]))
    return DataInfo(
        **{"n_members": 0, f"n_{sets.judged}": sets.n_judged},
        n_nonmembers=sets.n_nonmembers,
        n_unscorable=sum(reason is not None for reason in scored.reasons),
        n_repeats=int(sets.repeats.sum()),
        n_nonmember_repeats=int(repeated.sum()),
        n_usable_nonmembers=int((scorable & ~repeated).sum()),
        n_cut=_n_cut(scored.truncated),
        n_groups=None if sets.groups is None else len(np.unique(sets.groups)),
        preference_pairs=sets.texts.rejected is not None,
    )


def _write_tables(
    pair: AuditedPair,
    question: Question,
    scored: ScoredSets,
    measured: Measured,
    further: Mapping[str, Any],
    hashed: list[str | None],
    run: Run,
) -> pa.Table:
    """Write the tables of records, groups, secrets and tokens; return the records."""
    sets, texts = question.sets, scored.texts
    ids = published_ids(sets.texts, run.private.salt())
    columns = record_columns(sets, texts, measured.scores, measured.decisions, ids, hashed)
    columns |= further
    if question.reveal:
        columns["text"] = [without_surrogates(text) for text in sets.texts.texts]
    records = write_records(columns, run.folder, run.run_id)
    if measured.decisions.groups is not None:
        groups = group_columns(sets, hashed, measured.decisions.groups, records, measured.judge)
        write_groups(groups, run.folder, run.run_id)
    if scored.secrets is not None:
        spans = span_columns(scored.secrets, run.private.salt(), reveal=question.reveal)
        write_spans(spans, private_span_columns(scored.secrets, sets), run)
    else:
        forget_spans(run)
    if isinstance(texts, StoredTexts):  # Ray workers return scores, not token statistics
        revealed = (pair.models, sets.texts, question.max_length) if question.reveal and pair.models else None
        tokens = token_columns(texts, measured.scores[measured.judge], classifier=scored.classifier, revealed=revealed)
        write_tokens(tokens, run)
    return records


def _n_cut(truncated: Sequence[bool | None]) -> int | None:
    """Count the texts that are longer than what is read of them; None if that is unknown for some."""
    known = [cut for cut in truncated if cut is not None]
    return sum(known) if len(known) == len(truncated) else None


def _timing(seconds: float, sets: TextSets, scored: ScoredTexts) -> Timing:
    return Timing(
        seconds=seconds,
        texts_per_second=len(sets.texts) / seconds,
        forward_seconds=scored.clock.forward.seconds,
        feature_seconds=scored.clock.feature_seconds,
    )
