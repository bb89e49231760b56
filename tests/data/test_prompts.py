"""Prompts with completions, and conversations: what is read, learned and scored of them, from file to report."""

import json
import shutil
import warnings
from datetime import date
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoTokenizer

from commands import run_ltmia
from ltmia.attacks.selection import fast_attacks, select_attacks
from ltmia.data.embedded import demo_base_path, demo_texts
from ltmia.data.reading import read_texts
from ltmia.errors import DataError, ModelError
from ltmia.evaluation.files import read_results
from ltmia.expectation.model import Positions
from ltmia.features.per_token import named_values
from ltmia.finetuning.config import FinetuneConfig
from ltmia.finetuning.finetune import finetune
from ltmia.finetuning.perturbed import save_perturbed
from ltmia.finetuning.tiny import TinyConfig, build_base
from ltmia.finetuning.training_rows import RightPadding, training_rows
from ltmia.models.chat import chat_template
from ltmia.models.loading import LoadOptions, load_pair, load_tokenizer
from ltmia.models.pair import Pair
from ltmia.models.tokens import encode_texts
from ltmia.records import Texts
from ltmia.scoring.extraction import ExtractionConfig, ExtractionRun, encode, extract_batches

TOKENIZER = load_tokenizer(str(demo_base_path()), LoadOptions())
TEMPLATE = (
    "{% for m in messages %}<{{ m['role'] }}> {{ m['content'] }}\n{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)


def message(role: str, content: str) -> list[dict]:
    return [{"role": role, "content": content}]


ASKED, ANSWERED = message("user", "Who spoke?"), message("assistant", "The President.")


def halves(n: int, skip: int = 0) -> Texts:
    """Passages of the demo, each with its first third for a prompt."""
    texts = demo_texts().take(range(skip, skip + n))
    starts = tuple(len(text) // 3 for text in texts.texts)
    return Texts(texts=texts.texts, ids=texts.ids, groups=texts.groups, starts=starts)


def write_jsonl(path: Path, rows: list[dict]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    return path


def written_out(messages, ask, tools=None):
    return "".join(f"<{m['role']}> {m['content']}\n" for m in messages) + ("<assistant>" if ask else "")


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Pair:
    save_perturbed(demo_base_path(), tmp_path_factory.mktemp("moved") / "target")
    return load_pair(tmp_path_factory.getbasetemp() / "moved0" / "target", demo_base_path(), device="cpu")


@pytest.mark.parametrize("kind", ["jsonl", "csv", "parquet"])
def test_a_prompt_and_its_completion_are_one_text_scored_from_the_completion_on(tmp_path: Path, kind: str) -> None:
    rows = [{"prompt": "Q: why?\nA:", "completion": " because"}, {"prompt": "", "completion": "b"}]
    path = tmp_path / f"rows.{kind}"
    if kind == "parquet":
        pq.write_table(pa.Table.from_pylist([*rows, {"prompt": "only", "completion": None}]), path)
    elif kind == "jsonl":
        write_jsonl(path, [*rows, {"prompt": "only", "completion": None}])
    else:
        path.write_text('prompt,completion\n"Q: why?\nA:"," because"\n,b\nonly,\n', "utf-8")
    found = read_texts(path)
    assert found.texts == ("Q: why?\nA: because", "b", "only")
    assert found.starts == (10, 0, 4)
    part = found.take([2, 0])
    assert part.starts == (4, 10)
    plain = Texts(texts=("x",), ids=("x",))
    assert Texts.concatenate([plain, part]).starts == (0, 4, 10)
    assert Texts.concatenate([plain, plain]).starts is None


def test_messages_are_written_out_and_a_text_column_comes_first(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "chats.jsonl", [{"messages": ASKED + ANSWERED}, {"text": "plain", "messages": ASKED}])
    found = read_texts(path, chat=written_out)
    assert found.texts == ("<user> Who spoke?\n<assistant> The President.\n", "plain")
    assert found.starts is None
    table = tmp_path / "chats.parquet"
    pq.write_table(pa.Table.from_pylist([{"messages": ASKED + ANSWERED}]), table)
    assert read_texts(table, chat=written_out).texts == found.texts[:1]
    other = write_jsonl(tmp_path / "other.jsonl", [{"turns": ASKED}])
    assert read_texts(other, text_column="turns", chat=written_out).texts == ("<user> Who spoke?\n",)


@pytest.mark.parametrize("kind", ["jsonl", "parquet"])
def test_nothing_stands_in_for_a_column_that_was_named(tmp_path: Path, kind: str) -> None:
    path, rows = tmp_path / f"rows.{kind}", [{"prompt": "a", "completion": "b", "messages": ASKED}]
    pq.write_table(pa.Table.from_pylist(rows), path) if kind == "parquet" else write_jsonl(path, rows)
    assert read_texts(path).texts == ("ab",)
    with pytest.raises(DataError, match=r"no column 'body'\. Columns found: 'prompt', 'completion', 'messages'"):
        read_texts(path, text_column="body", chat=written_out)


def test_the_messages_of_a_prompt_are_asked_and_the_rest_is_scored(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "chats.jsonl", [{"prompt": ASKED, "completion": ANSWERED}])
    found = read_texts(path, chat=written_out)
    assert found.texts[0][found.starts[0] :] == " The President.\n"


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"messages": ASKED}, "there is no chat template without the target"),
        (
            {"messages": [{"role": "user"}]},
            "'messages' holds a list. Expected messages with role and content",
        ),
        ({"messages": '[{"role": "user", "content": "Hi"}]'}, "'messages' holds a str"),
        ({"messages": []}, "'messages' holds a list"),
        (
            {"prompt": "x"},
            "with `text_column`. Or give prompt and completion, chosen and rejected, or messages.",
        ),
        ({"prompt": ASKED, "completion": "y"}, "'prompt' holds a list"),
        ({"prompt": "x", "completion": 3}, "'completion' holds a int"),
    ],
)
def test_what_is_no_text_is_named_with_its_line(tmp_path: Path, row: dict, said: str) -> None:
    path = write_jsonl(tmp_path / "rows.jsonl", [row])
    with pytest.raises(DataError, match=r"rows.jsonl, line 1") as error:
        read_texts(path)
    assert said in str(error.value)


@given(st.text(max_size=40), st.text(max_size=40))
def test_scored_ids_are_those_behind_what_text_and_prompt_share(prompt: str, completion: str) -> None:
    whole = encode_texts(TOKENIZER, [prompt + completion], max_length=24, vocab_size=10**6)[0]
    alone = encode_texts(TOKENIZER, [prompt + completion], max_length=24, vocab_size=10**6, starts=[len(prompt)])[0]
    assert alone.ids.tolist() == whole.ids.tolist()
    clean = prompt.encode("utf-8", "replace").decode()
    ids = TOKENIZER(clean)["input_ids"]
    start = 1
    while start < min(len(ids), len(alone.ids)) and ids[: start + 1] == alone.ids[: start + 1].tolist():
        start += 1
    n_left = max(len(alone.ids) - start, 0)
    if whole.reason is None and n_left >= 2:
        assert (alone.start, alone.n_scored, alone.reason) == (start, n_left, None)
        assert alone.scored_ids.tolist() == alone.ids[start:].tolist()
    else:
        assert alone.reason is not None
        assert alone.n_scored == 0


def test_a_prompt_that_fills_what_is_read_is_said() -> None:
    text = demo_texts().texts[0]
    found = encode_texts(TOKENIZER, [text], max_length=12, vocab_size=10**6, starts=[len(text) // 2])[0]
    assert found.reason == (
        "0 token(s) after the prompt: too few to score, because at most 12 tokens of prompt and text are read"
    )
    assert found.truncated


@pytest.mark.parametrize("batch_size", [1, 4])
def test_statistics_are_those_of_the_whole_text_behind_the_prompt(pair: Pair, batch_size: int) -> None:
    texts = halves(6)
    config = ExtractionConfig(attacks=fast_attacks(select_attacks("fast")), max_length=128, batch_size=batch_size)
    encoded = encode(pair, texts.texts, config, texts.starts)
    assert min(text.start for text in encoded) > 5

    def by_row(batches):
        return {
            text.row: (tokens, text)
            for batch in batches
            for text, tokens in zip(batch.texts, batch.statistics, strict=True)
        }

    behind = by_row(extract_batches(pair, texts.texts, config, ExtractionRun(encoded=encoded)))
    whole = by_row(extract_batches(pair, texts.texts, config))
    for row, (tokens, text) in behind.items():
        first = encoded[row].start - 1
        assert text.n_tokens == len(tokens) == len(whole[row][0]) - first
        for name in ("target_logp", "reference_logp", "target_rank", "top_logp"):
            np.testing.assert_allclose(getattr(tokens, name), getattr(whole[row][0], name)[first:], atol=1e-5)
        ratio = whole[row][0].log_ratio[first:]
        assert text.scores["difference"] == pytest.approx(float(ratio.mean()), abs=1e-5)
        answer = TOKENIZER.decode(encoded[row].scored_ids)
        assert answer in texts.texts[row]
        assert text.scores["zlib"] != pytest.approx(whole[row][1].scores["zlib"])


def test_the_expectation_sees_the_token_before_the_first_scored_one(pair: Pair) -> None:
    texts, config = halves(3), ExtractionConfig(max_length=128, batch_size=4)
    encoded = encode(pair, texts.texts, config, texts.starts)
    batch = next(extract_batches(pair, texts.texts, config, ExtractionRun(encoded=encoded)))
    ids = [encoded[row].ids[encoded[row].start - 1 :] for row in batch.rows]
    found = Positions.of(batch.statistics, ids, [0, 1, 2])
    expected = np.concatenate([encoded[row].ids[encoded[row].start - 1 : -1] for row in batch.rows])
    assert found.previous.tolist() == expected.tolist()
    np.testing.assert_array_equal(found.log_ratio, named_values(batch.statistics, ("log_ratio",))[:, 0])


def test_only_the_completion_is_learned() -> None:
    texts = halves(4)
    rows = training_rows(TOKENIZER, texts.texts, 128, texts.starts)
    batch = RightPadding(0)([row.tensors() for row in rows])
    for row, labels in zip(rows, batch["labels"], strict=True):
        assert row.n_prompt > 3
        assert (labels[: row.n_prompt] == -100).all()
        assert labels[row.n_prompt : len(row)].tolist() == row.ids[row.n_prompt :]
    assert training_rows(TOKENIZER, ["a prompt alone"], 3, [len("a prompt alone")]) == []
    assert training_rows(TOKENIZER, ["all of it"], 48, [0]) == training_rows(TOKENIZER, ["all of it"], 48)

    shape = TinyConfig(model_type="llama", vocab_size=len(TOKENIZER), hidden_size=32, n_layers=1, n_heads=2)
    model = build_base(shape, seed=0).eval()
    total, n_learned = 0.0, 0
    with torch.no_grad():
        for row in rows:
            logs = torch.log_softmax(model(input_ids=torch.tensor([row.ids])).logits[0], dim=-1)
            places = range(row.n_prompt, len(row))
            total -= sum(logs[i - 1, row.ids[i]].item() for i in places)
            n_learned += len(places)
    config = FinetuneConfig(epochs=1, learning_rate=1e-12, max_length=128, batch_size=8)
    outcome = finetune(model, TOKENIZER, texts, config, validation=texts)
    assert outcome.validation_loss == pytest.approx(total / n_learned, rel=1e-4)


def chat_base(folder: Path) -> Path:
    """The embedded base with a chat template."""
    shutil.copytree(demo_base_path(), folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.chat_template = TEMPLATE
    tokenizer.save_pretrained(folder)
    return folder


def test_a_chat_template_is_found_beside_the_target_or_its_base(tmp_path: Path) -> None:
    base = chat_base(tmp_path / "base")
    assert chat_template(base)(ASKED + ANSWERED, False) == written_out(ASKED + ANSWERED, False)
    assert chat_template(base)(ASKED, True) == written_out(ASKED, True)
    (tmp_path / "bare").mkdir()
    for file in ("config.json", "model.safetensors"):
        shutil.copy(base / file, tmp_path / "bare" / file)
    assert chat_template(tmp_path / "bare", base)(ASKED, False) == written_out(ASKED, False)
    with pytest.raises(ModelError, match="has no chat template"):
        chat_template(demo_base_path())(ASKED, False)
    tokenizer = AutoTokenizer.from_pretrained(base)
    tokenizer.chat_template = "{{ raise_exception('roles must alternate') }}"
    tokenizer.save_pretrained(base)
    rows = write_jsonl(tmp_path / "rows.jsonl", [{"text": "a"}, {"messages": ASKED}])
    with pytest.raises(DataError, match=r"rows.jsonl, line 2: .*refuses the conversation \(roles must alternate\)"):
        read_texts(rows, chat=chat_template(base))


@pytest.mark.parametrize(
    "template",
    [
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{{ messages.append({}) }}",
        "{% for i in range(10 ** 9) %}{% endfor %}",
        "{{ messages[99].content }}",
        "{{ 1 / 0 }}",
        "{% if %}",
    ],
)
def test_a_chat_template_runs_in_a_sandbox(tmp_path: Path, template: str) -> None:
    base = chat_base(tmp_path / "base")
    tokenizer = AutoTokenizer.from_pretrained(base)
    tokenizer.chat_template = template
    tokenizer.save_pretrained(base)
    with pytest.raises(DataError, match="refuses the conversation"):
        chat_template(base)(ASKED, False)


def test_a_beginning_that_the_tokenizer_adds_itself_stands_there_once(tmp_path: Path) -> None:
    base = chat_base(tmp_path / "base")
    tokenizer = AutoTokenizer.from_pretrained(base)
    tokenizer.bos_token = tokenizer.eos_token
    tokenizer.chat_template = "{{ bos_token }}" + TEMPLATE
    tokenizer.save_pretrained(base)
    begins = tokenizer("a")["input_ids"][:1] == [tokenizer.bos_token_id]
    text = chat_template(base)(ASKED, False)
    assert text.startswith(tokenizer.bos_token) != begins
    first = AutoTokenizer.from_pretrained(base)(text)["input_ids"][:2]
    assert first[0] == tokenizer.bos_token_id
    assert first[1] != tokenizer.bos_token_id


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base with a chat template, fine-tuned on answers to prompts by the command, and both sets of these."""
    folder = tmp_path_factory.mktemp("work")
    chat_base(folder / "base")
    for name, texts in (("members", halves(40)), ("nonmembers", halves(60, 300))):
        rows = [
            {"id": i, "prompt": message("user", t[:s]), "completion": message("assistant", t[s:])}
            for i, t, s in zip(texts.ids, texts.texts, texts.starts, strict=True)
        ]
        write_jsonl(folder / f"{name}.jsonl", rows)
    done = run_ltmia(
        "finetune", "base", "--texts", "members.jsonl", "-o", "target", "--epochs", "4", "--learning-rate", "1e-3",
        cwd=folder,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return folder


SETS = ("--members", "members.jsonl", "--nonmembers", "nonmembers.jsonl", "--attacks", "difference,wbc,loss")


def test_answers_are_audited_from_models_and_from_recordings_alike(work: Path) -> None:
    exactly = ("--dtype", "float32")
    done = run_ltmia("audit", "target", "--base", "base", *SETS, "-o", "audit", "--reveal", *exactly, cwd=work)
    assert done.returncode == 0, done.stderr
    results = read_results(work / "audit")
    assert results.attacks["difference"].auc.value > 0.8
    assert results.validity.backend.status == "ok", "scored again, prompts are left out again"
    assert results.data.n_cut > 0
    records = pq.read_table(work / "audit" / "records.parquet")
    texts = read_texts(work / "members.jsonl", chat=chat_template(work / "base"))
    first = encode_texts(
        TOKENIZER, texts.texts, max_length=results.settings["max_length"], vocab_size=10**6, starts=texts.starts
    )
    assert records["n_tokens"].to_pylist()[:40] == [text.n_scored for text in first]
    tokens = pq.read_table(work / "audit" / "private" / "tokens.parquet").to_pylist()[0]
    assert len(tokens["token"]) == len(tokens["difference"])

    for model in ("target", "base"):
        files = ("--texts", "members.jsonl", "--texts", "nonmembers.jsonl")
        length = ("--max-length", str(results.settings["max_length"]))
        done = run_ltmia("record", model, *files, "-o", f"{model}.jsonl.gz", *exactly, *length, cwd=work)
        assert done.returncode == 0, done.stderr
    refused = run_ltmia("audit", "target.jsonl.gz", "--base", "base.jsonl.gz", *SETS, "-o", "recorded", cwd=work)
    assert refused.returncode == 2
    assert "members.jsonl, line 1: holds messages, and there is no chat template without the target" in refused.stderr
    for name in ("members", "nonmembers"):
        read = read_texts(work / f"{name}.jsonl", chat=chat_template(work / "base"))
        rows = [
            {"id": i, "prompt": t[:s], "completion": t[s:]}
            for i, t, s in zip(read.ids, read.texts, read.starts, strict=True)
        ]
        write_jsonl(work / f"plain-{name}.jsonl", rows)
    plain = [part.replace("members", "plain-members") if part.startswith("members") else part for part in SETS]
    plain = [
        part.replace("nonmembers", "plain-nonmembers") if part.startswith("nonmembers") else part for part in plain
    ]
    done = run_ltmia("audit", "target.jsonl.gz", "--base", "base.jsonl.gz", *plain, "-o", "recorded", cwd=work)
    assert done.returncode == 0, done.stderr
    recorded = pq.read_table(work / "recorded" / "records.parquet")
    assert recorded["n_tokens"].to_pylist() == records["n_tokens"].to_pylist()
    for name in ("difference", "wbc", "loss"):
        ours, theirs = (table[f"score_{name}"].to_numpy() for table in (records, recorded))
        np.testing.assert_allclose(ours, theirs, atol=1e-5)


CLOCK = "{{ 'Today is ' + strftime_now('%d %b %Y') + '. ' }}" + TEMPLATE


def test_a_template_that_reads_the_clock_is_told_the_day_or_warned_of(tmp_path: Path) -> None:
    base = chat_base(tmp_path / "base")
    plain = chat_template(base, day=date(2026, 1, 31))
    assert plain(ASKED, False) == written_out(ASKED, False)
    assert plain.day_told is None
    tokenizer = AutoTokenizer.from_pretrained(base)
    tokenizer.chat_template = CLOCK
    tokenizer.save_pretrained(base)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fixed = chat_template(base, day=date(2026, 1, 31))
        assert fixed(ASKED, False) == "Today is 31 Jan 2026. " + written_out(ASKED, False)
    assert fixed.day_told == date(2026, 1, 31)
    today = chat_template(base)
    with pytest.warns(UserWarning, match=r"writes the date into conversations and was given .*with `day`"):
        text = today(ASKED, False)
    assert text.startswith(f"Today is {today.day_told:%d %b %Y}. ")


def test_the_day_of_the_conversations_is_an_option_and_stands_in_the_settings(tmp_path: Path) -> None:
    base = chat_base(tmp_path / "base")
    tokenizer = AutoTokenizer.from_pretrained(base)
    tokenizer.chat_template = CLOCK
    tokenizer.save_pretrained(base)
    sides = []
    for name in ("members", "nonmembers"):
        rows = [{"messages": [{"role": "user", "content": f"{name} {i} lamps"}]} for i in range(12)]
        sides += [f"--{name}", str(write_jsonl(tmp_path / f"{name}.jsonl", rows))]
    out = tmp_path / "out"
    said = run_ltmia(
        *("audit", str(base), "--base", str(base), *sides),
        *("-o", str(out), "--attacks", "loss", "--date", "2026-01-31", "--quiet"),
    )
    assert "writes the date" not in said.stderr
    assert json.loads((out / "results.json").read_text())["settings"]["chat_day"] == "2026-01-31"
