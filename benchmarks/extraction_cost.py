"""What extraction adds to an audit's time: python benchmarks/extraction_cost.py OUT [options].

Fine-tunes the embedded base for a moment, audits it several times, and takes the processor time of each audit and of
the functions in it that say what can be drawn out. Prints the share that they add, as a median and a range.
"""

import argparse
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

from ltmia.auditing import assembly
from ltmia.auditing.audit import AuditConfig, audit
from ltmia.data.embedded import demo_base_path, demo_texts
from ltmia.finetuning.config import FinetuneConfig
from ltmia.finetuning.finetune import finetune
from ltmia.models.loading import LoadOptions, load_model, load_pair, load_tokenizer

PARTS = ("suffixes_of", "extraction_of", "suffix_columns")
"""Functions of `assembly` that only extraction needs."""


def main() -> None:
    """Train, audit, and print a row for each choice of attacks."""
    parser = argparse.ArgumentParser(description="What extraction adds to an audit's time.")
    parser.add_argument("out", type=Path)
    parser.add_argument("--texts", type=int, default=500, help="Members, and as many non-members.")
    parser.add_argument("--audits", type=int, default=3, help="Audits for each choice of attacks.")
    parser.add_argument("--attacks", nargs="+", default=["difference", "fast"])
    args = parser.parse_args()
    texts, base = demo_texts(), str(demo_base_path())
    members, nonmembers = texts.take(range(args.texts)), texts.take(range(args.texts, 2 * args.texts))
    loading = LoadOptions(dtype="float32", device="cpu")
    model, _ = load_model(base, loading)
    finetune(model, load_tokenizer(base, loading), members.texts[:40], FinetuneConfig(epochs=1), args.out / "model")
    pair = load_pair(args.out / "model", base, dtype="float32", device="cpu")
    spent: list[float] = []
    for name in PARTS:
        setattr(assembly, name, _timed(getattr(assembly, name), spent))
    print("| attacks | audit, s of processor time | extraction, s | adds |\n|---|---|---|---|")
    for attacks in args.attacks:
        rows = []
        for turn in range(args.audits + 1):
            spent.clear()
            started = time.process_time()
            audit(pair, members, nonmembers, args.out / f"{attacks}-{turn}", config=AuditConfig(attacks=attacks))
            rows.append((time.process_time() - started, sum(spent)))
        whole, part = zip(*rows[1:], strict=True)  # the first one compiles
        shares = [extraction / (total - extraction) for total, extraction in zip(whole, part, strict=True)]
        said = f"{median(shares):.1%} ({min(shares):.1%} to {max(shares):.1%})"
        print(f"| {attacks} | {median(whole):.2f} | {median(part):.3f} | {said} |", flush=True)


def _timed(function: Callable[..., Any], spent: list[float]) -> Callable[..., Any]:
    """Return a function that also notes the processor time that it takes."""

    def timed(*given: Any, **named: Any) -> Any:
        started = time.process_time()
        found = function(*given, **named)
        spent.append(time.process_time() - started)
        return found

    return timed


if __name__ == "__main__":
    main()
