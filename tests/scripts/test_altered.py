"""Models altered after training: their weights are those of a plain loop over the stored files."""

from pathlib import Path

import numpy as np
import pytest
from safetensors.torch import load_file

from commands import run_script
from small_runs import ROOT

ALTERED = ROOT / "benchmarks" / "altered.py"


def weights(folder: Path) -> dict[str, np.ndarray]:
    return {name: weight.double().numpy() for name, weight in load_file(folder / "model.safetensors").items()}


def altered(out: Path, *arguments: str) -> dict[str, np.ndarray]:
    done = run_script(ALTERED, *arguments, "-o", str(out))
    assert done.returncode == 0, done.stderr
    return weights(out)


def test_noise_has_the_size_asked_for_in_each_tensor(materials: Path, tmp_path: Path) -> None:
    target, base = str(materials / "my-model"), str(materials / "my-base")
    before, start = weights(Path(target)), weights(Path(base))
    noisy = altered(tmp_path / "noisy", "noise", target, "--base", base, "--size", "3")
    ratios = []
    for name, weight in before.items():
        noise, change = noisy[name] - weight, weight - start[name]
        wanted = 3 * np.sqrt(np.mean(change**2))
        # Standard deviations of n draws scatter by 1 / sqrt(2 n) of their mean; means by 1 / sqrt(n).
        assert noise.std() == pytest.approx(wanted, rel=5 / np.sqrt(2 * noise.size)), name
        assert abs(noise.mean()) < 5 * wanted / np.sqrt(noise.size), name
        ratios.append((noise / wanted).ravel())
        if noise.size > 1000:
            assert abs(np.corrcoef(noise.ravel(), change.ravel())[0, 1]) < 5 / np.sqrt(noise.size), name
    assert np.mean(np.abs(np.concatenate(ratios)) < 1) == pytest.approx(0.6827, abs=0.005)  # of a normal distribution


def test_an_average_is_the_mean_of_each_weight(materials: Path, tmp_path: Path) -> None:
    target, base = str(materials / "my-model"), str(materials / "my-base")
    sides = weights(Path(target)), weights(Path(base))
    found = altered(tmp_path / "average", "average", target, base, base)
    for name, weight in found.items():
        np.testing.assert_allclose(weight, (sides[0][name] + 2 * sides[1][name]) / 3, rtol=1e-5, atol=1e-7)
