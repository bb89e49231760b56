"""Prints the results of an audit, as table or JSON."""

import sys
from collections import Counter
from functools import partial
from pathlib import Path

import typer


def show(folder: Path, *, quiet: bool, as_json: bool) -> None:
    """Print the results in a folder; end with exit code 3 if no text could be scored."""
    from rich.console import Console

    from ltmia.cli.flags import in_flags, running_program
    from ltmia.evaluation.files import read_records, read_results
    from ltmia.evaluation.gate import INCONCLUSIVE
    from ltmia.evaluation.shown import one_line
    from ltmia.report.terminal import print_results

    results = read_results(folder)
    if as_json:
        print(results.model_dump_json(indent=1))
    elif not quiet:
        print_results(results, folder, Console(), partial(in_flags, program=running_program()))
    data = results.data
    n_texts = data.n_members + data.n_candidates + data.n_nonmembers
    if data.n_unscorable == n_texts:
        reasons = Counter(read_records(folder)["reason"].to_pylist())
        print(
            f"inconclusive: {results.target.source} and its base {results.reference.source} could score none of the "
            f"{n_texts} texts: {one_line(str(reasons.most_common(1)[0][0]))}",
            file=sys.stderr,
        )
        raise typer.Exit(INCONCLUSIVE)
