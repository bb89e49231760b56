"""Files that hold the weights of an offloaded model: its own, which must not change, and a folder of converted ones."""

import errno
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

from filelock import FileLock, Timeout
from safetensors import SafetensorError
from torch import nn

from ltmia.errors import ModelError, StoreError
from ltmia.folders import named_errors

FULL = tuple(os.strerror(number) for number in (errno.ENOSPC, errno.EDQUOT))
"""What the system says if a disk has no room."""

PREFIX, LOCK = "ltmia-offload-", ".lock"
"""Beginning of the names of folders for converted weights, and the file that is locked while one is in use."""

State = tuple[int, int, int]
"""Number (inode), size in bytes and time of change of a file."""

_STATES: WeakKeyDictionary[nn.Module, dict[str, State]] = WeakKeyDictionary()


def _remove_left_over(parent: Path) -> None:
    for folder in parent.glob(f"{PREFIX}*"):
        lock = folder / LOCK
        with suppress(OSError, Timeout):  # of another account, or in use
            if not folder.is_symlink() and lock.is_file() and folder.stat().st_uid == os.getuid():
                with FileLock(lock, timeout=0):
                    shutil.rmtree(folder)


@contextmanager
def converted_weights() -> Iterator[str]:
    """Give a new folder for weights that are converted on loading; it is removed at the end.

    Folders that killed processes left are removed first: the system has released their locks.

    Raises:
        StoreError: If the system's folder for temporary files is missing or full.
    """
    parent = Path(tempfile.gettempdir())
    with named_errors(parent):
        _remove_left_over(parent)
        folder = tempfile.TemporaryDirectory(prefix=PREFIX, ignore_cleanup_errors=True)
    with folder, FileLock(Path(folder.name) / LOCK, thread_local=False):  # a model may end in any thread
        try:
            yield folder.name
        except (OSError, SafetensorError, ModelError) as error:
            if not any(said in str(error) for said in FULL):
                raise
            raise StoreError(
                f"{parent}: no room for the weights that are converted on loading ({error}): make room there, name "
                "another folder in TMPDIR, or allow `device_map` more memory"
            ) from error


def remember_files(model: nn.Module) -> dict[str, State]:
    """Return the files of a model's offloaded weights, as they were at the first call for this model."""
    if model not in _STATES:
        _STATES[model] = {file: _state(file) for file in _files(model)}
    return _STATES[model]


@contextmanager
def unchanged_files(model: nn.Module) -> Iterator[None]:
    """Run a model, and check afterwards that its weights came from the files with which it was loaded.

    Raises:
        ModelError: If a file is another one, or gone; also in place of an error that comes from this.
    """
    before = remember_files(model)
    try:
        yield
    finally:
        for file, state in before.items():
            if _state(file) != state:
                raise ModelError(
                    f"{file}: was changed, replaced or removed while the model ran from it (`device_map`), so its "
                    "numbers are of no one model: let nothing write there, and start again"
                )


def _state(file: str) -> State:
    try:
        found = Path(file).stat()
    except OSError:
        return (0, 0, 0)
    return found.st_ino, found.st_size, found.st_mtime_ns


def _files(model: nn.Module) -> set[str]:
    """Return the files that accelerate's hooks read."""
    found: set[str] = set()
    for module in model.modules():
        weights: Any = getattr(getattr(module, "_hf_hook", None), "weights_map", None)
        index = getattr(getattr(weights, "dataset", weights), "index", None) or {}
        found |= {entry["safetensors_file"] for entry in index.values() if "safetensors_file" in entry}
    return found
