"""Finds personal data that has a form (addresses, phone numbers, card numbers) by the recognisers of Presidio.

Only recognisers of English and of all languages that need no language model are used, so nothing is downloaded. Names
of people have no form: they are not found.
"""

import logging
from bisect import bisect
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from ltmia.data.spans import Span
from ltmia.errors import ConfigError, DataError
from ltmia.progress import Report, silent
from ltmia.records import Texts

NAME = "presidio"
LANGUAGE = "en"
AT_ONCE = 100
"""Texts between two reports of progress."""


def names_presidio(spans: str) -> bool:
    """Say whether an option means Presidio, `presidio` or `presidio:TYPE,TYPE`, and not a file."""
    return spans.partition(":")[0] == NAME


def presidio_version() -> str:
    """Return the version of Presidio.

    Raises:
        ConfigError: If it is not installed.
    """
    try:
        return version("presidio-analyzer")
    except PackageNotFoundError as error:
        raise ConfigError(f"spans = {NAME} needs Presidio: pip install 'ltmia[{NAME}]'") from error


@dataclass(frozen=True, slots=True, kw_only=True)
class Presidio:
    """The recognisers of some types of personal data, or of all that there are."""

    engine: Any
    kinds: tuple[str, ...]
    """Types that were asked for by name; empty: all."""

    def find(self, texts: Texts, report: Report = silent) -> list[Span]:
        """Return the spans in some texts, by text and start; none overlaps another.

        Raises:
            DataError: If a text takes Presidio so long that it gives up.
        """
        found = []
        for row, text in enumerate(texts.texts):
            if row % AT_ONCE == 0:
                report("looking for personal data", row, len(texts))
            with _warnings_raised(texts.ids[row]):
                hits = self.engine.analyze(text, LANGUAGE, entities=list(self.kinds) or None)
            found += [Span(row=row, start=hit.start, end=hit.end, kind=hit.entity_type) for hit in _apart(hits)]
        report("looking for personal data", len(texts), len(texts))
        return found


def load_presidio(spans: str) -> Presidio:
    """Load the recognisers that `presidio` or `presidio:TYPE,TYPE` names.

    Raises:
        ConfigError: If Presidio is not installed, or has no such type.
    """
    presidio_version()
    from presidio_analyzer import AnalyzerEngine
    from presidio_analyzer.nlp_engine import NoOpNlpEngine
    from tldextract import tldextract

    # It would download a list of the domains that there are; its package contains one.
    tldextract.TLD_EXTRACTOR.suffix_list_urls = ()
    models = [{"lang_code": LANGUAGE, "model_name": ""}]
    engine = AnalyzerEngine(nlp_engine=NoOpNlpEngine(models), supported_languages=[LANGUAGE])
    _, colon, named = spans.partition(":")
    kinds = tuple(dict.fromkeys(named.split(","))) if colon else ()
    known = sorted(engine.get_supported_entities(LANGUAGE))
    for kind in kinds:
        if kind not in known:
            raise ConfigError(f"spans = {spans}: {kind!r} is no type of Presidio. Expected some of {', '.join(known)}.")
    return Presidio(engine=engine, kinds=kinds)


def _apart(hits: Iterable[Any]) -> Sequence[Any]:
    """Leave out what overlaps something longer, or as long and surer; return the rest by start.

    An e-mail address contains a domain that is found as a URL too, and a phone number may pass for a shorter number.
    """
    kept: list[Any] = []
    for hit in sorted(hits, key=lambda hit: (hit.start - hit.end, -hit.score, hit.start, hit.entity_type)):
        place = bisect(kept, hit.start, key=lambda other: other.start)
        before, after = kept[max(place - 1, 0) : place], kept[place : place + 1]
        if all(other.end <= hit.start for other in before) and all(hit.end <= other.start for other in after):
            kept.insert(place, hit)
    return kept


@contextmanager
def _warnings_raised(name: str) -> Iterator[None]:
    """Raise what Presidio warns of, because it then leaves something out: a pattern that takes too long on a text."""

    def refuse(record: logging.LogRecord) -> bool:
        if record.levelno >= logging.WARNING:
            raise DataError(
                f"text {name!r}: Presidio says: {record.getMessage()} Leave this text out, or name the types to look "
                f"for: spans = {NAME}:EMAIL_ADDRESS,PHONE_NUMBER."
            )
        return True

    logger = logging.getLogger("presidio-analyzer")
    logger.addFilter(refuse)
    try:
        yield
    finally:
        logger.removeFilter(refuse)
