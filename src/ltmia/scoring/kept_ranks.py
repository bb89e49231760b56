"""Keeps each rank of a secret on disk as soon as it is known."""

from pathlib import Path

from pydantic import FiniteFloat

from ltmia.scoring.kept_lines import KeptLine, KeptLines


class KeptRank(KeptLine):
    """What one model says of one secret."""

    logp: FiniteFloat
    """Log-probability of the secret, in nats."""
    n_better: int
    """See `Tried`."""


class KeptRanks(KeptLines[KeptRank]):
    """A file of ranks; a key is made of the token ids of a secret and its alternatives."""

    def __init__(self, path: Path, models: str) -> None:
        super().__init__(path, models, KeptRank, "secrets")
