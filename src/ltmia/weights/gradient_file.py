"""Gradients on disk: float16 with a scale for each text, written batch by batch, resumed after a kill.

A folder with `gradients-POINT.f16` for each point of the path (one row per text, in input order) and `journal.jsonl`,
which says which batches are safely on disk, with their scales and a checksum of each. Holds no text and no token id.
"""

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float32, Float64, Int64

from ltmia.errors import StoreError
from ltmia.folders import make_folder, named_errors, write_whole

JOURNAL = "journal.jsonl"
LARGEST = 2.0**14
"""Largest magnitude after scaling a row: float16 then has full precision down to 2^-28 of it, and some precision down
to 2^-38."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GradientShape:
    """Shape of a folder of gradients."""

    n_texts: int
    n_points: int
    n_coordinates: int

    @property
    def n_bytes(self) -> int:
        """Bytes on disk."""
        return 2 * self.n_texts * self.n_points * self.n_coordinates


@runtime_checkable
class PathGradients(Protocol):
    """Gradients of texts at some points of a path."""

    @property
    def shape(self) -> GradientShape:
        """Number of texts, points and coordinates."""
        ...

    def block(self, point: int, rows: Int64[np.ndarray, " text"], part: slice) -> Float32[np.ndarray, "text coord"]:
        """Return some texts' gradients at a run of coordinates."""
        ...


def pack_rows(
    rows: Float32[np.ndarray, "text coordinate"],
) -> tuple[np.ndarray, Float64[np.ndarray, " text"]]:
    """Return rows as float16, and the power of two that each was divided by.

    It is NaN if the row is not finite, and 0 if the row holds nothing but zeros.
    """
    largest = np.abs(rows).max(axis=1, initial=0.0).astype(np.float64)
    usable = np.isfinite(largest)
    scales = np.where(usable, np.exp2(np.ceil(np.log2(np.maximum(largest, 2.0**-100) / LARGEST))), np.nan)
    packed = np.where(usable[:, None], rows / np.where(usable, scales, 1.0)[:, None], 0.0).astype(np.float16)
    scales[usable & ~packed.any(axis=1)] = 0.0
    return packed, scales


class GradientFile:
    """Gradients of texts at points of a path, appended in batches and read in blocks of coordinates."""

    def __init__(self, folder: Path, shape: GradientShape, fingerprint: str) -> None:
        """Open a folder, and continue from what an earlier run of the same work left there.

        Args:
            folder: The folder; made if it is missing. Files of other work in it are removed.
            shape: Texts, points and coordinates.
            fingerprint: Hash of everything that the gradients depend on.
        """
        self.folder = folder
        self._shape = shape
        self.scales: Float64[np.ndarray, "point text"] = np.full((shape.n_points, shape.n_texts), np.nan)
        self._done = np.zeros((shape.n_points, shape.n_texts), bool)
        make_folder(folder)
        with named_errors(folder):
            self._recover(json.dumps({"fingerprint": fingerprint, "format": 2}, sort_keys=True))
            self._journal = (folder / JOURNAL).open("a", encoding="utf-8")

    @property
    def shape(self) -> GradientShape:
        """Number of texts, points and coordinates."""
        return self._shape

    def is_done(self, point: int, row: int) -> bool:
        """Say whether a text's gradient at a point is safely on disk."""
        return bool(self._done[point, row])

    def append(self, point: int, rows: Sequence[int], gradients: Float32[np.ndarray, "text coordinate"]) -> None:
        """Write the gradients of some texts; they are on disk when this returns."""
        packed, scales = pack_rows(gradients)
        entry = {
            "point": point,
            "rows": list(rows),
            "scales": [None if np.isnan(scale) else float(scale) for scale in scales],
        }
        entry["sha256"] = _checksum(entry, packed)
        with named_errors(self.folder):
            # Not through a memory map: on a full disk that would end the process without a word.
            with self._path(point).open("r+b") as file:
                for row, gradient in zip(rows, packed, strict=True):
                    file.seek(row * gradient.nbytes)
                    file.write(gradient.tobytes())
                file.flush()
                os.fsync(file.fileno())
            self._journal.write(json.dumps(entry) + "\n")
            self._journal.flush()
            os.fsync(self._journal.fileno())
        self._take(entry)

    def block(self, point: int, rows: Int64[np.ndarray, " text"], part: slice) -> Float32[np.ndarray, "text coord"]:
        """Return some texts' gradients at a run of coordinates."""
        packed = self._map(point)[:, part][rows]
        wide: Float32[np.ndarray, "text coord"] = torch.from_numpy(packed).float().numpy()  # NumPy takes 4 times longer
        wide *= self.scales[point, rows, None].astype(np.float32)
        return wide

    def close(self) -> None:
        """Close the journal; what was appended stays for the next run."""
        with named_errors(self.folder):  # what a full disk refused is written again on closing
            self._journal.close()

    def _path(self, point: int) -> Path:
        return self.folder / f"gradients-{point}.f16"

    def _map(self, point: int) -> np.memmap:
        return np.memmap(self._path(point), np.float16, "r", shape=(self.shape.n_texts, self.shape.n_coordinates))

    def _take(self, entry: Mapping[str, Any]) -> None:
        rows = entry["rows"]
        self._done[entry["point"], rows] = True
        self.scales[entry["point"], rows] = [np.nan if scale is None else scale for scale in entry["scales"]]

    def _recover(self, head: str) -> None:
        journal = self.folder / JOURNAL
        lines = journal.read_text("utf-8", errors="replace").split("\n")[:-1] if journal.is_file() else []
        same = bool(lines) and lines[0] == head and not journal.is_symlink() and self._files_fit()
        kept = [head]
        if not same:
            self._sweep()
        for line in lines[1:] if same else []:
            entry = self._sound(line)
            if entry is None:
                continue
            self._take(entry)
            kept.append(line)
        write_whole(journal, lambda path: path.write_text("\n".join(kept) + "\n", "utf-8"))

    def _files_fit(self) -> bool:
        size = 2 * self.shape.n_texts * self.shape.n_coordinates
        paths = [self._path(point) for point in range(self.shape.n_points)]
        return all(path.is_file() and not path.is_symlink() and path.stat().st_size == size for path in paths)

    def _sweep(self) -> None:
        for path in [*self.folder.glob("gradients-*.f16"), self.folder / JOURNAL]:
            path.unlink(missing_ok=True)
        for point in range(self.shape.n_points):
            with self._path(point).open("wb") as file:
                file.truncate(2 * self.shape.n_texts * self.shape.n_coordinates)

    def _sound(self, line: str) -> dict[str, Any] | None:
        """Return a line of the journal if its rows are on disk and undamaged."""
        try:
            entry = json.loads(line)
            rows, point = entry["rows"], entry["point"]
            known = 0 <= point < self.shape.n_points and all(0 <= row < self.shape.n_texts for row in rows)
            if not known or len(entry["scales"]) != len(rows):
                return None
            found = _checksum(entry, self._map(point)[rows])
        except (ValueError, LookupError, TypeError, RecursionError):
            return None
        return entry if found == entry["sha256"] else None


def _checksum(entry: Mapping[str, Any], packed: np.ndarray) -> str:
    """Hash a batch: its entry of the journal too, because a damaged scale is as wrong as a damaged row."""
    digest = hashlib.sha256(json.dumps([entry[name] for name in ("point", "rows", "scales")]).encode())
    digest.update(np.ascontiguousarray(packed).tobytes())
    return digest.hexdigest()


def check_room(folder: Path, shape: GradientShape) -> None:
    """Refuse work if the disk has too little room; gradients that are in the folder, or below it, have their room.

    Raises:
        StoreError: If there is too little room; the message says how much is needed.
    """
    make_folder(folder)
    stats = os.statvfs(folder)
    held = sum(512 * path.stat().st_blocks for path in folder.rglob("gradients-*.f16"))
    free = stats.f_bavail * stats.f_frsize + held
    if shape.n_bytes > free:
        raise StoreError(
            f"{folder}: the gradients take {shape.n_bytes / 2**20:,.0f} MiB and {free / 2**20:,.0f} MiB are free: make "
            "room, or leave the weights out (`observer=logprobs`)"
        )
