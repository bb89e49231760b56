"""A folder that results go to: held by one process at a time, made and its files written whole or not at all.

Knows nothing of what is in it.
"""

import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from ltmia.errors import ConfigError

LOCK_FILE, HOLDER_FILE = ".lock", ".holder"
SETTINGS_FILE = "settings.json"
LOCK_SECONDS = 1.0
"""Wait for the lock: asking whether it is held holds it for an instant."""


@contextmanager
def hold_folder(folder: Path) -> Iterator[None]:
    """Hold a folder, made where it is missing; the system lets go of it even if this process is killed.

    Raises:
        ConfigError: If another process holds it, or it cannot be written.
    """
    lock = FileLock(folder / LOCK_FILE)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock.acquire(timeout=LOCK_SECONDS)
    except Timeout as error:
        raise ConfigError(
            f"{folder}: another run is at work here{_holder(folder)}; wait for it, stop it, or use another folder"
        ) from error
    except OSError as error:
        raise ConfigError(
            f"{folder}: cannot be written ({error.strerror}); choose another folder, or mend its permissions"
        ) from error
    try:
        write_whole(folder / HOLDER_FILE, lambda part: part.write_text(str(os.getpid()), "utf-8"))
        yield
    finally:
        (folder / HOLDER_FILE).unlink(missing_ok=True)
        lock.release()


def write_whole(path: Path, write: Callable[[Path], Any]) -> None:
    """Write a file beside its final name, then rename it: a half file never has that name.

    Args:
        path: The final name.
        write: Writes the file whose path it is given.

    Raises:
        OSError: If there is no room, or no right to write.
    """
    part = path.with_name(path.name + ".part")
    part.unlink(missing_ok=True)  # left by a killed run, or a link that somebody put there: it would be written through
    write(part)
    with part.open("rb") as file:
        os.fsync(file.fileno())
    part.replace(path)


def work_path(out: Path) -> Path:
    """Return the hidden sibling of `out` where what is needed to make it lies until it is whole."""
    return out.with_name(f".{out.name}.work")


def work_folder(out: Path, settings: Mapping[str, Any]) -> Path:
    """Return the hidden sibling of `out` for checkpoints; emptied if it is of other settings.

    Args:
        out: Final name of the folder being made.
        settings: All that the result depends on, JSON values only.
    """
    folder = work_path(out)
    note = folder / SETTINGS_FILE
    wanted = json.dumps(settings, sort_keys=True)
    if not (note.exists() and note.read_text(encoding="utf-8") == wanted):
        folder.mkdir(parents=True, exist_ok=True)
        for path in folder.iterdir():
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            elif path.name not in (LOCK_FILE, HOLDER_FILE):
                path.unlink()
        note.write_text(wanted, encoding="utf-8")
    return folder


def remove_work_folder(out: Path) -> None:
    """Remove the checkpoints of `out`, once it is whole."""
    shutil.rmtree(work_path(out), ignore_errors=True)


def write_folder(out: Path, write: Callable[[Path], None]) -> None:
    """Make a folder appear under its final name only when it is whole.

    Args:
        out: Final name; a folder already there is replaced.
        write: Fills the temporary sibling it is given.
    """
    partial = out.with_name(f".{out.name}.partial-{os.getpid()}")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        write(partial)
        if out.exists():
            shutil.rmtree(out)
        partial.rename(out)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def is_held(folder: Path) -> bool:
    """Say whether a process is at work in a folder."""
    if not (folder / LOCK_FILE).exists():
        return False
    lock = FileLock(folder / LOCK_FILE)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        return True
    lock.release()
    return False


def _holder(folder: Path) -> str:
    try:
        return f" (process {int((folder / HOLDER_FILE).read_text('utf-8'))})"
    except (OSError, ValueError):
        return ""
