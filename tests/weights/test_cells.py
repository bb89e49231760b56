"""Cells of rounded weights, against plain roundings to each format: the exact weight lies in its cell, and fills it."""

import math

import gguf
import pytest
import torch
from gguf import GGMLQuantizationType as Gguf
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from ltmia.weights.cells import find_cells

WEIGHT = torch.randn(128, 256, generator=torch.Generator().manual_seed(0)) * 0.05
NF4 = torch.tensor([
    -1.0, -0.6961928, -0.52507305, -0.3949175, -0.28444138, -0.18477343, -0.09105004, 0.0,
    0.0795803, 0.1609302, 0.2461123, 0.33791524, 0.44070983, 0.562617, 0.72295684, 1.0,
])  # fmt: skip
HALVES = (torch.float32, torch.bfloat16, torch.float16)


def by_blocks(weight: Tensor, size: int | None, to_levels) -> Tensor:
    """Round blocks of rows, each divided by its largest magnitude."""
    blocks = weight.reshape(-1, size or weight.shape[1])
    scale = blocks.abs().amax(dim=1, keepdim=True).clamp(min=1e-30)
    return (to_levels(blocks / scale) * scale).reshape(weight.shape)


def integers(weight: Tensor, level: int, size: int | None) -> Tensor:
    return by_blocks(weight, size, lambda x: (x * level).round() / level)


def float8(weight: Tensor, scale: Tensor | float) -> Tensor:
    return (weight / scale).to(torch.float8_e4m3fn).float() * scale


def tiles(weight: Tensor) -> Tensor:
    largest = weight.abs().reshape(1, 128, 2, 128).amax(dim=(1, 3), keepdim=True).expand(1, 128, 2, 128)
    return largest.reshape(weight.shape) / 448


def in_gguf(weight: Tensor, kind: Gguf) -> Tensor:
    return torch.from_numpy(gguf.dequantize(gguf.quantize(weight.numpy(), kind), kind).copy())


def with_zero_point(weight: Tensor) -> Tensor:
    """Round as GPTQ and AWQ do: scale in float16, a zero that is a level."""
    blocks = weight.reshape(-1, 128)
    low = blocks.amin(dim=1, keepdim=True)
    scale = ((blocks.amax(dim=1, keepdim=True) - low) / 15).half().float()
    zero = (-low / scale).round()
    return (((blocks / scale + zero).round().clamp(0, 15) - zero) * scale).reshape(weight.shape)


LARGEST = WEIGHT.abs().max()
UNPACKED = {
    "int8 by row": integers(WEIGHT, 127, None),
    "int8 by column": integers(WEIGHT.T.contiguous(), 127, None).T,
    "int8 by tensor": (WEIGHT / LARGEST * 127).round() * LARGEST / 127,
    "int8, the scale a power of two": (WEIGHT * 2**9).round().clamp(-127, 127) / 2**9,
    "8 bit by 128": integers(WEIGHT, 127, 128),
    "4 bit by 64": integers(WEIGHT, 7, 64),
    "4 bit by 32": integers(WEIGHT, 7, 32),
    "4 bit by 32, from the smallest": integers(WEIGHT - WEIGHT.min(), 15, 32) + WEIGHT.min(),
    "3 bit by 128": integers(WEIGHT, 3, 128),
    "2 bit by 64": integers(WEIGHT, 1, 64),
    "4 bit by 128, with a zero point": with_zero_point(WEIGHT),
    "4 bit by 64, the scale in bfloat16": by_blocks(WEIGHT.bfloat16().float(), 64, lambda x: (x * 7).round() / 7),
    "GGUF Q8_0": in_gguf(WEIGHT, Gguf.Q8_0),
    "GGUF Q4_0": in_gguf(WEIGHT, Gguf.Q4_0),
    "GGUF Q5_1": in_gguf(WEIGHT, Gguf.Q5_1),
    "NF4": by_blocks(WEIGHT, 64, lambda x: NF4[(x[..., None] - NF4).abs().argmin(-1)]),
    "float8": float8(WEIGHT, 1.0),
    "float8 by row": float8(WEIGHT, WEIGHT.abs().amax(dim=1, keepdim=True) / 448),
    "float8 by tensor": float8(WEIGHT, LARGEST / 448),
    "float8 by tile": float8(WEIGHT, tiles(WEIGHT)),
}


@pytest.mark.parametrize("dtype", HALVES, ids=str)
@pytest.mark.parametrize("kind", UNPACKED)
def test_quantised_weights_are_recognised_in_whichever_dtype_they_are_unpacked(kind: str, dtype: torch.dtype) -> None:
    assert_cells(UNPACKED[kind].to(dtype), WEIGHT, inside=0.93)


@pytest.mark.parametrize("dtype", HALVES[1:], ids=str)
@pytest.mark.parametrize("scale", [1.0, 1e-3])
def test_half_precision_is_recognised_in_float32_too(dtype: torch.dtype, scale: float) -> None:
    exact = WEIGHT * scale  # 1e-3: some are too small for the full precision of float16
    for stored in (exact.to(dtype), exact.to(dtype).float()):
        assert_cells(stored, exact, inside=1.0)


def assert_cells(stored: Tensor, exact: Tensor, inside: float) -> None:
    cells = find_cells(stored)
    assert cells is not None
    off = (cells.middle - exact) / cells.width
    assert (off.abs() < 0.51).float().mean() >= inside
    assert off.square().mean() == pytest.approx(1 / 12, rel=0.2)
    assert (cells.middle - exact).square().mean() == pytest.approx(cells.width.square().mean().item() / 12, rel=0.2)


@pytest.mark.parametrize("dtype", HALVES, ids=str)
def test_outliers_and_rows_of_zeros_hide_no_format(dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(1)
    exact = WEIGHT * (torch.arange(128) > 0)[:, None]
    exact = exact * (1 + 100 * (torch.rand(exact.shape, generator=generator) < 1e-3))
    for rounded in (integers(exact, 127, None), integers(exact, 7, 32)):
        cells = find_cells(rounded.to(dtype))
        assert cells is not None
        off = ((cells.middle - exact) / cells.width)[1:]
        assert off.abs().quantile(0.95) < 0.52
        assert off.square().mean() == pytest.approx(1 / 12, rel=0.3)
        assert bool((cells.width > 0).all()), "a row of zeros is not exact"


@pytest.mark.parametrize(
    "weight",
    [
        WEIGHT,
        WEIGHT * 1e-6,
        WEIGHT.double(),
        WEIGHT.exp(),
        WEIGHT[0],
        WEIGHT[:1],
        WEIGHT[:, :1],
        WEIGHT.reshape(8, 16, 256),
        WEIGHT * (WEIGHT > 0.05),
        torch.cat([UNPACKED["4 bit by 32"][:64], WEIGHT[64:]]),
    ],
)
def test_exact_weights_have_no_cells(weight: Tensor) -> None:
    assert find_cells(weight) is None


@pytest.mark.parametrize("dtype", HALVES[1:], ids=str)
@pytest.mark.parametrize("spread", [0.0, 0.3, 1.0])
def test_weights_in_half_precision_are_not_taken_for_quantised_ones(dtype: torch.dtype, spread: float) -> None:
    generator = torch.Generator().manual_seed(2)
    exact = torch.randn(48, 96, generator=generator) * torch.exp(spread * torch.randn(48, 1, generator=generator))
    cells = find_cells(exact.to(dtype))
    assert cells is not None
    share = cells.width / exact.abs().clamp(min=torch.finfo(dtype).smallest_normal)
    assert share.max() <= torch.finfo(dtype).eps * 1.01


@pytest.mark.parametrize("weight", [torch.zeros(4, 8), torch.full((4, 8), torch.nan), torch.zeros(0, 8)])
def test_weights_that_say_nothing_break_nothing(weight: Tensor) -> None:
    cells = find_cells(weight)
    assert cells is None or not bool(cells.width.any())


@settings(max_examples=60, deadline=None)
@given(shape=st.lists(st.integers(0, 5), min_size=0, max_size=3), data=st.data())
def test_matrices_of_any_shape_are_read(shape: list[int], data: st.DataObject) -> None:
    numbers = st.sampled_from([0.0, 1.0, -0.5, 0.3, 1e-30, float("inf")])
    n = math.prod(shape)
    weight = torch.tensor(data.draw(st.lists(numbers, min_size=n, max_size=n)), dtype=torch.float32).reshape(shape)
    cells = find_cells(weight)
    assert cells is None or cells.middle.shape == cells.width.shape == weight.shape
