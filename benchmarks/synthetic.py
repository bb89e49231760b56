"""How much of a model's training texts can be told from texts that it wrote: by epochs, and by number of written texts.

    python benchmarks/synthetic.py OUT --members 300 --epochs 0 2 10 --texts 300 1200

For each number of epochs, the embedded base is fine-tuned on the members and writes texts; with 0 epochs it is the base
itself, which saw none of them. Then the embedded base is fine-tuned on the written texts and audited for the members.
"""

import argparse
import sys
from pathlib import Path

from ltmia.auditing.audit import AuditConfig
from ltmia.auditing.synthetic import SyntheticSubject, audit_synthetic
from ltmia.auditing.text_sets import as_texts
from ltmia.canaries.sampling import SampleConfig, sample_texts
from ltmia.data.embedded import demo_base_path, demo_texts
from ltmia.data.splits import draw_membership
from ltmia.evaluation.wording import figure
from ltmia.finetuning.config import FinetuneConfig
from ltmia.finetuning.finetune import finetune
from ltmia.models.loading import LoadOptions, load_alone, load_model, load_tokenizer

BASE = str(demo_base_path())
LOADING = LoadOptions(dtype="float32", device="cpu")


def main() -> None:
    """Write the audits below OUT, and print one table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--members", type=int, default=300)
    parser.add_argument("--epochs", type=int, nargs="+", default=[0, 2, 10])
    parser.add_argument("--texts", type=int, nargs="+", default=[300, 1200])
    parser.add_argument("--tokens", type=int, default=48)
    parser.add_argument("--learning-rate", type=float, default=8e-4)
    given = parser.parse_args()
    drawn = draw_membership(
        demo_texts(), n_members=given.members, n_nonmembers=given.members, n_validation=0, seed=0
    )  # by document
    members, nonmembers = (
        as_texts([" ".join(text.split()[: given.tokens * 3 // 4]) for text in demo_texts().take(rows).texts])
        for rows in (drawn.members, drawn.nonmembers)
    )
    print("| epochs of the writer | texts written | AUC | control | verbatim, in passages: members | non-members |")
    print("|---|---|---|---|---|---|", flush=True)
    for epochs in given.epochs:
        writer = BASE
        if epochs:
            writer = str(given.out / f"writer-{epochs}")
            model, _ = load_model(BASE, LOADING)
            tuning = FinetuneConfig(epochs=epochs, learning_rate=given.learning_rate, max_length=given.tokens)
            finetune(model, load_tokenizer(BASE, LOADING), members, tuning, Path(writer))
        pair = load_alone(writer, options=LOADING)
        written = sample_texts(pair, SampleConfig(n_texts=max(given.texts), n_tokens=given.tokens))
        for n_texts in given.texts:
            tuning = FinetuneConfig(epochs=3, learning_rate=given.learning_rate, max_length=given.tokens)
            subject = SyntheticSubject(texts=as_texts(written[:n_texts]), base=BASE, tuning=tuning)
            config = AuditConfig(max_length=given.tokens)
            out = given.out / f"audit-{epochs}-{n_texts}"
            results = audit_synthetic(subject, (members, nonmembers), out, config=config, loading=LOADING).results
            found, judge, control = results.synthetic, results.decisions.attack, results.attacks["bag_of_words"]
            if found is None:
                sys.exit(f"{out}: no section on synthetic texts")
            copies = [f"{side.n_verbatim}, {side.n_near}" for side in (found.members, found.nonmembers)]
            cells = [epochs, n_texts, figure(results.attacks[judge].auc), figure(control.auc), *copies]
            print(f"| {' | '.join(map(str, cells))} |", flush=True)


if __name__ == "__main__":
    main()
