"""What Presidio recognises: found by place and type, none twice, without a download; the extra is asked for by name."""

import socket
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from ltmia.auditing.spans import hash_of_spans, wanted_spans
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
    with pytest.raises(ConfigError, match=r"pip install 'ltmia\[presidio\]'"):
        needs_it("presidio")


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
    with pytest.raises(DataError, match=r"text '0': Presidio says: Regex pattern .* timed out"):
        named(everything, 2000 * LETTER)


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
