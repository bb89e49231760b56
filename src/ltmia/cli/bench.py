"""`ltmia bench`: measures the speed of parts of the program on this machine."""

import json
from enum import StrEnum
from typing import Annotated

import typer

from ltmia.cli import options as o


class Benchmark(StrEnum):
    """Parts that can be measured."""

    extract = "extract"
    store = "store"
    train = "train"
    weights = "weights"


def bench(
    part: Annotated[Benchmark, typer.Argument(help="Part to measure: extract, store, train or weights.")],
    n_texts: Annotated[int, typer.Option("--texts", min=2, help="Number of random texts.")] = 16,
    n_tokens: Annotated[int, typer.Option("--tokens", min=3, help="Tokens per text.")] = 128,
    mixed_lengths: Annotated[
        bool, typer.Option("--mixed-lengths", help="Random lengths, from --tokens / 4 to --tokens.")
    ] = False,
    vocab_size: Annotated[int, typer.Option("--vocab-size", min=64, help="Tokens in the vocabulary.")] = 50_257,
    hidden_size: Annotated[
        int,
        typer.Option("--hidden-size", min=12, help="Hidden size of each model; a multiple of 12."),
    ] = 768,
    n_layers: Annotated[int, typer.Option("--layers", min=1, help="Layers of each model.")] = 12,
    batch_size: Annotated[int, typer.Option("--batch-size", min=1, help="Texts per forward pass.")] = 16,
    dtype: Annotated[str, typer.Option("--dtype", help="Number format: float32 or bfloat16.")] = "float32",
    thorough: Annotated[bool, typer.Option("--thorough", help="Read the weights as `audit --thorough` does.")] = False,
    threads: Annotated[int, typer.Option("--threads", min=1, help="Processor threads to use.")] = 2,
    as_json: o.AsJson = False,
) -> None:
    """Measure the speed of extraction, store, training or gradients, with random models of GPT-2's shape."""
    from ltmia.scoring.bench import BenchConfig, bench_extract, bench_store, bench_train
    from ltmia.scoring.bench_weights import bench_weights

    config = BenchConfig(
        n_texts=n_texts,
        n_tokens=n_tokens,
        mixed_lengths=mixed_lengths,
        vocab_size=vocab_size,
        hidden_size=hidden_size,
        n_layers=n_layers,
        batch_size=batch_size,
        dtype=dtype,
        thorough=thorough,
        threads=threads,
    )
    benchmarks = {
        Benchmark.extract: bench_extract,
        Benchmark.store: bench_store,
        Benchmark.train: bench_train,
        Benchmark.weights: bench_weights,
    }
    measured = benchmarks[part](config)
    if as_json:
        print(json.dumps(measured))
    else:
        for name, value in measured.items():
            print(f"{name}: {value}")
