"""The auditor: two fine-tunes of one model, audited, compared, and held against limits: python examples/auditor.py OUT.

Which of the training texts does each model give away, does the gentler one give away less, and may it be released?
Works on the embedded texts and base; put your own model and texts in their place.
"""

import argparse
from pathlib import Path

from ltmia import audit, load_pair
from ltmia.auditing.audit import AuditConfig
from ltmia.auditing.question import AuditResult
from ltmia.data.embedded import demo_base_path, demo_texts
from ltmia.data.splits import draw_membership
from ltmia.evaluation.comparison import compare_audits
from ltmia.evaluation.gate import Limit, hold_against
from ltmia.finetuning.config import FinetuneConfig
from ltmia.finetuning.finetune import finetune
from ltmia.models.loading import LoadOptions, load_model, load_tokenizer
from ltmia.records import Texts

LIMITS = [Limit.parse("auc:0.6"), Limit.parse("tpr@fpr=0.1:0.2")]
ATTACKS = "ltmia,wbc,difference"
"""A few, for speed; "fast" runs all that share one pass."""


def fine_tune(members: Texts, epochs: int, target: Path) -> None:
    """Stands for your own fine-tuning."""
    options = LoadOptions(dtype="float32", device="cpu")
    base = str(demo_base_path())
    model, _ = load_model(base, options)
    config = FinetuneConfig(epochs=epochs, learning_rate=1e-3, max_length=64)
    finetune(model, load_tokenizer(base, options), members.texts, config, target)


def audited(members: Texts, nonmembers: Texts, epochs: int, folder: Path) -> AuditResult:
    """Fine-tune and audit; the report lies in `folder/audit`."""
    fine_tune(members, epochs, folder / "target")
    pair = load_pair(folder / "target", demo_base_path(), dtype="float32", device="cpu")
    return audit(pair, members, nonmembers, folder / "audit", config=AuditConfig(attacks=ATTACKS, max_length=64))


def main(out: Path) -> None:
    """Audit a model of three epochs and one of a single epoch."""
    # Drawn before training, whole documents on one side: nothing else decides as much.
    drawn = draw_membership(demo_texts(), n_members=60, n_nonmembers=120, n_validation=0, seed=1)
    members, nonmembers = demo_texts().take(drawn.members), demo_texts().take(drawn.nonmembers)

    three = audited(members, nonmembers, 3, out / "three-epochs")
    one = audited(members, nonmembers, 1, out / "one-epoch")
    for name, found in (("three epochs", three), ("one epoch", one)):
        print(f"{name}: {found.results.verdict}")
    print(compare_audits((three.results, three.records), (one.results, one.records)).sentence)
    for line in hold_against(one.results, LIMITS).lines():
        print(line)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path)
    main(parser.parse_args().out)
