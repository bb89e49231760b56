"""Finds the spans in the texts of an audit, before any model is loaded."""

from collections.abc import Sequence
from dataclasses import dataclass

from ltmia.auditing.text_sets import TextSets
from ltmia.data.spans import Span, read_spans
from ltmia.records import Texts


@dataclass(frozen=True, slots=True, kw_only=True)
class WantedSpans:
    """The spans in the texts of an audit."""

    texts: Texts
    """The texts that were searched; see `TextSets.with_left_out`."""
    labels: Sequence[int | None]
    """Their labels; see `TextSets.labels`."""
    spans: Sequence[Span]
    """By row of the text and start."""
    unmatched: Sequence[str]
    """Names of the expressions that find nothing in the texts to judge."""


def wanted_spans(path: str | None, given: Sequence[Texts], sets: TextSets) -> WantedSpans | None:
    """Find the spans that a file names; None if there is no file.

    Args:
        path: The file of spans.
        given: All texts, as they were given.
        sets: The same texts without those that were left out.

    Raises:
        DataError: If something in the file is wrong, or it names a text or a place that is not there.
    """
    if path is None:
        return None
    file = read_spans(path)
    file.check_ids(given)
    texts, labels = sets.with_left_out, sets.labels_with_left_out
    judged = [text for text, label in zip(texts.texts, labels, strict=True) if label != 0]
    return WantedSpans(texts=texts, labels=labels, spans=file.find(texts), unmatched=file.unmatched(judged))
