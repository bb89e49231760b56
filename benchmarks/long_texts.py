"""How much does it gain to read more of each text? python benchmarks/long_texts.py MODEL CORPUS.jsonl.gz OUT [options].

Passages of one document (column `source`) are joined to long texts. MODEL, a folder, hub id or .gguf file, is
fine-tuned on some of them; or MODEL is an architecture, such as llama, of which a tiny base is first pretrained on the
corpora after `--pretrain-on`. Both models are recorded on the texts, which are audited by their first 128 tokens, 256
and so on; with `--windows`, also by windows of 128 tokens whose scores are averaged. Prints AUC, TPR at 1 % and 10 %
FPR with 95 % intervals by document. Base, target, recordings and audits in OUT resume.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from transformers import PreTrainedTokenizerBase

from ltmia.auditing.audit import AuditConfig, audit
from ltmia.data.reading import read_texts
from ltmia.data.splits import draw_membership
from ltmia.evaluation.files import read_records
from ltmia.evaluation.intervals import measure_attack
from ltmia.evaluation.results import AttackResult
from ltmia.evaluation.wording import figure
from ltmia.finetuning.config import FinetuneConfig
from ltmia.finetuning.finetune import finetune
from ltmia.finetuning.pretraining import PretrainConfig, pretrain
from ltmia.finetuning.tiny import ARCHITECTURES, TinyConfig, build_base, train_tokenizer
from ltmia.models.loading import LoadOptions, load_alone, load_model, load_tokenizer
from ltmia.records import Texts
from ltmia.scoring.audited_pair import AuditedPair
from ltmia.scoring.recorded_pair import load_recorded_pair
from ltmia.scoring.recording import RecordConfig, record_model

OPTIONS = LoadOptions(dtype="float32", device="cpu")
WINDOW = 128
"""Tokens of a window: the length of the texts that the classifier learned from."""
VOCABULARY = 4096
"""Tokens of a tiny base."""


def main() -> None:
    """Fine-tune on long texts, then audit by their first tokens and by windows."""
    args = _arguments()
    base = _tiny_base(args) if args.model in ARCHITECTURES else args.model
    pool = joined(read_texts(args.corpus, group_column="source"), args.joined)
    drawn = draw_membership(pool, n_members=args.members, n_nonmembers=args.nonmembers, n_validation=0, seed=args.seed)
    members, others = pool.take(drawn.members), pool.take(drawn.nonmembers)
    trained_on = args.trained_on or max(args.lengths)
    target = args.out / f"target-{trained_on}"
    tokenizer = load_tokenizer(base, OPTIONS)
    if not target.is_dir():
        config = FinetuneConfig(
            epochs=args.epochs,
            learning_rate=args.learning_rate,
            batch_size=args.batch_size,
            max_length=trained_on,
            lora=args.lora,
            seed=args.seed,
        )
        outcome = finetune(load_model(base, OPTIONS)[0], tokenizer, members, config, target)
        print(f"fine-tuned on the first {trained_on} tokens: {outcome.seconds:.0f} s", flush=True)
    sides, read = (members, others), (trained_on, max(args.lengths))
    pair = recorded(args, base, target, Texts.concatenate(sides), "texts", read)
    print("| read | attack | AUC | TPR at 1 % FPR | TPR at 10 % FPR |\n|---|---|---|---|---|")
    settings = {"attacks": ",".join(args.attacks), "seed": args.seed, "classifier": "lite"}
    for length in args.lengths:
        folder = args.out / f"audit-{trained_on}-{length}"
        found = audit(pair, *sides, folder, config=AuditConfig(max_length=length, **settings))
        for attack, measured in found.results.attacks.items():
            _print(f"first {length} tokens", attack, measured)
    if not args.windows:
        return
    windows = [in_windows(texts, tokenizer, max(args.lengths)) for texts in sides]
    pair = recorded(args, base, target, Texts.concatenate(windows), "windows", (trained_on, WINDOW))
    folder = args.out / f"audit-{trained_on}-windows"
    audit(pair, *windows, folder, config=AuditConfig(max_length=WINDOW, **settings))
    names = np.array([*members.ids, *others.ids])
    groups = np.array([*(members.groups or ()), *(others.groups or ())])
    used = np.arange(len(names)) < len(members)
    for attack, score in window_means(folder, names).items():
        measured = measure_attack(score[used], score[~used], member_groups=groups[used], nonmember_groups=groups[~used])
        _print(f"windows of {WINDOW} of {max(args.lengths)}", attack, measured)


def recorded(
    args: argparse.Namespace, base: str, target: Path, texts: Texts, name: str, read: tuple[int, int]
) -> AuditedPair:
    """Record base and target on texts; `read` tells the tokens that were trained on and those that are read."""
    paths = []
    options = LoadOptions(dtype=args.dtype, device="cpu")
    for model in (str(target), base):
        kind = "base" if model == base else f"target-{read[0]}"
        paths.append(args.out / f"{kind}-{name}.jsonl.gz")
        alone = load_alone(model, tokenizer=base, options=options)
        record_model(alone, texts, paths[-1], config=RecordConfig(max_length=read[1], batch_size=4))
        print(f"recorded {paths[-1].name}", flush=True)
    return load_recorded_pair(*paths)


def joined(texts: Texts, n: int) -> Texts:
    """Join every `n` passages that follow each other in a document; what is left of a document is dropped."""
    by_document: dict[str, list[str]] = {}
    for text, document in zip(texts.texts, texts.groups or texts.ids, strict=True):
        by_document.setdefault(document, []).append(text)
    found = [
        (f"{document}:{start}", document, "\n".join(passages[start : start + n]))
        for document, passages in by_document.items()
        for start in range(0, len(passages) - n + 1, n)
    ]
    ids, groups, long = zip(*found, strict=True)
    return Texts(texts=long, ids=ids, groups=groups)


def in_windows(texts: Texts, tokenizer: PreTrainedTokenizerBase, n_tokens: int) -> Texts:
    """Cut the first `n_tokens` of each text into windows, which become texts of their own."""
    ids, groups, parts = [], [], []
    for name, text in zip(texts.ids, texts.texts, strict=True):
        tokens = tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"][:n_tokens]
        for start in range(0, len(tokens), WINDOW):
            ids.append(f"{name}#{start}")
            groups.append(name)
            parts.append(tokenizer.decode(tokens[start : start + WINDOW]))
    return Texts(texts=tuple(parts), ids=tuple(ids), groups=tuple(groups))


def window_means(folder: Path, names: Sequence[str]) -> dict[str, np.ndarray]:
    """Return each attack's mean score over the windows of each text."""
    records = read_records(folder)
    row_of = {name: row for row, name in enumerate(names)}
    rows = np.array([row_of[name.rsplit("#", 1)[0]] for name in records["id"].to_pylist()])
    found = {}
    for column in (name for name in records.column_names if name.startswith("score_")):
        score = records[column].to_numpy()
        seen = np.isfinite(score)
        counts, sums = (np.bincount(rows[seen], weights, len(names)) for weights in (None, score[seen]))
        found[column.removeprefix("score_")] = sums / np.where(counts == 0, np.nan, counts)
    return found


def _print(read: str, attack: str, measured: AttackResult) -> None:
    tpr = [measured.tpr_at_fpr[fpr] for fpr in ("0.01", "0.1")]
    figures = [figure(measured.auc), *("not measured" if each.value is None else figure(each) for each in tpr)]
    print(f"| {read} | {attack} | {' | '.join(figures)} |", flush=True)


def _tiny_base(args: argparse.Namespace) -> str:
    folder = args.out / "base"
    if not folder.is_dir():
        longest = max(args.lengths)
        texts = [text for path in args.pretrain_on for text in joined(read_texts(path, group_column="source"), 4).texts]
        shape = TinyConfig(model_type=args.model, vocab_size=VOCABULARY, n_layers=3, max_positions=longest)
        config = PretrainConfig(n_tokens=args.pretrain_tokens, seq_len=longest, batch_size=1, learning_rate=1e-3)
        tokenizer = train_tokenizer(texts, VOCABULARY)
        record = pretrain(build_base(shape, seed=args.seed), tokenizer, texts, config, out=folder)
        print(f"pretrained: {record.n_parameters} parameters, {record.seconds:.0f} s", flush=True)
    return str(folder)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model")
    parser.add_argument("corpus", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--pretrain-on", type=Path, nargs="+", default=[], help="corpora of a tiny base")
    parser.add_argument("--pretrain-tokens", type=int, default=1_000_000)
    parser.add_argument("--joined", type=int, default=8, help="passages of a document in a text")
    parser.add_argument("--lengths", type=int, nargs="+", default=[128, 256, 512, 1024])
    parser.add_argument("--trained-on", type=int, help="tokens of each text in the fine-tuning; default: the longest")
    parser.add_argument("--members", type=int, default=200)
    parser.add_argument("--nonmembers", type=int, default=400)
    parser.add_argument("--epochs", type=int, default=1)
    parser.add_argument("--learning-rate", type=float, default=2e-4)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--lora", action="store_true")
    parser.add_argument("--dtype", default="float32", help="of both models after training")
    parser.add_argument("--attacks", nargs="+", default=["ltmia", "ez_mia", "wbc", "difference"])
    parser.add_argument("--windows", action="store_true")
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args()


if __name__ == "__main__":
    main()
