"""All kernels for the statistics of logits against the definitions; Triton runs in its interpreter."""

from dataclasses import fields
from importlib.util import find_spec

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ltmia.features.statistics import named_statistics, token_statistics
from ltmia.kernels.torch_statistics import fill_statistics_torch
from ltmia.records import TokenStatistics


def by_definition(a: np.ndarray, b: np.ndarray, truth: int, k: int) -> dict[str, object]:
    """One position, from the definitions, in float64."""
    a, b = a.astype(np.float64), b.astype(np.float64)
    log_sum_a, log_sum_b = (np.log(np.exp(x - x.max()).sum()) for x in (a, b))
    log_p, log_q = (a - a.max()) - log_sum_a, (b - b.max()) - log_sum_b
    p, q = np.exp(log_p), np.exp(log_q)
    finite_p, finite_q = np.maximum(log_p, -200), np.maximum(log_q, -200)
    ratio = finite_p - finite_q
    top, low = np.argsort(-a, kind="stable")[:k], np.argsort(a, kind="stable")[:k]
    reference_top = np.argsort(-b, kind="stable")[:k]
    with np.errstate(invalid="ignore"):
        plain_ratio = log_p - log_q
    return {
        "target_logp": log_p[truth],
        "reference_logp": log_q[truth],
        "target_rank": 1 + (a > a[truth]).sum(),
        "reference_rank": 1 + (b > b[truth]).sum(),
        "target_entropy": -(p * finite_p).sum(),
        "reference_entropy": -(q * finite_q).sum(),
        "target_spread": np.sqrt(max((p * finite_p**2).sum() - (p * finite_p).sum() ** 2, 0)),
        "reference_spread": np.sqrt(max((q * finite_q**2).sum() - (q * finite_q).sum() ** 2, 0)),
        "divergence": (p * ratio).sum(),
        "reverse_divergence": -(q * ratio).sum(),
        "target_ratio_spread": np.sqrt(max((p * ratio**2).sum() - (p * ratio).sum() ** 2, 0)),
        "reference_ratio_spread": np.sqrt(max((q * ratio**2).sum() - (q * ratio).sum() ** 2, 0)),
        "normalizer_gap": (a.max() - b.max()) + (log_sum_a - log_sum_b),
        "reference_top_logp": log_q.max(),
        "top_logp": log_p[top],
        "top_log_ratio": plain_ratio[top],
        "top_reference_rank": [1 + (b > b[v]).sum() for v in top],
        "reference_top_target_rank": [1 + (a > a[v]).sum() for v in reference_top],
        "bottom_log_ratio": plain_ratio[low],
        "bottom_reference_rank": [1 + (b > b[v]).sum() for v in low],
    }


def through_torch(a: torch.Tensor, b: torch.Tensor, truth: torch.Tensor, k: int) -> TokenStatistics:
    return named_statistics(tuple(x.numpy() for x in fill_statistics_torch(a, b, truth, k)))


def through_triton(a: torch.Tensor, b: torch.Tensor, truth: torch.Tensor, k: int) -> TokenStatistics:
    from ltmia.kernels.triton_statistics import reduce_by_triton

    return named_statistics(tuple(x.numpy() for x in fill_statistics_torch(a, b, truth, k, reduce_by_triton)))


WITHOUT_TRITON = pytest.mark.skipif(
    find_spec("triton") is None, reason="Triton is not installed; make torture installs it"
)
KERNELS = {"numba": token_statistics, "torch": through_torch, "triton": through_triton}
EACH = ["numba", "torch", pytest.param("triton", marks=WITHOUT_TRITON)]


def assert_statistics(found: TokenStatistics, a, b, truth, k, atol=2e-4) -> None:
    for i in range(len(truth)):
        for name, value in by_definition(a[i], b[i], int(truth[i]), k).items():
            np.testing.assert_allclose(getattr(found, name)[i], value, atol=atol, rtol=1e-4, err_msg=name)


@pytest.mark.parametrize("kernel", EACH)
@given(data=st.data())
def test_statistics_equal_the_definitions(kernel: str, data: st.DataObject) -> None:
    vocab = data.draw(st.integers(1, 200), "vocab")
    k = data.draw(st.integers(1, min(vocab, 12)), "k")  # includes k = 1, k = vocab and vocab < 2k
    rng = np.random.default_rng(data.draw(st.integers(0, 2**16), "seed"))
    a, b = rng.normal(0, 3, (2, 3, vocab)).astype(np.float32)
    if data.draw(st.booleans(), "ties"):
        a, b = np.round(a / 2), np.round(b / 2)  # holds -0.0 beside 0.0
    truth = rng.integers(0, vocab, 3)
    found = KERNELS[kernel](torch.tensor(a), torch.tensor(b), torch.tensor(truth), k)
    assert_statistics(found, a, b, truth, k)


@pytest.mark.parametrize("kernel", EACH)
def test_masked_vocabulary_rows_do_no_harm(kernel: str) -> None:
    rng = np.random.default_rng(1)
    a, b = rng.normal(0, 3, (2, 4, 100)).astype(np.float32)
    a[:, 90:] = b[:, 95:] = -np.inf
    truth = np.arange(4)
    found = KERNELS[kernel](torch.tensor(a), torch.tensor(b), torch.tensor(truth), 5)
    for name, value in by_definition(a[0], b[0], 0, 5).items():
        if name not in {
            "divergence",
            "target_ratio_spread",
            "reverse_divergence",
            "reference_ratio_spread",
        }:
            np.testing.assert_allclose(getattr(found, name)[0], value, rtol=1e-4, atol=2e-4, err_msg=name)
    # Where one model says "impossible" the divergence is infinite by definition and finite, large,
    # here.
    assert np.isfinite(found.reverse_divergence).all()
    assert np.isfinite(found.divergence).all()


@pytest.mark.parametrize("kernel", EACH)
@pytest.mark.parametrize("size", [0.0, 1e4, 1e30, -1e38])
def test_equal_logits_of_any_size_share_the_probability(kernel: str, size: float) -> None:
    a, b = np.full((2, 257), size, np.float32), np.full((2, 257), -size, np.float32)
    found = KERNELS[kernel](torch.tensor(a), torch.tensor(b), torch.tensor([0, 256]), 4)
    assert_statistics(found, a, b, [0, 256], 4)


@pytest.mark.parametrize("kernel", EACH)
@pytest.mark.parametrize("where", ["target", "reference"])
@pytest.mark.parametrize("value", [np.nan, -np.nan])
def test_nan_logits_give_nan_and_no_rank_but_the_other_models(kernel: str, where: str, value: float) -> None:
    logits = {name: torch.randn(3, 70) for name in ("target", "reference")}
    logits[where][1, 40] = value
    found = KERNELS[kernel](logits["target"], logits["reference"], torch.tensor([1, 2, 3]), 4)
    for field in fields(found):
        column = getattr(found, field.name)
        bad = np.isnan(column[1]) if column.dtype == np.float32 else column[1] == 0
        # The true token's rank says which model is to blame.
        blameless = field.name == ("reference_rank" if where == "target" else "target_rank")
        assert np.all(bad) != blameless, field.name
        assert np.isfinite(column[[0, 2]]).all()


@pytest.mark.parametrize("kernel", EACH[1:])
def test_kernels_agree_on_a_real_vocabulary(kernel: str) -> None:
    a = torch.randn(6, 50_257) * 3
    b = a + 0.3 * torch.randn(6, 50_257)
    truth = torch.randint(0, 50_257, (6,))
    numba, other = (KERNELS[name](a, b, truth, 20) for name in ("numba", kernel))
    for field in fields(numba):
        np.testing.assert_allclose(
            getattr(numba, field.name), getattr(other, field.name), atol=2e-5, err_msg=field.name
        )


def test_no_positions_give_empty_statistics() -> None:
    nothing = token_statistics(torch.empty(0, 9), torch.empty(0, 9), torch.empty(0).long(), 3)
    assert len(nothing) == 0
    assert nothing.top_logp.shape == (0, 3)


@pytest.mark.parametrize("k", [0, 10])
def test_k_must_fit_the_vocabulary(k: int) -> None:
    with pytest.raises(ValueError, match="between 1 and the vocabulary size 9"):
        token_statistics(torch.zeros(1, 9), torch.zeros(1, 9), torch.zeros(1).long(), k)


def test_ids_outside_the_shared_vocabulary_are_refused() -> None:
    with pytest.raises(ValueError, match="ids both models share"):
        token_statistics(torch.zeros(1, 9), torch.zeros(1, 9), torch.tensor([9]), 2)
