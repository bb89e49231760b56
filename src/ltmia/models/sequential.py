"""Two models that do not fit into memory together: only one is loaded at a time.

Every statistic of a position needs the logits of both models. But logits are the head times the last hidden states. So
only these are kept until the other model is loaded: the head in memory, and the hidden states on disk, one row per
scored position, in the dtype they were computed in (2 to 4 bytes times the hidden size).
"""

import tempfile
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType

import torch
from accelerate.utils.memory import clear_device_cache
from jaxtyping import Shaped
from torch import Tensor, nn

from ltmia.folders import named_errors


class SequentialModels:
    """Returns either model by name, and loads it if the other one is in memory."""

    def __init__(self, *, target: Callable[[], nn.Module], reference: Callable[[], nn.Module]) -> None:
        self._load = {"target": target, "reference": reference}
        self._name = ""
        self._model: nn.Module | None = None

    def __call__(self, name: str) -> nn.Module:
        """Return the model called "target" or "reference", in evaluation mode."""
        if self._model is None or self._name != name:
            self._model = None
            clear_device_cache(garbage_collection=True)
            self._model, self._name = self._load[name]().eval(), name
        return self._model


class KeptStates:
    """Hidden states of texts in an unnamed temporary file, which vanishes with the process."""

    def __init__(self, folder: Path | None = None) -> None:
        """Open the file in a folder. None: the system's folder for temporary files, which may be in memory."""
        self._folder = folder or Path(tempfile.gettempdir())
        with named_errors(self._folder):
            self._file = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115  closed by __exit__
        self._places: dict[int, tuple[int, tuple[int, int]]] = {}
        self._dtype = torch.float32

    def __enter__(self) -> "KeptStates":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        with suppress(OSError):  # the file vanishes anyway; what a full disk refused would be written again on closing
            self._file.close()

    @property
    def n_bytes(self) -> int:
        """Size of the file."""
        return self._file.seek(0, 2)

    def write(self, rows: Sequence[int], counts: Sequence[int], states: Shaped[Tensor, "pred hidden"]) -> None:
        """Write the states of some texts, concatenated, with the number of positions of each.

        Raises:
            StoreError: If there is no room for them.
        """
        self._dtype = states.dtype
        with named_errors(self._folder):
            for row, part in zip(rows, states.cpu().split(list(counts)), strict=True):
                self._places[row] = self.n_bytes, (len(part), part.shape[1])
                self._file.write(part.contiguous().view(torch.uint8).numpy().data)
            self._file.flush()

    def read(self, rows: Sequence[int]) -> Shaped[Tensor, "pred hidden"]:
        """Return the states of some texts, concatenated."""
        parts = []
        for row in rows:
            start, shape = self._places[row]
            self._file.seek(start)
            data = bytearray(self._file.read(shape[0] * shape[1] * self._dtype.itemsize))
            parts.append(torch.frombuffer(data, dtype=self._dtype).view(shape))
        return torch.cat(parts)
