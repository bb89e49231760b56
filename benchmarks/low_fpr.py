"""TPR at an FPR of 0.1 % on a real LM: python benchmarks/low_fpr.py MODEL CORPUS.jsonl.gz OUT [options].

MODEL, a folder, hub id or .gguf file, is rounded to bfloat16, as models are published, and fine-tuned in float32 on
members drawn by document (column `source`). `ltmia.audit` then reads the target, in bfloat16 too, with 10,000
non-members. Prints AUC and TPR at 1 % and 0.1 % FPR of all attacks, with 95 % intervals by document. Resumes.
"""

from real_target import arguments, fine_tuned

from ltmia.auditing.audit import AuditConfig, audit
from ltmia.evaluation.wording import figure
from ltmia.models.loading import LoadOptions, load_model, load_tokenizer


def main() -> None:
    """Fine-tune unless OUT/target is there, audit, and print the attacks."""
    parser = arguments(__doc__, members=500, nonmembers=10_000, learning_rate=2e-5, dtype="bfloat16", max_length=64)
    parser.add_argument("--attacks", default="difference,ez_mia,wbc,ltmia")
    args = parser.parse_args()
    base = args.out / "base"
    if not base.is_dir():
        options = LoadOptions(dtype=args.dtype, device="cpu")
        load_model(args.model, options)[0].save_pretrained(base)
        load_tokenizer(args.model, options).save_pretrained(base)
    args.model = str(base)
    target = fine_tuned(args)
    config = AuditConfig(attacks=args.attacks, observer="weights", max_length=args.max_length)
    found = audit(target.pair, target.members, target.nonmembers, args.out / "audit", config=config)
    print("| attack | AUC | TPR at 1 % FPR | TPR at 0.1 % FPR |\n|---|---|---|---|")
    for name, one in found.results.attacks.items():
        shown = [figure(one.auc), *(figure(one.tpr_at_fpr[x]) for x in ("0.01", "0.001"))]
        print(f"| `{name}` | " + " | ".join(shown) + " |")


if __name__ == "__main__":
    main()
