"""Measure where a classifier carries over, from the stores of a lab: python scripts/study.py LAB OUT.

LAB is the folder of `ltmia lab run recipes/tiny.toml`. Classifiers are trained on parts of its training stores and
tested on others. Each is kept in OUT/classifiers and each figure in OUT/figures.json, so a second call continues where
the first one ended. The tables go to OUT/study.md, the growth curve to OUT/growth.svg.

Figures are AUCs on at most 400 members and 400 non-members of a combination, the same texts for all classifiers, then
averaged over combinations; targets are never pooled. The AUC chooses the best published attack on each combination.
"""

import argparse
import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cached_property, partial
from pathlib import Path

import numpy as np

from ltmia.attacks.table import CONTROL, EXCESS
from ltmia.classifier.combinations import Combination, n_summary
from ltmia.classifier.membership import MembershipClassifier
from ltmia.classifier.networks import ConvNetwork
from ltmia.classifier.training import TrainingConfig
from ltmia.evaluation.macro import mean_with_interval
from ltmia.evaluation.roc import auc
from ltmia.evaluation.wording import figure as written
from ltmia.features.columns import feature_columns
from ltmia.features.per_token import FeatureBatch
from ltmia.lab.evaluate import find_combinations, recipe_of

GROWTH = (1, 3, 7, 14, 28)
"""Numbers of training combinations; the shipped classifier saw all."""
LENGTHS, LONGER = (16, 32, 64, 128), (128, 256, 384)
"""Numbers of tokens kept of each text, for targets trained on texts of the usual length and on longer ones."""
COLUMN_GROUPS = {
    "excess and expectation": ("excess", "expected"),
    "how often token and pair occur in other texts": ("token_count", "pair_count"),
    "log-ratio": ("log_ratio", "ratio_surprise"),
    "the two models' log-probabilities": ("target_logp", "reference_logp", "target_p", "reference_p", "p_gain"),
    "ranks": ("rank",),
    "entropies, surprises, divergences, spreads": ("entropy", "surprise", "divergence", "spread"),
    "top tokens": ("top_", "hit"),
}
"""Words in the names of the columns of each group; a column belongs to the first group that fits."""


class Asked:
    """One combination to be asked about: the same texts for every classifier."""

    def __init__(self, combination: Combination, n_texts: int) -> None:
        rng = np.random.default_rng(0)
        sides = (combination.members, combination.nonmembers)
        chosen = [np.sort(rng.permutation(side)[:n_texts]) for side in sides]
        self.combination = combination
        self.rows = np.concatenate(chosen)
        self.is_member = np.repeat([True, False], [len(side) for side in chosen])
        self.recipe = recipe_of(combination)

    @property
    def n_tokens(self) -> int:
        """Most tokens of a text that the target was trained on."""
        return int(self.recipe["finetuning"]["max_length"])

    @cached_property
    def best_rule(self) -> float:
        """AUC of the best published attack."""
        store = self.combination.store
        return max(self.auc(store.scores(n)[self.rows]) for n in store.score_names if n not in (EXCESS, CONTROL))

    @property
    def excess(self) -> float:
        """AUC of the untrained rule."""
        return self.auc(self.combination.store.scores(EXCESS)[self.rows])

    def auc(self, scores: np.ndarray) -> float:
        """Return the AUC of scores of the texts asked about."""
        return auc(scores[self.is_member], scores[~self.is_member])

    def features(self, version: str) -> FeatureBatch:
        """Return what a classifier reads of them."""
        return self.combination.batch(self.rows, version)


Change = Callable[[Asked], FeatureBatch]
"""Gives the features of the texts asked about, changed in some way."""
Score = Callable[[Asked], np.ndarray]


class Study:
    """The tables, and what has been found for them so far."""

    def __init__(self, stores: Path, out: Path, *, n_texts: int, epochs: int) -> None:
        combinations = find_combinations([stores])
        self.epochs = epochs
        self.training = [c for c in combinations if recipe_of(c)["role"] == "train"]
        self.asked = [Asked(c, n_texts) for c in combinations]
        held_out = [a for a in self.asked if a.recipe["role"] == "test"]
        self.test = [a for a in held_out if a.n_tokens <= max(LENGTHS)]
        self.long = [a for a in held_out if a.n_tokens > max(LENGTHS)]
        self.out = out
        self.file = out / "figures.json"
        self.found: dict[str, float] = json.loads(self.file.read_text("utf-8")) if self.file.is_file() else {}

    def classifier(self, name: str, training: Sequence[Combination]) -> MembershipClassifier:
        """Train a classifier, or load it if that is done."""
        folder = self.out / "classifiers" / name
        if not folder.is_dir():
            print(f"training {name} on {len(training)} combinations", flush=True)
            MembershipClassifier().fit(training, config=TrainingConfig(epochs=self.epochs)).save_pretrained(folder)
        return MembershipClassifier.from_pretrained(folder)

    def ask(self, name: str, asked: Asked, score: Score) -> float:
        """Return the AUC of some scores, from the last call if it got so far."""
        key = f"{name} on {asked.combination.name}"
        if key not in self.found:
            self.found[key] = asked.auc(score(asked))
            self.file.write_text(json.dumps(self.found, indent=1, sort_keys=True), "utf-8")
        return self.found[key]

    def ask_all(self, name: str, classifier: MembershipClassifier, asked: Sequence[Asked]) -> list[float]:
        """Return the AUC of a classifier on each of some combinations."""
        score = partial(_logits, model=classifier, change=partial(Asked.features, version=classifier.feature_version))
        return [self.ask(name, one, score) for one in asked]

    def families(self) -> list[str]:
        """Train on each family alone, ask about every other: a matrix of mean AUCs."""
        names = sorted({c.origin[0] for c in self.training})
        columns = sorted({a.recipe["base"] for a in self.asked}, key=lambda base: (base not in names, base))
        table = [_row("trained on", *columns), _row(*["---"] * (len(columns) + 1))]
        for name in names:
            model = self.classifier(f"family-{name}", [c for c in self.training if c.origin[0] == name])
            cells = []
            for column in columns:
                asked = [a for a in self.asked if a.recipe["base"] == column]
                cells.append("-" if column == name else f"{np.mean(self.ask_all(f'family-{name}', model, asked)):.3f}")
            table.append(_row(name, *cells))
        for title, rule in (("`excess`, untrained", "excess"), ("best published attack of each", "best_rule")):
            means = [np.mean([getattr(a, rule) for a in self.asked if a.recipe["base"] == c]) for c in columns]
            table.append(_row(title, *(f"{mean:.3f}" for mean in means)))
        return table

    def regimes(self) -> list[str]:
        """Group the same figures by regime: each family's classifier on the other training families."""
        table = [_row("regime", "combinations", "classifier", "`excess`", "best published attack"), _row(*["---"] * 5)]
        training = [a for a in self.asked if a.recipe["role"] == "train"]
        for regime in sorted({a.recipe["regime"] for a in training}):
            asked = [a for a in training if a.recipe["regime"] == regime]
            aucs = []
            for name in sorted({c.origin[0] for c in self.training}):
                model = self.classifier(f"family-{name}", [c for c in self.training if c.origin[0] == name])
                aucs += self.ask_all(f"family-{name}", model, [a for a in asked if a.recipe["base"] != name])
            means = (np.mean(aucs), np.mean([a.excess for a in asked]), np.mean([a.best_rule for a in asked]))
            table.append(_row(regime, len(asked), *(f"{mean:.3f}" for mean in means)))
        return table

    def growth(self) -> list[str]:
        """Train on more and more combinations, ask about the test set; draw the curve."""
        order = np.random.default_rng(0).permutation(len(self.training))
        curve = []
        for n in (*(n for n in GROWTH if n < len(self.training)), len(self.training)):
            model = self.classifier(f"growth-{n}", [self.training[i] for i in sorted(order[:n])])
            curve.append((n, self.ask_all(f"growth-{n}", model, self.test)))
        _draw(curve, self.test, self.out / "growth.svg")
        table = [
            _row("training combinations", "AUC on the test set", "1 - AUC divided by that of the best published attack")
        ]
        return [*table, _row("---", "---", "---"), *(_row(n, *_auc_and_ratio(aucs, self.test)) for n, aucs in curve)]

    def shorter(self) -> list[str]:
        """Keep only the first tokens of each text of the test set."""
        return self._first_tokens(self.test, LENGTHS)

    def longer(self) -> list[str]:
        """The same, of targets that were trained on more of each text."""
        return self._first_tokens(self.long, LONGER)

    def _first_tokens(self, asked: Sequence[Asked], lengths: Sequence[int]) -> list[str]:
        model = self._whole()
        table = [_row("tokens", "AUC of the classifier", "AUC of `excess`"), _row("---", "---", "---")]
        for length in lengths:
            cut = partial(_cut, model=model, length=length)
            own = [self.ask(f"first {length}", a, partial(_logits, model=model, change=cut)) for a in asked]
            rule = [self.ask(f"excess of first {length}", a, partial(_mean_excess, change=cut)) for a in asked]
            table.append(_row(length, *(written(mean_with_interval(aucs)) for aucs in (own, rule))))
        return table

    def columns(self) -> list[str]:
        """Replace a group of columns by their training average; the loss of AUC shows how much they are used."""
        model = self._whole()
        whole = np.array(self.ask_all(f"growth-{len(self.training)}", model, self.test))
        table = [_row("without", "columns", "AUC on the test set", "change"), _row(*["---"] * 4)]
        changes: dict[str, tuple[int, Change]] = {
            title: (len(columns), partial(_averaged, model=model, columns=columns))
            for title, columns in _column_groups(model.feature_version).items()
        }
        changes["scores of hand-made attacks"] = (
            n_summary(model.feature_version),
            partial(_without_rules, model=model),
        )
        for title, (n_columns, change) in changes.items():
            score = partial(_logits, model=model, change=change)
            aucs = [self.ask(f"without {title}", a, score) for a in self.test]
            lost = mean_with_interval(list(np.array(aucs) - whole))
            table.append(_row(title, n_columns, f"{np.mean(aucs):.3f}", written(lost)))
        return table

    def _whole(self) -> MembershipClassifier:
        return self.classifier(f"growth-{len(self.training)}", self.training)


def _cut(asked: Asked, model: MembershipClassifier, length: int) -> FeatureBatch:
    """Return the features of the first tokens; the scores of rules, which are of the whole text, are left out."""
    batch = _without_rules(asked, model)
    mask = batch.mask.copy()
    mask[:, length:] = False
    return replace(batch, values=batch.values * mask[..., None], mask=mask)


def _logits(asked: Asked, model: MembershipClassifier, change: Change) -> np.ndarray:
    return model.predict_logit(change(asked))


def _mean_excess(asked: Asked, change: Change) -> np.ndarray:
    batch = change(asked)
    values = batch.values[..., feature_columns("excess").index("excess")]
    return values.sum(1) / np.maximum(batch.mask.sum(1), 1)


def _averaged(asked: Asked, model: MembershipClassifier, columns: Sequence[int]) -> FeatureBatch:
    batch = asked.features(model.feature_version)
    values = batch.values.copy()
    values[..., columns] = model.domain_.average_token.numpy()[list(columns)]
    return replace(batch, values=values * batch.mask[..., None])


def _without_rules(asked: Asked, model: MembershipClassifier) -> FeatureBatch:
    """Return features with the training average in place of the scores of hand-made attacks."""
    batch = asked.features(model.feature_version)
    network = model.network_
    assert isinstance(network, ConvNetwork)
    average = network.standardize_summary.mean.numpy()
    return replace(batch, summary=np.broadcast_to(average, (len(batch), len(average))).copy())


def _column_groups(version: str) -> dict[str, list[int]]:
    groups: dict[str, list[int]] = {title: [] for title in COLUMN_GROUPS}
    for i, name in enumerate(feature_columns(version)):
        title = next((t for t, words in COLUMN_GROUPS.items() if any(word in name for word in words)), "others")
        groups.setdefault(title, []).append(i)
    return groups


def _auc_and_ratio(aucs: Sequence[float], asked: Sequence[Asked]) -> tuple[str, str]:
    ratios = [(1 - a) / max(1 - one.best_rule, 1e-9) for a, one in zip(aucs, asked, strict=True)]
    return written(mean_with_interval(aucs)), written(mean_with_interval(ratios))


def _draw(curve: Sequence[tuple[int, Sequence[float]]], tested: Sequence[Asked], path: Path) -> None:
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(figsize=(5.5, 3.4), layout="constrained")
    measures = [mean_with_interval(aucs) for _, aucs in curve]
    counts = [n for n, _ in curve]
    axes.fill_between(counts, [m.low or 0 for m in measures], [m.high or 1 for m in measures], alpha=0.2)
    axes.plot(counts, [m.value or 0.0 for m in measures], "o-", label="classifier")
    for label, style, rule in (("excess, untrained", "--", "excess"), ("best published attack", ":", "best_rule")):
        axes.axhline(float(np.mean([getattr(a, rule) for a in tested])), color="0.3", linestyle=style, label=label)
    axes.set(xscale="log", xlabel="training combinations", ylabel="mean AUC on the test set")
    axes.set_xticks(counts, [str(n) for n in counts])
    axes.minorticks_off()
    axes.legend(loc="lower right", frameon=False)
    figure.savefig(path, metadata={"Date": None})


def _row(*cells: object) -> str:
    return "| " + " | ".join(map(str, cells)) + " |"


def main() -> None:
    """Make every table."""
    parser = argparse.ArgumentParser(description="Where the signature of memorisation carries over.")
    parser.add_argument("lab", type=Path, help="folder of `ltmia lab run recipes/tiny.toml`")
    parser.add_argument("out", type=Path)
    parser.add_argument("--texts", type=int, default=400, help="Members asked about, and as many non-members.")
    parser.add_argument("--epochs", type=int, default=4, help="As of the shipped classifier.")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    study = Study(args.lab / "stores", args.out, n_texts=args.texts, epochs=args.epochs)
    parts = {
        "One family to learn from": study.families,
        "Regimes, on families not learned from": study.regimes,
        "More combinations": study.growth,
        "Shorter texts": study.shorter,
        "Longer texts": study.longer,
        "What it leans on": study.columns,
    }
    text = "\n\n".join(f"## {title}\n\n" + "\n".join(part()) for title, part in parts.items())
    (args.out / "study.md").write_text(text + "\n", "utf-8")
    print(text)


if __name__ == "__main__":
    main()
