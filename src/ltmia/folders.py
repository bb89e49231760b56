"""Folders for results: marked as ours, locked by one process at a time; files are written completely or not at all.

Files that ltmia did not write are never deleted or overwritten; `ownership` tells whose a folder is.
"""

import os
import shutil
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any
from uuid import uuid4

from filelock import FileLock, Timeout
from safetensors import SafetensorError

from ltmia.errors import ConfigError, StoreError
from ltmia.ownership import (
    HOLDER_FILE,
    LOCK_FILE,
    MARKER_FILE,
    PART_ENDING,
    Marker,
    check_folder,
    content_of,
    hashes_of_files,
    is_note,
    read_marker,
    refuse_changed,
)

WORK = "unfinished work"
"""Kind of the hidden folders next to unfinished results."""
LOCK_SECONDS = 1.0
"""Seconds to wait for the lock, because testing a lock holds it for an instant."""


@contextmanager
def claim_folder(out: Path, marker: Marker, *, overwrite: bool = False) -> Iterator[None]:
    """Lock a folder for results, and mark it as ours; `mark_folder` notes later that work has begun.

    Until then a run with other settings may take the folder, for example after wrong options.

    Args:
        out: The folder; made if it is missing.
        marker: What it will hold.
        overwrite: Allow it to hold results of the same kind with other settings.

    Raises:
        ConfigError: If `check_folder` refuses it, or it cannot be locked (`hold_folder`).
    """
    check_folder(out, marker, overwrite=overwrite)
    with hold_folder(out):
        check_folder(out, marker, overwrite=overwrite)  # again: another process may have filled it meanwhile
        if not content_of(out):
            mark_folder(out, marker.model_copy(update={"settings": {}}))
        yield


def mark_folder(folder: Path, marker: Marker) -> None:
    """Write the marker of a folder, which says what it holds."""
    write_whole(folder / MARKER_FILE, lambda part: part.write_text(marker.model_dump_json(indent=1) + "\n", "utf-8"))


@contextmanager
def hold_folder(folder: Path) -> Iterator[None]:
    """Lock a folder, made if it is missing; the system releases the lock even if this process is killed.

    Raises:
        ConfigError: If another process holds it, it cannot be written, or another program's lock lies in it.
    """
    for note in (folder / LOCK_FILE, folder / HOLDER_FILE):
        if os.path.lexists(note) and not is_note(note):
            raise ConfigError(f"{note}: ltmia did not write this. Nothing was changed. Choose another folder.")
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
            f"{folder}: cannot be written ({error.strerror}); choose another folder, or fix its permissions"
        ) from error
    try:
        write_whole(folder / HOLDER_FILE, lambda part: part.write_text(str(os.getpid()), "utf-8"))
        yield
    finally:
        (folder / HOLDER_FILE).unlink(missing_ok=True)
        lock.release()


@contextmanager
def named_errors(path: Path) -> Iterator[None]:
    """Turn errors of writing into one that names the path, because errors of the system often do not.

    Raises:
        StoreError: If there is no room, no right to write, or the like.
    """
    try:
        yield
    except (OSError, SafetensorError) as error:
        reason = getattr(error, "strerror", None) or error
        raise StoreError(
            f"{path}: cannot be written ({reason}); make room there, or fix its permissions, and the "
            "same command resumes"
        ) from error


def write_whole(path: Path, write: Callable[[Path], Any]) -> None:
    """Write a file under a temporary name, then rename it, so that the final name never holds half a file.

    Args:
        path: The final name.
        write: Writes the file whose path it is given.

    Raises:
        StoreError: If there is no room, or no right to write.
    """
    part = path.with_name(path.name + PART_ENDING)
    with named_errors(path):
        part.unlink(missing_ok=True)  # left by a killed run, or a link: it would be written through
        try:
            write(part)
            if path.exists():  # a model card that only its owner may read stays so
                shutil.copymode(path, part)
            with part.open("rb") as file:
                os.fsync(file.fileno())
            part.replace(path)
        finally:
            part.unlink(missing_ok=True)


def make_folder(folder: Path) -> None:
    """Make a folder inside one of ours.

    Raises:
        StoreError: If there is a link in its place, or it cannot be made.
    """
    if folder.is_symlink():
        raise StoreError(f"{folder}: a link; the folder itself must stand here: remove the link")
    with named_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)


def work_path(out: Path) -> Path:
    """Return the hidden folder next to `out` that holds its unfinished work."""
    return out.with_name(f".{out.name}.work")


@contextmanager
def work_folder(out: Path, settings: Mapping[str, Any]) -> Iterator[Path]:
    """Lock the hidden folder next to `out` for checkpoints; it is emptied if the settings differ.

    Args:
        out: Final name of the folder being made.
        settings: Everything that the result depends on; JSON values only.

    Raises:
        ConfigError: If a folder of that name is not ours, or another process holds it.
        StoreError: If there is a link in its place, or it cannot be made.
    """
    folder = work_path(out)
    marker = Marker(kind=WORK, settings=dict(settings))
    check_folder(folder, marker, overwrite=True)  # before the lock, which would be a file in somebody else's folder
    make_folder(folder)
    with hold_folder(folder):
        check_folder(folder, marker, overwrite=True)
        if read_marker(folder) != marker:
            for name in content_of(folder):
                _remove(folder / name)
            mark_folder(folder, marker)
        yield folder


def remove_work_folder(out: Path) -> None:
    """Remove the checkpoints of `out` after it is finished."""
    folder = work_path(out)
    found = read_marker(folder)
    if (
        folder.is_dir()
        and not folder.is_symlink()
        and (not content_of(folder) or (found is not None and found.kind == WORK))
    ):
        shutil.rmtree(folder, ignore_errors=True)


def write_folder(
    out: Path, write: Callable[[Path], None], marker: Marker, *, overwrite: bool = False, work: Path | None = None
) -> None:
    """Write a folder that appears under its final name only when it is complete.

    Args:
        out: Final name. If it is a folder of ours, our files in it are replaced and all others stay.
        write: Fills the temporary folder that it is given.
        marker: Says what the folder holds. This function fills in names and hashes of its files.
        overwrite: Replace what was made with other settings.
        work: The `work_folder` of `out`, which this process holds: the temporary folder is in there, so that what a
            killed run leaves is removed by the next one. Without one it stands next to `out`.

    Raises:
        ConfigError: If `check_folder` refuses the folder.
        StoreError: If there is no room, or no right to write.
    """
    check_folder(out, marker, overwrite=overwrite)
    is_link, out = out.is_symlink(), Path(os.path.realpath(out))  # a link may lead to another disk
    home = out.parent if work is None or is_link else work.resolve()
    partial = home / f".{out.name}.partial-{uuid4().hex[:8]}"
    with named_errors(out):
        if home != out.parent:  # nobody else works here, so these are of killed runs
            for left in home.glob(f".{out.name}.partial-*"):
                shutil.rmtree(left)
        partial.mkdir(parents=True)
        try:
            write(partial)
            move_into_place(partial, out, marker)
        finally:
            shutil.rmtree(partial, ignore_errors=True)


def move_into_place(partial: Path, out: Path, marker: Marker) -> None:
    """Give a finished folder its final name, or move its files into a folder of ours that has it.

    Raises:
        ConfigError: If files that are not ours have the names of new ones, or one of ours was changed since. Nothing is
            changed then.
    """
    new = tuple(list_files(partial))
    marker = marker.model_copy(update={"files": new, "sha256": hashes_of_files(partial, new)})
    if not out.exists():
        mark_folder(partial, marker)
        partial.rename(out)
        return
    found = read_marker(out)
    old = () if found is None else found.files
    if taken := [name for name in new if _is_taken(out, name, old)]:
        raise ConfigError(
            f"{out / taken[0]}: ltmia did not write this, and a new file has this name. Nothing was changed. "
            "Move it, or choose another folder."
        )
    refuse_changed(out, found)
    # If the process is killed after this line, the marker still lists both old and new files.
    known = () if found is None else found.sha256
    both = {"files": tuple(sorted({*old, *new})), "sha256": tuple(sorted({*known, *marker.sha256}))}
    mark_folder(out, marker.model_copy(update=both))
    for parent in _unlink(out, old):
        with suppress(OSError):  # not empty
            parent.rmdir()
    for name in new:
        (out / name).parent.mkdir(parents=True, exist_ok=True)
        (partial / name).rename(out / name)
    mark_folder(out, marker)


def list_files(folder: Path) -> list[str]:
    """Return the relative names of all files in a folder, sorted, without the notes of this module."""
    paths = (path for path in folder.rglob("*") if path.is_file() and not is_note(path))
    return sorted(path.relative_to(folder).as_posix() for path in paths)


def remove_files(folder: Path, names: Iterable[str]) -> None:
    """Delete files of ours by their relative names, and folders that become empty; all others stay."""
    for parent in _unlink(folder, names):
        if parent.is_dir() and not parent.is_symlink() and not content_of(parent):
            shutil.rmtree(parent)


def _unlink(folder: Path, names: Iterable[str]) -> list[Path]:
    """Delete files that are not behind a link; return their folders, deepest first."""
    real = folder.resolve()
    parents: set[Path] = set()
    for name in names:
        path = folder / name
        here = not Path(name).is_absolute() and path.parent.resolve() == real / Path(name).parent
        if here and not path.is_dir():
            path.unlink(missing_ok=True)
            parents |= {folder / parent for parent in Path(name).parents}
    return sorted(parents, key=lambda path: len(path.parts), reverse=True)


def _is_taken(out: Path, name: str, old: Collection[str]) -> bool:
    """Say whether something that is not ours is in the way of a file, or of a folder above it."""
    path = out / name
    above = [parent for parent in path.parents if out in parent.parents]
    if any(os.path.lexists(folder) and (folder.is_symlink() or not folder.is_dir()) for folder in above):
        return True
    return path.is_dir() or (os.path.lexists(path) and name not in old)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink()


def is_held(folder: Path) -> bool:
    """Say whether a process has locked a folder."""
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
