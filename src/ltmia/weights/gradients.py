"""Gradients of texts at points along the line from base to target, written to a folder."""

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from ltmia.models.batching import Halving, length_batches, most_tokens
from ltmia.models.pair import Pair
from ltmia.models.tokens import EncodedText
from ltmia.models.weight_delta import model_between, run_model
from ltmia.progress import Report, silent
from ltmia.weights.backward import TextGradients
from ltmia.weights.coordinates import Coordinates
from ltmia.weights.gradient_file import GradientFile, GradientShape, check_room

TASK = "gradients"


def read_gradients(
    pair: Pair,
    encoded: Sequence[EncodedText],
    coordinates: Coordinates,
    points: Sequence[float],
    folder: Path,
    *,
    identity: str,
    report: Report = silent,
) -> GradientFile:
    """Compute the gradient of each text's mean loss at each point; gradients in the folder are reused.

    The other texts of a batch change a gradient only by float noise. A text without a scored token, or with a gradient
    that is not finite, has a scale of NaN.

    Args:
        pair: Target and base.
        encoded: The texts; those that cannot be scored are left out.
        coordinates: Coordinates that are read.
        points: Points on the line, 0 for the base and 1 for the target.
        folder: Folder for the gradients.
        identity: Hashes of the two models: gradients of other models in the folder are thrown away.
        report: Called with progress.

    Raises:
        StoreError: If the disk has no room.
        ModelError: If one text alone does not fit into memory.
    """
    shape = GradientShape(n_texts=len(encoded), n_points=len(points), n_coordinates=len(coordinates))
    check_room(folder, shape)
    file = GradientFile(folder, shape, _fingerprint(identity, encoded, coordinates, points))
    batches = _batches(pair, encoded, coordinates.batched)
    total = len(points) * sum(map(len, batches))
    done = 0
    for place, point in enumerate(points):
        if all(file.is_done(place, row) for batch in batches for row in batch):
            done += sum(map(len, batches))
            continue
        with (
            model_between(pair, point) as runner,
            TextGradients(run_model(pair, point), runner, coordinates.places, batched=coordinates.batched) as gradients,
        ):
            halving = Halving(encoded)
            for batch in batches:
                waiting = [row for row in batch if not file.is_done(place, row)]

                def work(rows: list[int], gradients: TextGradients = gradients) -> tuple[list[int], np.ndarray]:
                    texts = [encoded[row] for row in rows]
                    return rows, gradients([text.ids for text in texts], [text.start for text in texts]).numpy()

                for rows, found in halving.run(waiting, work) if waiting else ():
                    file.append(place, rows, found)
                done += len(batch)
                report(TASK, done, total)
    return file


def _batches(pair: Pair, encoded: Sequence[EncodedText], batched: bool) -> list[list[int]]:
    """Group texts by length, always in the same way, in batches of the size that is fastest on the device."""
    longest = max((len(text.ids) for text in encoded if text.n_scored), default=1)
    batches = length_batches(encoded, max(most_tokens(pair.device) // longest, 1))
    return batches if batched else [[row] for batch in batches for row in batch]


def _fingerprint(
    identity: str, encoded: Sequence[EncodedText], coordinates: Coordinates, points: Sequence[float]
) -> str:
    digest = hashlib.sha256()
    digest.update(json.dumps([identity, coordinates.digest, list(points)]).encode())
    for text in encoded:
        digest.update(f"{len(text.ids)} {text.start} {text.n_scored} ".encode())
        digest.update(np.ascontiguousarray(text.ids, np.int64).tobytes())
    return digest.hexdigest()
