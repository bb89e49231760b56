"""`ltmia attacks`: the list of attacks, and one attack in detail."""

import inspect
import json
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ltmia.cli import options as o

if TYPE_CHECKING:
    from ltmia.attacks.table import Attack


def attacks(
    name: Annotated[str | None, typer.Argument(help="Attack to show in detail; default: list all.")] = None,
    as_json: o.AsJson = False,
) -> None:
    """List the attacks, or show the formula, cost and source of one."""
    from ltmia.attacks.selection import select_attacks
    from ltmia.attacks.table import ATTACKS

    chosen = ATTACKS.values() if name is None else [ATTACKS[only] for only in select_attacks([name])]
    if as_json:
        print(json.dumps([_facts(attack) for attack in chosen], indent=1))
    elif name is None:
        _print_list(list(chosen))
    else:
        for attack in chosen:
            _print_detail(attack)


def _facts(attack: "Attack") -> dict[str, Any]:
    return {
        "name": attack.name,
        "title": attack.title,
        "group": attack.group,
        "needs": attack.needs,
        "passes": attack.passes,
        "recorded": attack.recorded,
        "source": attack.source,
        "summary": attack.summary,
    }


def _print_list(chosen: list["Attack"]) -> None:
    rows = [("attack", "group", "needs", "is"), *((a.name, a.group, a.needs, a.title) for a in chosen)]
    widths = [max(len(row[i]) for row in rows) for i in range(3)]
    for row in rows:
        print("  ".join([*(cell.ljust(width) for cell, width in zip(row[:3], widths, strict=True)), row[3]]))
    print("\nltmia attacks NAME shows formula, cost and source of one.")


def _print_detail(attack: "Attack") -> None:
    function = attack.function
    print(f"{attack.name}: {attack.title}\n")
    print((inspect.getdoc(function) or "").partition("\n\nArgs:")[0] if function else attack.summary)
    print(f"\nGroup:    {attack.group}")
    print(f"Needs:    {attack.needs}")
    print(f"Passes:   {attack.passes} (target/reference, per text)")
    print(f"Recorded: {'log-probabilities of a server suffice' if attack.recorded else 'needs the models'}")
    print(f"Source:   {attack.source}")
