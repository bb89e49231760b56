"""The manifest of a store: its origin, and hashes that show damage to any of its files."""

import json
from collections.abc import Mapping
from hashlib import file_digest, sha256
from pathlib import Path
from typing import Any

from ltmia.errors import StoreError
from ltmia.folders import write_whole

FORMAT_VERSION = 4
MANIFEST_FILE = "manifest.json"
SEAL = "sha256"
"""Key of the manifest's hash of itself."""
UNSEALED = (SEAL, "created", "seconds", "environment")
"""Keys that are not hashed: time and machine may differ between stores of the same content."""


def write_manifest(folder: Path, content: Mapping[str, Any]) -> None:
    """Write a manifest with the hash of itself.

    Args:
        folder: Folder of the store.
        content: The whole content; `files` holds the SHA-256 of each of the store's other files.
    """
    plain = json.loads(json.dumps(dict(content)))
    text = json.dumps(plain | {SEAL: _seal(plain)}, indent=1, sort_keys=True)
    write_whole(folder / MANIFEST_FILE, lambda path: path.write_text(text, "utf-8"))


def read_manifest(folder: Path) -> dict[str, Any]:
    """Read a manifest.

    Raises:
        StoreError: If there is none, or it is damaged.
    """
    path = folder / MANIFEST_FILE
    if not path.is_file():
        raise StoreError(f"{folder}: no manifest.json, so no finished store; run the extraction again to finish it")
    try:
        manifest = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise StoreError(f"{path}: not readable as JSON ({error}); extract the store again") from error
    if not isinstance(manifest, dict) or manifest.get("format_version") != FORMAT_VERSION:
        raise StoreError(f"{path}: not a store of format {FORMAT_VERSION}; extract it again")
    if manifest.get(SEAL) != _seal(manifest):
        raise StoreError(f"{path}: damaged, its content does not fit its own hash; extract the store again")
    return manifest


def check_files(folder: Path, manifest: Mapping[str, Any], names: list[str]) -> None:
    """Compare files with their hashes in the manifest; about a second for each gigabyte.

    Raises:
        ValueError: If a file is not the one that was written, or has no hash.
        OSError: If it cannot be read.
    """
    for name in names:
        if manifest["files"][name] != file_sha256(folder / name):
            raise ValueError(f"{name} is not as it was written: its hash differs from the manifest's")


def file_sha256(path: Path) -> str:
    """Return the SHA-256 of a file."""
    with path.open("rb") as file:
        return file_digest(file, "sha256").hexdigest()


def _seal(manifest: Mapping[str, Any]) -> str:
    content = {key: value for key, value in manifest.items() if key not in UNSEALED}
    return sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
