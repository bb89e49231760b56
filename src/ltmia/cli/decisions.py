"""The commands on finished audits: `report`, `gate` and `compare`."""

import json
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from ltmia.cli import options as o


class Inconclusive(StrEnum):
    """What an inconclusive figure counts as."""

    fail = "fail"
    pass_ = "pass"  # noqa: S105  no password, an outcome


def report(
    folder: Annotated[Path, typer.Argument(help="Folder of an audit.")],
    policy: Annotated[
        Path | None, typer.Option("--policy", help="TOML file whose table `max` holds the limits of the verdict.")
    ] = None,
) -> None:
    """Write report.html again from the files of an audit's folder."""
    from ltmia.evaluation.limits import read_policy
    from ltmia.report.page import write_report

    print(write_report(folder, read_policy(policy).limits if policy else None))


def gate(
    folder: Annotated[Path, typer.Argument(help="Folder of an audit.")],
    most: Annotated[
        list[str] | None,
        typer.Option(
            "--max",
            help='Limit, such as "auc:0.6", "tpr@fpr=0.01:0.05", "identifiable:0", "extractable@1000:0", "epsilon:8"; '
            "repeat for several.",
        ),
    ] = None,
    policy: Annotated[Path | None, typer.Option("--policy", help="TOML file whose table `max` holds limits.")] = None,
    inconclusive: Annotated[
        Inconclusive | None,
        typer.Option("--inconclusive", help="Count an inconclusive gate as failed or passed; default: exit code 3."),
    ] = None,
    junit: Annotated[Path | None, typer.Option("--junit", help="Write JUnit XML here.")] = None,
    summary: Annotated[Path | None, typer.Option("--summary", help="Append Markdown to this file.")] = None,
    as_json: o.AsJson = False,
) -> None:
    """Compare an audit with limits: exit code 0 if it passes, 1 if it fails, 3 if it is inconclusive."""
    from ltmia.evaluation.audit_folder import SHAREABLE
    from ltmia.evaluation.files import read_verdict
    from ltmia.evaluation.gate import hold_against
    from ltmia.evaluation.limits import DEFAULT_LIMITS, Limit, read_policy
    from ltmia.folders import named_errors, write_whole
    from ltmia.ownership import refuse_inputs, refuse_stranger

    limits = [Limit.parse(text) for text in most or []]
    rules = read_policy(policy) if policy else None
    limits += rules.limits if rules else []
    treated = inconclusive.value if inconclusive else rules.inconclusive if rules else None
    if rules is None and not limits:
        limits = list(DEFAULT_LIMITS)
    for output in filter(None, (junit, summary)):
        refuse_inputs(output, [*(folder / name for name in SHAREABLE), *([policy] if policy else [])])
    if junit:
        refuse_stranger(junit, 'name="ltmia gate"')
    verdict = hold_against(read_verdict(folder), limits, treated)
    print(verdict.json() if as_json else "\n".join(verdict.lines()))
    if junit:
        with named_errors(junit):
            junit.parent.mkdir(parents=True, exist_ok=True)
            write_whole(junit, lambda part: part.write_text(verdict.junit(), "utf-8"))
    if summary:
        with named_errors(summary):
            summary.parent.mkdir(parents=True, exist_ok=True)
            with summary.open("a", encoding="utf-8") as file:
                file.write(verdict.markdown())
    raise typer.Exit(verdict.exit_code)


def compare(
    first: Annotated[Path, typer.Argument(help="Folder of an audit, for example before a change.")],
    second: Annotated[Path, typer.Argument(help="Folder of an audit of the same texts, for example after it.")],
    attack: Annotated[
        str | None, typer.Option("--attack", help="Attack to compare; default: the one that decides.")
    ] = None,
    html: Annotated[Path | None, typer.Option("--html", help="Write a page here: figures, groups and records.")] = None,
    seed: o.Seed = 0,
    as_json: o.AsJson = False,
) -> None:
    """Compare two audits of the same texts: does the second model reveal less?"""
    from ltmia.evaluation.audit_folder import are_of_same_texts
    from ltmia.evaluation.comparison import compare_audits
    from ltmia.evaluation.files import read_audit
    from ltmia.evaluation.shown import one_line
    from ltmia.evaluation.wording import figure

    same_texts = are_of_same_texts(first, second)
    audits = read_audit(first), read_audit(second)
    comparison = compare_audits(*audits, attack=attack, same_texts=same_texts, seed=seed)
    if html:
        from ltmia.report.comparison import comparison_page
        from ltmia.report.tables import write_tables

        write_tables(comparison_page(*audits, comparison), html)
    if as_json:
        print(json.dumps({"same_texts": same_texts, **comparison.tree()}, indent=1))
        return
    if same_texts is None:
        print("The ids are the same. The texts were not compared, because that needs both private folders.")
    for subject in comparison.subjects:
        print(subject)
    for fpr, measure in comparison.tpr_at_fpr.items():
        if measure.value is None:
            print(f"TPR at an FPR of {fpr}: {measure.reason}")
        else:
            print(f"Change of the TPR at an FPR of {fpr}: {figure(measure, signed=True)}")
    print(one_line(comparison.sentence))
    if html:
        print(html)
