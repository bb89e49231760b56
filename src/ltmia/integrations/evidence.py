"""Hashes the public files of an audit, so that anyone who has them can check the hash."""

import hashlib
import re
from collections.abc import Mapping
from pathlib import Path

from ltmia.errors import ConfigError
from ltmia.evaluation.audit_folder import SHAREABLE
from ltmia.evaluation.files import read_verdict

ALL = "all of these"
"""Name of the hash over the names and hashes of the files."""
HASH = re.compile(r"\b[0-9a-f]{64}\b")


def evidence_of(folder: Path) -> Mapping[str, str]:
    """Hash the files of an audit, by name, and all of them together as `ALL`.

    Raises:
        StoreError: If the folder holds no audit, or files of several.
    """
    read_verdict(folder)
    hashes = {
        name: hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in SHAREABLE if (folder / name).exists()
    }
    listed = "".join(f"{digest}  {name}\n" for name, digest in hashes.items())
    return {**hashes, ALL: hashlib.sha256(listed.encode()).hexdigest()}


def differing_files(folder: Path, annex: Path) -> list[str]:
    """Return the names of files whose hash differs from that in an annex; empty if all are the same.

    Raises:
        StoreError: If the folder holds no audit, or files of several.
        ConfigError: If the annex cannot be read, or holds no hash.
    """
    try:
        stated = set(HASH.findall(annex.read_bytes().decode("latin-1")))
    except OSError as error:
        raise ConfigError(f"{annex}: not readable ({error.strerror})") from error
    if not stated:
        raise ConfigError(f"{annex}: holds no hash; expected what `ltmia annex` wrote, as Markdown or HTML")
    return [name for name, digest in evidence_of(folder).items() if digest not in stated]
