"""The figures of an audit as its results.json holds them, read as plain JSON."""

import json
from pathlib import Path


def expected_figures(folder: Path) -> dict[str, tuple[float, float | None, float | None]]:
    """Value, low and high of each figure that was measured, by its path in the file."""
    results = json.loads((folder / "results.json").read_text("utf-8"))
    found = {
        f"decisions/{name}": {"value": results["decisions"][name], "low": None, "high": None}
        for name in ("n_flagged", "n_judged")
    }
    for name, attack in results["attacks"].items():
        found[f"attacks/{name}/auc"] = attack["auc"]
        found |= {f"attacks/{name}/tpr_at_fpr/{fpr}": measure for fpr, measure in attack["tpr_at_fpr"].items()}
    if results["epsilon"]:
        found["epsilon"] = results["epsilon"]
    return {name: (m["value"], m["low"], m["high"]) for name, m in found.items() if m["value"] is not None}


def expected_values(folder: Path) -> dict[str, float]:
    """The same flat, with the ends of the intervals under names of their own."""
    return {
        f"{name}{suffix}": value
        for name, figure in expected_figures(folder).items()
        for suffix, value in zip(("", "_low", "_high"), figure, strict=True)
        if value is not None
    }
