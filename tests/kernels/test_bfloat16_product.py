"""The product of bfloat16 matrices is the exact one, up to float32 sums, for every shape."""

import numba
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numba.core.caching import CacheImpl

from ltmia.kernels.bfloat16_product import COLUMNS, ROWS, has_bfloat16_product, multiply, packed
from ltmia.kernels.compiled import compiled

pytestmark = pytest.mark.skipif(not has_bfloat16_product(), reason="this CPU has no AVX512-BF16")


@given(
    n=st.integers(0, 3 * ROWS + 1), m=st.integers(1, 3 * COLUMNS + 1), pairs=st.integers(1, 40), seed=st.integers(0, 99)
)
def test_it_is_the_product_in_float64(n: int, m: int, pairs: int, seed: int) -> None:
    rng = torch.Generator().manual_seed(seed)
    rows, weight = (torch.randn(size, 2 * pairs, generator=rng).bfloat16() for size in (n, m))
    whole = torch.full((n, m + 2), 7.0)
    multiply(rows, packed(weight), whole[:, 1:-1])
    np.testing.assert_allclose(whole[:, 1:-1], rows.double() @ weight.double().T, atol=2e-5, rtol=1e-6)
    assert (whole[:, [0, -1]] == 7).all()  # nothing is written beside the result


def test_it_says_nan_and_infinity() -> None:
    rows, weight = torch.ones(2, 2, dtype=torch.bfloat16), torch.ones(3, 2, dtype=torch.bfloat16)
    rows[1, 0], weight[0, 1], weight[1, 1] = torch.nan, torch.inf, -torch.inf
    out = torch.empty(2, 3)
    multiply(rows, packed(weight), out)
    np.testing.assert_array_equal(out, [[np.inf, -np.inf, 2], [np.nan] * 3])


def test_threads_share_the_columns() -> None:
    rows, weight = (torch.randn(size, 64).bfloat16() for size in (20, 1000))
    found = []
    for n_threads in (1, 3):
        before = torch.get_num_threads()
        torch.set_num_threads(n_threads)
        try:
            found.append(torch.empty(20, 1000))
            multiply(rows, packed(weight), found[-1])
        finally:
            torch.set_num_threads(before)
    assert torch.equal(*found)


def test_matrices_may_begin_at_any_number() -> None:
    rows, weight = torch.randn(1 + 7 * 8).bfloat16()[1:].view(7, 8), torch.randn(1 + 9 * 8).bfloat16()[1:].view(9, 8)
    out = torch.empty(7, 9)
    multiply(rows, packed(torch.nn.Parameter(weight)), out)
    np.testing.assert_allclose(out, rows.double() @ weight.double().T, atol=2e-5, rtol=1e-6)


def test_matrices_may_lie_in_any_order() -> None:
    for n, m in ((1, 5), (5, 1), (3, 70)):
        rows, weight = torch.randn(8, n).bfloat16().T, torch.randn(2 * m, 8).bfloat16()[::2]
        out = torch.empty(n, m)
        multiply(rows, packed(weight), out)
        np.testing.assert_allclose(out, rows.double() @ weight.double().T, atol=2e-5, rtol=1e-6)


@pytest.mark.parametrize(
    ("setting", "value"),
    [("DISABLE_JIT", 1), ("CPU_NAME", "generic"), ("CPU_FEATURES", ""), ("CPU_FEATURES", "+avx2"), ("ENABLE_AVX", 0)],
)
def test_numba_must_compile_for_this_cpu(monkeypatch: pytest.MonkeyPatch, setting: str, value: object) -> None:
    monkeypatch.setattr(numba.config, setting, value)
    assert not has_bfloat16_product()


def test_a_kernel_needs_no_folder_for_its_code(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(CacheImpl, "_locator_classes", [])
    assert compiled(_twice)(4) == 8


def _twice(x: int) -> int:
    return 2 * x
