"""The auditor: audit two fine-tunes of one model, compare them, and apply limits: python examples/auditor.py OUT.

Which of the training texts does each model give away, does the gentler one give away less, and may it be released?
Works on the embedded texts and base; put your own model and texts in their place.
"""

import argparse
from pathlib import Path

import ltmia

LIMITS = ("auc:0.6", "tpr@fpr=0.1:0.2")
ATTACKS = "ltmia,wbc,difference"
"""A few, for speed; "fast" runs all that share one pass."""


def fine_tune(members: "ltmia.Texts", epochs: int, target: Path) -> None:
    """Stands for your own fine-tuning."""
    options = ltmia.LoadOptions(dtype="float32", device="cpu")
    base = str(ltmia.demo_base_path())
    model, _ = ltmia.load_model(base, options)
    config = ltmia.FinetuneConfig(epochs=epochs, learning_rate=1e-3, max_length=64)
    ltmia.finetune(model, ltmia.load_tokenizer(base, options), members.texts, config, target)


def audited(members: "ltmia.Texts", nonmembers: "ltmia.Texts", epochs: int, folder: Path) -> "ltmia.AuditResult":
    """Fine-tune and audit; the report lies in `folder/audit`."""
    fine_tune(members, epochs, folder / "target")
    pair = ltmia.load_pair(folder / "target", ltmia.demo_base_path(), dtype="float32", device="cpu")
    config = ltmia.AuditConfig(attacks=ATTACKS, max_length=64)
    return ltmia.audit(pair, members, nonmembers, folder / "audit", config=config)


def main(out: Path) -> None:
    """Audit a model of three epochs and one of a single epoch."""
    # Draw the members before training, whole documents at a time: nothing matters more for a valid audit.
    drawn = ltmia.draw_membership(ltmia.demo_texts(), n_members=60, n_nonmembers=120, n_validation=0, seed=1)
    members, nonmembers = ltmia.demo_texts().take(drawn.members), ltmia.demo_texts().take(drawn.nonmembers)

    three = audited(members, nonmembers, 3, out / "three-epochs")
    one = audited(members, nonmembers, 1, out / "one-epoch")
    for name, found in (("three epochs", three), ("one epoch", one)):
        print(f"{name}: {found.results.verdict}")
    print(ltmia.compare((three.results, three.records), (one.results, one.records)).sentence)
    for line in ltmia.gate(one.results, [ltmia.Limit.parse(text) for text in LIMITS]).lines():
        print(line)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path)
    main(parser.parse_args().out)
