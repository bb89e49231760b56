"""The privacy annex: what an audit shows, and does not show, on the points of EDPB opinion 28/2024.

Each point has one of four states: measured, declared by the user, not applicable, not evaluated. There is no verdict.
"""

import tomllib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from ltmia.errors import ConfigError
from ltmia.evaluation.blind_spots import of_an_audit
from ltmia.evaluation.files import read_verdict
from ltmia.evaluation.results import Results
from ltmia.evaluation.wording import figure as written
from ltmia.folders import write_whole
from ltmia.integrations.annex_page import Page, as_html, as_markdown
from ltmia.integrations.evidence import evidence_of
from ltmia.ownership import refuse_stranger
from ltmia.report.extraction_words import extraction_line, shown
from ltmia.report.tables import Table
from ltmia.report.words import CONTROL, FPR_NAMES, attack_order, headline, named_checks, not_shown

State = Literal["measured", "declared by the user", "not applicable", "not evaluated"]
SIGN = "Privacy annex by ltmia"
"""Text in each annex; a file without it is not replaced."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Point:
    """One point of the opinion."""

    key: str
    """Its key in the context file."""
    asks: str
    part: str
    """Paragraph of the opinion."""
    measured: Callable[[Results], str | None] = lambda _: None
    """Returns what the audit shows on this point; None if it shows nothing."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """Entry of the annex on one point."""

    point: Point
    state: State
    finding: str


def _log_probabilities(results: Results) -> str | None:
    if not any(name != CONTROL for name in results.attacks) and results.kind == "audit":
        return None
    return f"{headline(results)}. The figures of each attack are in the table below."


def _weights(results: Results) -> str | None:
    found = [results.observers.get("weights"), results.observers.get("training_run")]
    lines = [
        f"{result.decisions.n_flagged} of {result.decisions.n_judged} records identified by {result.attack}"
        for result in found
        if result is not None and result.decisions is not None
    ]
    with_run = ", by an attacker who also holds checkpoints of the training run"
    return f"{'; '.join(lines)}{with_run if len(lines) > 1 else ''}." if lines else None


def _epsilon(results: Results) -> str | None:
    if results.epsilon is None or results.epsilon.value is None:
        return None
    return (
        f"The privacy loss epsilon of the training is at least {results.epsilon.value:.3f} with 95 % confidence, if "
        "members were drawn at random. A lower bound does not limit how large it is."
    )


def _extraction(results: Results) -> str | None:
    return None if shown(results) is None else extraction_line(results)


def _cost(results: Results) -> str:
    machine = results.environment.get("processor", "one machine")
    return f"This audit took {results.timing.seconds:.0f} seconds on {machine}."


ATTACKS_PART, CLAIM_PART = "testing and resistance to attacks", "means reasonably likely to be used"
DESIGN_PART, RECORDS_PART = "design of the model", "documentation"
POINTS: Sequence[Point] = (
    Point(
        key="membership",
        asks="Membership inference by an attacker who sees log-probabilities",
        part=ATTACKS_PART,
        measured=_log_probabilities,
    ),
    Point(
        key="membership_weights",
        asks="Membership inference by an attacker who holds the weights",
        part=ATTACKS_PART,
        measured=_weights,
    ),
    Point(key="privacy_loss", asks="Privacy loss of the training, lower bound", part=ATTACKS_PART, measured=_epsilon),
    Point(key="attributes", asks="Attribute inference", part=ATTACKS_PART),
    Point(key="regurgitation", asks="Regurgitation of training data in answers to queries", part=ATTACKS_PART),
    Point(
        key="extraction",
        asks="Extraction of training data out of the model (exfiltration)",
        part=ATTACKS_PART,
        measured=_extraction,
    ),
    Point(key="inversion", asks="Model inversion", part=ATTACKS_PART),
    Point(key="reconstruction", asks="Reconstruction attacks", part=ATTACKS_PART),
    Point(key="access", asks="Who gets the model, and in which form", part=CLAIM_PART),
    Point(key="additional_information", asks="Further information that such a person may have", part=CLAIM_PART),
    Point(key="cost", asks="Cost and time of an attack", part=CLAIM_PART, measured=_cost),
    Point(key="unintended_recipients", asks="Persons who may get the model without permission", part=CLAIM_PART),
    Point(key="sources", asks="Selection of the sources of training data", part=DESIGN_PART),
    Point(key="minimisation", asks="Preparation and minimisation of the data", part=DESIGN_PART),
    Point(key="training", asks="Training methods that protect privacy", part=DESIGN_PART),
    Point(key="outputs", asks="Measures on the model's outputs", part=DESIGN_PART),
    Point(key="impact_assessment", asks="Data protection impact assessment, advice of the officer", part=RECORDS_PART),
    Point(key="measures", asks="Technical and organisational measures over the model's life", part=RECORDS_PART),
)


class Context(BaseModel):
    """The user's statements on the release: two tables of a TOML file, by key of a point."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    declared: dict[str, str] = {}
    not_applicable: dict[str, str] = {}
    """Reason why each point does not apply."""


def read_context(path: Path) -> Context:
    """Read the release context.

    Raises:
        ConfigError: If something in the file is wrong; the message names it.
    """
    try:
        context = Context.model_validate(tomllib.loads(path.read_text("utf-8")))
    except ValidationError as error:
        first = error.errors()[0]
        raise ConfigError(f"{path}: {'.'.join(map(str, first['loc']))}: {first['msg']}") from error
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path}: {error}; expected TOML with the tables [declared] and [not_applicable]") from error
    keys = {point.key for point in POINTS}
    for name in (*context.declared, *context.not_applicable):
        if name not in keys:
            raise ConfigError(f"{path}: {name!r}: no such point; there are {', '.join(sorted(keys))}")
    if both := context.declared.keys() & context.not_applicable.keys():
        raise ConfigError(f"{path}: {min(both)!r} is declared and not applicable; keep one")
    return context


def answers(results: Results, context: Context) -> list[Answer]:
    """Return an entry for each point: measured, else declared, else not evaluated."""
    return [_answer(point, results, context) for point in POINTS]


def _answer(point: Point, results: Results, context: Context) -> Answer:
    declared = context.declared.get(point.key)
    if (reason := context.not_applicable.get(point.key)) is not None:
        return Answer(point=point, state="not applicable", finding=f"Reason given by the user: {reason}")
    if (found := point.measured(results)) is not None:
        return Answer(
            point=point, state="measured", finding=found + (f" The user adds: {declared}" if declared else "")
        )
    if declared is not None:
        return Answer(point=point, state="declared by the user", finding=declared)
    return Answer(point=point, state="not evaluated", finding="")


def write_annex(folder: Path, out: Path, context: Context | None = None) -> None:
    """Write the annex of an audit.

    Args:
        folder: Folder of an audit or a score.
        out: File ending in .md, .html or .pdf.
        context: The user's statements on the release.

    Raises:
        StoreError: If the folder holds no audit.
        ConfigError: If the file has another ending or is not ours, or WeasyPrint is not installed.
    """
    page = annex_page(read_verdict(folder), context or Context(), evidence_of(folder))
    writers: Mapping[str, Callable[[Path], object]] = {
        ".md": lambda part: part.write_text(as_markdown(page), "utf-8"),
        ".html": lambda part: part.write_text(as_html(page), "utf-8"),
        ".pdf": lambda part: _write_pdf(as_html(page), part),
    }
    if out.suffix not in writers:
        raise ConfigError(f"{out}: expected a name that ends in {', '.join(writers)}")
    refuse_stranger(out, SIGN)
    out.parent.mkdir(parents=True, exist_ok=True)
    write_whole(out, writers[out.suffix])


def _write_pdf(html: str, out: Path) -> None:
    try:
        from weasyprint import HTML
    except (ImportError, OSError) as error:  # OSError if its system libraries are missing
        raise ConfigError(f'a PDF needs WeasyPrint ({error}): pip install "ltmia[pdf]", or write .html') from error
    HTML(string=html, url_fetcher=_fetch_nothing).write_pdf(out, uncompressed_pdf=True)


def _fetch_nothing(url: str, *_: object, **__: object) -> dict[str, object]:
    raise ValueError(f"{url}: an annex loads nothing")


def annex_page(results: Results, context: Context, evidence: Mapping[str, str]) -> Page:
    """Compose the annex. The first page says what was tested, what was not, and what would change the conclusion."""
    found = answers(results, context)
    data = results.data
    judged = f"{data.n_members} members" if results.kind == "audit" else f"{data.n_candidates} candidates"
    tries = [name for name in attack_order(results) if name != CONTROL] or [results.decisions.attack]
    tried = [
        *([] if results.subject is None else [results.subject]),
        f"{headline(results)}.",
        f"{judged} were judged against {data.n_nonmembers} non-members on {results.created:%Y-%m-%d} "
        f"by ltmia {results.ltmia_version}, by {', '.join(tries)}.",
    ]
    left = [answer.point.asks for answer in found if answer.state == "not evaluated"]
    return Page(
        title=f"{SIGN}: what an audit shows, and what it does not",
        lead="This annex covers the points of EDPB opinion 28/2024 on the claim that a model holds no personal data. "
        "It gives findings and gaps. People decide whether the claim holds.",
        lists=[
            ("What was tested", tried),
            ("What was not tested", [*(f"Not evaluated: {name}." for name in left), *not_shown(results)]),
            ("What would change the conclusion", _would_change(results, found)),
        ],
        tables=[
            Table(
                title="Point by point",
                head=("Point", "Part of the opinion", "State", "Finding"),
                rows=[(a.point.asks, a.point.part, a.state, a.finding) for a in found],
            ),
            Table(
                title="Attacks",
                head=("Attack", "AUC", *(f"TPR at {name} FPR" for name in FPR_NAMES.values())),
                rows=[_attack_row(results, name) for name in attack_order(results)],
            ),
            Table(
                title="Validity checks",
                head=("Check", "State", "Finding"),
                rows=[
                    (name, check.status.replace("_", " "), check.sentence)
                    for name, check in named_checks(results.validity)
                ],
            ),
            Table(
                title="Evidence",
                head=("File", "SHA-256"),
                rows=[*evidence.items(), ("weights that were audited", results.target.sha256), ("run", results.run_id)],
            ),
        ],
    )


def _attack_row(results: Results, name: str) -> tuple[str, ...]:
    attack = results.attacks[name]
    shown = name if name != CONTROL else f"{name} (control: sees no model)"
    return shown, *(written(m) for m in (attack.auc, *(attack.tpr(fpr) for fpr in FPR_NAMES)))


def _would_change(results: Results, found: Sequence[Answer]) -> list[str]:
    d = results.decisions
    said = [f"This audit may see too little: {reason}" for reason in of_an_audit(results)]
    said += [
        f"{name}: {check.sentence}"
        for name, check in named_checks(results.validity)
        if check.status in ("warning", "failed")
    ]
    said.append(
        f"More non-members: with {d.n_calibration} no p-value is below {d.smallest_p:.2g}, so rarer leaks stay hidden."
    )
    if next(a.state for a in found if a.point.key == "membership_weights") == "not evaluated":
        said.append("Release of the weights: an attacker who holds them can try attacks that were not tested here.")
    if next(a.state for a in found if a.point.key == "access") != "declared by the user":
        said.append("The context of the release: it is not declared who gets the model, and in which form.")
    return [*said, "A stronger attack, other training texts than those audited, or further training of the model."]
