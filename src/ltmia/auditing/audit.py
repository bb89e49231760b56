"""Audits a fine-tuned model: which of its training texts can be told from texts it never saw?"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ltmia.attacks.multi_pass import SHOTS, Shots
from ltmia.attacks.selection import select_attacks
from ltmia.attacks.table import ATTACKS, CHECKPOINTS, CONTROL, LEARNED, WEIGHTS, WITH_WEIGHTS
from ltmia.auditing.assembly import assemble
from ltmia.auditing.folder import hold_for
from ltmia.auditing.measured import Measured, Scores, decide, judges, measure_scores, strongest
from ltmia.auditing.near_verbatim import continue_outstanding
from ltmia.auditing.question import AuditResult, JudgeConfig, Question
from ltmia.auditing.scored_sets import score_sets
from ltmia.auditing.spans import wanted_spans
from ltmia.auditing.subject import PLAIN, Subject
from ltmia.auditing.text_sets import TextSets, as_texts, join_sets, refuse_other_kind
from ltmia.errors import ConfigError
from ltmia.evaluation.controls import bag_of_words
from ltmia.evaluation.rounding import published
from ltmia.models.pair import Pair
from ltmia.progress import Report, silent
from ltmia.records import Texts
from ltmia.scoring.audited_pair import AuditedPair, PairToLoad, audited, length_to_read
from ltmia.scoring.stored_scores import score_to_store

SHOTS_DRAWN = 5 * SHOTS
"""Texts of each kind that may become few-shot examples; texts too long for the models are skipped."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AuditConfig(JudgeConfig):
    """Options of an audit."""

    attacks: str = "fast"
    """"fast", "recorded", "all", or names separated by commas."""
    deduplicate: bool = False
    """Leave out repeats within and across the two sets."""
    reveal: bool = False
    """Write the texts and their tokens into the records and the report."""


def audit(
    pair: Pair | AuditedPair | PairToLoad,
    members: Texts | Sequence[str],
    nonmembers: Texts | Sequence[str],
    out: Path | str,
    *,
    config: AuditConfig | None = None,
    report: Report = silent,
    command: str | None = None,
) -> AuditResult:
    """Audit a fine-tuned model: which of its training texts can be told from texts it never saw?

    Running again with the same models, texts and options resumes. Writes `results.json`, `records.parquet` and
    `report.html` into `out`; these may be passed on. The files in `out/private` may not.

    Args:
        pair: Target and reference, by `load_pair` or `load_recorded_pair`.
        members: Texts the target was fine-tuned on.
        nonmembers: Texts of the same kind that it never saw.
        out: Folder for the results.
        config: Options.
        report: Called with progress.
        command: Command line to write down; this process's when None.

    Raises:
        DataError: If there are no texts at all.
        ConfigError: If an attack is unknown or needs more than recordings hold, if another run works in `out`, or if
            `out` holds anything but an audit with the same settings and texts (`config.overwrite`: with any).
    """
    texts = as_texts(members), as_texts(nonmembers)
    return audit_of(PLAIN, pair, texts, Path(out), config=config or AuditConfig(), report=report, command=command)


def audit_of(
    subject: Subject,
    pair: Pair | AuditedPair | PairToLoad,
    texts: tuple[Texts, Texts],
    out: Path,
    *,
    config: AuditConfig,
    report: Report = silent,
    command: str | None = None,
) -> AuditResult:
    """Do what `audit` does, for a subject of its own.

    Args:
        subject: What the audit is of.
        pair: Target and reference.
        texts: Members and non-members.
        out: Folder for the results.
        config: Options.
        report: Called with progress.
        command: See `audit`.
    """
    with hold_for(out, "audit", pair, texts, config, subject.hashes()) as run:
        sets = join_sets(*texts, "members", deduplicate=config.deduplicate)
        names = _named_attacks(config, sets)
        spans = wanted_spans(config.spans, texts, sets, report)
        models = audited(pair)
        question = Question(
            kind="audit",
            sets=sets,
            config=config,
            max_length=length_to_read(models, config.max_length),
            attacks=names,
            shots=_shots(sets, config.seed),
            spans=spans,
            reveal=config.reveal,
            subject=subject,
        )
        subject.refuse(models)
        scored = score_sets(models, question, run, scorer=score_to_store, report=report)
        measured = _measure(subject, sets, scored.scores, names, config)
        continued = continue_outstanding(models, question, scored, measured, run, report)
        return assemble(models, question, scored, measured, run, continued=continued, command=command)


def _named_attacks(config: AuditConfig, sets: TextSets) -> tuple[str, ...]:
    names = select_attacks(config.attacks, pairs=sets.texts.rejected is not None)
    refuse_other_kind(names, sets, must_read=config.must_read)
    if CHECKPOINTS in names and config.observer != "training_run":
        raise ConfigError(f"{CHECKPOINTS}: is run by the observer training_run; take that one, and give checkpoints")
    weights = [name for name in WEIGHTS if name in names]
    if weights and config.observer == "logprobs":
        raise ConfigError(f"{', '.join(weights)}: reads the weights, which the observer logprobs does not see")
    return select_attacks([*names, LEARNED]) if WITH_WEIGHTS in names else names


def _measure(subject: Subject, sets: TextSets, found: Scores, names: Sequence[str], config: AuditConfig) -> Measured:
    control = bag_of_words(sets.texts.whole, sets.sides, sets.units, config.seed)
    scores = {name: found[name] for name in ATTACKS if name in found and (name in names or name in WEIGHTS)}
    deciding = judges(scores)
    judge = strongest(deciding)
    scores[CONTROL] = published(control.scores)
    attacks = {name: measure_scores(sets, values, config.seed) for name, values in scores.items()}
    return Measured(
        scores=scores,
        attacks=attacks,
        control=control,
        control_auc=attacks[CONTROL].auc,
        deciding=deciding,
        decided={
            name: decide(sets, scores[name], attack=name, fdr=config.fdr, seed=config.seed)
            for name in {*deciding.values(), judge}
        },
        epsilon=subject.epsilon(sets, scores[judge], config.seed),
    )


def _shots(sets: TextSets, seed: int) -> Shots:
    """Draw texts of known membership that serve as few-shot examples; no text is an example for itself."""
    rng = np.random.default_rng(seed)
    members, nonmembers = (
        tuple(texts[i] for i in rng.permutation(len(texts))[:SHOTS_DRAWN]) for texts in sets.split(sets.texts.texts)
    )
    return Shots(members=members, nonmembers=nonmembers)
