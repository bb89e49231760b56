"""On an accelerator: the numbers of the CPU, by compiled Triton and by plain tensor operations, end to end too."""

from dataclasses import fields

import numpy as np
import pytest
import torch

from ltmia.features.statistics import token_statistics
from ltmia.kernels.torch_statistics import reduce_by_torch
from ltmia.scoring.bench import BenchConfig, extraction_of, random_pair, random_texts
from ltmia.scoring.extraction import extract_batches

pytestmark = pytest.mark.gpu


@pytest.fixture
def device() -> torch.device:
    """The last accelerator. Without one these tests would compare the CPU with itself, so they fail."""
    found = torch.accelerator.current_accelerator(check_available=True)
    assert found is not None, "torch finds no accelerator here: install torch for it, see `make gpu`"
    return torch.device(found.type, torch.accelerator.device_count() - 1)


@pytest.mark.parametrize("plain", [False, True])
@pytest.mark.parametrize("vocab", [300, 50_257, 151_936])
def test_statistics_are_those_of_the_cpu(
    vocab: int, plain: bool, device: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    if plain:
        monkeypatch.setattr("ltmia.kernels.torch_statistics._reduce_for", lambda _: reduce_by_torch)
    a = torch.randn(64, vocab) * 3
    b, truth = a + 0.3 * torch.randn(64, vocab), torch.randint(0, vocab, (64,))
    wide = torch.cat([a.to(device), a.to(device)], 1)[:, :vocab]  # rows that do not follow each other
    found, expected = token_statistics(wide, b.to(device), truth, 20), token_statistics(a, b, truth, 20)
    for field in fields(expected):
        np.testing.assert_allclose(
            getattr(found, field.name), getattr(expected, field.name), atol=1e-4, err_msg=field.name
        )


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_scores_are_those_of_the_cpu(dtype: str, device: torch.device) -> None:
    config = BenchConfig(n_texts=6, n_tokens=40, n_layers=2, hidden_size=64, n_heads=4, vocab_size=5000, dtype=dtype)
    found = []
    for where in (device, torch.device("cpu")):
        batches = extract_batches(random_pair(config, where), random_texts(config), extraction_of(config))
        found.append({text.row: text.scores for batch in batches for text in batch.texts})
    assert found[0].keys() == found[1].keys() == set(range(config.n_texts))
    for row, expected in found[1].items():
        for name, score in expected.items():
            assert found[0][row][name] == pytest.approx(score, abs=1e-3 if dtype == "float32" else 0.1, nan_ok=True), (
                name
            )
