"""Finds personal data that has a form (addresses, phone numbers, card numbers) by the recognisers of Presidio.

Only recognisers of English and of all languages that need no language model are used, so nothing is downloaded. Names
of people have no form: they are not found.
"""

import logging
import sys
from bisect import bisect
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from ltmia.data.spans import Span
from ltmia.errors import ConfigError, DataError
from ltmia.progress import Report, silent
from ltmia.records import Texts

NAME = "presidio"
LANGUAGE = "en"
DECIDING = ("presidio-analyzer", "phonenumbers", "tldextract")
"""Packages that decide what is found: the second knows which phone numbers exist, the third which domains."""
AT_ONCE = 100
"""Texts between two reports of progress."""


def names_presidio(spans: str) -> bool:
    """Say whether an option means Presidio, `presidio` or `presidio:TYPE,TYPE`, and not a file."""
    return spans.partition(":")[0] == NAME


def presidio_search(spans: str) -> str:
    """Return what decides which spans are found: the types, in any order, and the versions of Presidio's packages.

    Raises:
        ConfigError: If Presidio is not installed.
    """
    with _installed():
        versions = [f"{package} {version(package)}" for package in DECIDING]
    return " ".join([NAME, ",".join(sorted(_named_kinds(spans))), *versions])


def _named_kinds(spans: str) -> tuple[str, ...]:
    """Return the types that an option names, each once; empty: all."""
    _, colon, named = spans.partition(":")
    return tuple(dict.fromkeys(named.split(","))) if colon else ()


@contextmanager
def _installed() -> Iterator[None]:
    try:
        yield
    except (PackageNotFoundError, ImportError) as error:
        raise ConfigError(
            f"spans = {NAME} needs Presidio: pip install 'ltmia[{NAME}]' ({error}). A file of this name is ./{NAME}."
        ) from error


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
            try:
                hits = self._hits(text)
            except _LeftOut as error:
                raise DataError(
                    f"text {texts.ids[row]!r}: Presidio did not read all of it{error}. Leave this text out, or name "
                    f"the types to look for: spans = {NAME}:EMAIL_ADDRESS,PHONE_NUMBER."
                ) from None
            found += [Span(row=row, start=hit.start, end=hit.end, kind=hit.entity_type) for hit in _apart(hits)]
        report("looking for personal data", len(texts), len(texts))
        return found

    def _hits(self, text: str) -> list[Any]:
        with _log_filtered(_refuse_warning):
            return self.engine.analyze(text, LANGUAGE, entities=list(self.kinds) or None)


def load_presidio(spans: str) -> Presidio:
    """Load the recognisers that `presidio` or `presidio:TYPE,TYPE` names.

    Raises:
        ConfigError: If Presidio is not installed, or has no such type.
    """
    with _installed():
        import phonenumbers
        from presidio_analyzer import AnalyzerEngine
        from presidio_analyzer.nlp_engine import NoOpNlpEngine
        from tldextract import tldextract

    # It would stop without a word after 65,535 numbers in a text that are no phone numbers.
    phonenumbers.PhoneNumberMatcher = partial(phonenumbers.PhoneNumberMatcher, max_tries=sys.maxsize)
    # It would download a list of the domains that there are; its package contains one.
    tldextract.TLD_EXTRACTOR.suffix_list_urls = ()
    models = [{"lang_code": LANGUAGE, "model_name": ""}]
    with _log_filtered(_is_of_no_other_language):
        engine = AnalyzerEngine(nlp_engine=NoOpNlpEngine(models), supported_languages=[LANGUAGE])
    kinds = _named_kinds(spans)
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


class _LeftOut(Exception):
    """Presidio left something out; the message says why, if that is known to hold nothing of the text."""


@contextmanager
def _log_filtered(wanted: Callable[[logging.LogRecord], bool]) -> Iterator[None]:
    """Give every warning in Presidio's log to a filter, also where the calling program has turned logging off."""
    logger = logging.getLogger("presidio-analyzer")
    level, disabled, all_disabled = logger.level, logger.disabled, logger.manager.disable
    logger.addFilter(wanted)
    logger.setLevel(logging.WARNING)
    logger.disabled = False
    logging.disable(logging.NOTSET)
    try:
        yield
    finally:
        logging.disable(all_disabled)
        logger.disabled = disabled
        logger.setLevel(level)
        logger.removeFilter(wanted)


def _refuse_warning(record: logging.LogRecord) -> bool:
    """Raise what Presidio warns of when it leaves something out, such as a pattern that takes too long on a text."""
    if record.levelno < logging.WARNING:
        return True
    too_long = record.exc_info and isinstance(record.exc_info[1], TimeoutError)
    raise _LeftOut(f": {record.getMessage().rstrip('.')}" if too_long else "")


def _is_of_no_other_language(record: logging.LogRecord) -> bool:
    """Say whether a message is about more than a recogniser of another language, which is left out on purpose."""
    return "language is not supported by registry" not in record.getMessage()
