"""Benchmark of the attack on the weights: the time that gradients add to the two forward passes."""

import tempfile
from collections import deque
from pathlib import Path

import torch

from ltmia.scoring.bench import BenchConfig, bare_forwards, extraction_of, in_turn, peak_gb, random_pair, random_texts
from ltmia.scoring.extraction import ExtractionRun, encode, extract_batches
from ltmia.weights.coordinates import choose_coordinates
from ltmia.weights.gradients import GradientReader
from ltmia.weights.update_attack import WeightsConfig


def bench_weights(config: BenchConfig) -> dict[str, float | str | int]:
    """Time two bare forward passes, an extraction, and an extraction that reads gradients.

    Gradients at base and target come from the passes of the extraction, those between them from passes of their own.

    `added` is the time that gradients add if they are read in the passes of the extraction, and `added_apart` if they
    are read in passes of their own, both as multiples of the two bare forward passes. `added_cpu` and
    `added_apart_cpu` are the same in seconds of the processor.
    """
    torch.set_num_threads(config.threads)
    settings = WeightsConfig.of(thorough=config.thorough)
    pair, texts = random_pair(config), random_texts(config)
    run = ExtractionRun(encoded=encode(pair, texts, extraction_of(config)))
    coordinates = choose_coordinates(pair, n_coordinates=settings.n_coordinates, n_layers=settings.n_layers, seed=0)

    def reader(folder: str) -> GradientReader:
        where, size = Path(folder), config.batch_size
        return GradientReader(pair, run.encoded, coordinates, settings.points, where, identity="bench", batch_size=size)

    def extract(gradients: GradientReader | None = None) -> None:
        deque(extract_batches(pair, texts, extraction_of(config), run, gradients=gradients), maxlen=0)

    def shared() -> None:
        with tempfile.TemporaryDirectory() as folder:
            gradients = reader(folder)
            extract(gradients)
            gradients.finish()

    def apart() -> None:
        with tempfile.TemporaryDirectory() as folder:
            reader(folder).finish()

    forward, plain, together, alone = in_turn(lambda: bare_forwards(pair, texts, config), extract, shared, apart)
    return {
        "dtype": config.dtype,
        "threads": config.threads,
        "n_texts": config.n_texts,
        "n_coordinates": len(coordinates),
        "n_layers": len(coordinates.layers),
        "points": len(settings.points),
        "forward_seconds": round(forward[0], 3),
        "extraction_seconds": round(plain[0], 3),
        "with_gradients_seconds": round(together[0], 3),
        "added": round((together[0] - plain[0]) / forward[0], 3),
        "added_cpu": round((together[1] - plain[1]) / forward[1], 3),
        "added_apart": round(alone[0] / forward[0], 3),
        "added_apart_cpu": round(alone[1] / forward[1], 3),
        "bytes_per_text": 2 * len(coordinates) * len(settings.points),
        "peak_rss_gb": round(peak_gb(), 3),
    }
