"""Benchmarks of extraction, store and training on this machine, with fixed synthetic work."""

import multiprocessing
import re
import resource
import statistics
import sys
import tempfile
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import psutil
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import nn
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

from ltmia.attacks.selection import fast_attacks, select_attacks
from ltmia.classifier.combinations import Combination, load_ahead
from ltmia.classifier.membership import MembershipClassifier
from ltmia.classifier.training import TrainingConfig, training_step
from ltmia.errors import ConfigError
from ltmia.features.columns import DEFAULT_K
from ltmia.features.per_token import per_token_features
from ltmia.features.statistics import token_statistics
from ltmia.models.forward import CHUNK_BYTES
from ltmia.models.pair import Pair
from ltmia.records import Texts
from ltmia.scoring.audited_pair import LoadedPair
from ltmia.scoring.extraction import ExtractionConfig, extract_batches
from ltmia.scoring.pair_runner import ExtractionClock
from ltmia.scoring.store_filling import StorePlan, fill_store

REPEATS = 5
KERNEL_POSITIONS = 256
SEED = 0
PAD = "pad"
TRAIN_STEPS = 30
CPU = torch.device("cpu")


@dataclass(frozen=True, slots=True, kw_only=True)
class BenchConfig:
    """The work to measure; the default is GPT-2 small on 16 texts of 128 tokens."""

    vocab_size: int = 50_257
    hidden_size: int = 768
    n_layers: int = 12
    n_heads: int = 12
    n_texts: int = 16
    n_tokens: int = 128
    mixed_lengths: bool = False
    """Lengths spread evenly from a quarter of `n_tokens` to all of it, compared with texts of full length."""
    batch_size: int = 16
    dtype: str = "float32"
    thorough: bool = False
    """Read more of the weights; see `WeightsConfig.of`."""
    threads: int = 2

    def __post_init__(self) -> None:
        """Refuse impossible settings.

        Raises:
            ConfigError: If a setting is impossible; the message names the field.
        """
        for name in (
            "vocab_size",
            "hidden_size",
            "n_layers",
            "n_heads",
            "n_texts",
            "n_tokens",
            "batch_size",
            "threads",
        ):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} = {getattr(self, name)}: expected at least 1")
        if self.hidden_size % self.n_heads:
            raise ConfigError(f"hidden_size = {self.hidden_size}: expected a multiple of {self.n_heads} heads")
        if self.dtype not in ("float32", "bfloat16"):
            raise ConfigError(f"dtype = {self.dtype!r}: expected float32 or bfloat16")


def bench_extract(config: BenchConfig) -> dict[str, float | str | int]:
    """Time two bare forward passes, and the whole extraction with published features and all fast attacks.

    Both are measured in turn, `REPEATS` times after a warm-up; medians are given. `overhead_cpu` is the same ratio in
    seconds of the processor, for machines that are busy with other work; use one thread then.

    Resident memory is measured in a separate process that extracts once: with libraries and models only, and at its
    peak.
    """
    torch.set_num_threads(config.threads)
    pair, texts = random_pair(config), random_texts(config)
    full = random_texts(replace(config, mixed_lengths=False)) if config.mixed_lengths else []
    (forward, forward_cpu), (total, total_cpu), *whole = in_turn(
        lambda: bare_forwards(pair, texts, config),
        lambda: _extract(pair, texts, config),
        *([lambda: _extract(pair, full, config)] if full else []),
    )
    n_positions = _n_positions(texts)
    kernel, kernel_cpu = _kernel_ms(config)
    loaded, peak = _resident_gb(config)
    found: dict[str, float | str | int] = {
        "dtype": config.dtype,
        "threads": config.threads,
        "vocab_size": config.vocab_size,
        "n_texts": config.n_texts,
        "n_positions": n_positions,
        "forward_seconds": round(forward, 3),
        "total_seconds": round(total, 3),
        "overhead": round(total / forward - 1, 4),
        "overhead_cpu": round(total_cpu / forward_cpu - 1, 4),
        "kernel_ms_per_position": round(kernel, 4),
        "kernel_cpu_ms_per_position": round(kernel_cpu, 4),
        "logits_bound_gb": round(2 * CHUNK_BYTES / 1e9, 3),
        "loaded_rss_gb": round(loaded, 3),
        "peak_rss_gb": round(peak, 3),
        "texts_per_second": round(config.n_texts / total, 2),
        "ms_per_position": round(1000 * total / n_positions, 3),
        "cpu_ms_per_position": round(1000 * total_cpu / n_positions, 3),
    }
    if full:
        for name, seconds in zip(("ms", "cpu_ms"), whole[0], strict=True):
            found[f"{name}_per_position_of_full_length"] = round(1000 * seconds / _n_positions(full), 3)
    return found


def bench_store(config: BenchConfig) -> dict[str, float | str | int]:
    """Measure the size of a store per token, and how fast texts are written and read."""
    torch.set_num_threads(config.threads)
    with tempfile.TemporaryDirectory() as folder:
        started = time.perf_counter()
        combination = _stored(config, Path(folder) / "store")
        written = time.perf_counter() - started
        store = combination.store
        rows = np.random.default_rng(SEED).permutation(len(store))
        parts = np.array_split(rows, -(-len(rows) // 64))
        seconds = _median(lambda: deque((store.gather(part, "logratio") for part in parts), maxlen=0))
        n_bytes = sum(file.stat().st_size for file in (Path(folder) / "store").iterdir())
        n_positions = int(store.texts["n_tokens"].to_numpy().sum())
        peak = peak_gb()
    return {
        "n_texts": config.n_texts,
        "n_positions": n_positions,
        "bytes_per_token": round(n_bytes / n_positions, 1),
        "extract_and_write_seconds": round(written, 2),
        "peak_rss_gb": round(peak, 3),
        "read_texts_per_second": round(config.n_texts / seconds, 1),
    }


def bench_train(config: BenchConfig) -> dict[str, float | str | int]:
    """Measure the time of the classifier's training steps, and the share spent waiting for data.

    A step's texts are those of the store, some of them several times if there are fewer than a step takes.
    """
    torch.set_num_threads(config.threads)
    with tempfile.TemporaryDirectory() as folder:
        combination = _stored(config, Path(folder) / "store")
        settings = TrainingConfig(epochs=1)
        classifier = MembershipClassifier().fit([combination], config=settings)
        rows = np.resize(np.arange(len(combination.labels)), 2 * settings.half_batch)
        optimizer = torch.optim.AdamW(classifier.network_.parameters(), 1e-4)
        waits, steps = [], []
        started = time.perf_counter()
        for batch in load_ahead([(combination, rows)] * TRAIN_STEPS, classifier.feature_version):
            waits.append(time.perf_counter() - started)
            training_step(classifier.network_, iter([batch]), 1, settings, optimizer)
            steps.append(time.perf_counter() - started)
            started = time.perf_counter()
        # The first step waits for its data, and torch's caches are still empty.
        wait, step = statistics.median(waits[1:]), statistics.median(steps[1:])
        seconds = _median(lambda: combination.batch(rows, classifier.feature_version))
    return {
        "texts_per_step": len(rows),
        "step_seconds": round(step, 4),
        "data_seconds": round(seconds, 4),
        "data_wait_seconds": round(wait, 4),
        "data_wait_share": round(wait / step, 4),
    }


def random_pair(config: BenchConfig, device: torch.device = CPU) -> Pair:
    """Make two random models of GPT-2's shape on a device, with a tokenizer that reads numbers."""
    models_made: list[nn.Module] = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        shape = GPT2Config(
            vocab_size=config.vocab_size,
            n_embd=config.hidden_size,
            n_layer=config.n_layers,
            n_head=config.n_heads,
            n_positions=max(config.n_tokens, 32),
            bos_token_id=None,
            eos_token_id=None,
        )
        models_made.append(GPT2LMHeadModel(shape).eval().to(device, getattr(torch, config.dtype)))
    return Pair(target=models_made[0], reference=models_made[1], tokenizer=number_tokenizer(config.vocab_size))


def number_tokenizer(vocab_size: int) -> PreTrainedTokenizerFast:
    """Make a tokenizer that reads numbers between spaces."""
    # The tokenizer finds special tokens inside words too, so this one contains no digit.
    vocabulary = {PAD: 0} | {str(i): i for i in range(1, vocab_size)}
    words = Tokenizer(models.WordLevel(vocabulary, unk_token=PAD))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=words, pad_token=PAD)


def random_texts(config: BenchConfig) -> list[str]:
    """Make texts of random numbers."""
    rng = np.random.default_rng(SEED)
    shortest = config.n_tokens // 4 if config.mixed_lengths else config.n_tokens
    lengths = np.linspace(max(shortest, 3), config.n_tokens, config.n_texts).astype(int)
    return [" ".join(map(str, rng.integers(1, config.vocab_size, n))) for n in rng.permutation(lengths)]


@torch.inference_mode()
def bare_forwards(pair: Pair, texts: list[str], config: BenchConfig) -> None:
    """Run both models on all texts, and nothing else."""
    rows = sorted((torch.tensor([int(word) for word in text.split()]) for text in texts), key=len)
    for start in range(0, len(rows), config.batch_size):
        part = rows[start : start + config.batch_size]
        ids = nn.utils.rnn.pad_sequence(part, batch_first=True)
        mask = nn.utils.rnn.pad_sequence([torch.ones_like(row) for row in part], batch_first=True)
        for model in (pair.target, pair.reference):
            if model is not None:
                model(input_ids=ids, attention_mask=mask, use_cache=False)


def _extract(pair: Pair, texts: list[str], config: BenchConfig) -> None:
    for batch in extract_batches(pair, texts, extraction_of(config)):
        per_token_features(batch.statistics, version="published", seq_len=config.n_tokens)


def extraction_of(config: BenchConfig) -> ExtractionConfig:
    """Return the settings of an extraction with all fast attacks."""
    return ExtractionConfig(
        attacks=fast_attacks(select_attacks("fast")), max_length=config.n_tokens, batch_size=config.batch_size
    )


def _kernel_ms(config: BenchConfig) -> tuple[float, float]:
    generator = torch.Generator().manual_seed(SEED)
    target, reference = (torch.randn(KERNEL_POSITIONS, config.vocab_size, generator=generator) for _ in range(2))
    truth = torch.randint(0, config.vocab_size, (KERNEL_POSITIONS,), generator=generator)
    [seconds] = in_turn(lambda: token_statistics(target, reference, truth, DEFAULT_K))
    return 1000 * seconds[0] / KERNEL_POSITIONS, 1000 * seconds[1] / KERNEL_POSITIONS


def _n_positions(texts: list[str]) -> int:
    return sum(len(text.split()) - 1 for text in texts)


def _resident_gb(config: BenchConfig) -> tuple[float, float]:
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(_extract_alone, (config,))


def _extract_alone(config: BenchConfig) -> tuple[float, float]:
    """Extract once, and return this process's resident memory before it and at its peak, in GB."""
    torch.set_num_threads(config.threads)
    pair = random_pair(config)
    loaded = psutil.Process().memory_info().rss / 1e9
    _extract(pair, random_texts(config), config)
    return loaded, peak_gb()


def peak_gb() -> float:
    """Return this process's peak of resident memory in GB."""
    status = Path("/proc/self/status")
    if status.is_file():
        # On Linux, getrusage of a child process starts at the size of its parent.
        return int(re.findall(r"VmHWM:\s*(\d+) kB", status.read_text())[0]) * 1024 / 1e9
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 1e9 if sys.platform == "darwin" else peak * 1024 / 1e9


def _stored(config: BenchConfig, folder: Path) -> Combination:
    texts = random_texts(config)
    ids = tuple(str(i) for i in range(len(texts)))
    columns: dict[str, Sequence[object]] = {"id": ids, "label": [i % 2 for i in range(len(texts))]}
    named = Texts(texts=tuple(texts), ids=ids)
    plan = StorePlan(key="bench", columns=columns)
    fill_store(LoadedPair(random_pair(config)), named, folder, extraction_of(config), plan, clock=ExtractionClock())
    return Combination(folder)


def _median(work: Callable[[], object]) -> float:
    return in_turn(work)[0][0]


def in_turn(*works: Callable[[], object]) -> list[tuple[float, float]]:
    """Time several functions in turn, so that other load on the machine affects all of them alike.

    Returns:
        Medians for each: seconds on the wall, and seconds of the processor.
    """
    for work in works:
        work()
    taken: list[list[tuple[float, float]]] = [[] for _ in works]
    for _ in range(REPEATS):
        for seconds, work in zip(taken, works, strict=True):
            wall, cpu = time.perf_counter(), time.process_time()
            work()
            seconds.append((time.perf_counter() - wall, time.process_time() - cpu))
    return [(statistics.median(w for w, _ in each), statistics.median(c for _, c in each)) for each in taken]
