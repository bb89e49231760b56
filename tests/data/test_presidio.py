"""What Presidio recognises: found by place and type, none twice, without a download; the extra is asked for by name."""

import logging
import socket
import sys
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError
from pathlib import Path
from types import ModuleType

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from ltmia.auditing.spans import hash_of_spans, spans_file, wanted_spans
from ltmia.auditing.text_sets import join_sets
from ltmia.data import presidio
from ltmia.data.presidio import Presidio, load_presidio
from ltmia.errors import ConfigError, DataError
from ltmia.records import Texts

LETTER = "😀 Érable: call +1 212-555-0199, mail anna.bell@example.com; card 4111 1111 1111 1111, from 192.168.0.1."
IN_LETTER = [
    ("+1 212-555-0199", "PHONE_NUMBER"),  # its end passes for a number of the UK's health service
    ("anna.bell@example.com", "EMAIL_ADDRESS"),  # holds two URLs
    ("4111 1111 1111 1111", "CREDIT_CARD"),
    ("192.168.0.1", "IP_ADDRESS"),
]


@pytest.mark.parametrize("needs_it", [hash_of_spans, load_presidio])
def test_a_missing_extra_is_named(needs_it: Callable[[str], object], monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(name: str) -> str:
        raise PackageNotFoundError(name)

    monkeypatch.setattr(presidio, "version", absent)
    monkeypatch.setitem(sys.modules, "presidio_analyzer", None)
    with pytest.raises(ConfigError, match=r"pip install 'ltmia\[presidio\]'"):
        needs_it("presidio")


def test_an_older_presidio_is_named_as_the_missing_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "presidio_analyzer", ModuleType("presidio_analyzer"))
    with pytest.raises(ConfigError, match=r"pip install 'ltmia\[presidio\]'"):
        load_presidio("presidio")


def test_other_types_or_versions_of_any_package_are_other_spans(monkeypatch: pytest.MonkeyPatch) -> None:
    versions = dict.fromkeys(("presidio-analyzer", "phonenumbers", "tldextract"), "1.0")
    monkeypatch.setattr(presidio, "version", versions.__getitem__)
    first = hash_of_spans("presidio:EMAIL_ADDRESS,URL")
    assert hash_of_spans("presidio:URL,EMAIL_ADDRESS,URL") == first  # the same types
    others = [hash_of_spans("presidio"), hash_of_spans("presidio:URL")]
    for package in versions:
        monkeypatch.setitem(versions, package, "1.1")
        others.append(hash_of_spans("presidio:EMAIL_ADDRESS,URL"))
    assert len({found["spans"] for found in [first, *others]}) == 6


def test_a_file_named_presidio_is_read_by_its_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("presidio").write_text("code: \\d+", "utf-8")
    sets = Texts(texts=("a 1",), ids=("a",)), Texts(texts=("b 2",), ids=("b",))
    assert spans_file("./presidio") == ["./presidio"]
    found = wanted_spans("./presidio", sets, join_sets(*sets, "members"))
    assert [span.kind for span in found.spans] == ["code", "code"]


class Warner:
    """Presidio's engine on a text of which it leaves something out, as far as its log goes."""

    def analyze(self, text: str, language: str, entities: object) -> list[object]:
        logging.getLogger("presidio-analyzer").error("Failed to validate text %s", text)
        return [language, entities]


@pytest.mark.parametrize("quiet", ["level", "disabled", "all"])
def test_what_presidio_leaves_out_is_refused_without_its_text_whatever_logging_is_set_to(
    quiet: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    logger = logging.getLogger("presidio-analyzer")
    if quiet == "level":
        monkeypatch.setattr(logger, "level", logging.CRITICAL)
    elif quiet == "disabled":
        monkeypatch.setattr(logger, "disabled", True)
    else:
        monkeypatch.setattr(logger.manager, "disable", logging.CRITICAL)
    before = logger.level, logger.disabled, logger.manager.disable, list(logger.filters)
    with pytest.raises(DataError, match=r"text 'a'.*Leave this text out") as refusal:
        Presidio(engine=Warner(), kinds=()).find(Texts(texts=("482913",), ids=("a",)))
    assert "482913" not in str(refusal.value)
    assert (logger.level, logger.disabled, logger.manager.disable, list(logger.filters)) == before


@pytest.fixture(scope="module")
def everything() -> Presidio:
    pytest.importorskip("presidio_analyzer", reason="Presidio is not installed: pip install 'ltmia[presidio]'")
    return load_presidio("presidio")


def named(finder: Presidio, *texts: str) -> list[tuple[str, str | None]]:
    found = finder.find(Texts(texts=texts, ids=tuple(map(str, range(len(texts))))))
    return [(texts[span.row][span.start : span.end], span.kind) for span in found]


def test_data_are_found_by_their_characters_once_and_without_a_download(
    everything: Presidio, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*given: object) -> None:
        raise AssertionError(f"a connection to {given}")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    assert named(everything, "nothing", LETTER, LETTER) == 2 * IN_LETTER


def test_types_can_be_chosen_and_those_that_are_not_found_are_named(everything: Presidio) -> None:
    sets = Texts(texts=(LETTER,), ids=("a",)), Texts(texts=("DE89370400440532013000",), ids=("b",))
    wanted = wanted_spans("presidio:IBAN_CODE,EMAIL_ADDRESS", sets, join_sets(*sets, "members"))
    assert [(span.row, span.kind) for span in wanted.spans] == [(0, "EMAIL_ADDRESS"), (1, "IBAN_CODE")]
    assert wanted.unmatched == ["IBAN_CODE"]  # it is in a non-member only
    for wrong in ("presidio:PERSON", "presidio:", "presidio:EMAIL_ADDRESS, IBAN_CODE"):
        with pytest.raises(ConfigError, match=r"no type of Presidio\. Expected some of CREDIT_CARD"):
            load_presidio(wrong)


def test_a_text_that_takes_presidio_too_long_is_refused(everything: Presidio, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("presidio_analyzer.pattern_recognizer.REGEX_TIMEOUT_SECONDS", 1e-9)
    with pytest.raises(DataError, match=r"text '0': Presidio did not read all of it: Regex pattern .* timed out"):
        named(everything, 2000 * LETTER)


def test_a_phone_number_after_many_other_numbers_is_found(everything: Presidio) -> None:
    import phonenumbers

    text = "1 2 3 4 5 6 7 x " * 8500 + "call +1 212-555-0199"
    found = phonenumbers.PhoneNumberMatcher(text, "US")
    assert [text[match.start : match.end] for match in found] == ["+1 212-555-0199"]


def test_loading_says_nothing_of_other_languages(everything: Presidio, caplog: pytest.LogCaptureFixture) -> None:
    load_presidio("presidio")
    assert not caplog.messages


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@example("a@b.com" * 50)
@example("\0\ud800 1.1.1.1@[::1].com")
@given(st.lists(st.sampled_from([*LETTER.split(), "@", ".", "\ud800", "-", "١٢٣", "http://"]) | st.text()).map("".join))
def test_no_find_overlaps_another_or_leaves_its_text(everything: Presidio, text: str) -> None:
    spans = everything.find(Texts(texts=(text,), ids=("a",)))
    ends = [place for span in spans for place in (span.start, span.end)]
    assert ends == sorted(ends)
    assert all(0 <= span.start < span.end <= len(text) for span in spans)
    assert everything.find(Texts(texts=(text,), ids=("a",))) == spans
