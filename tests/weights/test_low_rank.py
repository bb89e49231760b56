"""Updates of low rank: found where there is one, in any layout and format, and read as the definition says."""

import copy

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from gradient_oracles import by_definition, close, moved_pair, some_texts
from ltmia.models.weight_delta import ChangedMatrix
from ltmia.weights.backward import MatrixPlaces, TextGradients
from ltmia.weights.coordinates import choose_coordinates
from ltmia.weights.low_rank import row_space


def changed(change: torch.Tensor, base: torch.Tensor, dtype: torch.dtype, layout: str) -> ChangedMatrix:
    target = (base + change).to(dtype)
    if layout == "transposed":
        target, base = target.T, base.T
    return ChangedMatrix(
        name="layers.0.w.weight", layer=0, layout=layout, target=nn.Parameter(target), base=nn.Parameter(base.to(dtype))
    )


def product(out: int, into: int, rank: int, size: float) -> tuple[torch.Tensor, torch.Tensor]:
    """B A with entries of about `size`, as Adam leaves B; and A."""
    a = torch.rand(rank, into) - 0.5
    b = torch.randn(out, rank)
    whole = b @ a
    return whole * (size / whole.square().mean().sqrt()), a


@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    rank=st.integers(1, 12),
    out=st.integers(50, 120),
    into=st.integers(50, 300),
    layout=st.sampled_from(["linear", "transposed"]),
    dtype=st.sampled_from([torch.float32, torch.bfloat16, torch.float16]),
)
def test_a_merged_adapter_is_found_whatever_it_is_stored_as(seed, rank, out, into, layout, dtype) -> None:
    torch.manual_seed(seed)
    change, a = product(out, into, rank, size=2e-2)
    found = row_space(changed(change, torch.randn(out, into) * 0.3, dtype, layout))
    assert found is not None
    assert len(found) == rank
    assert torch.allclose(found @ found.T, torch.eye(rank), atol=1e-4)
    left = a - a @ found.T @ found  # of the rows of A, what lies outside of the space
    assert left.norm() < 0.1 * a.norm()


@pytest.mark.parametrize("shape", [(600, 1600), (1600, 500)])
def test_large_matrices_are_read_by_a_random_sketch(shape) -> None:
    torch.manual_seed(0)
    change, _ = product(*shape, rank=16, size=1e-2)
    found = row_space(changed(change, torch.randn(shape) * 0.1, torch.float32, "linear"))
    assert found is not None
    assert len(found) == 16


@pytest.mark.parametrize("noise", [0.0, 0.3])
def test_a_full_fine_tune_has_no_low_rank(noise: float) -> None:
    """Its singular values fall smoothly, to nothing or into noise."""
    torch.manual_seed(0)
    left, right = torch.linalg.qr(torch.randn(120, 120)).Q, torch.linalg.qr(torch.randn(200, 120)).Q
    change = left @ torch.diag(torch.arange(1, 121) ** -1.0) @ right.T + noise * torch.randn(120, 200) / 200
    assert row_space(changed(change, torch.zeros(120, 200), torch.float32, "linear")) is None
    assert row_space(changed(torch.randn(120, 200), torch.zeros(120, 200), torch.float32, "linear")) is None
    broken = changed(torch.full((120, 200), torch.nan), torch.zeros(120, 200), torch.float32, "linear")
    assert row_space(broken) is None


@pytest.mark.parametrize("model_type", ["llama", "gpt2"])
def test_gradients_in_the_subspace_are_projections_of_the_whole(model_type: str) -> None:
    pair, texts = low_rank_pair(model_type), some_texts()
    coordinates = choose_coordinates(pair, n_coordinates=150, n_layers=2, seed=0)
    assert coordinates.is_low_rank
    for batched in (True, False):
        parts = [texts] if batched else [[text] for text in texts]
        with TextGradients(pair.target, pair.target_runner, coordinates.places, batched=batched) as gradients:
            found = torch.cat([gradients([t.ids for t in part], [t.start for t in part]) for part in parts])
        wanted = [
            torch.cat([projected(by_definition(pair.target, p.name, text), p) for p in coordinates.places])
            for text in texts
        ]
        assert close(found, torch.stack(wanted))
    ours, theirs = dict(pair.target.named_parameters()), dict(pair.reference.named_parameters())
    change = torch.cat([projected((ours[p.name] - theirs[p.name]).detach(), p) for p in coordinates.places])
    np.testing.assert_allclose(coordinates.change, change.numpy(), atol=1e-6)


def projected(whole: torch.Tensor, place: MatrixPlaces) -> torch.Tensor:
    assert place.rows is not None
    oriented = whole.T if place.layout == "transposed" else whole
    return (oriented @ place.rows.T).reshape(-1)[place.flat]


def low_rank_pair(model_type: str):
    pair = moved_pair(model_type)
    target = copy.deepcopy(pair.reference)
    torch.manual_seed(2)
    with torch.no_grad():
        for name, parameter in target.named_parameters():
            if parameter.ndim == 2 and any(part.isdigit() for part in name.split(".")):
                parameter.add_(product(*parameter.shape, rank=2, size=0.02)[0])
    return type(pair)(target=target, reference=pair.reference, tokenizer=pair.tokenizer)
