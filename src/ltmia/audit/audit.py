"""The audit of a fine-tuned model: which of its training texts can be told from texts it never saw?"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ltmia.attacks.multi_pass import SHOTS, Shots
from ltmia.attacks.table import CONTROL, LEARNED, select_attacks
from ltmia.audit.assembly import AuditResult, JudgeConfig, Measured, Question, Scores, answer, set_test_of
from ltmia.audit.text_sets import TextSets, as_texts, join_sets
from ltmia.evaluation.audit_folder import run_in
from ltmia.evaluation.calibration import judge_audit
from ltmia.evaluation.controls import bag_of_words
from ltmia.evaluation.epsilon import epsilon_lower_bound
from ltmia.evaluation.intervals import measure_attack
from ltmia.evaluation.rounding import published
from ltmia.models.pair import Pair
from ltmia.progress import Report, silent
from ltmia.records import Texts
from ltmia.scoring.audited_pair import AuditedPair, audited
from ltmia.scoring.stored_scores import score_to_store

SHOTS_DRAWN = 5 * SHOTS
"""Texts of each kind that may become shots; those too long for the models are passed over."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AuditConfig(JudgeConfig):
    """Options of an audit."""

    attacks: str = "fast"
    """"fast", "recorded", "all", or names with commas."""
    deduplicate: bool = False
    """Leave out repeats within and across the two sets."""
    reveal: bool = False
    """Write the texts and their tokens into the records and the report."""


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

    Re-running with the same models, texts and options resumes. Writes `results.json`, `records.parquet` and
    `report.html` into `out`, which may be handed on, and what may not into `out/private`.

    Args:
        pair: Target and reference, by `load_pair` or `load_recorded_pair`.
        members: Texts the target was fine-tuned on.
        nonmembers: Texts of the same kind that it never saw.
        out: Folder for the results.
        config: Options.
        report: Told the progress.
        command: Command line to write down; this process's when None.

    Raises:
        DataError: If there are no texts at all.
        ConfigError: If an attack is unknown, or recordings hold too little for it, or another run is at work in `out`.
    """
    config = config or AuditConfig()
    with run_in(Path(out)) as run:
        names = select_attacks(config.attacks)
        sets = join_sets(as_texts(members), as_texts(nonmembers), "members", deduplicate=config.deduplicate)
        question = Question(
            kind="audit",
            sets=sets,
            config=config,
            attacks=names,
            shots=_shots(sets, config.seed),
            measure=lambda sets, found: _measure(sets, found, names, config),
            reveal=config.reveal,
        )
        return answer(audited(pair), question, run, scorer=score_to_store, report=report, command=command)


def _measure(sets: TextSets, found: Scores, names: Sequence[str], config: AuditConfig) -> Measured:
    control = bag_of_words(sets.texts.texts, sets.sides, sets.units, config.seed)
    scores = {name: found[name] for name in names if name in found}
    judge = LEARNED if LEARNED in scores else next(iter(scores), CONTROL)
    scores[CONTROL] = published(control.scores)
    units, groups = (
        {"member_groups": judged, "nonmember_groups": others}
        for judged, others in (sets.split_units, sets.split_groups)
    )
    members, nonmembers = sets.split(sets.once(scores[judge]))
    attacks = {name: measure_attack(*sets.split(values), **units, seed=config.seed) for name, values in scores.items()}
    return Measured(
        scores=scores,
        attacks=attacks,
        control=control,
        control_auc=attacks[CONTROL].auc,
        judge=judge,
        decisions=judge_audit(members, nonmembers, attack=judge, fdr=config.fdr, **groups, seed=config.seed),
        set_test=set_test_of(sets, scores[judge], config.seed),
        epsilon=epsilon_lower_bound(members, nonmembers, seed=config.seed),
    )


def _shots(sets: TextSets, seed: int) -> Shots:
    """Draw texts of known membership to put before others; they are left out where they would be scored themselves."""
    rng = np.random.default_rng(seed)
    members, nonmembers = (
        tuple(texts[i] for i in rng.permutation(len(texts))[:SHOTS_DRAWN]) for texts in sets.split(sets.texts.texts)
    )
    return Shots(members=members, nonmembers=nonmembers)
