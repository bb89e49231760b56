"""How far the weights observer holds: python benchmarks/weights_robustness.py CORPUS.jsonl.gz OUT [--rows NAME ...].

Fine-tunes the embedded base in several ways, rounds some of the targets, and prints a row each: AUC with a 95 %
interval by document of the attacks on the weights and on log-probabilities. All rows audit the same texts, but those of
another seed or with more members. A row called `faint` is one of a curve: how much is seen of ever fainter fine-tunes;
`--curve FILE.svg` draws those among the rows. Fine-tunes and gradients resume.
"""

import argparse
import copy
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedModel, Trainer

from ltmia.attacks.table import LEARNED, UPDATE, WITH_WEIGHTS
from ltmia.data.embedded import demo_base_path, demo_texts
from ltmia.data.reading import read_texts
from ltmia.data.splits import draw_membership
from ltmia.evaluation.intervals import measure_attack
from ltmia.evaluation.macro import mean_with_interval
from ltmia.evaluation.roc import auc
from ltmia.evaluation.section import Measure
from ltmia.evaluation.wording import figure
from ltmia.finetuning.config import FinetuneConfig
from ltmia.finetuning.finetune import finetune
from ltmia.finetuning.privacy import DpConfig
from ltmia.finetuning.training import make_trainer, train_or_resume, training_arguments
from ltmia.finetuning.training_rows import RightPadding, TokenRows, training_rows
from ltmia.models.loading import LoadOptions, load_model, load_pair, load_tokenizer
from ltmia.models.pair import Pair
from ltmia.models.tokens import encode_texts
from ltmia.records import Texts
from ltmia.scoring.identity import PairIdentity
from ltmia.scoring.in_memory import score_texts
from ltmia.weights.combination import add_output_score
from ltmia.weights.update_attack import UpdateAttack, explain_update

BASE = str(demo_base_path())
FLOAT32 = LoadOptions(dtype="float32", device="cpu")
HALVES = {"bfloat16": torch.bfloat16, "float16": torch.float16}
INTEGERS = {"int8 by row": (127, None), "4 bit by 32": (7, 32)}
"""Largest level, and weights that share a scale (None: a row)."""
COLUMNS = (UPDATE, WITH_WEIGHTS, LEARNED, "difference")


@dataclass(frozen=True, kw_only=True)
class Row:
    """One way to make a target."""

    settings: dict[str, Any] = field(default_factory=dict)
    """Of the fine-tuning, other than those all rows share."""
    optimizer: str | None = None
    """Instead of AdamW."""
    rounding: str | None = None
    """Format that the target is rounded to after training."""
    base_alike: bool = False
    """Whether the base is rounded too."""
    merge: bool = False
    """Whether the adapter is merged into the weights."""
    known: float = 1.0
    """Share of the members that are among the texts."""
    members: int | None = None
    """Members to train on, if more than --members; those beyond are not among the texts."""
    alone: int = 0
    """Members that are each put alone among the non-members; 0: all of them at once."""
    revision: bool = False
    """Whether the base that the attack holds is another revision: trained a little further, on other texts."""


LORA = {"lora": True, "learning_rate": 2e-3}
ROWS = {
    "exact": Row(),
    "bfloat16": Row(rounding="bfloat16"),
    "float16": Row(rounding="float16"),
    "int8 by row": Row(rounding="int8 by row"),
    "int8 by row, base alike": Row(rounding="int8 by row", base_alike=True),
    "4 bit by 32": Row(rounding="4 bit by 32"),
    "4 bit by 32, base alike": Row(rounding="4 bit by 32", base_alike=True),
    "LoRA": Row(settings=LORA),
    "LoRA, merged": Row(settings=LORA, merge=True),
    "LoRA, half of the members known": Row(settings=LORA, known=0.5),
    "3 epochs": Row(settings={"epochs": 3}),
    "10 epochs": Row(settings={"epochs": 10}),
    "5000 members, 3 epochs": Row(settings={"epochs": 3}, members=5000),
    "SGD": Row(settings={"learning_rate": 0.2}, optimizer="sgd"),
    "Adafactor": Row(optimizer="adafactor"),
    "Muon": Row(settings={"learning_rate": 1e-3}, optimizer="muon"),
    "another seed": Row(settings={"seed": 1}),
    "one member at a time": Row(alone=20),
    "base of another revision": Row(revision=True),
    "DP-SGD, epsilon 8": Row(settings={"dp": DpConfig(epsilon=8.0, delta=1e-4), "learning_rate": 2e-3}),
} | {
    f"faint: {members} members at {rate:.0e}": Row(settings={"learning_rate": rate}, members=members)
    for members in (200, 1000, 2000)
    for rate in (5e-4, 2e-4, 1e-4, 5e-5)
}
FAINT = re.compile(r"faint: (\d+) members at .*")


def main() -> None:
    """Print the table, a row at a time."""
    args = _arguments()
    pool = read_texts(args.corpus, group_column="source")
    print("| target | explained | " + " | ".join(COLUMNS) + " |\n|" + "---|" * (len(COLUMNS) + 2))
    measures: dict[str, list[Measure]] = {}
    for name in args.rows or ROWS:
        row = ROWS[name]
        seed = row.settings.get("seed", 0)
        trained = row.members or args.members
        drawn = draw_membership(pool, n_members=trained, n_nonmembers=args.nonmembers, n_validation=0, seed=seed)
        members, others = pool.take(drawn.members), pool.take(drawn.nonmembers)
        pair = made(row, members, args.out)
        known = members.take(range(round(row.known * min(args.members, trained))))
        if row.alone:
            explained, measures[name] = measured_alone(pair, known.take(range(row.alone)), others, args.out / name)
        else:
            explained, measures[name] = measured(pair, known, others, args.out / name)
        print(f"| {name} | {explained:.3f} | {' | '.join(map(figure, measures[name]))} |", flush=True)
    if args.curve:
        draw({name: found for name, found in measures.items() if FAINT.match(name)}, args.curve)


def draw(measures: dict[str, list[Measure]], path: Path) -> None:
    """Draw the AUCs of both observers against the AUC of `difference`, one panel for each number of members."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    counts = sorted({int(FAINT.sub(r"\1", name)) for name in measures})
    picture, panels = plt.subplots(
        1, len(counts), figsize=(1 + 2.2 * len(counts), 2.8), sharey=True, squeeze=False, layout="constrained"
    )
    for panel, count in zip(panels[0], counts, strict=True):
        rows = [found for name, found in measures.items() if int(FAINT.sub(r"\1", name)) == count]
        rows.sort(key=lambda found: found[COLUMNS.index("difference")].value or 0)
        across = [found[COLUMNS.index("difference")].value for found in rows]
        for name, style in ((UPDATE, "o-"), (WITH_WEIGHTS, "s--"), (LEARNED, "^:")):
            upward = [found[COLUMNS.index(name)] for found in rows]
            panel.plot(across, [one.value for one in upward], style, label=name)
            panel.fill_between(across, [one.low or 0 for one in upward], [one.high or 1 for one in upward], alpha=0.15)
        panel.set(title=f"{count:,} members", xlabel="AUC of difference", ylim=(0.5, 1.01))
    panels[0][0].set_ylabel("AUC")
    panels[0][-1].legend(frameon=False, fontsize="small")
    picture.savefig(path, metadata={"Date": None})


def made(row: Row, members: Texts, out: Path) -> Pair:
    """Return the row's target beside its base."""
    config = FinetuneConfig(**({"epochs": 1, "learning_rate": 5e-4, "batch_size": 16} | row.settings))
    changed = row.settings | ({"members": len(members)} if row.members else {})
    if "dp" in changed:
        changed["dp"] = row.settings["dp"].epsilon
    folder = out / "-".join(["target", row.optimizer or "adamw", *(f"{k}-{v}" for k, v in changed.items())])
    if not folder.is_dir():
        model, _ = load_model(BASE, FLOAT32)
        tokenizer = load_tokenizer(BASE, FLOAT32)
        if row.optimizer is None:
            finetune(model, tokenizer, members, config, folder)
        else:
            train_with(row.optimizer, model, training_rows(tokenizer, members.texts, config.max_length), config, folder)
            tokenizer.save_pretrained(folder)
    base_folder = another_revision(out / "base-revision") if row.revision else BASE
    pair = load_pair(folder, base_folder, dtype="float32", device="cpu")
    target, base = pair.target, load_model(BASE, FLOAT32)[0]
    if row.merge:
        target = target.merge_and_unload()
    elif row.rounding is None:
        return pair
    if row.rounding is not None:
        target = rounded(target, row.rounding)
        base = rounded(base, row.rounding) if row.base_alike else base
    return load_pair(target, base, tokenizer=pair.tokenizer)


def another_revision(folder: Path) -> Path:
    """Train the base a little further, on the embedded texts, and save it."""
    if not folder.is_dir():
        model, _ = load_model(BASE, FLOAT32)
        config = FinetuneConfig(epochs=1, learning_rate=2e-5, batch_size=16)
        finetune(model, load_tokenizer(BASE, FLOAT32), demo_texts().take(range(200)), config, folder)
    return folder


def train_with(optimizer: str, model: PreTrainedModel, rows: list[Any], config: FinetuneConfig, folder: Path) -> None:
    """Train with another optimiser than `finetune` offers, at a constant rate, and save the model."""
    arguments = training_arguments(
        folder.with_name(f"{folder.name}-work"),
        model.device,
        num_train_epochs=config.epochs,
        per_device_train_batch_size=config.batch_size,
        learning_rate=config.learning_rate,
        lr_scheduler_type="constant",
        seed=config.seed,
        **({} if optimizer == "muon" else {"optim": optimizer}),
    )
    build: Callable[..., Trainer] = Trainer
    if optimizer == "muon":  # it is made for matrices; norms, biases and embeddings stay as they are
        matrices = [weight for name, weight in model.named_parameters() if weight.ndim == 2 and ".h." in name]
        build = partial(Trainer, optimizers=(torch.optim.Muon(matrices, config.learning_rate, weight_decay=0.0), None))
    trainer = make_trainer(
        model,
        arguments,
        train=TokenRows(rows),
        validation=None,
        collate=RightPadding(0),
        checkpoint_minutes=None,
        build=build,
    )
    train_or_resume(trainer)
    model.save_pretrained(folder)


def rounded(model: PreTrainedModel, kind: str) -> PreTrainedModel:
    """Return a copy with weights rounded to a format and stored as float32 again; integers round matrices alone."""
    copied = copy.deepcopy(model)
    with torch.no_grad():
        for weight in copied.parameters():
            if kind in HALVES:
                weight.copy_(weight.to(HALVES[kind]).float())
            elif weight.ndim == 2:
                level, group = INTEGERS[kind]
                blocks = weight.reshape(-1, group or weight.shape[1])
                scale = blocks.abs().amax(dim=1, keepdim=True).clamp(min=torch.finfo(torch.float32).tiny) / level
                weight.copy_(((blocks / scale).round() * scale).reshape(weight.shape))
    return copied


def measured(pair: Pair, members: Texts, others: Texts, folder: Path) -> tuple[float, list[Measure]]:
    """Return the explained share, and the AUC of members against others for each column of the table."""
    texts = Texts.concatenate([members, others])
    used = np.arange(len(texts)) < len(members)
    encoded = encode_texts(pair.tokenizer, texts.texts, max_length=128, vocab_size=pair.vocab_size)
    with UpdateAttack(pair, encoded, folder, identity=PairIdentity.of(pair).key) as attack:
        found = attack.score()
    scores = score_texts(pair, list(texts.texts), attacks=("difference", LEARNED))
    together = add_output_score(found.alpha, found.standard_error, scores[LEARNED])
    scores |= {UPDATE: found.score, WITH_WEIGHTS: together}
    groups = np.unique(texts.groups, return_inverse=True)[1]
    sides = {"member_groups": groups[used], "nonmember_groups": groups[~used]}
    return found.explained, [measure_attack(scores[name][used], scores[name][~used], **sides).auc for name in COLUMNS]


def measured_alone(pair: Pair, members: Texts, others: Texts, folder: Path) -> tuple[float, list[Measure]]:
    """Return the same figures, with each member alone among the others; AUCs are means over members."""
    texts = Texts.concatenate([members, others])
    encoded = encode_texts(pair.tokenizer, texts.texts, max_length=128, vocab_size=pair.vocab_size)
    explained, below = [], {name: [] for name in COLUMNS}
    with UpdateAttack(pair, encoded, folder, identity=PairIdentity.of(pair).key) as attack:
        file = attack.gradients.finish()
        for member in range(len(members)):
            rows = np.array([member, *range(len(members), len(texts))])
            found = explain_update(file, rows, attack.coordinates, attack.config)
            scores = score_texts(pair, [texts.texts[row] for row in rows], attacks=("difference", LEARNED))
            together = add_output_score(found.alpha, found.standard_error, scores[LEARNED])
            scores |= {UPDATE: found.usage.log_odds, WITH_WEIGHTS: together}
            explained.append(found.explained)
            for name in COLUMNS:
                below[name].append(auc(scores[name][:1], scores[name][1:]))
    return float(np.mean(explained)), [mean_with_interval(below[name]) for name in COLUMNS]


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("corpus", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--rows", nargs="*", choices=ROWS, help="default: all")
    parser.add_argument("--members", type=int, default=200)
    parser.add_argument("--nonmembers", type=int, default=400)
    parser.add_argument("--curve", type=Path, help="picture of the rows called faint")
    return parser.parse_args()


if __name__ == "__main__":
    main()
