"""Read the updates of a lab's fine-tunes: python benchmarks/weights_lab.py RECIPE LAB OUT --corpora CORPORA.

LAB is a finished `ltmia lab run RECIPE -o LAB` whose recipe keeps its models (`keep_models = true`). Each fine-tune
whose regime has a name of --regimes is attacked by its weights, too. Prints a row for each: AUC with a 95 % interval by
document of the best published attack on log-probabilities, of the classifier, of the update and of both together, and
then the averages. OUT keeps gradients and scores, so running again resumes.
"""

import argparse
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from ltmia.attacks.table import CONTROL, EXCESS, LEARNED, UPDATE, WITH_WEIGHTS
from ltmia.classifier.combinations import Combination
from ltmia.classifier.membership import MembershipClassifier
from ltmia.classifier.windows import classify_store
from ltmia.evaluation.controls import bag_of_words
from ltmia.evaluation.intervals import measure_attack
from ltmia.evaluation.macro import N_RESAMPLES, best_rule, figure_of, macro_averages
from ltmia.evaluation.results import AttackResult
from ltmia.evaluation.section import Measure
from ltmia.evaluation.wording import figure
from ltmia.lab.plan import make_plan
from ltmia.lab.reading import read_recipe
from ltmia.lab.steps import CombinationWork, ExtractWork
from ltmia.lab.texts import corpus_texts, draw_texts, pool_buckets
from ltmia.models.loading import load_pair
from ltmia.models.tokens import encode_texts
from ltmia.records import Texts
from ltmia.scoring.identity import PairIdentity
from ltmia.weights.combination import add_output_score
from ltmia.weights.update_attack import UpdateAttack

OURS = (CONTROL, EXCESS, LEARNED, UPDATE, WITH_WEIGHTS)
"""Not published attacks on log-probabilities."""


def main() -> None:
    """Print the table, a row at a time, and the averages."""
    args = _arguments()
    classifier, found = MembershipClassifier.from_pretrained(), []
    print(f"| combination | explained | {CONTROL} | best published | {LEARNED} | {UPDATE} | {WITH_WEIGHTS} |")
    print("|---" * 7 + "|")
    for work, store in combinations(args):
        scores, labels, groups, explained = scored(work, Combination(store), classifier, args.out, args.nonmembers)
        one = {name: measured(score, labels, groups) for name, score in scores.items()}
        best = best_rule(one, leave_out=OURS)
        shown = [figure(one[name].auc) for name in (CONTROL, best, LEARNED, UPDATE, WITH_WEIGHTS)]
        shown[1] = f"{best} {shown[1]}"
        print(f"| {store.name} | {explained:.3f} | " + " | ".join(shown) + " |", flush=True)
        found.append(one)
    print_averages(found)


def combinations(args: argparse.Namespace) -> Iterator[tuple[CombinationWork, Path]]:
    """Yield the settings and the store of each finished combination with one of the regimes."""
    plan = make_plan(read_recipe(args.recipe), args.lab, corpora=args.corpora, bases=args.recipe.parent)
    for step in plan.steps:
        if not isinstance(step.work, ExtractWork) or not (step.product / "manifest.json").is_file():
            continue
        if not args.regimes or step.work.of.combination.regime in args.regimes:
            yield step.work.of, step.product


def scored(
    work: CombinationWork, combination: Combination, classifier: MembershipClassifier, out: Path, nonmembers: int | None
) -> tuple[dict[str, np.ndarray], np.ndarray, np.ndarray, float]:
    """Return the scores of all attacks, the labels, the documents, and the share of the update that is explained."""
    store, file = combination.store, out / f"{combination.name}.npz"
    pool = corpus_texts(work.corpus, pool_buckets(work.corpus))
    drawn = draw_texts(work, pool)
    texts = pool.take([*drawn.members.tolist(), *drawn.nonmembers.tolist()[:nonmembers]])
    rows = slice(0, len(texts))  # of the store, whose last texts are non-members
    labels = combination.labels[rows]
    groups = np.unique(texts.groups or texts.ids, return_inverse=True)[1]
    scores = {name: store.scores(name)[rows] for name in store.score_names}
    scores[LEARNED] = classify_store(classifier, store).pooled[rows]
    scores[CONTROL] = bag_of_words(texts.texts, labels, groups).scores
    if not file.is_file():
        out.mkdir(parents=True, exist_ok=True)
        save_update(work, texts, out / combination.name, file)
    with np.load(file) as saved:
        scores[UPDATE] = saved["score"]
        scores[WITH_WEIGHTS] = add_output_score(saved["alpha"], saved["standard_error"], scores[LEARNED])
        return scores, labels, groups, float(saved["explained"])


def save_update(work: CombinationWork, texts: Texts, folder: Path, file: Path) -> None:
    """Attack the weights, and save what was found."""
    pair = load_pair(work.target, work.base.path, dtype="float32", device=work.device)
    encoded = encode_texts(pair.tokenizer, texts.texts, max_length=work.regime.max_length, vocab_size=pair.vocab_size)
    with UpdateAttack(pair, encoded, folder, identity=PairIdentity.of(pair).key) as attack:
        found = attack.score()
    np.savez(
        file,
        score=found.score,
        alpha=found.alpha,
        standard_error=found.standard_error,
        explained=found.explained,
    )


def measured(score: np.ndarray, labels: np.ndarray, groups: np.ndarray) -> AttackResult:
    """Measure members against non-members, with intervals by document."""
    used = labels == 1
    return measure_attack(score[used], score[~used], member_groups=groups[used], nonmember_groups=groups[~used])


def print_averages(found: list[dict[str, AttackResult]]) -> None:
    """Print AUC and TPRs over all combinations, and how (1 - AUC) compares with that of the classifier."""
    print("\n| attack | AUC | TPR at 10 % FPR | TPR at 1 % FPR |\n|---|---|---|---|")
    for macro in macro_averages(found):
        print(f"| {macro.attack} | " + " | ".join(figure(macro.figures[x]) for x in ("auc", "0.1", "0.01")) + " |")
    auc = {name: np.array([figure_of(one[name], "auc") for one in found]) for name in (LEARNED, UPDATE, WITH_WEIGHTS)}
    draws = np.random.default_rng(0).integers(len(found), size=(N_RESAMPLES, len(found)))
    errors = (1 - auc[LEARNED][draws]).mean(axis=1)
    for name in (UPDATE, WITH_WEIGHTS):
        ratio = Measure(reason=f"{LEARNED} makes no error on some draws of the targets")
        if errors.all():
            low, high = np.quantile((1 - auc[name][draws]).mean(axis=1) / errors, [0.025, 0.975])
            ratio = Measure(
                value=float((1 - auc[name]).mean() / (1 - auc[LEARNED]).mean()), low=float(low), high=float(high)
            )
        print(f"\nMean (1 - AUC) of {name} divided by that of {LEARNED}: {figure(ratio)}")
    behind = np.maximum(auc[LEARNED], auc[UPDATE]) - auc[WITH_WEIGHTS]
    print(f"\n{WITH_WEIGHTS} is at most {behind.max():.3f} below the better of the two")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("recipe", type=Path)
    parser.add_argument("lab", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--corpora", type=Path, required=True)
    parser.add_argument("--nonmembers", type=int, help="of each combination; default: all")
    parser.add_argument("--regimes", nargs="*", help="default: all")
    return parser.parse_args()


if __name__ == "__main__":
    main()
