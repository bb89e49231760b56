"""The benchmarks run on small work and report figures that agree with each other."""

import numpy as np
import pytest

from ltmia.errors import ConfigError
from ltmia.scoring.bench import (
    BenchConfig,
    _resident_gb,
    bench_store,
    bench_train,
    random_pair,
    random_texts,
)
from ltmia.scoring.bench_weights import bench_weights
from ltmia.scoring.extraction import ExtractionConfig, extract_batches

SMALL = {"vocab_size": 300, "hidden_size": 16, "n_layers": 1, "n_heads": 2, "n_texts": 24, "n_tokens": 20}


def test_a_text_has_the_tokens_that_are_counted() -> None:
    config = BenchConfig(**SMALL | {"vocab_size": 3000}, mixed_lengths=True)
    texts = random_texts(config)
    found = extract_batches(random_pair(config), texts, ExtractionConfig(batch_size=8, max_length=20))
    read = {text.row: text.n_tokens for batch in found for text in batch.texts}
    assert read == {i: len(text.split()) - 1 for i, text in enumerate(texts)}
    assert len(set(read.values())) > 10


def test_a_store_takes_at_most_300_bytes_a_token() -> None:
    found = bench_store(BenchConfig(**SMALL | {"n_texts": 64, "n_tokens": 128}, threads=1))
    assert found["n_positions"] == 64 * 127
    assert 200 < found["bytes_per_token"] <= 300


def test_training_reads_its_data_faster_than_it_learns() -> None:
    found = bench_train(BenchConfig(**SMALL, threads=1))
    assert 0 < found["data_wait_share"] < 1


def test_gradients_in_shared_passes_cost_less_than_in_their_own() -> None:
    work = SMALL | {"n_layers": 12, "hidden_size": 96, "vocab_size": 2000, "n_texts": 8, "n_tokens": 60}
    found = bench_weights(BenchConfig(**work, threads=1))
    assert found["n_layers"] == 4
    assert found["added"] == pytest.approx(
        (found["with_gradients_seconds"] - found["extraction_seconds"]) / found["forward_seconds"], rel=0.1, abs=0.1
    )
    assert 0 < found["added_cpu"] < found["added_apart_cpu"]


@pytest.mark.parametrize("wrong", [{"n_texts": 0}, {"dtype": "int8"}, {"threads": 0}, {"hidden_size": 7}])
def test_impossible_work_is_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(ConfigError, match=next(iter(wrong))):
        BenchConfig(**wrong)


@pytest.mark.slow
def test_the_peak_of_a_child_is_its_own_and_not_its_parents() -> None:
    ballast = np.ones(100_000_000)  # 0.8 GB
    config = BenchConfig(**SMALL, threads=1)
    assert _resident_gb(config)[1] < ballast.nbytes / 1e9 + 0.2
