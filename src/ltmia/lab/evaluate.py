"""Evaluates classifiers and every baseline on stores that the classifiers were not trained on."""

import json
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ltmia.attacks.table import EXCESS, LEARNED
from ltmia.classifier.combinations import Combination
from ltmia.classifier.membership import MembershipClassifier
from ltmia.classifier.windows import classify_store
from ltmia.errors import StoreError
from ltmia.evaluation.intervals import measure_attack
from ltmia.evaluation.macro import CombinationResults
from ltmia.evaluation.results import AttackResult
from ltmia.evaluation.section import Measure
from ltmia.evaluation.wording import figure as written
from ltmia.folders import write_folder
from ltmia.models.identity import parameters_sha256
from ltmia.ownership import Marker, check_folder
from ltmia.report.evaluation import draw_evaluation, evaluation_tables

EVALUATION_FILE, TABLES_FILE, FIGURE_FILE = "evaluation.json", "evaluation.md", "evaluation.svg"


def find_combinations(folders: Iterable[Path]) -> list[Combination]:
    """Open all stores in some folders, at any depth.

    Raises:
        StoreError: If a folder holds no store.
    """
    found: dict[Path, None] = {}
    for folder in folders:
        here = [path.parent for path in sorted(folder.rglob("manifest.json"))]
        if not here:
            raise StoreError(f"{folder}: holds no finished store (no manifest.json)")
        found |= dict.fromkeys(here)
    return [Combination(path) for path in found]


def recipe_of(combination: Combination) -> dict[str, Any]:
    """Return the architecture, corpus, regime and role that the lab noted for a combination; empty for other stores."""
    manifest = combination.store.manifest
    recipe = dict(manifest.get("combination", {}))
    return recipe | {"architecture": manifest.get("base", {}).get("architecture", recipe.get("base"))}


def evaluate_combination(classifier: MembershipClassifier, combination: Combination) -> dict[str, AttackResult]:
    """Measure the classifier and every baseline on one combination, with intervals by document."""
    names = combination.store.texts.column_names
    column = combination.store.texts["group"].to_pylist() if "group" in names else range(len(combination.labels))
    _, groups = np.unique(column, return_inverse=True)
    members, nonmembers = combination.members, combination.nonmembers
    scores = {LEARNED: classify_store(classifier, combination.store).pooled}
    scores |= {name: combination.store.scores(name) for name in combination.store.score_names}
    return {
        name: measure_attack(
            values[members], values[nonmembers], member_groups=groups[members], nonmember_groups=groups[nonmembers]
        )
        for name, values in scores.items()
    }


def evaluate(
    classifier: MembershipClassifier,
    combinations: Sequence[Combination],
    out: Path,
    *,
    overwrite: bool = False,
    report: Callable[[str, int, int], None] = lambda _task, _done, _total: None,
) -> dict[str, dict[str, AttackResult]]:
    """Evaluate a classifier on stores that it was not trained on.

    Writes `evaluation.json`, `evaluation.md` and `evaluation.svg` into `out`.

    Combinations that it was trained on are refused, because figures on them would mean nothing.

    Args:
        classifier: Trained classifier.
        combinations: Labelled stores.
        out: Folder for the three files; made if it is missing.
        overwrite: Replace an evaluation of another classifier or of other stores.
        report: Called with progress.

    Raises:
        ConfigError: If `out` holds files of yours, or an evaluation with other settings.
        StoreError: If the classifier was trained on one of the stores, or a store lacks columns that it reads.
    """
    known = set(classifier.domain_.names)
    trained = [combination.name for combination in combinations if combination.name in known]
    if trained:
        raise StoreError(f"{', '.join(trained)}: the classifier was trained on these; evaluate it on others")
    for combination in combinations:
        combination.store.check_version(classifier.feature_version)
    marker = _marker(classifier, combinations)
    check_folder(out, marker, overwrite=overwrite)
    results = {}
    for i, combination in enumerate(combinations, 1):
        results[combination.name] = evaluate_combination(classifier, combination)
        report("evaluating", i, len(combinations))
    figures = {name: {a: r.model_dump() for a, r in attacks.items()} for name, attacks in results.items()}
    slices = {combination.name: recipe_of(combination) for combination in combinations}
    written = {
        EVALUATION_FILE: json.dumps(figures, indent=1),
        TABLES_FILE: evaluation_tables(results, slices),
        FIGURE_FILE: draw_evaluation(results, slices),
    }

    def write(folder: Path) -> None:
        for name, text in written.items():
            (folder / name).write_text(text, encoding="utf-8")

    write_folder(out, write, marker, overwrite=overwrite)
    return results


def _marker(classifier: MembershipClassifier, combinations: Sequence[Combination]) -> Marker:
    """Describe an evaluation: the classifier and the stores."""
    stores = [[combination.name, combination.store.manifest["fingerprint"]] for combination in combinations]
    settings = {"classifier": parameters_sha256(classifier.network_), "stores": stores}
    return Marker(kind="an evaluation", settings=settings)


def card_row(measured: CombinationResults) -> dict[str, str]:
    """Return each figure of the classifier and of the best baseline, for its model card."""
    row = {}
    for figure in ("auc", "0.01", "0.001"):
        title = figure if figure == "auc" else f"tpr_at_{figure}"
        picked = {name: _measure(result, figure) for name, result in measured.items() if name != EXCESS}
        own = picked.pop(LEARNED)
        if own.value is None:
            continue
        best = max(picked, key=lambda name: picked[name].value or 0.0)
        row[title] = written(own)
        row[f"best_baseline_{title}"] = f"{best} {written(picked[best])}"
    return row


def _measure(result: AttackResult, figure: str) -> Measure:
    return result.auc if figure == "auc" else result.tpr_at_fpr[figure]
