"""A live server around real models: recorded and audited like local weights, or refused with what to set."""

import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from starlette.responses import JSONResponse, Response
from transformers import AutoTokenizer

from commands import run_ltmia
from live_server import Entry, LiveServer, running
from ltmia.classifier.membership import shipped_classifier
from ltmia.data.reading import read_texts
from ltmia.data.recordings import IMPOSSIBLE, Recording
from ltmia.endpoint.address import Endpoint
from ltmia.errors import ConfigError, DataError, ModelError
from ltmia.models.loading import LoadOptions, load_alone, load_pair
from ltmia.records import Texts
from ltmia.scoring.endpoint_recording import EndpointRecordConfig, record_endpoint
from ltmia.scoring.in_memory import score_texts
from ltmia.scoring.recording import RecordConfig, record_model

OPTIONS = LoadOptions(dtype="float32", device="cpu")
LENGTH = 40
KEY = "sk-very-secret-9f3a"


@pytest.fixture(scope="module")
def live(materials: Path) -> Iterator[LiveServer]:
    """The model and its base, behind one server."""
    folders = {name: materials / name for name in ("my-model", "my-base")}
    with running(LiveServer(folders=folders, tokenizer=materials / "my-base")) as server:
        yield server


@pytest.fixture
def server(live: LiveServer) -> Iterator[LiveServer]:
    """The live server, honest again after each test."""
    honest = {name: value for name, value in vars(live).items() if name not in ("asked", "models")}
    live.asked.clear()
    models = dict(live.models)
    yield live
    vars(live).update(honest | {"models": models})


@pytest.fixture(scope="module")
def texts(materials: Path) -> Texts:
    """A few texts; one is empty, and one begins with a prompt that is not scored."""
    some = read_texts(materials / "held-out.jsonl").take(range(9))
    return replace(some, texts=("", *some.texts[1:]), starts=(0, 0, 0, 0, 0, 0, 30, 0, 0))


@pytest.fixture(scope="module")
def local(materials: Path, texts: Texts, tmp_path_factory: pytest.TempPathFactory) -> Recording:
    """The same texts, recorded from local weights."""
    out = tmp_path_factory.mktemp("local") / "my-model.jsonl"
    return record_model(
        load_alone(materials / "my-model", options=OPTIONS), texts, out, config=RecordConfig(max_length=LENGTH)
    )


Record = Callable[..., Recording]


@pytest.fixture
def record(server: LiveServer, texts: Texts, materials: Path, tmp_path: Path) -> Record:
    """Record the texts from the live server, quick to try again."""

    def run(texts: Texts = texts, key: str | None = None, **given: Any) -> Recording:
        report, tries = given.pop("report", lambda *_: None), given.pop("tries", 3)
        n_at_once, overwrite = given.pop("concurrency", 8), given.pop("overwrite", False)
        config = EndpointRecordConfig(
            loading=OPTIONS, **{"tokenizer": str(materials / "my-base"), "max_length": LENGTH} | given
        )
        endpoint = Endpoint(
            url=server.url, model="my-model", api_key=key, first_wait=0.01, tries=tries, concurrency=n_at_once
        )
        out = tmp_path / "served.jsonl"
        return record_endpoint(endpoint, texts, out, config=config, overwrite=overwrite, report=report)

    return run


def assert_same(found: Recording, expected: Recording, length: int = LENGTH) -> None:
    """Both hold the same texts, and the numbers of one model for the first `length` tokens."""
    for ours, theirs in zip(found, expected, strict=False):
        assert (ours.id, ours.start, ours.text_sha256) == (theirs.id, theirs.start, theirs.text_sha256)
        assert (ours.tokens, ours.reason) == (theirs.tokens[:length], theirs.reason)
        assert ours.truncated == (True if len(theirs.tokens) > length else theirs.truncated)
        n = min(len(theirs.logp), length - 1)
        np.testing.assert_allclose(ours.logp, theirs.logp[:n], atol=1e-4)
        np.testing.assert_allclose(ours.top, theirs.top[:n], atol=1e-4)
        np.testing.assert_allclose(ours.rank, theirs.rank[:n], atol=1)  # noise may swap two tokens
    assert found.header.vocab_size == expected.header.vocab_size
    assert found.header.tokenizer_sha256 == expected.header.tokenizer_sha256


def test_a_server_is_audited_like_its_weights(server: LiveServer, materials: Path, tmp_path: Path) -> None:
    server.key = KEY
    sets = {name: read_texts(materials / f"{name}.jsonl").take(range(24)) for name in ("train", "held-out")}
    for name, some in sets.items():
        rows = [json.dumps({"id": i, "text": t}) for i, t in zip(some.ids, some.texts, strict=True)]
        (tmp_path / f"{name}.jsonl").write_text("\n".join(rows))
    both = ["--texts", "train.jsonl", "--texts", "held-out.jsonl"]
    for name in ("my-model", "my-base"):
        served = ["--endpoint", server.url, "--model", name, "--tokenizer", str(materials / name), "--dtype", "float32"]
        served += ["--check-against", str(materials / name)]
        served += ["--base-model", "my-base"] if name == "my-model" else []
        done = run_ltmia(
            "record",
            *served,
            *both,
            "--max-length",
            "64",
            "-o",
            f"{name}.jsonl.gz",
            cwd=tmp_path,
            env={"LTMIA_API_KEY": KEY},
        )
        assert done.returncode == 0, done.stderr
        assert KEY not in done.stdout + done.stderr
        assert "recording: 48/48" in done.stderr
    audited = ["--members", "train.jsonl", "--nonmembers", "held-out.jsonl", "--max-length", "48", "--quiet"]
    command = ["audit", "my-model.jsonl.gz", "--base", "my-base.jsonl.gz", *audited, "--attacks", "ltmia,loss"]
    done = run_ltmia(*command, "--classifier", "lite", "-o", "served", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    pair = load_pair(materials / "my-model", materials / "my-base", dtype="float32", device="cpu")
    whole = [text for some in sets.values() for text in some.texts]
    direct = score_texts(pair, whole, attacks=["ltmia", "loss"], classifier=shipped_classifier("lite"), max_length=48)
    served = pq.read_table(tmp_path / "served" / "records.parquet").to_pydict()
    for name, scores in direct.items():
        # Scores in files are rounded to at most a hundredth of their quartile range.
        step = np.diff(np.percentile(scores, [25, 75])).item() / 100
        np.testing.assert_allclose(served[f"score_{name}"], scores, atol=step, err_msg=name)
    said = json.loads((tmp_path / "served" / "results.json").read_text("utf-8"))["target"]["recorded_by"]
    assert "vLLM 0.99.0, prompt_logprobs; self-test: repeated answers differ by 0 nats" in said
    assert "differs from my-base by" in said
    assert "differs from local weights by" in said
    assert not [path for path in tmp_path.rglob("*") if path.is_file() and KEY.encode() in path.read_bytes()]


def test_the_figures_are_those_of_local_weights(record: Record, local: Recording) -> None:
    found = record()
    assert len(list(found)) == len(list(local))
    assert_same(found, local)
    assert "not compared with the base; not compared with local weights" in found.header.recorded_by
    assert found.header.model == "my-model"


@pytest.mark.parametrize("is_strict", [False, True])
def test_the_older_form_gives_the_same(
    record: Record, server: LiveServer, texts: Texts, local: Recording, is_strict: bool
) -> None:
    server.knows, server.is_strict, server.max_logprobs = ("echo",), is_strict, 10**6
    found = record(texts.take(range(3)), max_length=8)
    assert [line.id for line in found] == list(texts.ids[:3])
    assert_same(found, local, 8)
    assert ", echo; self-test" in found.header.recorded_by


# Sabotage: each function is what one server does wrong.


def stale_cache_lacks(server: LiveServer, body: dict[str, Any], entries: list[Entry | None]) -> list[Entry | None]:
    """Numbers of a beginning that was asked for before are not computed again."""
    known = any(other["prompt"][:8] == body["prompt"][:8] for other in server.asked[:-1])
    return [None] * 8 + entries[8:] if known and len(server.asked) > 2 else entries


def stale_cache_repeats(server: LiveServer, body: dict[str, Any], entries: list[Entry | None]) -> list[Entry | None]:
    """A text that begins like an earlier one gets its numbers."""
    ids = body["prompt"]
    old_ids, old = vars(server).setdefault("memory", {}).setdefault(tuple(ids[:4]), (ids, entries))
    found = []
    for i, token in enumerate(map(str, ids)):
        if i == 0 or i >= len(old):
            found.append(entries[i])
            continue
        swap = {str(old_ids[i]): token, token: str(old_ids[i])}
        moved = {swap.get(name, name): value for name, value in old[i].items()}
        found.append({t: v | {"decoded_token": server.words[int(t)]} for t, v in moved.items()})
    return found


def other_model_later(server: LiveServer, body: dict[str, Any], entries: list[Entry | None]) -> list[Entry | None]:
    """A text that was asked for before is answered from what another model left in the cache."""
    seen = sum(other["prompt"] == body["prompt"] for other in server.asked) > 2
    return server.entries("my-base", body["prompt"], body["prompt_logprobs"]) if seen else entries


def other_model_for_known_beginnings(
    server: LiveServer, body: dict[str, Any], entries: list[Entry | None]
) -> list[Entry | None]:
    """A beginning that another text had too is answered from what another model left in the cache."""
    ids = body["prompt"]
    known = any(other["prompt"][:4] == ids[:4] and other["prompt"] != ids for other in server.asked)
    return server.entries("my-base", ids, body["prompt_logprobs"]) if known else entries


def adapter_dropped(server: LiveServer, body: dict[str, Any], _entries: list[Entry | None]) -> list[Entry | None]:
    return server.entries("my-base", body["prompt"], body["prompt_logprobs"])


def true_token_missing(_server: LiveServer, body: dict[str, Any], entries: list[Entry | None]) -> list[Entry | None]:
    """Only the most likely tokens are listed."""
    return [entry and {t: v for t, v in entry.items() if v["rank"] <= body["prompt_logprobs"]} for entry in entries]


def too_few(_server: LiveServer, body: dict[str, Any], entries: list[Entry | None]) -> list[Entry | None]:
    """Two of the most likely tokens, where three were asked for."""
    ids = map(str, body["prompt"])
    return [e and {t: v for t, v in e.items() if v["rank"] <= 2 or t == i} for i, e in zip(ids, entries, strict=True)]


def cut(_server: LiveServer, _body: dict[str, Any], entries: list[Entry | None]) -> list[Entry | None]:
    """The prompt is cut in silence."""
    return entries[:20]


def other_tokens(server: LiveServer, _body: dict[str, Any], entries: list[Entry | None]) -> list[Entry | None]:
    """The server has another tokenizer."""
    n = len(server.words)
    return [
        entry and {t: v | {"decoded_token": server.words[(int(t) + 7) % n]} for t, v in entry.items()}
        for entry in entries
    ]


def raw_logits(_server: LiveServer, _body: dict[str, Any], entries: list[Entry | None]) -> list[Entry | None]:
    """Not normalised."""
    return [entry and {t: v | {"logprob": min(v["logprob"] + 3, 0.0)} for t, v in entry.items()} for entry in entries]


def token_before(_server: LiveServer, _body: dict[str, Any], entries: list[Entry | None]) -> list[Entry | None]:
    """A token that the server put before the text lets it say something of the first one."""
    return [{"5": {"logprob": -2.0, "rank": 9, "decoded_token": "x"}}, *entries[1:]]


def nothing_learned(server: LiveServer, body: dict[str, Any], entries: list[Entry | None]) -> list[Entry | None]:
    """Both names are of one model; a hair apart, because the numbers are rounded at different places."""
    if body["model"] == "my-base":
        return server.entries("my-model", body["prompt"], body["prompt_logprobs"])
    return [e and {t: v | {"logprob": v["logprob"] - 1e-6} for t, v in e.items()} for e in entries]


def null(_server: LiveServer, _body: dict[str, Any], entries: list[Entry | None]) -> list[Entry | None]:
    return [entry and {t: v | {"logprob": None} for t, v in entry.items()} for entry in entries]


@pytest.mark.parametrize(
    ("twist", "given", "message"),
    [
        (token_before, {}, r"log-probability of the first token.*put a token before the text.*such as.*BOS"),
        (nothing_learned, {"base_model": "my-base"}, r"answers like its base.*has changed nothing"),
        (null, {}, r"fewer than the 3 most likely"),
        (stale_cache_lacks, {}, r"no log-probability or rank for 7 of \d+ tokens.*--no-enable-prefix-caching"),
        (stale_cache_repeats, {}, r"only begin alike get the same.*--no-enable-prefix-caching"),
        (other_model_for_known_beginnings, {}, r"same beginning get different.*--no-enable-prefix-caching"),
        (other_model_later, {}, r"asked again in another order.*--no-enable-prefix-caching"),
        (adapter_dropped, {"base_model": "my-base"}, r"answers like its base 'my-base'.*--lora-modules"),
        (adapter_dropped, {"check_against": True}, r"not those of the local weights.*merge an adapter"),
        (true_token_missing, {}, r"lack the true token"),
        (too_few, {}, r"fewer than the 3 most likely tokens.*--max-logprobs"),
        (cut, {}, r"tokens were sent, and the answer is about 20.*`max_length`"),
        (other_tokens, {}, r"another tokenizer: .*Name the served model's own by `tokenizer`"),
        (raw_logits, {}, r"add up to over 1.*--logprobs-mode raw_logprobs"),
    ],
)
def test_a_server_that_fails_the_self_test_is_refused(
    record: Record, server: LiveServer, materials: Path, tmp_path: Path, twist: Any, given: dict[str, Any], message: str
) -> None:
    server.twist = twist
    if given.get("check_against"):
        given = {"check_against": str(materials / "my-model")}
    with pytest.raises(ModelError, match=message):
        record(**given)
    assert not (tmp_path / "served.jsonl").exists()
    vars(server).pop("memory", None)


@pytest.mark.parametrize("rows", [[1], [1, 2]], ids=["one text", "two equal texts"])
@pytest.mark.parametrize("twist", [stale_cache_repeats, other_model_for_known_beginnings])
def test_caches_are_tested_with_few_texts_too(
    record: Record, server: LiveServer, texts: Texts, twist: Any, rows: list[int]
) -> None:
    server.twist = twist
    with pytest.raises(ModelError, match=r"--no-enable-prefix-caching"):
        record(replace(texts.take(rows), texts=(texts.texts[1],) * len(rows)))
    vars(server).pop("memory", None)


def test_what_was_not_compared_is_said(record: Record, texts: Texts) -> None:
    # Nothing can begin like a text of one word repeated, and go on differently.
    found = record(replace(texts.take([1]), texts=("the the the the",)))
    assert "0 texts compared with others that begin alike; not compared with the base" in found.header.recorded_by


def test_impossible_tokens_are_recorded_as_such(record: Record, server: LiveServer, texts: Texts) -> None:
    def impossible(_server: LiveServer, body: dict[str, Any], entries: list[Entry | None]) -> Response:
        last = entries[-1]
        assert last is not None
        for token, value in last.items():
            if value["rank"] > 3:
                last[token] = value | {"logprob": float("-inf")}
        found = {"prompt_logprobs": entries, "prompt_token_ids": body["prompt"]}
        return Response(json.dumps({"choices": [found]}))

    server.twist = impossible
    found = {logp for line in record() for logp in line.logp}
    assert min(found) == IMPOSSIBLE < sorted(found)[1]


# The older form, whose answers have no token ids.


def older(server: LiveServer, answer: Callable[[dict[str, Any], list[Entry | None]], dict[str, Any]]) -> None:
    """Let the server speak the older form, in a way of its own."""

    def twist(server: LiveServer, body: dict[str, Any], entries: list[Entry | None]) -> Any:
        return JSONResponse({"choices": [{"logprobs": answer(body, entries)} if body.get("echo") else {}]})

    server.knows, server.max_logprobs, server.twist = ("echo",), 10**6, twist


def test_tokens_written_as_in_the_vocabulary_are_the_same(
    record: Record, server: LiveServer, texts: Texts, local: Recording, materials: Path
) -> None:
    raw = AutoTokenizer.from_pretrained(materials / "my-base").convert_ids_to_tokens

    def answer(body: dict[str, Any], entries: list[Entry | None]) -> dict[str, Any]:
        said = server.echoed(body["prompt"], entries)
        return said | {"tokens": raw([*body["prompt"], body["prompt"][-1]])}

    older(server, answer)
    assert_same(record(texts.take(range(3)), max_length=8), local, 8)


def test_answers_that_were_mixed_up_after_the_self_test_are_refused(
    record: Record, server: LiveServer, texts: Texts, tmp_path: Path
) -> None:
    other = list(range(50, 58))

    def answer(body: dict[str, Any], entries: list[Entry | None]) -> dict[str, Any]:
        if len(server.asked) > 2 + 3 * 3:
            entries = server.entries("my-model", other, body["logprobs"])
            return server.echoed(other, entries)
        return server.echoed(body["prompt"], entries)

    older(server, answer)
    with pytest.raises(DataError, match=r"is about another text.*`concurrency=1`"):
        record(texts.take(range(1, 4)), max_length=8)
    assert not (tmp_path / "served.jsonl").exists()


def test_likely_tokens_that_share_their_text_are_not_lost_in_silence(
    record: Record, server: LiveServer, texts: Texts
) -> None:
    def answer(body: dict[str, Any], entries: list[Entry | None]) -> dict[str, Any]:
        said = server.echoed(body["prompt"], entries)
        tops = [top and dict(sorted(top.items(), key=lambda pair: pair[1])[:-1]) for top in said["top_logprobs"]]
        return said | {"top_logprobs": tops}

    older(server, answer)
    with pytest.raises(ModelError, match=r"most likely tokens are given, with probabilities that add up to 0\.\d"):
        record(texts.take(range(1, 4)), max_length=8)


class KilledError(Exception):
    """Stands for a kill."""


def test_passing_failures_and_a_kill_lose_and_double_nothing(
    record: Record, server: LiveServer, texts: Texts, tmp_path: Path
) -> None:
    whole = record()
    expected = whole.path.read_bytes()
    whole.path.unlink()
    server.asked.clear()

    def now_and_then(server: LiveServer, _body: dict[str, Any], entries: list[Entry | None]) -> Any:
        n = len(server.asked)
        failures = {1: JSONResponse({"error": "busy"}, 429, {"Retry-After": "0"}), 2: Response("\x1b[31mboom", 500)}
        return failures.get(n % 5, entries)

    def kill(task: str, done: int, _total: int) -> None:
        if task == "recording" and done > 4:
            raise KilledError

    server.twist = now_and_then
    with pytest.raises(KilledError):
        record(report=kill, tries=9, concurrency=1)  # so that no request of this run comes later
    assert not whole.path.exists()
    work = tmp_path / ".served.jsonl.work" / "lines.jsonl"
    kept = work.read_bytes()
    with work.open("ab") as file:
        file.write(kept[:200])  # a line torn by the kill
    n_kept = kept.count(b"\n")
    assert n_kept > 4
    server.asked.clear()
    server.twist = lambda _server, _body, entries: entries
    assert record(concurrency=1).path.read_bytes() == expected
    # The self-test, the recorded texts again, the rest, and all scorable texts again.
    n_scorable = len(texts) - 1
    n_tested = 1 + 3 * n_scorable
    assert len(server.asked) == n_tested + (n_kept - 1) + len(texts) - n_kept + n_scorable
    assert set(tmp_path.iterdir()) == {whole.path}
    server.asked.clear()
    record()
    assert server.asked == [], "finished work is not done again"


def test_a_server_with_another_model_does_not_continue(record: Record, server: LiveServer) -> None:
    def kill(task: str, done: int, _total: int) -> None:
        if task == "recording" and done > 4:
            raise KilledError

    with pytest.raises(KilledError):
        record(report=kill)
    server.models["my-model"] = server.models["my-base"]
    with pytest.raises(ModelError, match=r"recorded before get other.*another model under the name 'my-model'"):
        record()


def test_a_server_that_changes_during_the_recording_is_refused(
    record: Record, server: LiveServer, tmp_path: Path
) -> None:
    n_tested = 1 + 3 * 8

    def changed(server: LiveServer, body: dict[str, Any], entries: list[Entry | None]) -> list[Entry | None]:
        # Another model for the last texts, and for those that are asked for again.
        return entries if len(server.asked) < n_tested + 6 else adapter_dropped(server, body, entries)

    server.twist = changed
    with pytest.raises(ModelError, match=r"recorded before get other log-probabilities now.*record under another name"):
        record(concurrency=1)
    assert not (tmp_path / "served.jsonl").exists()
    server.twist = lambda _server, _body, entries: entries
    with pytest.raises(ModelError, match=r"recorded before get other log-probabilities now"):
        record(concurrency=1)


def test_a_small_and_early_change_is_noticed_if_the_base_is_known(
    record: Record, server: LiveServer, materials: Path
) -> None:
    n_tested = 1 + 4 * 11

    def changed(server: LiveServer, body: dict[str, Any], entries: list[Entry | None]) -> list[Entry | None]:
        """The target is close to its base; later it is the base."""
        base = adapter_dropped(server, body, entries)
        if body["model"] == "my-base" or len(server.asked) > n_tested + 4:
            return base
        return [e and {t: v | {"logprob": v["logprob"] - 0.05} for t, v in e.items()} for e in base]

    server.twist = changed
    with pytest.raises(ModelError, match=r"recorded before get other log-probabilities now"):
        record(read_texts(materials / "held-out.jsonl").take(range(11)), concurrency=1, base_model="my-base")


def test_a_finished_recording_does_not_stand_for_comparisons_that_were_not_made(
    record: Record, server: LiveServer, materials: Path
) -> None:
    record()
    for given in ({"base_model": "my-base"}, {"check_against": str(materials / "my-model")}):
        with pytest.raises(ConfigError, match=r"other settings\. Nothing was changed.*`overwrite=True`"):
            record(**given)
    assert "differs from my-base" in record(base_model="my-base", overwrite=True).header.recorded_by


def test_unfinished_work_is_not_thrown_away_for_other_settings(
    record: Record, server: LiveServer, texts: Texts, tmp_path: Path
) -> None:
    def kill(task: str, done: int, _total: int) -> None:
        if task == "recording" and done > 4:
            raise KilledError

    with pytest.raises(KilledError):
        record(report=kill)
    lines = tmp_path / ".served.jsonl.work" / "lines.jsonl"
    kept = lines.read_bytes()
    for given in ({"texts": texts.take(range(8))}, {"max_length": 30}, {"base_model": "my-base"}):
        with pytest.raises(ConfigError, match=r"unfinished recording of another.*\.served\.jsonl\.work.*Finish it"):
            record(**given)
        assert lines.read_bytes() == kept
    assert len(list(record(texts.take(range(8)), overwrite=True))) == 8


def test_a_run_that_recorded_nothing_is_in_nobodys_way(record: Record, server: LiveServer, texts: Texts) -> None:
    server.twist = cut
    with pytest.raises(ModelError, match="tokens were sent"):
        record()
    server.twist = lambda _server, _body, entries: entries
    assert len(list(record(texts.take(range(3))))) == 3


def test_weights_beside_the_tokenizer_are_not_needed(
    record: Record, local: Recording, materials: Path, tmp_path: Path
) -> None:
    (folder := tmp_path / "tokenizer").mkdir()
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / name).write_bytes((materials / "my-base" / name).read_bytes())
    config = json.loads((materials / "my-base" / "config.json").read_text("utf-8"))
    # The server may well run weights that cannot be unpacked here.
    (folder / "config.json").write_text(json.dumps(config | {"quantization_config": {"quant_method": "awq"}}))
    assert_same(record(tokenizer=str(folder)), local)


def test_lasting_failures_end_clearly(record: Record, server: LiveServer, tmp_path: Path) -> None:
    server.twist = lambda *_: Response("no GPU", 503)
    with pytest.raises(ModelError, match=r"/v1/completions: status 503: no GPU, 3 times in a row.*resumes"):
        record()
    assert len(server.asked) == 3
    server.twist = lambda *_: JSONResponse({"choices": [{"prompt_logprobs": "none"}]})
    with pytest.raises(DataError, match=r"the answer is not one of /completions \(choices\.0\.prompt_logprobs"):
        record()
    endpoint = Endpoint(url="http://127.0.0.1:9/v1", model="m", first_wait=0.001)
    config = EndpointRecordConfig(tokenizer=str(server.tokenizer))
    with pytest.raises(ModelError, match=r"127\.0\.0\.1:9/v1/models: no connection .*Check that the server runs"):
        record_endpoint(endpoint, Texts(texts=("one two three",), ids=("a",)), tmp_path / "r.jsonl", config=config)


def test_a_refusal_is_told_without_the_key(record: Record, server: LiveServer) -> None:
    server.key = "right"
    with pytest.raises(ModelError, match=r"status 401: .*Incorrect API key.*LTMIA_API_KEY") as refused:
        record(key=KEY)
    assert KEY not in str(refused.value)
    assert str(refused.value).isprintable()


def test_what_the_server_cannot_give_is_said_before(record: Record, server: LiveServer) -> None:
    server.max_model_len = 30
    with pytest.raises(ConfigError, match=r"takes 30 tokens.*`max_length=29`.*--max-model-len"):
        record()
    assert server.asked == []
    record(max_length=29).path.unlink()
    server.max_model_len, server.max_logprobs = 1000, 2
    with pytest.raises(ModelError, match=r"greater than max allowed: 2.*--max-logprobs"):
        record()
    with pytest.raises(ConfigError, match=r"`base_model=mine`: .* has no such model; it has 'my-model', 'my-base'"):
        record(base_model="mine")
    server.knows, server.max_logprobs = ("echo",), 50
    with pytest.raises(ModelError, match=r"greater than max allowed: 50.*--max-logprobs -1"):
        record()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "name the model to record"),
        (["my-model", "--endpoint", "http://h/v1"], "a model and --endpoint were given"),
        (["--endpoint", "http://h/v1"], "name the model on the server with --model"),
        (["--endpoint", "http://h/v1", "--model", "m"], "with --tokenizer"),
        (["my-model", "--base-model", "m"], "--base-model is about a server"),
    ],
)
def test_options_that_do_not_say_what_to_record(arguments: list[str], message: str, tmp_path: Path) -> None:
    done = run_ltmia("record", *arguments, "--texts", "t.jsonl", "-o", "r.jsonl", cwd=tmp_path)
    assert done.returncode == 2
    assert message in done.stderr.replace("\n", " ")
