"""Fine-tune a real LM on one corpus and audit it: python benchmarks/real_lm.py MODEL CORPUS.jsonl.gz OUT [options].

MODEL is a folder, hub id or .gguf file. Members and non-members are drawn by document (column `source`). Training is
bfloat16 autocast where the CPU has it. Prints the table of attacks; results.json in OUT holds every figure.
"""

from real_target import arguments, fine_tuned
from rich.console import Console

from ltmia.auditing.audit import AuditConfig, audit
from ltmia.report.terminal import print_results


def main() -> None:
    """Fine-tune unless OUT/target is there, then audit (both resume)."""
    args = arguments(__doc__, members=300, nonmembers=1000, learning_rate=3e-5, dtype="bfloat16").parse_args()
    found = fine_tuned(args)
    result = audit(found.pair, found.members, found.nonmembers, args.out / "audit", config=AuditConfig(seed=args.seed))
    print_results(result.results, result.folder, Console())


if __name__ == "__main__":
    main()
