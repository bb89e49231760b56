"""The gate: compares an audit with limits. Output, files and exit code come from the same verdict."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal
from xml.etree import ElementTree

from ltmia.errors import ConfigError
from ltmia.evaluation.blind_spots import (
    CONTROL,
    COUNTS,
    OF_EACH,
    LimitedFigure,
    blind_spots,
    few_scored,
    few_texts,
    partly_scored,
)
from ltmia.evaluation.drawn_out import Extraction, NearVerbatim
from ltmia.evaluation.limits import RULE, Limit
from ltmia.evaluation.results import Results
from ltmia.evaluation.section import Measure
from ltmia.evaluation.shown import markdown, one_line
from ltmia.evaluation.wording import figure as written
from ltmia.evaluation.wording import whole_bits

PASSED, FAILED, INCONCLUSIVE = 0, 1, 3
"""Exit codes."""

Outcome = Literal["passed", "failed", "inconclusive"]
SEVERITY: dict[Outcome, int] = {"passed": 0, "inconclusive": 1, "failed": 2}


@dataclass(frozen=True, slots=True, kw_only=True)
class Judged:
    """The outcome of one limit."""

    limit: Limit
    outcome: Outcome
    sentence: str
    """One line, safe to show anywhere but in Markdown."""
    found: str
    """The figure that counted and its attack; as safe to show as the sentence."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GateVerdict:
    """The outcomes of all limits."""

    judged: tuple[Judged, ...]
    inconclusive: Literal["fail", "pass"] | None
    subject: str | None = None
    """What the audit is of, in one line; None if it is of a model and texts alone."""

    @property
    def outcome(self) -> Outcome:
        """The worst outcome; the option `inconclusive` does not change it."""
        return max((judged.outcome for judged in self.judged), key=SEVERITY.__getitem__)

    @property
    def exit_code(self) -> int:
        """0 passed, 1 failed, 3 inconclusive; the option `inconclusive` can turn 3 into 0 or 1."""
        treated = {"fail": FAILED, "pass": PASSED, None: INCONCLUSIVE}[self.inconclusive]
        return {"passed": PASSED, "failed": FAILED, "inconclusive": treated}[self.outcome]

    @property
    def headline(self) -> str:
        """The verdict in a word or two."""
        return {PASSED: "gate passed", FAILED: "gate failed", INCONCLUSIVE: "inconclusive"}[self.exit_code]

    def lines(self) -> list[str]:
        """Return the verdict as plain lines."""
        about = [] if self.subject is None else [self.subject]
        return [*about, *(f"{judged.outcome}: {judged.sentence}" for judged in self.judged), self.headline]

    def json(self) -> str:
        """Return the verdict as JSON."""
        limits = [
            {"figure": j.limit.figure, "most": j.limit.most, "outcome": j.outcome, "sentence": j.sentence}
            for j in self.judged
        ]
        tree = {"outcome": self.outcome, "exit_code": self.exit_code, "subject": self.subject, "limits": limits}
        return json.dumps(tree, indent=1)

    def markdown(self) -> str:
        """Return the verdict as a Markdown table, for a job's summary."""
        rows = [
            f"| `{j.limit.figure}` | {j.limit.most:g} | {j.outcome} | {markdown(j.sentence)} |" for j in self.judged
        ]
        about = [] if self.subject is None else [markdown(self.subject), ""]
        return "\n".join(
            [f"### ltmia: {self.headline}", "", *about, "| figure | most | outcome | |", "|-|-|-|-|", *rows, ""]
        )

    def junit(self) -> str:
        """Return the verdict as JUnit XML: a test case per limit."""
        allowed = self.inconclusive == "pass"
        failing = [j for j in self.judged if j.outcome == "failed" or (j.outcome == "inconclusive" and not allowed)]
        suite = ElementTree.Element(
            "testsuite", name="ltmia gate", tests=str(len(self.judged)), failures=str(len(failing))
        )
        if self.subject is not None:
            ElementTree.SubElement(suite, "system-out").text = self.subject
        for judged in self.judged:
            case = ElementTree.SubElement(
                suite, "testcase", classname="ltmia.gate", name=f"{judged.limit.figure} <= {judged.limit.most:g}"
            )
            if judged in failing:
                ElementTree.SubElement(case, "failure", message=judged.sentence, type=judged.outcome)
            else:
                ElementTree.SubElement(case, "system-out").text = judged.sentence
        return ElementTree.tostring(suite, encoding="unicode", xml_declaration=True)


def hold_against(
    results: Results, limits: Sequence[Limit], inconclusive: Literal["fail", "pass"] | None = None
) -> GateVerdict:
    """Compare an audit with limits.

    A figure passes if the upper end of its 95 % interval is within the limit, for every attack. It fails if an
    estimate itself is beyond the limit. It is inconclusive in between, and if nothing could be measured. It is also
    inconclusive if it would pass although the audit could not have shown the opposite (`blind_spots`), or if its
    interval is of fewer than `FEWEST_TEXTS` texts.

    Raises:
        ConfigError: If there are no limits, or the audit has no such attack.
    """
    if not limits:
        raise ConfigError("no limits: give at least one, such as auc:0.6, or a policy that holds some")
    judged = tuple(_judge(results, limit) for limit in limits)
    subject = None if results.subject is None else one_line(results.subject)
    return GateVerdict(judged=judged, inconclusive=inconclusive, subject=subject)


def _judge(results: Results, limit: Limit) -> Judged:
    """Judge every figure that a limit concerns; the worst outcome counts, and among equal ones the largest figure."""
    judged = []
    for figure in _figures(results, limit):
        outcome, said = _outcome(figure), _sentence(figure, partly_scored(results, figure))
        few = few_texts(results) or few_scored(results, figure)
        if outcome == "failed" and figure.kind not in OF_EACH and few:
            # Flags keep their error rate with any number of texts, and what is said of each text or secret is exact.
            outcome, said = "inconclusive", f"{said}, but: {few}"
        if outcome == "passed" and (reasons := blind_spots(results, figure)):
            outcome, said = "inconclusive", f"{said}, but the audit may see too little: {' '.join(reasons)}"
        found = one_line(f"{_value(figure)} by {figure.attack}")
        one = Judged(limit=limit, outcome=outcome, sentence=one_line(said), found=found)
        judged.append((SEVERITY[outcome], figure.measure.value or 0.0, one))
    if not judged:
        said = f"{limit.figure}: no attack was measured"
        return Judged(limit=limit, outcome="inconclusive", sentence=said, found="not measured")
    return max(judged, key=lambda entry: entry[:2])[2]


def _figures(results: Results, limit: Limit) -> Iterator[LimitedFigure]:
    match = RULE.fullmatch(limit.figure)
    figure = limit.figure if match is None else match["figure"]
    decisions = results.decisions
    if figure == "identifiable":
        blind_spot = decisions.fewest_flags or 0
        name = "number of identifiable records"
        yield LimitedFigure(
            name=f"{name} (fewer than {blind_spot} cannot be flagged)" if blind_spot > 1 else name,
            measure=_identifiable(results),
            most=limit.most,
            kind="identifiable",
            attack=decisions.attack,
            rate=decisions.fdr,
        )
        if flagged := decisions.flagged_groups:
            yield LimitedFigure(
                name="number of identifiable groups",
                measure=_count(len(flagged)),
                most=limit.most,
                kind="identifiable",
                attack=decisions.attack,
                rate=decisions.fdr,
            )
    elif figure == "epsilon":
        yield LimitedFigure(
            name="epsilon, lower bound",
            measure=results.epsilon or Measure(reason="this audit has no bound on epsilon"),
            most=limit.most,
            kind="epsilon",
            attack=decisions.attack,
        )
    elif figure == "exposure":
        yield _exposure(results, limit.most)
    elif figure == "longest_run":
        yield _longest_run(results, limit.most)
    elif match is not None and match["draws"]:
        yield _extractable(results, limit.most, match["draws"], share=bool(match["share"]))
    else:
        attack, fpr = (match["attack"], match["fpr"]) if match else (None, None)
        yield from _attack_figures(results, limit.most, attack, fpr)


def _attack_figures(results: Results, most: float, attack: str | None, fpr: str | None) -> Iterator[LimitedFigure]:
    if attack is not None and attack not in results.attacks:
        raise ConfigError(f"the audit has no attack {attack}; it has {one_line(', '.join(results.attacks))}")
    for name, result in results.attacks.items():
        if name != attack and (attack is not None or name == CONTROL):
            continue
        if fpr is None:
            yield LimitedFigure(
                name=f"AUC of {name}",
                measure=result.auc,
                most=most,
                kind="auc",
                attack=name,
                named=name == attack,
            )
            continue
        rates = {float(rate): measure for rate, measure in result.tpr_at_fpr.items()}
        if float(fpr) not in rates:
            raise ConfigError(f"tpr@fpr={fpr}: measured at {', '.join(result.tpr_at_fpr)} only")
        yield LimitedFigure(
            name=f"TPR of {name} at an FPR of {fpr}",
            measure=rates[float(fpr)],
            most=most,
            kind="tpr",
            attack=name,
            rate=float(fpr),
            named=name == attack,
        )


def _extractable(results: Results, most: float, draws: str, *, share: bool) -> LimitedFigure:
    """Return how many records come out of the target but not of the base, or which share comes out of the target."""
    found = results.extraction or Extraction(reason="this file is of a version that did not measure it")
    if found.within and draws not in found.within:
        raise ConfigError(f"extractable@{draws}: measured within {', '.join(found.within)} draws only")
    within, said = found.within.get(draws), f"within {int(draws):,} draws"
    measure = Measure(reason=found.reason or "the results file does not say why")
    if within is not None:
        measure = within.judged if share else _count(within.n_new)
    return LimitedFigure(
        name=f"share of records extractable {said}"
        if share
        else f"number of records extractable {said}, and not from the base",
        measure=measure,
        most=most,
        kind="extractable_share" if share else "extractable",
        attack="sampling",
    )


def _exposure(results: Results, most: float) -> LimitedFigure:
    """Return the largest exposure of a secret in the texts to judge."""
    found = None if results.secrets is None else results.secrets.judged
    by_chance = "" if not found or not found.n_ranked else f" ({found.largest_by_chance:.0f} by chance)"
    return LimitedFigure(
        name=f"largest exposure of {found.n_ranked if found else 'any'} secrets, in bits{by_chance}",
        measure=Measure(reason="no spans were given to the audit") if found is None else found.largest,
        most=most,
        kind="exposure",
        attack="ranking",
    )


def _longest_run(results: Results, most: float) -> LimitedFigure:
    """Return the longest run of tokens in a continuation, of records of which the base has no run as long."""
    found = results.near_verbatim or NearVerbatim(reason="the audit continued no texts (`continuations`)")
    return LimitedFigure(
        name=f"longest run of tokens (longer than the base's) in continuations of {found.n_judged} records",
        measure=_count(found.longest_new_run) if found.n_judged else Measure(reason=found.reason),
        most=most,
        kind="longest_run",
        attack="continuing",
    )


def _identifiable(results: Results) -> Measure:
    decisions = results.decisions
    if not decisions.n_judged:
        return Measure(reason="no record was judged")
    return _count(decisions.n_flagged)


def _count(n: int) -> Measure:
    return Measure(value=float(n), low=float(n), high=float(n))


def _outcome(figure: LimitedFigure) -> Outcome:
    measure = figure.measure
    if measure.value is None:
        return "inconclusive"
    if measure.value > figure.most:
        return "failed"
    if figure.kind == "epsilon":  # a lower bound has no upper end, so it can only refute a claim
        return "passed"
    return "passed" if measure.high is not None and measure.high <= figure.most else "inconclusive"


def _value(figure: LimitedFigure) -> str:
    if figure.measure.value is None:
        return "not measured"
    if figure.kind == "exposure":
        return whole_bits(figure.measure)
    return f"{figure.measure.value:g}" if figure.kind in COUNTS else written(figure.measure)


def _sentence(figure: LimitedFigure, missing: str | None) -> str:
    name, measure, most = figure.name, figure.measure, figure.most
    if measure.value is None:
        return f"{name} could not be measured: {missing or measure.reason}"
    if figure.kind == "epsilon":
        return f"{name} is {measure.value:.3g}; it can refute a claim of {most:g}, but not confirm it"
    value = _value(figure)
    if measure.low is None or measure.high is None:
        return f"{name} is {value} without an interval; at most {most:g} is allowed"
    return f"{name} is {value}; at most {most:g} is allowed"
