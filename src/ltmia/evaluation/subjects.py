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


class Copies(Section):
    """Texts of one side that synthetic texts repeat."""

    n_texts: Count
    n_verbatim: Count
    """Texts that stand whole in a synthetic text, case and white space ignored."""
    n_near: Count
    """Other texts of which more than 30 % of the word 8-grams occur in synthetic texts."""


class Synthetic(Section):
    """An audit of synthetic texts by way of an auxiliary model, see docs/synthetic.md."""

    n_texts: Count
    """Number of synthetic texts."""
    base: str
    """LM that was fine-tuned on them."""
    epochs: Annotated[int, Field(ge=1)]
    learning_rate: float
    lora: bool
    members: Copies
    nonmembers: Copies

    @property
    def sentence(self) -> str:
        """What the figures are about, and the plainest finding."""
        m, n = self.members, self.nonmembers
        how = f"{self.epochs} {'epoch' if self.epochs == 1 else 'epochs'}{' of LoRA' if self.lora else ''}"
        return (
            f"These figures are of synthetic data: what an attacker can tell who sees only {self.n_texts:,} generated "
            f"texts. The target is an auxiliary model, {self.base} fine-tuned on them for {how}, and not the model "
            f"that wrote them. {m.n_verbatim} of {m.n_texts} members stand word for word in the generated texts, and "
            f"{m.n_near} more in long passages; of {n.n_texts} non-members, {n.n_verbatim} and {n.n_near}."
        )
