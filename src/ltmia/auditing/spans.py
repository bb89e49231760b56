"""Finds the spans in the texts of an audit, before any model is loaded."""

from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

from ltmia.auditing.text_sets import TextSets
from ltmia.data.lines import open_bytes
from ltmia.data.presidio import load_presidio, names_presidio, presidio_search
from ltmia.data.spans import Span, distinct, read_spans
from ltmia.progress import Report, silent
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
    """Kinds that were asked for by name, and of which nothing is in the texts to judge."""


def wanted_spans(
    named: str | None, given: Sequence[Texts], sets: TextSets, report: Report = silent
) -> WantedSpans | None:
    """Find the spans that a file names or Presidio recognises; None if they are not wanted.

    Args:
        named: The file of spans, or `presidio` with or without types.
        given: All texts, as they were given.
        sets: The same texts without those that were left out.
        report: Called with progress.

    Raises:
        DataError: If something in the file is wrong, or it names a text or a place that is not there.
        ConfigError: If Presidio is not installed, or has no such type.
    """
    if named is None:
        return None
    texts, labels = sets.with_left_out, sets.labels_with_left_out
    if names_presidio(named):
        presidio = load_presidio(named)
        kinds, spans = presidio.kinds, presidio.find(texts, report)
    else:
        file = read_spans(named)
        file.check_ids(given)
        kinds, spans = file.kinds, file.find(texts)
    found = {span.kind for span in spans if labels[span.row] != 0}
    unmatched = [kind for kind in kinds if kind not in found]
    return WantedSpans(texts=texts, labels=labels, spans=distinct(spans), unmatched=unmatched)


def spans_file(named: str | None) -> list[str]:
    """Return the file that says where the spans are, if there is one."""
    return [] if named is None or names_presidio(named) else [named]


def hash_of_spans(named: str | None) -> dict[str, str]:
    """Hash what says where the spans are: the file, or the types and Presidio's versions; empty if there are none.

    Raises:
        DataError: If the file cannot be read.
        ConfigError: If Presidio is not installed.
    """
    if named is None:
        return {}
    if names_presidio(named):
        return {"spans": sha256(presidio_search(named).encode()).hexdigest()}
    with open_bytes(Path(named)) as stream:
        return {"spans": sha256(stream.read()).hexdigest()}
