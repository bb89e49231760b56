"""Test whether the false discovery rate holds where members are known: python scripts/realised_fdp.py LAB [--attack A].

Members are judged with one half of the non-members against the other half, by the code of `ltmia audit`. The share of
flags that fall on non-members is the realised false discovery proportion. The rate promises an average of this share,
so the table has the audit's own split and the mean over several splits. It has the same for whole groups, each judged
by its mean score.
"""

import argparse
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ltmia.attacks.table import LEARNED
from ltmia.classifier.combinations import Combination
from ltmia.classifier.membership import MembershipClassifier, chosen_classifier
from ltmia.classifier.windows import classify_store
from ltmia.evaluation.calibration import judge_audit, split_halves
from ltmia.evaluation.group_decisions import judge_groups
from ltmia.evaluation.results import Decisions
from ltmia.evaluation.section import Measure
from ltmia.evaluation.wording import figure as written
from ltmia.lab.evaluate import find_combinations

N_SPLITS = 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Realised:
    """Realised false discovery proportions on one combination."""

    name: str
    trained_on: bool
    decisions: Decisions
    """Decisions on the audit's own split."""
    mean_fdp: float
    """Mean over `N_SPLITS` splits; a split without flags counts as 0, by the definition of the rate."""
    mean_flagged: float
    groups: int
    """Groups of the non-members."""
    mean_group_fdp: float
    """The same mean for flagged groups."""
    mean_groups_flagged: float

    @property
    def held(self) -> bool:
        """Whether the interval of the realised proportion reaches down to the promise."""
        fdp = self.decisions.realized_fdp
        return fdp.low is None or fdp.low <= self.decisions.fdr

    def row(self) -> str:
        """Return a row of the table."""
        d = self.decisions
        name = self.name + (" (trained on)" if self.trained_on else "")
        cells = (
            f"{d.n_judged} / {d.n_calibration}", self.groups, d.n_flagged, _figure(d.realized_fdp),
            "yes" if self.held else "NO", f"{self.mean_flagged:.1f}", f"{self.mean_fdp:.3f}",
            f"{self.mean_groups_flagged:.1f}", f"{self.mean_group_fdp:.3f}",
        )  # fmt: skip
        return f"| {name} | " + " | ".join(map(str, cells)) + " |"


def main() -> None:
    """Judge every store and print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("folders", nargs="+", type=Path)
    parser.add_argument("--attack", default=LEARNED)
    parser.add_argument("--classifier", help="folder of a classifier; default: the shipped one")
    parser.add_argument("--fdr", type=float, default=0.05)
    arguments = parser.parse_args()
    classifier = chosen_classifier(arguments.classifier) if arguments.attack == LEARNED else None
    print(
        "| combination | members / calibration | groups | flagged | FDP realised | held | mean flagged | mean FDP "
        "| mean groups flagged | mean FDP |"
    )
    print("|---|---|---|---|---|---|---|---|---|---|")
    found = []
    for combination in find_combinations(arguments.folders):
        found.append(realised(combination, arguments.attack, classifier, arguments.fdr))
        print(found[-1].row(), flush=True)
    for line in summary(found):
        print(line)


def realised(combination: Combination, attack: str, classifier: MembershipClassifier | None, fdr: float) -> Realised:
    """Judge one combination as an audit does, on its own split and on others."""
    store = combination.store
    scores = store.scores(attack) if classifier is None else classify_store(classifier, store).pooled
    named = store.texts["group"].to_pylist() if "group" in store.texts.column_names else range(len(store))
    _, groups = np.unique(named, return_inverse=True)
    members, nonmembers = combination.members, combination.nonmembers
    judged = [
        judge_audit(
            scores[members],
            scores[nonmembers],
            attack=attack,
            fdr=fdr,
            groups=(groups[members], groups[nonmembers]),
            seed=seed,
        ).summary
        for seed in range(N_SPLITS)
    ]
    by_group = np.array(
        [group_fdp(scores, groups, members, nonmembers, fdr=fdr, seed=seed) for seed in range(N_SPLITS)]
    )
    return Realised(
        name=combination.name,
        trained_on=classifier is not None and combination.name in classifier.domain_.names,
        decisions=judged[0],
        mean_fdp=float(np.mean([d.realized_fdp.value or 0.0 for d in judged])),
        mean_flagged=float(np.mean([d.n_flagged for d in judged])),
        groups=len(np.unique(groups[nonmembers])),
        mean_groups_flagged=float(by_group[:, 0].mean()),
        mean_group_fdp=float(by_group[:, 1].mean()),
    )


def group_fdp(
    scores: np.ndarray, groups: np.ndarray, members: np.ndarray, nonmembers: np.ndarray, *, fdr: float, seed: int
) -> tuple[int, float]:
    """Judge the groups of members and of half of the non-members against those of the other half.

    Returns:
        How many groups of members are flagged, and which share of all flags falls on non-members.
    """
    calibration, held_out = split_halves(len(nonmembers), groups[nonmembers], seed)
    judged = np.concatenate([members, nonmembers[held_out]])
    known = nonmembers[calibration]
    flagged = judge_groups(scores[judged], groups[judged], scores[known], groups[known], fdr, seed).flagged
    wrong = np.isin(flagged, groups[nonmembers[held_out]]).sum()
    return len(flagged) - int(wrong), float(wrong / max(len(flagged), 1))


def summary(found: list[Realised]) -> Iterator[str]:
    """Say in how many combinations the promise was held."""
    flagging = [one for one in found if one.decisions.n_flagged]
    fdr = found[0].decisions.fdr
    yield ""
    yield f"{len(found)} combinations, {len(flagging)} with flags at a false discovery rate of {fdr:g}."
    yield f"Held within the interval: {sum(one.held for one in found)} of {len(found)}."
    means = [one.mean_fdp for one in found]
    yield f"Mean FDP over {N_SPLITS} splits: {np.mean(means):.4f} on average, at most {max(means):.4f}."
    groups = [one.mean_group_fdp for one in found]
    yield f"The same of whole groups: {np.mean(groups):.4f} on average, at most {max(groups):.4f}."


def _figure(measure: Measure) -> str:
    if measure.value is None:
        return "-"
    return written(measure)


if __name__ == "__main__":
    main()
