"""Sections of `results.json` on what an audit is of besides a model and texts: canaries, synthetic data."""

from typing import Annotated, Literal

from pydantic import Field

from ltmia.evaluation.section import Count, Measure, Rate, Section, ShareMeasure


class CanariesByRepeats(Section):
    """How well canaries that were inserted equally often are recognised."""

    repeats: Annotated[int, Field(ge=1)]
    """Number of times that each was inserted."""
    n_inserted: Count
    """Scored canaries that were inserted so often."""
    n_left_out: Count
    """Scored canaries that would have been; the AUC and the TPRs compare with all that were left out."""
    auc: ShareMeasure
    tpr_at_fpr: dict[Rate, ShareMeasure]
    epsilon: Measure
    """Lower bound on the privacy loss of all copies of a canary together, in nats."""
    epsilon_of_a_copy: Measure
    """The same of one copy: the bound divided by the number of copies."""


class NaturalBound(Section):
    """The bound on epsilon from an audit of the same target with texts of the user."""

    run_id: str = Field(pattern=r"^[0-9a-f]{16}$")
    n_members: Count
    n_nonmembers: Count
    epsilon: Measure


class Canaries(Section):
    """An audit whose texts are canaries; a fair coin decided which of them were inserted, see docs/canaries.md."""

    temperature: float
    """Temperature at which they were sampled."""
    n_tokens: Count
    """Tokens sampled for each."""
    seed: int
    training_file: Literal["as written", "recounted", "missing"]
    """Whether the training file with canaries is as it was written, changed but with the same canaries, or no longer
    beside the key."""
    by_repeats: list[CanariesByRepeats]
    natural: NaturalBound | None = None
    """Null if no other audit was given."""

    @property
    def sentence(self) -> str:
        """What the figures are about."""
        return (
            "The texts are canaries, which an LM wrote; a fair coin decided which of them were put into the training "
            "file. Other texts may be easier or harder to recognise."
        )
