"""Keeps the continuations of each text on disk as soon as they are written."""

from pathlib import Path

from ltmia.scoring.kept_lines import KeptLine, KeptLines


class KeptContinuation(KeptLine):
    """What one model wrote after the beginning of one text."""

    ids: tuple[tuple[int, ...], ...]
    """Token ids of each continuation."""


class KeptContinuations(KeptLines[KeptContinuation]):
    """A file of continuations; a key is made of the beginning and of what decides how it is continued."""

    def __init__(self, path: Path, models: str) -> None:
        super().__init__(path, models, KeptContinuation, "continuations")
