"""The file of recorded log-probabilities: read back to the bit, refused where it cannot be so, made of vLLM output."""

import gzip
import json
import tracemalloc
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from ltmia.data.lines import MAX_TEXT_BYTES
from ltmia.data.prompt_logprobs import from_prompt_logprobs
from ltmia.data.recordings import IMPOSSIBLE, RecordedText, Recording, RecordingHeader, write_recording
from ltmia.errors import ConfigError, DataError
from ltmia.features.served import model_statistics, served_statistics
from ltmia.features.statistics import token_statistics
from ltmia.records import SERVED, ModelStatistics

HEADER = RecordingHeader(model="m", vocab_size=50, n_top=2, recorded_by="hand")
LINE = {
    "id": "a",
    "tokens": [5, 6, 7],
    "logp": [-1.5, -0.25],
    "rank": [3, 1],
    "top": [[-0.5, -1.25], [-0.25, -3]],
}


def written(folder: Path, *lines: Any, header: Any = None, name: str = "r.jsonl") -> Recording:
    """Write lines as they are given, and open the file."""
    head = HEADER.model_dump(exclude_none=True) if header is None else header
    text = "".join(line if isinstance(line, str) else json.dumps(line) + "\n" for line in (head, *lines))
    path = folder / name
    path.write_bytes(gzip.compress(text.encode()) if name.endswith(".gz") else text.encode())
    return Recording(path)


@st.composite
def statistics(draw: st.DrawFn) -> ModelStatistics:
    """Anything float32 that is possible, with gaps."""
    n = draw(st.integers(0, 6))
    below = st.floats(-100, 0, width=32) | st.just(-np.inf) | st.just(np.nan)
    top = np.sort(draw(arrays(np.float32, (n, 2), elements=st.floats(-50, 0, width=32))), axis=1)[:, ::-1]
    top[draw(arrays(np.bool_, n))] = np.nan
    logp = draw(arrays(np.float32, n, elements=below))
    with np.errstate(invalid="ignore"):
        logp = np.where(np.isnan(top[:, 0]), logp, np.minimum(logp, top[:, 0]))
    ranks = np.where(logp == top[:, 0], 1, draw(arrays(np.int32, n, elements=st.integers(2, 50))))
    missing = draw(arrays(np.bool_, n))
    return ModelStatistics(logp=logp, rank=np.where(missing, 0, ranks).astype(np.int32), top_logp=top.copy())


@given(found=statistics(), seed=st.integers(0, 99))
def test_what_is_written_is_read_back_to_the_bit(tmp_path_factory, found: ModelStatistics, seed: int) -> None:
    ids = np.random.default_rng(seed).integers(0, 50, len(found) + 1)
    path = tmp_path_factory.getbasetemp() / f"trip.jsonl{'.gz' * (seed % 2)}"
    write_recording(path, HEADER, [RecordedText.of("ä", ids, found, "a text")])
    [line] = Recording(path)
    again = line.statistics(2)
    assert (line.id, line.tokens) == ("ä", ids.tolist())
    np.testing.assert_array_equal(again.logp, np.where(found.logp == -np.inf, IMPOSSIBLE, found.logp))
    np.testing.assert_array_equal(again.rank, found.rank)
    np.testing.assert_array_equal(again.top_logp, found.top_logp)
    assert b"a text" not in path.read_bytes()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"logp": [-1.5]}, "expected for 2 tokens behind the first as many logp, rank and top, found 1, 2 and 2"),
        ({"tokens": [5, 6]}, "expected for 1 tokens behind the first"),
        ({"top": [[-0.5], [-0.25, -3]]}, r"expected 2 log-probabilities \(n_top of the header\) in each part of top"),
        ({"logp": [0.5, -0.25]}, "logp.0.*less than or equal to 0.001"),
        ({"top": [[0.5, -1.25], [-0.25, -3]]}, "top.0.0.*less than or equal to 0.001"),
        ({"logp": ["-1.5", -0.25]}, "logp.0.*valid number"),
        ({"rank": [0, 1]}, "rank.0.*greater than or equal to 1"),
        ({"rank": [51, 1]}, "a token id or a rank lies outside the vocabulary of 50"),
        ({"rank": [1.5, 1]}, "rank.0.*valid integer"),
        ({"tokens": [5, 50, 7]}, "a token id or a rank lies outside the vocabulary of 50"),
        ({"logp": [-1.5, -0.5]}, "a token of rank 1 is less likely than the most likely one"),
        ({"logp": [-0.25, -0.25]}, "a token is more likely than the most likely one"),
        ({"top": [[-1.25, -0.5], [-0.25, -3]]}, "of a part of top rise"),
        ({"id": ""}, "id.*at least 1 character"),
        ({"id": None}, "id.*valid string"),
        ({"reason": "cut off"}, "has both a reason and log-probabilities"),
        ({"text": "secret words"}, "text: Extra inputs are not permitted"),
        ({"text_sha256": "x"}, "text_sha256.*match pattern"),
    ],
)
def test_what_cannot_be_so_is_refused_with_file_and_line(tmp_path: Path, change: Any, message: str) -> None:
    with pytest.raises(DataError, match=rf"r\.jsonl, line 3: .*{message}") as raised:
        list(written(tmp_path, LINE | {"id": "first"}, LINE | change))
    assert "secret words" not in str(raised.value)


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity", "1e999", "-1e300"])
def test_numbers_that_are_none_are_refused(tmp_path: Path, number: str) -> None:
    line = json.dumps(LINE).replace("-1.5", number)
    with pytest.raises(DataError, match=r"line 2: logp\.0"):
        list(written(tmp_path, line + "\n"))


def test_damaged_files_are_refused(tmp_path: Path) -> None:
    for lines, message in (
        ((LINE, LINE), r"line 3: the id 'a' was already used in line 2"),
        ((LINE, '{"id": "b", "tok'), r"line 3: Invalid JSON"),
        ((LINE, json.dumps(LINE).replace('"id"', '"id": "b", "id"') + "\n"), r"line 3: the key 'id' occurs twice"),
        ((LINE, "\n"), r"line 3: Invalid JSON"),
        ((LINE, "[" * 100_000), r"line 3: Invalid JSON"),
        (('{"id": "' + "a" * MAX_TEXT_BYTES + '"}\n',), r"line 2: longer than 16 MiB"),
    ):
        with pytest.raises(DataError, match=message):
            list(written(tmp_path, *lines))
    whole = written(tmp_path, *({**LINE, "id": str(i)} for i in range(2000)), name="r.jsonl.gz").path
    (tmp_path / "torn.jsonl.gz").write_bytes(whole.read_bytes()[:-200])
    with pytest.raises(DataError, match=r"torn\.jsonl\.gz: not an intact gzip file"):
        list(Recording(tmp_path / "torn.jsonl.gz"))


def test_headers_are_checked(tmp_path: Path) -> None:
    good = HEADER.model_dump(exclude_none=True)
    for header, message in (
        (LINE, "model: Field required"),
        ("", "line 1: Invalid JSON"),
        (good | {"format_version": 2}, "format_version: Input should be 1"),
        ({k: v for k, v in good.items() if k != "format_version"}, "format_version: missing"),
        (good | {"vocab_size": 0}, "vocab_size"),
        (good | {"n_top": 0}, "n_top"),
        (good | {"text": "x"}, "text: Extra inputs are not permitted"),
    ):
        with pytest.raises(DataError, match=message):
            written(tmp_path, header=header)
    with pytest.raises(DataError, match="cannot be read"):
        Recording(tmp_path / "nowhere.jsonl")
    with pytest.raises(ConfigError, match=r"expected a name that ends in \.jsonl or \.jsonl\.gz"):
        write_recording(tmp_path / "r.txt", HEADER, [])


def test_a_text_that_contradicts_itself_is_not_written(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="the text 'a': a token of rank 1 is less likely"):
        write_recording(tmp_path / "r.jsonl", HEADER, [RecordedText(**(LINE | {"logp": [-1.5, -9.0]}))])
    assert not (tmp_path / "r.jsonl").exists()


def test_a_recording_is_read_in_flat_memory(tmp_path: Path) -> None:
    long = LINE | {"tokens": [1] * 201, "logp": [-1.5] * 200, "rank": [3] * 200, "top": [[-0.5, -1.25]] * 200}
    recording = written(tmp_path, *(long | {"id": str(i)} for i in range(200)), name="r.jsonl.gz")
    tracemalloc.start()
    n_tokens = sum(len(text.tokens) for text in recording)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert n_tokens == 200 * 201
    assert peak < 5e5, f"{peak / 1e6} MB; the numbers alone are 1.6 MB"


def test_one_models_statistics_are_those_it_has_in_a_pair() -> None:
    rng = np.random.default_rng(0)
    target, reference = torch.tensor(rng.normal(0, 3, (2, 40, 30)).astype(np.float32))
    target[3] = torch.nan
    truth = torch.tensor(rng.integers(0, 30, 40))
    pair = token_statistics(target, reference, truth, 4)
    found = served_statistics(model_statistics(target, truth, 5), model_statistics(reference, truth, 1), 4)
    ok = np.arange(40) != 3  # of a position where one model is broken a pair says less of the other
    for name in pair.__slots__:
        values = getattr(found, name)
        if name in SERVED:
            np.testing.assert_array_equal(values[ok], getattr(pair, name)[ok])
        else:
            assert np.isnan(values).all() if values.dtype == np.float32 else not values.any()
    assert found.target_rank[3] == 0
    assert np.isnan(found.target_logp[3])


@dataclass
class Logprob:
    """As vLLM has it."""

    logprob: float
    rank: int | None
    decoded_token: str | None = None


def served(logits: np.ndarray, truth: np.ndarray, n: int) -> list[dict[int, Logprob] | None]:
    """What vLLM gives: the true token first, by the rank that counts ties; then the n most likely by their place."""
    entries: list[dict[int, Logprob] | None] = [None]
    for row, token in zip(logits.astype(np.float64), truth, strict=True):
        logp = row - np.log(np.exp(row).sum())
        entry = {int(token): Logprob(float(logp[token]), int((logp >= logp[token]).sum()), "x")}
        for place, other in enumerate(np.argsort(-logp, kind="stable")[:n]):
            entry[int(other)] = Logprob(float(logp[other]), place + 1, "y")
        entries.append(entry)
    return entries


@pytest.mark.parametrize("form", ["objects", "json"])
def test_vllm_prompt_logprobs_become_the_statistics_of_the_logits(form: str) -> None:
    rng = np.random.default_rng(1)
    logits, ids = rng.normal(0, 3, (60, 12)).astype(np.float32), rng.integers(0, 12, 61)
    entries = served(logits, ids[1:], 3)
    if form == "json":
        plain = [entry and {str(token): vars(said) for token, said in entry.items()} for entry in entries]
        entries = json.loads(json.dumps(plain))
    line = from_prompt_logprobs("a", ids.tolist(), entries, n_top=3, text="the text")
    assert line.mistake(HEADER.model_copy(update={"n_top": 3})) is None
    found, expected = line.statistics(3), model_statistics(torch.tensor(logits), torch.tensor(ids[1:]), 3)
    np.testing.assert_allclose(found.logp, expected.logp, atol=1e-6)
    np.testing.assert_array_equal(found.rank, expected.rank)
    np.testing.assert_allclose(found.top_logp, expected.top_logp, atol=1e-6)
    behind = from_prompt_logprobs("a", ids.tolist(), entries, n_top=3, start=20, truncated=True)
    assert (behind.tokens, behind.start, behind.truncated) == (line.tokens, 20, True)
    assert (behind.logp, behind.rank, behind.top) == (line.logp[19:], line.rank[19:], line.top[19:])


def test_vllm_output_with_too_little_is_refused() -> None:
    rng = np.random.default_rng(2)
    logits, ids = rng.normal(0, 3, (20, 12)).astype(np.float32), rng.integers(0, 12, 21)
    whole = served(logits, ids[1:], 3)
    with pytest.raises(DataError, match="fewer than the 3 most likely tokens; ask for prompt_logprobs=3 or more"):
        from_prompt_logprobs("a", ids.tolist(), served(logits, ids[1:], 2), n_top=3)
    other = [None, {k: v for k, v in whole[1].items() if k != ids[1]}, *whole[2:]]
    with pytest.raises(DataError, match="'a', token 1: prompt_logprobs lack the true token"):
        from_prompt_logprobs("a", ids.tolist(), other, n_top=1)
    with pytest.raises(DataError, match="21 token ids, but 20 entries"):
        from_prompt_logprobs("a", ids.tolist(), whole[1:], n_top=3)


def test_vllm_gaps_and_impossible_tokens_are_kept_as_such() -> None:
    sure = {7: Logprob(-np.inf, 40), 1: Logprob(0.0, 1)}
    line = from_prompt_logprobs("a", [5, 7, 7, 1], [None, sure, None, {1: Logprob(-0.5, None)}], n_top=1)
    assert line.logp == [IMPOSSIBLE, None, -0.5]
    assert line.rank == [40, None, None]
    assert line.top == [[0.0], None, [-0.5]]
    assert line.statistics(1).known.tolist() == [True, False, False]
