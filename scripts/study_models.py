"""Measure the classifier on rounded targets and other references.

    python scripts/study_models.py RECIPE LAB CORPORA OUT [options]

LAB is the folder of `ltmia lab run RECIPE --corpora CORPORA`, run with `keep_models = true`. On some combinations of
the test set the same texts are scored again with the target's weights rounded, and with a reference that is not the
base of the target. The means over these combinations and the figures of each go to OUT.
"""

import argparse
from collections.abc import Callable, Mapping
from copy import deepcopy
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import nn

from ltmia import load_pair, score_texts
from ltmia.attacks.table import EXCESS, LEARNED
from ltmia.evaluation.roc import auc
from ltmia.lab.plan import Plan, make_plan
from ltmia.lab.reading import read_recipe
from ltmia.lab.steps import CombinationWork, ExtractWork
from ltmia.lab.texts import corpus_texts, draw_texts, pool_buckets
from ltmia.models.pair import Pair

COMBINATIONS = ("gemma.python_code.test_weak", "recurrent_gemma.dictionary.test_weak", "rwkv.python_code.test_weak")
RULES = (LEARNED, EXCESS, "ez_mia", "wbc", "difference")

Change = Callable[[nn.Module], nn.Module]


def rounded(model: nn.Module, bits: int) -> nn.Module:
    """Return a copy whose matrices are rounded to whole steps, symmetric and one scale per output row."""
    copy = deepcopy(model)
    with torch.no_grad():
        for parameter in copy.parameters():
            if parameter.dim() == 2:
                step = parameter.abs().amax(1, keepdim=True).clamp(min=1e-12) / (2 ** (bits - 1) - 1)
                parameter.copy_((parameter / step).round() * step)
    return copy


def in_bfloat16(model: nn.Module) -> nn.Module:
    """Return a copy whose weights have passed through bfloat16."""
    return deepcopy(model).to(torch.bfloat16).to(torch.float32)


TARGETS: Mapping[str, Change] = {
    "weights in bfloat16": in_bfloat16,
    "weights rounded to 8 bits": partial(rounded, bits=8),
    "weights rounded to 6 bits": partial(rounded, bits=6),
    "weights rounded to 4 bits": partial(rounded, bits=4),
}


def variants(pair: Pair, other: nn.Module) -> Mapping[str, Pair]:
    """Return the pair as it is, with other targets, and with other references."""
    changed = {
        f"target's {name}": load_pair(change(pair.target), pair.reference, tokenizer=pair.tokenizer)
        for name, change in TARGETS.items()
    }
    coarse = load_pair(pair.target, rounded(pair.reference, 8), tokenizer=pair.tokenizer)
    wrong = load_pair(pair.target, other, tokenizer=pair.tokenizer)
    return {
        "as it is": pair,
        **changed,
        "reference's weights rounded to 8 bits": coarse,
        "reference: another fine-tune of the base": wrong,
    }


def measure_combination(work: CombinationWork, other: CombinationWork, n_texts: int) -> dict[str, dict[str, float]]:
    """Return the AUC of each rule under each variant, on one combination."""
    drawn = draw_texts(work, pool := corpus_texts(work.corpus, pool_buckets(work.corpus)))
    members, nonmembers = drawn.members[:n_texts], drawn.nonmembers[:n_texts]
    texts = pool.take([*members.tolist(), *nonmembers.tolist()]).texts
    pair = load_pair(work.target, work.base.path, dtype="float32", device="cpu")
    stranger = load_pair(other.target, work.base.path, dtype="float32", device="cpu").target
    found = {}
    for name, variant in variants(pair, stranger).items():
        scores = score_texts(variant, texts, attacks=RULES, max_length=work.regime.max_length)
        found[name] = {rule: auc(s[: len(members)], s[len(members) :]) for rule, s in scores.items()}
        print(work.combination.name, name, {rule: round(value, 3) for rule, value in found[name].items()}, flush=True)
    return found


def works(plan: Plan) -> dict[str, CombinationWork]:
    """Return what made each store of a plan, by its name."""
    return {step.name: step.work.of for step in plan.steps if isinstance(step.work, ExtractWork)}


def stranger_to(work: CombinationWork, others: Mapping[str, CombinationWork]) -> CombinationWork:
    """Return a combination of the same base with another corpus.

    Raises:
        SystemExit: If there is none.
    """
    for other in others.values():
        if other.base == work.base and other.corpus != work.corpus:
            return other
    raise SystemExit(f"{work.combination.name}: no other combination of {work.base.name} in the recipe")


def table(found: Mapping[str, Mapping[str, Mapping[str, float]]]) -> str:
    """Write one row per variant: means over combinations, then the learned attack on each."""
    names = list(found)
    head = ["", *RULES, *(f"{LEARNED} on {name}" for name in names)]
    rows = [head, ["---"] * len(head)]
    for variant in found[names[0]]:
        means = [f"{np.mean([found[name][variant][rule] for name in names]):.3f}" for rule in RULES]
        rows.append([variant, *means, *(f"{found[name][variant][LEARNED]:.3f}" for name in names)])
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)


def main() -> None:
    """Measure every combination and write the table."""
    parser = argparse.ArgumentParser(description="Whether the signature survives other models.")
    for name in ("recipe", "lab", "corpora", "out"):
        parser.add_argument(name, type=Path)
    parser.add_argument("--combinations", nargs="+", default=COMBINATIONS)
    parser.add_argument("--texts", type=int, default=400, help="Members of each, and as many non-members.")
    args = parser.parse_args()
    known = works(make_plan(read_recipe(args.recipe), args.lab, corpora=args.corpora, bases=args.recipe.parent))
    found = {
        name: measure_combination(known[name], stranger_to(known[name], known), args.texts)
        for name in args.combinations
    }
    args.out.write_text(table(found) + "\n", "utf-8")
    print(table(found))


if __name__ == "__main__":
    main()
