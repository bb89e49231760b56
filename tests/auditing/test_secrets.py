"""Exposure of planted numbers: it rises with their repeats, and is what a plain loop over all alternatives finds."""

import json
import math
import re
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from scipy.stats import kstest
from typer.testing import CliRunner

from ltmia.auditing.audit import AuditConfig, audit
from ltmia.auditing.question import JudgeConfig, Question
from ltmia.auditing.score import ScoreConfig
from ltmia.auditing.secrets import FoundSecrets, find_secrets, private_span_columns, secrets_of, span_columns
from ltmia.auditing.spans import wanted_spans
from ltmia.auditing.text_sets import TextSets, join_sets
from ltmia.cli.app import app
from ltmia.errors import ConfigError, DataError
from ltmia.evaluation.files import read_results, read_spans_table
from ltmia.evaluation.gate import hold_against
from ltmia.evaluation.limits import Limit
from ltmia.evaluation.results import Results
from ltmia.finetuning.tiny import TinyConfig, build_base, train_tokenizer
from ltmia.models.loading import LoadOptions, load_alone, load_pair
from ltmia.models.pair import Pair
from ltmia.progress import silent
from ltmia.records import Texts
from ltmia.scoring import secret_ranks
from ltmia.scoring.audited_pair import LoadedPair, PairToLoad
from ltmia.scoring.recorded_pair import load_recorded_pair
from ltmia.scoring.recording import record_model
from ltmia.scoring.secret_ranks import RankConfig, Secret, rank_secrets

REPEATS, EACH, N_NONMEMBERS, N_ALTERNATIVES, VOCAB = (1, 4, 16, 64), 4, 20, 64, 330
RULE = r"code: the code of \w+ is (\d+)"


@dataclass(frozen=True)
class Planted:
    """Models, texts with a number each, and an audit of them with the numbers as secrets."""

    folder: Path
    pair: Pair
    texts: tuple[Texts, Texts]
    printed: str
    """What the command printed."""

    @property
    def results(self) -> Results:
        return read_results(self.folder / "audit")

    @property
    def spans(self) -> list[dict]:
        return read_spans_table(self.folder / "audit").to_pylist()

    def config(self, **changes: object) -> AuditConfig:
        options = AuditConfig(
            attacks="difference", spans=str(self.folder / "rules.txt"), alternatives=N_ALTERNATIVES, most_values=30
        )
        return replace(options, **changes)


def planted_texts(n: int, rng: np.random.Generator) -> list[str]:
    names = ["".join(rng.choice(list("abcdefghij"), 4)) for _ in range(n)]
    numbers = ["".join(rng.choice(list("0123456789"), 5)) for _ in range(n)]
    return [f"the code of {name} is {number}." for name, number in zip(names, numbers, strict=True)]


def trained(texts: list[str], tokenizer, seed: int, epochs: int, start: torch.nn.Module | None = None):
    model = build_base(TinyConfig(model_type="gpt2", vocab_size=VOCAB, hidden_size=48, n_layers=1), seed=0)
    if start is not None:
        model.load_state_dict(start.state_dict())
    optimizer = torch.optim.Adam(model.parameters(), lr=4e-3)
    generator = torch.Generator().manual_seed(seed)
    batch = tokenizer(texts, padding=True, return_tensors="pt")
    labels = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)
    for _ in range(epochs):
        for rows in torch.randperm(len(texts), generator=generator).split(32):
            optimizer.zero_grad()
            model(
                batch["input_ids"][rows], attention_mask=batch["attention_mask"][rows], labels=labels[rows]
            ).loss.backward()
            optimizer.step()
    return model.eval()


@pytest.fixture(scope="module")
def planted(tmp_path_factory: pytest.TempPathFactory) -> Planted:
    folder, rng = tmp_path_factory.mktemp("planted"), np.random.default_rng(0)
    texts = planted_texts(EACH * len(REPEATS) + N_NONMEMBERS, rng)
    others = planted_texts(200, rng)
    numbers = [f"is {number}." for number in rng.integers(0, 10**5, 800)]
    tokenizer = train_tokenizer([*others, *numbers], VOCAB)  # some pairs of digits are one token
    members = texts[: EACH * len(REPEATS)]
    base = trained(others, tokenizer, 1, 4)
    target = trained(list(np.repeat(members, np.repeat(REPEATS, EACH))), tokenizer, 2, 3, base)
    for name, model in (("base", base), ("target", target)):
        model.save_pretrained(folder / name)
        tokenizer.save_pretrained(folder / name)
    (folder / "rules.txt").write_text(RULE, "utf-8")
    pair = load_pair(folder / "target", folder / "base", dtype="float32", device="cpu")
    named = Texts(texts=tuple(texts), ids=tuple(f"t{i}" for i in range(len(texts))))
    sets = named.take(range(len(members))), named.take(range(len(members), len(texts)))
    return Planted(folder, pair, sets, printed_by_audit(folder, sets))


def printed_by_audit(folder: Path, sets: tuple[Texts, Texts]) -> str:
    """Audit by the command line, into `audit`."""
    command = ["audit", str(folder / "target"), "--base", str(folder / "base"), "--dtype", "float32"]
    command += ["--attacks", "difference", "--spans", str(folder / "rules.txt"), "-o", str(folder / "audit")]
    command += ["--alternatives", str(N_ALTERNATIVES), "--most-values", "30"]
    for name, part in zip(("members", "nonmembers"), sets, strict=True):
        lines = [json.dumps({"id": key, "text": text}) for key, text in zip(part.ids, part.texts, strict=True)]
        (folder / f"{name}.jsonl").write_text("\n".join(lines), "utf-8")
        command += [f"--{name}", str(folder / f"{name}.jsonl")]
    ran = CliRunner().invoke(app, command)
    assert ran.exit_code == 0, ran.output
    return ran.output


def test_exposure_rises_with_repeats_and_lies_at_chance_without(planted: Planted) -> None:
    rows = pq.read_table(planted.folder / "audit" / "private" / "spans.parquet").to_pylist()
    bits, by_base = (np.array([row[name] for row in rows]) for name in ("exposure", "exposure_by_base"))
    means = [bits[i * EACH : (i + 1) * EACH].mean() for i in range(len(REPEATS))]
    assert means == sorted(means), means
    assert means[-1] > 4.5
    assert means[0] < 3.5
    unseen = np.concatenate([bits[len(REPEATS) * EACH :], by_base])
    assert kstest(2.0**-unseen, "uniform").pvalue > 1e-3
    found = planted.results.secrets
    assert found.judged.largest.value == math.ceil(math.log2(N_ALTERNATIVES + 1))
    assert found.judged.largest.high == math.ceil(math.log2(10**5))
    assert found.judged.median > found.nonmembers.median + 1
    assert found.judged.median_rise > 1


def logp_by_hand(model: torch.nn.Module, tokenizer, texts: list[str]) -> list[float]:
    """Of whole texts, from the logits that transformers gives for a padded batch."""
    batch = tokenizer(texts, padding=True, padding_side="right", return_tensors="pt")
    ids, mask = batch["input_ids"], batch["attention_mask"]
    with torch.no_grad():
        logp = model(input_ids=ids, attention_mask=mask).logits.double().log_softmax(-1)
    return (logp[:, :-1].gather(2, ids[:, 1:, None])[..., 0] * mask[:, 1:]).sum(1).tolist()


def test_a_plain_loop_over_all_alternatives_finds_the_same_rank(planted: Planted) -> None:
    """All 1,000 numbers of three digits, in the middle of a text, where the tokens at both borders may merge."""
    text, start = "the code of abcd is 12345.", len("the code of abcd is 1")
    secret = Secret(text=text, start=start, end=start + 3)
    [found] = rank_secrets(planted.pair, [[secret]], RankConfig(n_alternatives=999, max_length=64, seed=0))
    tokenizer = planted.pair.tokenizer
    assert len({len(tokenizer(f"{text[:start]}{i:03}{text[start + 3 :]}")["input_ids"]) for i in range(1000)}) > 1
    for model, ranked in ((planted.pair.target, found.target), (planted.pair.reference, found.reference)):
        ends = [tail for tail in range(len(text) - start - 2) if is_cut_well(tokenizer, text, start + 3 + tail)]
        tail = text[start + 3 : start + 3 + ends[0]]
        logp = logp_by_hand(model, tokenizer, [f"{text[:start]}{i:03}{tail}" for i in range(1000)])
        assert ranked.tried.n_better == sum(one > logp[234] for one in logp)
        assert ranked.tried.are_all
        assert ranked.tried.exposure == pytest.approx(math.log2(1000) - math.log2(ranked.tried.n_better + 1))
        own, n_before = tokenizer(text[:start] + "234" + tail)["input_ids"], 0
        before = tokenizer(text[:start])["input_ids"]
        while n_before < len(before) and before[n_before] == own[n_before]:
            n_before += 1
        with torch.no_grad():
            each = model(input_ids=torch.tensor([own])).logits[0].double().log_softmax(-1)
        expected = sum(float(each[i - 1, own[i]]) for i in range(n_before, len(own)))
        assert ranked.logp == pytest.approx(expected, abs=1e-4)


def is_cut_well(tokenizer, text: str, stop: int) -> bool:
    whole, part = (tokenizer(one)["input_ids"] for one in (text, text[:stop]))
    return whole[: len(part)] == part


def test_what_is_handed_on_tells_no_value_and_only_whole_bits(planted: Planted) -> None:
    table = read_spans_table(planted.folder / "audit")
    assert "value" not in table.column_names
    assert [row["id"] for row in planted.spans] == [*planted.texts[0].ids, *planted.texts[1].ids]
    assert all(row["span"] == 1 and row["kind"] == "code" and row["n_copies"] == 1 for row in planted.spans)
    exact = pq.read_table(planted.folder / "audit" / "private" / "spans.parquet").to_pylist()
    assert [row["exposure"] for row in planted.spans] == [math.ceil(round(row["exposure"], 9)) for row in exact]
    for side, label in ((planted.results.secrets.judged, 1), (planted.results.secrets.nonmembers, 0)):
        rows = [row for row in planted.spans if row["label"] == label]
        bits, by_base = (np.array([row[name] for row in rows]) for name in ("exposure", "exposure_by_base"))
        medians = np.median(bits), np.median(by_base), np.median(bits - by_base)
        assert (side.median, side.median_by_base, side.median_rise) == medians  # nothing finer
        assert (side.largest.value, side.largest_by_base.value) == (bits.max(), by_base.max())
    values = [re.search(r"\d{5}", text)[0] for part in planted.texts for text in part.texts]
    for path in (planted.folder / "audit").glob("*.*"):
        content = path.read_text("utf-8") if path.suffix != ".parquet" else repr(pq.read_table(path).to_pylist())
        numbers = set(re.findall(r"(?<![\d.])\d{5}(?![\d.])", content))  # not digits of other figures
        assert not numbers & set(values), path
    page = (planted.folder / "audit" / "report.html").read_text("utf-8")
    assert 'id="secrets"' in page


def found_in(planted: Planted, sets: TextSets, given: tuple[Texts, Texts], config: JudgeConfig) -> FoundSecrets:
    spans = wanted_spans(config.spans, given, sets)
    question = Question(
        kind="score", sets=sets, config=config, max_length=config.max_length or 128, attacks=(), spans=spans
    )
    found = find_secrets(LoadedPair(planted.pair), question, silent)
    assert found is not None
    return found


def test_each_value_counts_once(planted: Planted) -> None:
    first, second = planted.texts
    again = Texts(texts=(*first.texts[:3], first.texts[1] + " " + first.texts[0]), ids=("a", "b", "c", "d"))
    known = Texts(texts=(*second.texts[:2], first.texts[2]), ids=("x", "y", "z"))
    config = ScoreConfig(spans=str(planted.folder / "rules.txt"), most_values=2, alternatives=20)
    found = found_in(planted, join_sets(again, known, "candidates"), (again, known), config)
    rows = [(value.span.row, value.number, value.n_copies) for value in found.values]
    assert rows == [(0, 1, 2), (1, 1, 2), (2, 1, 1), (4, 1, 1), (5, 1, 1)]
    results = secrets_of(found, config)
    assert (results.judged.n_values, results.judged.n_ranked) == (3, 2)
    assert (results.nonmembers.n_values, results.nonmembers.n_ranked) == (2, 2)
    assert [value.found.reason is None for value in found.values].count(False) == 1
    assert results.reach == 5
    columns = span_columns(found, b"", reveal=True)
    assert columns["id"].to_pylist() == ["a", "b", "c", "x", "y"]
    values = [re.search(r"\d{5}", text)[0] for text in (*again.texts[:3], *known.texts[:2])]
    assert columns["value"].to_pylist() == values


def test_a_value_is_ranked_at_the_first_place_that_allows_it(planted: Planted, tmp_path: Path) -> None:
    """It stands at the start of one text and behind what is read of the next one: these copies say nothing."""
    (tmp_path / "rules").write_text(r"code: (\d{5})", "utf-8")
    texts = ("12345 is first", "the code of " * 20 + "12345", "12345. the code of abcd is 12345.")
    given = Texts(texts=texts, ids=("a", "b", "c")), Texts(texts=("code 9.",), ids=("x",))
    config = ScoreConfig(spans=str(tmp_path / "rules"), alternatives=20, max_length=32)
    found = found_in(planted, join_sets(*given, "candidates"), given, config)
    [value] = found.judged
    assert (value.span.row, value.span.start, value.number, value.n_copies) == (2, 27, 2, 4)
    alone = Secret(text=texts[2], start=27, end=32)
    [expected] = rank_secrets(planted.pair, [[alone]], RankConfig(n_alternatives=20, max_length=32, seed=0))
    assert (value.found.target, value.found.reference) == (expected.target, expected.reference)


def test_secrets_in_members_left_out_as_repeats_are_ranked(planted: Planted) -> None:
    """Letters that differ in nothing but their code are repeats of one another."""
    letter = " ".join(f"word{i}" for i in range(80))
    texts = [f"the code of {name} is {number}. {letter}" for name, number in (("a", 10001), ("b", 20002))]
    given = Texts(texts=tuple(texts), ids=("a", "b")), Texts(texts=(f"{texts[0]} 33333", "code"), ids=("x", "y"))
    config = planted.config(alternatives=20)
    sets = join_sets(*given, "members", deduplicate=True)
    assert sets.texts.ids == ("a", "y")
    found = found_in(planted, sets, given, config)
    columns = span_columns(found, b"", reveal=True)
    assert [columns[name].to_pylist() for name in ("id", "label", "value")] == [["a", "b"], [1, 1], ["10001", "20002"]]
    assert private_span_columns(found, sets)["row"].to_pylist() == [0, None]
    assert secrets_of(found, config).judged.n_ranked == 2


def test_a_value_as_long_as_a_book_draws_no_alternatives(planted: Planted, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(secret_ranks, "alternatives_to", None)
    text = "the code " + "a1 " * 30_000
    [found] = rank_secrets(
        planted.pair,
        [[Secret(text=text, start=9, end=len(text))]],
        RankConfig(n_alternatives=2000, max_length=64, seed=0),
    )
    assert "behind the first 64 tokens" in found.reason


def test_the_reach_is_that_of_secrets_to_judge(planted: Planted, tmp_path: Path) -> None:
    """Five digits in a non-member do not show that an exposure of 6 bits would have been seen in the members."""
    (tmp_path / "rules").write_text(r"code: is (\d+)", "utf-8")
    given = tuple(Texts(texts=(f"the code of abcd is {number}.",), ids=(number,)) for number in ("7", "12345"))
    config = planted.config(spans=str(tmp_path / "rules"))
    found = found_in(planted, join_sets(*given, "members"), given, config)
    assert secrets_of(found, config).reach == 4


@pytest.mark.parametrize(
    ("text", "value", "said"),
    [
        ("12345 is first", "12345", "nothing stands before it"),
        ("the code is --", "--", "no digit and no letter"),
        ("the code of everybody is " * 4 + "12345", "12345", "behind the first 32 tokens"),
        (
            "the code of abcdefghij abcdefghij abcdef is 12345678901234567890",
            "12345678901234567890",
            "behind the first",
        ),
    ],
)
def test_what_cannot_be_ranked_says_why(planted: Planted, text: str, value: str, said: str) -> None:
    start = text.index(value)
    secret = Secret(text=text, start=start, end=start + len(value))
    [found] = rank_secrets(planted.pair, [[secret]], RankConfig(n_alternatives=20, max_length=32, seed=0))
    assert found.target is None
    assert said in found.reason


def test_the_gate_holds_the_largest_exposure_against_a_limit(planted: Planted) -> None:
    verdict = hold_against(planted.results, [Limit.parse("exposure:5")])
    assert verdict.exit_code == 1
    assert "largest exposure of 16 secrets" in verdict.judged[0].sentence


def test_recordings_and_wrong_files_are_refused_before_anything_is_run(planted: Planted, tmp_path: Path) -> None:
    everything = Texts.concatenate(planted.texts)
    for name in ("target", "base"):
        alone = load_alone(planted.folder / name, options=LoadOptions(dtype="float32", device="cpu"))
        record_model(alone, everything, tmp_path / f"{name}.jsonl")
    recorded = load_recorded_pair(tmp_path / "target.jsonl", tmp_path / "base.jsonl")
    with pytest.raises(ConfigError, match="spans"):
        audit(recorded, *planted.texts, tmp_path / "out", config=planted.config())
    (tmp_path / "places.jsonl").write_text(
        '{"id": "t0", "start": 0, "end": 2}\n{"id": "u0", "start": 0, "end": 2}', "utf-8"
    )
    wrong = planted.config(spans=str(tmp_path / "places.jsonl"))
    unloaded = PairToLoad(sources=("target", "base"), load=lambda: pytest.fail("a model was loaded"))
    with pytest.raises(DataError, match="line 2: no text has this id"):
        audit(unloaded, *planted.texts, tmp_path / "out", config=wrong)
    (tmp_path / "places.jsonl").write_text('{"id": "t0", "start": 0, "end": 200}', "utf-8")
    with pytest.raises(DataError, match="line 1: start 0, end 200 in a text of"):
        audit(unloaded, *planted.texts, tmp_path / "out", config=wrong)


def test_the_command_line_prints_the_largest_exposure(planted: Planted) -> None:
    assert "Secrets: 16 of 16 in the members were ranked; their largest exposure is 7 [" in planted.printed
    settings = planted.results.settings
    assert (settings["spans"], settings["alternatives"], settings["most_values"]) == ("rules.txt", N_ALTERNATIVES, 30)
