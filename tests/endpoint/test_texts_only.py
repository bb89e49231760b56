"""Servers that take no token ids, as llama-cpp-python's, and servers that give no numbers of a prompt."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from starlette.responses import JSONResponse, Response
from transformers import AutoTokenizer

from live_server import LiveServer, running
from ltmia.data.embedded import demo_base_path
from ltmia.data.reading import read_texts
from ltmia.endpoint.address import Endpoint
from ltmia.endpoint.protocol import EchoedLogprobs, read_completion
from ltmia.endpoint.sent_texts import MOST_CUT, SentTexts
from ltmia.errors import DataError, ModelError
from ltmia.models.loading import LoadOptions, load_alone, load_tokenizer
from ltmia.models.tokens import EncodedText, encode_texts
from ltmia.progress import Report, silent
from ltmia.records import Texts
from ltmia.scoring.endpoint_recording import EndpointRecordConfig, record_endpoint
from ltmia.scoring.recording import RecordConfig, record_model

OPTIONS = LoadOptions(dtype="float32", device="cpu")
LENGTH = 24


@pytest.fixture(scope="module")
def with_bos(materials: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the materials' tokenizer and config, changed as the documentation says: it adds BOS."""
    folder = tmp_path_factory.mktemp("with-bos")
    plain = AutoTokenizer.from_pretrained(materials / "my-base", bos_token="<|endoftext|>", add_bos_token=True)
    plain.save_pretrained(folder)
    (folder / "config.json").write_bytes((materials / "my-base" / "config.json").read_bytes())
    return folder


@pytest.fixture(scope="module")
def live(materials: Path) -> Iterator[LiveServer]:
    folders = {name: materials / name for name in ("my-model", "my-base")}
    with running(LiveServer(folders=folders, tokenizer=materials / "my-base", takes_texts=True)) as server:
        yield server


@pytest.fixture
def texts(materials: Path) -> Texts:
    return read_texts(materials / "held-out.jsonl").take(range(6))


def record(server: LiveServer, texts: Texts, tokenizer: Path, out: Path, report: Report = silent, **given: str) -> list:
    endpoint = Endpoint(url=server.url, model="my-model", first_wait=0.01)
    config = EndpointRecordConfig(tokenizer=str(tokenizer), max_length=LENGTH, loading=OPTIONS, **given)
    return list(record_endpoint(endpoint, texts, out, config=config, report=report))


def test_texts_instead_of_ids_give_the_figures_of_local_weights(
    live: LiveServer, texts: Texts, materials: Path, with_bos: Path, tmp_path: Path
) -> None:
    live.bos = 0
    weights = str(materials / "my-model")
    found = record(live, texts, with_bos, tmp_path / "a.jsonl", check_against=weights, base_model="my-base")
    pair = load_alone(weights, tokenizer=str(with_bos), options=OPTIONS)
    local = list(record_model(pair, texts, tmp_path / "b.jsonl", config=RecordConfig(max_length=LENGTH)))
    assert len(found) == len(local) == len(texts.texts)
    for ours, theirs in zip(found, local, strict=True):
        n = len(ours.tokens)
        assert n >= LENGTH - 3
        assert ours.tokens == theirs.tokens[:n]
        assert (ours.start, theirs.start) == (2, None)
        assert ours.truncated
        np.testing.assert_allclose(ours.logp, theirs.logp[1 : n - 1], atol=1e-4)
        np.testing.assert_allclose(np.exp(ours.top), np.exp(theirs.top[1 : n - 1]), atol=0.02)
        # The end of a text and bytes of characters count as one token.
        np.testing.assert_allclose(ours.rank, theirs.rank[1 : n - 1], atol=130)
        assert np.mean(np.equal(ours.rank, theirs.rank[1 : n - 1])) > 0.3


@pytest.mark.parametrize(
    ("bos", "has_bos", "message"),
    [
        (None, False, r"shifted by one.*add_bos_token=bool:true.*add_bos_token=True"),
        (0, False, r"the server makes \d+ tokens where the tokenizer makes \d+\..*must do so too"),
        (None, True, r"the server makes \d+ tokens where the tokenizer makes \d+\..*must do so too"),
    ],
)
def test_tokens_that_are_not_the_servers_are_refused(
    live: LiveServer,
    texts: Texts,
    materials: Path,
    with_bos: Path,
    tmp_path: Path,
    bos: int | None,
    has_bos: bool,
    message: str,
) -> None:
    live.bos = bos
    with pytest.raises(ModelError, match=message):
        record(live, texts, with_bos if has_bos else materials / "my-base", tmp_path / "a.jsonl")


def edited(live: LiveServer, edit: Callable[[dict[str, Any]], None], after: int = 0) -> Callable[..., Response]:
    """Return the honest server's answers to texts, with their `logprobs` edited from some answer on."""
    honest, n_asked = live.complete_text, 0

    def complete_text(body: dict[str, Any]) -> Response:
        nonlocal n_asked
        answer = honest(body)
        if answer.status_code != 200:
            return answer
        n_asked += 1
        said = json.loads(bytes(answer.body))
        if n_asked > after:
            edit(said["choices"][0]["logprobs"])
        return JSONResponse(said)

    return complete_text


def shift(said: dict[str, Any], *names: str, by: int) -> None:
    for name in names:
        said[name][1:] = said[name][1 - by : -by] if by > 0 else said[name][1 - by :] + said[name][by:]
        said[name] += said[name][-1:] * (len(said["tokens"]) - len(said[name]))


LISTS = ("token_logprobs", "top_logprobs")


@pytest.mark.parametrize("names", [LISTS, LISTS[:1], LISTS[1:]])
@pytest.mark.parametrize("by", [-1, 1])
def test_shifted_numbers_are_refused(
    live: LiveServer,
    texts: Texts,
    with_bos: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    names: tuple[str, ...],
    by: int,
) -> None:
    live.bos = 0
    monkeypatch.setattr(live, "complete_text", edited(live, lambda said: shift(said, *names, by=by)))
    with pytest.raises(ModelError, match=r"have another log-probability in top_logprobs than.* is shifted"):
        record(live, texts, with_bos, tmp_path / "a.jsonl")


def test_a_server_that_hides_its_tokens_is_refused(
    live: LiveServer, texts: Texts, with_bos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def hide(said: dict[str, Any]) -> None:
        said["tokens"][1:] = ["\ufffd"] * (len(said["tokens"]) - 1)

    live.bos = 0
    monkeypatch.setattr(live, "complete_text", edited(live, hide))
    with pytest.raises(ModelError, match=r"the server has another tokenizer"):
        record(live, texts, with_bos, tmp_path / "a.jsonl")


def test_a_space_before_each_text_makes_other_tokens(
    live: LiveServer, texts: Texts, with_bos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    honest = live.complete_text

    def spaced(body: dict[str, Any]) -> Response:
        prompt = body["prompt"]
        return honest(body | {"prompt": f" {prompt}"} if isinstance(prompt, str) else body)

    live.bos = 0
    monkeypatch.setattr(live, "complete_text", spaced)
    with pytest.raises(ModelError, match=r"tokens where the tokenizer makes .*Name the served model's own tokenizer"):
        record(live, texts, with_bos, tmp_path / "a.jsonl")


def test_one_other_token_of_a_text_is_refused(
    live: LiveServer, texts: Texts, with_bos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def rename(said: dict[str, Any]) -> None:
        said["tokens"][5] = "zzz"

    live.bos = 0
    monkeypatch.setattr(live, "complete_text", edited(live, rename, after=3 * len(texts)))
    with pytest.raises(DataError, match=r"makes other tokens of .* than `tokenizer`: 'zzz' for \d+ .*leave this text"):
        record(live, texts, with_bos, tmp_path / "a.jsonl")


def test_a_server_without_numbers_of_a_prompt_is_told_at_once(texts: Texts, materials: Path, tmp_path: Path) -> None:
    refusal = JSONResponse(
        {"error": {"code": 500, "message": "Only no echo is supported", "type": "server_error"}}, 500
    )
    weights = materials / "my-model"
    server = LiveServer(folders={"my-model": weights}, tokenizer=weights, knows=(), max_logprobs=10**6)
    server.twist = lambda _server, body, entries: refusal if body.get("echo") else entries
    with running(server), pytest.raises(ModelError, match=r"only of tokens that it writes itself; serve the model"):
        record(server, texts.take([0]), materials / "my-base", tmp_path / "a.jsonl")
    assert len(server.asked) == 2


def test_a_server_that_takes_ids_later_does_not_continue(
    texts: Texts, materials: Path, with_bos: Path, tmp_path: Path
) -> None:
    class KilledError(Exception):
        pass

    def kill(task: str, done: int, _total: int) -> None:
        if task == "recording" and done > 1:
            raise KilledError

    weights = materials / "my-model"
    server = LiveServer(folders={"my-model": weights}, tokenizer=weights, takes_texts=True, bos=0)
    with running(server):
        with pytest.raises(KilledError):
            record(server, texts, with_bos, tmp_path / "a.jsonl", kill)
        server.takes_texts = False
        with pytest.raises(ModelError, match=r"fewer or more tokens than before: another server runs there"):
            record(server, texts, with_bos, tmp_path / "a.jsonl")


@pytest.mark.parametrize("by", [0, 1])
def test_shifted_numbers_of_ids_are_refused_and_shared_entries_are_not(by: int) -> None:
    words = [*"abcdefg", "same", "same"]
    weights = np.random.default_rng(0).uniform(1, 5, (5, 9)) * (np.arange(9) != 7) + 1e-3
    table = np.log(weights / weights.sum(1, keepdims=True))
    ids = [0, 1, 7, 2, 3, 4]
    tops = [None, *(dict(zip(words, row.tolist(), strict=True)) for row in table)]
    logps = [None, *(row[i] for i, row in zip(ids[1:], table.tolist(), strict=True))]
    place = [0, *np.maximum(np.arange(1, 6) - by, 1)]
    said = {
        "tokens": [words[i] for i in ids],
        "token_logprobs": [logps[i] for i in place],
        "top_logprobs": [tops[i] for i in place],
    }
    completion = read_completion(json.dumps({"choices": [{"logprobs": said}]}).encode())
    form = EchoedLogprobs(vocab_size=9, n_top=5, unshared=frozenset("abcdefg"))
    if by:
        with pytest.raises(DataError, match="another log-probability in top_logprobs"):
            form.read("x", ids, completion)
    else:
        np.testing.assert_allclose(form.read("x", ids, completion).statistics.logp, logps[1:], rtol=1e-6)


DEMO = load_tokenizer(str(demo_base_path()), OPTIONS)
SENT = SentTexts.of(DEMO, len(DEMO))


@settings(max_examples=200, deadline=None)
@given(st.text(min_size=1, max_size=40), st.integers(3, 30))
def test_what_is_sent_has_the_same_tokens(text: str, length: int) -> None:
    (encoded,) = encode_texts(DEMO, [text], max_length=length, vocab_size=len(DEMO))
    sent = SENT.sendable(encoded)
    if sent.reason is None:
        n = len(sent.ids)
        assert DEMO(SENT.characters(sent.ids.tolist()))["input_ids"] == sent.ids.tolist() == encoded.ids[:n].tolist()
        assert len(encoded.ids) - MOST_CUT <= n
        assert sent.truncated == (encoded.truncated or n < len(encoded.ids))


def test_half_a_character_is_cut() -> None:
    ids = np.array(DEMO("the people \u6771")["input_ids"])
    cut = SENT.sendable(EncodedText(ids=ids[:-1], truncated=True))
    assert SENT.characters(cut.ids.tolist()).rstrip() == "the people"
    alone = SENT.sendable(EncodedText(ids=ids[-3:-1]))
    assert alone.reason == "too few of its tokens can be sent as characters that give the same tokens"
