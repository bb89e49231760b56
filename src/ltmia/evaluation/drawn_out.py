"""Sections of `results.json` on what can be drawn out of the model: texts, near-verbatim texts and secrets."""

import math
from typing import Annotated

from pydantic import Field

from ltmia.evaluation.section import Amount, Count, Measure, Section, Share, ShareMeasure


class DrawnOut(Section):
    """Share of texts whose suffix the target writes when it is given their prefix; each text counts once."""

    judged: ShareMeasure
    """Members (in an audit) or candidates."""
    nonmembers: ShareMeasure


class DrawnOutOfBoth(DrawnOut):
    """The same, and by the base too."""

    judged_by_base: ShareMeasure
    """The same texts, by the base: what was known before."""
    nonmembers_by_base: ShareMeasure


class Extractable(DrawnOutOfBoth):
    """The same, with the difference between the sides, and the texts that only the target writes."""

    difference: Measure
    n_new: Count
    """Members or candidates that come out of the target and not of the base."""


NumberOfDraws = Annotated[str, Field(pattern=r"^[1-9][0-9]{0,11}$")]


class Extraction(Section):
    """How many texts can be drawn out of the target, see docs/extraction.md."""

    n_judged: Count = 0
    n_nonmembers: Count = 0
    n_without_suffix: Count = 0
    """Members or candidates that are too short for a suffix, or could not be scored; they are not measured."""
    suffix_tokens: Amount | None = None  # median
    within: dict[NumberOfDraws, Extractable] = Field(default_factory=dict)
    """By number of draws: texts that come out at least once with a probability of at least one half."""
    greedy: Extractable | None = None
    """Texts that come out if the most likely token is taken each time."""
    top_k: Count | None = None
    """Number of most likely tokens among which `among_top` draws; null in older files."""
    among_top: dict[NumberOfDraws, DrawnOut] = Field(default_factory=dict)
    """The same as `within`, with top-k sampling; empty in older files. The pass does not tell it of the base."""
    at_most: dict[NumberOfDraws, DrawnOutOfBoth] = Field(default_factory=dict)
    """Upper bounds on the same for every temperature, top-k and top-p; empty in older files."""
    reason: str | None = None


class Nearness(Section):
    """How near the continuations of some texts come to the true ones; of each text, the nearest one counts."""

    median_run: Amount
    """Longest run of tokens that a continuation and the true one have in common."""
    longest_run: Count
    median_run_characters: Amount
    longest_run_characters: Count
    median_distance: Share
    """Edit distance in characters, divided by the length of the longer text."""
    smallest_distance: Share


class NearVerbatim(Section):
    """How near both models come to the texts that stand out when they continue their beginnings."""

    n_judged: Count = 0
    """Members or candidates that were continued: those with the highest scores."""
    n_nonmembers: Count = 0
    """Non-members that were continued: those with the highest scores."""
    n_flagged_left: Count = 0
    """Flagged members or candidates that were not continued."""
    n_continuations: Count = 0
    """Continuations of each text by each model: a greedy one, and others that were drawn at random."""
    longest_suffix: Count = 0
    """Tokens of the longest suffix of a member or candidate; no run can be longer."""
    longest_new_run: Count = 0
    """Longest run, in tokens, by the target and of a member or candidate of which the base has no run as long."""
    judged: Nearness | None = None
    judged_by_base: Nearness | None = None
    nonmembers: Nearness | None = None
    nonmembers_by_base: Nearness | None = None
    reason: str | None = None


class SecretValues(Section):
    """Exposures of the secret values of one side, in bits; see docs/secrets.md."""

    n_values: Count = 0
    """Different values; `n_ranked` of them could be ranked among alternatives."""
    n_ranked: Count = 0
    largest: Measure
    """Largest exposure under the target, in whole bits: value and upper end rounded up, lower end down. The intervals
    of all values hold together with 95 %."""
    largest_by_base: Measure
    median: Amount | None = None
    """Median of the exposures in whole bits, rounded up."""
    median_by_base: Amount | None = None
    median_rise: float | None = None
    """Median of the exposure under the target minus that under the base, both in whole bits."""

    @property
    def largest_by_chance(self) -> float:
        """Median of the largest exposure, in bits, if the model knows none of the ranked values."""
        return -math.log2(-math.expm1(math.log(0.5) / max(self.n_ranked, 1)))


class Secrets(Section):
    """How far both models prefer the secrets in the texts to alternatives of the same form."""

    judged: SecretValues
    """In members or candidates."""
    nonmembers: SecretValues
    """In non-members alone."""
    n_alternatives: Count
    """Largest number of alternatives to a value."""
    reach: Count
    """Largest exposure that their alternatives can show in members or candidates, in whole bits, rounded up."""
    unmatched: list[str] = Field(default_factory=list)
    """Kinds that were asked for by name and are not in members or candidates; empty if there are none, or places were
    given."""
