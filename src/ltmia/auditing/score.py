"""Judges candidates of unknown membership against texts that were surely not used."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ltmia.attacks.selection import select_attacks
from ltmia.attacks.table import ATTACKS, LEARNED, UPDATE, WEIGHTS
from ltmia.auditing.assembly import assemble
from ltmia.auditing.folder import hold_for
from ltmia.auditing.measured import Measured, Scores, decide, judges, measure_scores
from ltmia.auditing.near_verbatim import continue_outstanding
from ltmia.auditing.question import AuditResult, JudgeConfig, Question
from ltmia.auditing.scored_sets import score_sets
from ltmia.auditing.spans import wanted_spans
from ltmia.auditing.text_sets import TextSets, as_texts, join_sets, refuse_other_kind
from ltmia.errors import ConfigError, DataError
from ltmia.evaluation.controls import bag_of_words
from ltmia.models.pair import Pair
from ltmia.progress import Report, silent
from ltmia.records import Texts
from ltmia.scoring.audited_pair import AuditedPair, PairToLoad, audited, length_to_read
from ltmia.scoring.stored_scores import Scorer, score_to_store


@dataclass(frozen=True, slots=True, kw_only=True)
class ScoreConfig(JudgeConfig):
    """Options of `score`."""

    attack: str = LEARNED
    """Attack whose scores decide: only one, because choosing the best of several later would spoil the error rates.
    The default is combined with the attack on the weights if the observer has the weights."""


def score(
    pair: Pair | AuditedPair | PairToLoad,
    candidates: Texts | Sequence[str],
    nonmembers: Texts | Sequence[str],
    out: Path | str,
    *,
    config: ScoreConfig | None = None,
    scorer: Scorer = score_to_store,
    report: Report = silent,
) -> AuditResult:
    """Judge candidates: was each of them, and were they as a whole, used to fine-tune the target?

    Running again with the same models, texts and options resumes. Writes `results.json`, `records.parquet` and
    `report.html` into `out`; these may be passed on. The files in `out/private` may not.

    Args:
        pair: Target and reference, by `load_pair` or `load_recorded_pair`.
        candidates: Texts that may have been used.
        nonmembers: Texts of the same kind that were surely not; all of them calibrate.
        out: Folder for the results.
        config: Options.
        scorer: Scores the texts: in this process, with a store in `out/private/store`, or a `ray_scoring.RayScorer`.
        report: Called with progress.

    Raises:
        DataError: If there are no candidates, or no non-members to judge them against.
        ConfigError: If the attack is unknown, takes several passes or needs more than recordings hold, if another run
            works in `out`, or if `out` holds anything but a score with the same settings and texts
            (`config.overwrite`: with any).
    """
    config = config or ScoreConfig()
    texts = as_texts(candidates), as_texts(nonmembers)
    with hold_for(Path(out), "score", pair, texts, config) as run:
        sets = join_sets(*texts, "candidates")
        if not sets.n_judged or not sets.n_nonmembers:
            raise DataError("score needs at least one candidate and at least one text that was surely not used")
        _check_attack(config.attack)
        refuse_other_kind([config.attack], sets, must_read=config.must_read)
        spans = wanted_spans(config.spans, texts, sets, report)
        models = audited(pair)
        question = Question(
            kind="score",
            sets=sets,
            config=config,
            max_length=length_to_read(models, config.max_length),
            attacks=(config.attack,),
            spans=spans,
        )
        scored = score_sets(models, question, run, scorer=scorer, report=report)
        measured = _measure(sets, scored.scores, config)
        continued = continue_outstanding(models, question, scored, measured, run, report)
        return assemble(models, question, scored, measured, run, continued=continued)


def _check_attack(name: str) -> None:
    chosen = select_attacks(name)
    if len(chosen) != 1 or not (chosen[0] in (LEARNED, UPDATE) or ATTACKS[chosen[0]].group in ("fast", "pairs")):
        raise ConfigError(f"{name}: expected one attack that needs a single pass, such as {LEARNED} or difference")


def _measure(sets: TextSets, found: Scores, config: ScoreConfig) -> Measured:
    names = [config.attack, *(WEIGHTS if config.attack == LEARNED else ())]
    scores = {name: found[name] for name in names if name in found}
    deciding = judges(scores)
    control = bag_of_words(sets.texts.whole, sets.sides, sets.units, config.seed)
    return Measured(
        scores=scores,
        attacks={},
        control=control,
        control_auc=measure_scores(sets, control.scores, config.seed).auc,
        deciding=deciding,
        decided={
            name: decide(sets, scores[name], attack=name, fdr=config.fdr, seed=config.seed)
            for name in deciding.values()
        },
    )
