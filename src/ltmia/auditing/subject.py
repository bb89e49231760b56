"""What an audit is of. `Subject` itself: a fine-tuned model and two sets of texts, and nothing more."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from jaxtyping import Float64

from ltmia.auditing.text_sets import TextSets
from ltmia.evaluation.epsilon import epsilon_lower_bound
from ltmia.evaluation.section import Measure
from ltmia.scoring.audited_pair import AuditedPair


class Subject:
    """What an audit is of, with what it measures besides."""

    def hashes(self) -> Mapping[str, str]:
        """Return what decides the figures besides texts, models and options; an audit of anything else is refused."""
        return {}

    def refuse(self, pair: AuditedPair) -> None:
        """Refuse a pair of models that this is not about, before anything is scored.

        Raises:
            ConfigError: If it is one.
        """

    def epsilon(self, sets: TextSets, scores: Float64[np.ndarray, " texts"], seed: int) -> Measure:
        """Return a lower bound on the privacy loss of one training text."""
        return epsilon_lower_bound(*sets.split(sets.once(scores)), seed=seed)

    def sections(self, sets: TextSets, scores: Float64[np.ndarray, " texts"], seed: int) -> Mapping[str, Any]:
        """Return sections for `results.json`, by key.

        Args:
            sets: The texts.
            scores: Their scores by the attack that decides.
            seed: Seed of resampling.
        """
        return {}


PLAIN = Subject()
