"""Gradients of texts at points along the line from base to target, written to a folder.

Base and target are run anyway for their log-probabilities, so a gradient at one of these points costs only a backward
pass if it is read there. Otherwise it is read in a pass of its own.
"""

import hashlib
import json
import time
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from accelerate.utils.memory import clear_device_cache
from jaxtyping import Shaped
from torch import Tensor

from ltmia.errors import ModelError, StoreError
from ltmia.models.batching import BatchSize, Halving, ran_out_of_memory
from ltmia.models.forward import KnownStates, batches_to_run, pad_id_of, passes
from ltmia.models.pair import Pair
from ltmia.models.tokens import EncodedText
from ltmia.models.weight_delta import is_adapter, model_between, run_model
from ltmia.progress import Report, silent
from ltmia.weights.backward import TextGradients
from ltmia.weights.coordinates import Coordinates
from ltmia.weights.gradient_file import GradientFile, GradientShape, check_room

TASK = "gradients"
BASE, TARGET = 0.0, 1.0


class GradientReader:
    """Reads the gradient of each text's mean loss at each point; gradients in the folder are reused.

    The other texts of a batch change a gradient only by float noise. Batches are always those of the passes that give
    log-probabilities, so it does not show which pass a gradient comes from. A text without a scored token, or with a
    gradient that is not finite, has a scale of NaN.

    Args:
        pair: Target and base.
        encoded: The texts; those that cannot be scored are left out.
        coordinates: Coordinates that are read.
        points: Points on the line, 0 for the base and 1 for the target.
        folder: Folder for the gradients.
        identity: Hashes of the two models: gradients of other models in the folder are thrown away.
        batch_size: Texts of full length per pass.

    Raises:
        StoreError: If the disk has no room.
    """

    def __init__(
        self,
        pair: Pair,
        encoded: Sequence[EncodedText],
        coordinates: Coordinates,
        points: Sequence[float],
        folder: Path,
        *,
        identity: str,
        batch_size: BatchSize = 16,
    ) -> None:
        shape = GradientShape(n_texts=len(encoded), n_points=len(points), n_coordinates=len(coordinates))
        check_room(folder, shape)
        self.file = GradientFile(folder, shape, _fingerprint(identity, encoded, coordinates, points))
        self.seconds = 0.0
        """Time spent for gradients; forward passes that give log-probabilities too are not counted."""
        self._pair = pair
        self._encoded = encoded
        self._coordinates = coordinates
        self._points = tuple(points)
        self._batch_size = batch_size
        self._failure: ModelError | StoreError | None = None

    def run_pair(self, rows: Sequence[int]) -> KnownStates:
        """Read gradients of some texts in the passes that compute their log-probabilities.

        Args:
            rows: Rows of one batch of `encoded`.

        Returns:
            Hidden states of target and base at the scored positions; None for a model whose gradients need a pass of
            their own, or are in the folder. For an adapter, the base counts as such: gradients need an adapter of
            zeros, log-probabilities none at all. Log-probabilities can be had without gradients, so if these cannot be
            read, or do not fit into memory for one text alone, both are None, and `finish` says why.
        """
        shared = {TARGET} if is_adapter(self._pair) else {TARGET, BASE}
        if not self._coordinates.batched or self._failure is not None:
            return None, None
        try:
            target, base = (self._run(point, rows) if point in shared else None for point in (TARGET, BASE))
        except (ModelError, StoreError) as error:
            self._failure = error.with_traceback(None)  # the traceback holds tensors
        except (MemoryError, RuntimeError) as error:
            if len(rows) > 1 or not ran_out_of_memory(error):
                raise
        else:
            return target, base
        clear_device_cache()
        return None, None

    def finish(self, report: Report = silent) -> GradientFile:
        """Read the gradients that are missing yet.

        Raises:
            StoreError: If the disk has no room.
            ModelError: If one text alone does not fit into memory, or a layer mixes the tokens of several texts.
        """
        if self._failure is not None:
            raise self._failure
        seconds, started = self.seconds, time.perf_counter()
        rows = [row for row, text in enumerate(self._encoded) if text.n_scored]
        places = [place for place in range(len(self._points)) if not self._is_done(place, rows)]
        batches = self._batches() if places else []
        done, total = (len(self._points) - len(places)) * len(rows), len(self._points) * len(rows)
        for place in places:
            with self._at(self._points[place]) as gradients:
                halving = Halving(self._encoded)

                def work(batch: list[int], place: int = place, gradients: TextGradients = gradients) -> object:
                    return None if self._is_done(place, batch) else self._read(gradients, place, batch)

                for batch in batches:
                    deque(halving.run(batch, work), maxlen=0)
                    done += len(batch)
                    report(TASK, done, total)
        self.seconds = seconds + time.perf_counter() - started
        return self.file

    def _batches(self) -> list[list[int]]:
        batches = batches_to_run(self._pair, self._encoded, self._batch_size)
        return batches if self._coordinates.batched else [[row] for batch in batches for row in batch]

    def _is_done(self, place: int, rows: Sequence[int]) -> bool:
        return all(self.file.is_done(place, row) for row in rows)

    def _run(self, point: float, rows: Sequence[int]) -> Shaped[Tensor, "pred hidden"] | None:
        """Read gradients at a point; return the hidden states, or None if nothing had to be run."""
        place = self._points.index(point) if point in self._points else None
        if place is None or self._is_done(place, rows):
            return None
        with self._at(point) as gradients:
            states = self._read(gradients, place, rows)
        self.seconds += gradients.backward_seconds
        return states

    def _read(self, gradients: TextGradients, place: int, rows: Sequence[int]) -> Shaped[Tensor, "pred hidden"]:
        """Run a batch, and keep the gradients that are missing; return the hidden states."""
        texts = [self._encoded[row] for row in rows]
        parts = []
        for part in passes(self._pair, texts):
            found, states = _of(gradients, texts[part])
            missing = [i for i, row in enumerate(rows[part]) if not self.file.is_done(place, row)]
            started = time.perf_counter()
            self.file.append(place, [rows[part][i] for i in missing], found.numpy()[missing])
            self.seconds += time.perf_counter() - started
            parts.append(states)
        return torch.cat(parts)

    @contextmanager
    def _at(self, point: float) -> Iterator[TextGradients]:
        """Give the reader of the model at a point."""
        places, batched = self._coordinates.places, self._coordinates.batched
        with (
            model_between(self._pair, point) as runner,
            TextGradients(
                run_model(self._pair, point), runner, places, batched=batched, pad_id=pad_id_of(self._pair)
            ) as gradients,
        ):
            yield gradients


def _of(gradients: TextGradients, texts: Sequence[EncodedText]) -> tuple[Tensor, Tensor]:
    found = gradients.with_states([text.ids for text in texts], [text.start for text in texts])
    if gradients.mixing:
        raise ModelError(
            f"{', '.join(sorted(gradients.mixing))}: the layer was called with tokens of several texts mixed, so the "
            "gradients of single texts cannot be read"
        )
    return found


def _fingerprint(
    identity: str, encoded: Sequence[EncodedText], coordinates: Coordinates, points: Sequence[float]
) -> str:
    digest = hashlib.sha256()
    digest.update(json.dumps([identity, coordinates.digest, list(points)]).encode())
    for text in encoded:
        digest.update(f"{len(text.ids)} {text.start} {text.n_scored} ".encode())
        digest.update(np.ascontiguousarray(text.ids, np.int64).tobytes())
    return digest.hexdigest()
