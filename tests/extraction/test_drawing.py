"""What an audit says can be drawn out is what comes out: counted by really sampling, through models and recordings."""

import json
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.stats import binomtest
from scipy.stats._result_classes import BinomTestResult
from transformers import (
    PreTrainedModel,
    PreTrainedTokenizerBase,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)
from typer.testing import CliRunner

from ltmia.auditing.audit import AuditConfig, audit
from ltmia.auditing.question import AuditResult
from ltmia.cli.app import app
from ltmia.evaluation.files import read_groups
from ltmia.extraction.suffixes import Suffixes, draws_needed, read_suffixes
from ltmia.features.columns import DEFAULT_K
from ltmia.features.store import FeatureStore
from ltmia.finetuning.tiny import TinyConfig, build_base, train_tokenizer
from ltmia.models.loading import LoadOptions, load_alone, load_pair
from ltmia.models.pair import Pair
from ltmia.records import Texts, TokenStatistics
from ltmia.scoring.recorded_pair import load_recorded_pair
from ltmia.scoring.recording import record_model

N_MEMBERS, N_NONMEMBERS, N_DRAWS, LENGTH, PREFIX = 8, 12, 600, 22, 12
"""Texts have as many tokens as letters; the suffix is all behind the first twelve."""
TOP_FIELDS = [field.name for field in fields(TokenStatistics) if "k" in field.type.dim_str.split()]


@dataclass(frozen=True)
class Drawn:
    """Models, texts of random letters, and an audit of them."""

    folder: Path
    pair: Pair
    texts: tuple[Texts, Texts]
    audited: AuditResult
    suffixes: Suffixes


def suffixes_in(folder: Path, n: int) -> Suffixes:
    return read_suffixes(FeatureStore(folder / "private" / "store").statistics(range(n)), [False] * n)


def save(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Drawn:
    folder, rng = tmp_path_factory.mktemp("drawn"), np.random.default_rng(0)
    texts = ["".join(rng.choice(list("abcdefgh"), LENGTH)) for _ in range(N_MEMBERS + N_NONMEMBERS)]
    tokenizer = train_tokenizer([""], 257)
    model = build_base(TinyConfig(model_type="gpt2", vocab_size=257, hidden_size=32, n_layers=1), seed=0)
    ids = torch.tensor(tokenizer(texts)["input_ids"])
    assert ids.shape == (len(texts), LENGTH)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)

    def train(rows: np.ndarray, shares: np.ndarray, order: torch.Tensor) -> None:
        batch = ids[rng.choice(rows, 16, p=shares / shares.sum())][:, order]
        model(input_ids=batch, labels=batch).loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    for _ in range(20):  # letters without their order
        train(np.arange(len(texts)), np.ones(len(texts)), torch.from_numpy(rng.permutation(LENGTH)))
    save(model, tokenizer, folder / "base")
    for _ in range(60):  # the later members stand more often in a batch, so they are learnt better
        for _ in range(10):
            train(np.arange(N_MEMBERS), 1.5 ** np.arange(N_MEMBERS), torch.arange(LENGTH))
        with torch.no_grad():
            logp = model(input_ids=ids[:N_MEMBERS]).logits[:, PREFIX - 1 : -1].log_softmax(-1)
        if logp.gather(2, ids[:N_MEMBERS, PREFIX:, None]).sum((1, 2)).exp().sort().values[-3] > 0.1:
            break
    save(model, tokenizer, folder / "target")
    pair = load_pair(folder / "target", folder / "base", dtype="float32", device="cpu")
    groups = tuple(f"{'member' if row < N_MEMBERS else 'other'} {row // 3}" for row in range(len(texts)))
    named = Texts(texts=tuple(texts), ids=tuple(map(str, range(len(texts)))), groups=groups)
    sets = named.take(range(N_MEMBERS)), named.take(range(N_MEMBERS, len(texts)))
    audited = audit(pair, *sets, folder / "audit", config=AuditConfig(attacks="difference"))
    return Drawn(folder, pair, sets, audited, suffixes_in(folder / "audit", len(texts)))


Warp = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


def continuations(
    model: torch.nn.Module, prefix: torch.Tensor, n: int, *, greedy: bool = False, warp: Warp | None = None
) -> torch.Tensor:
    """Continue a prefix n times by a plain loop; `warp` changes the logits as a sampling setting does."""
    ids = prefix[None].expand(n, -1)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for _ in range(LENGTH - PREFIX):
            logits = model(input_ids=ids).logits[:, -1]
            shares = (logits if warp is None else warp(ids, logits)).softmax(-1)
            following = shares.argmax(-1, keepdim=True) if greedy else torch.multinomial(shares, 1, generator=generator)
            ids = torch.cat([ids, following], 1)
    return ids[:, PREFIX:]


def telling(chances: np.ndarray) -> np.ndarray:
    """Two members that come out sometimes; sampling says nothing new of those that come out always or never."""
    rows = np.argsort(np.abs(chances[:N_MEMBERS] - 0.5))[:2]
    assert ((chances[rows] > 0.02) & (chances[rows] < 0.98)).all(), chances
    return rows


def counted(drawn: Drawn, row: int, warp: Warp) -> BinomTestResult:
    """Sample from the target and count how often a member's suffix comes out."""
    ids = torch.tensor(drawn.pair.tokenizer(drawn.texts[0].texts[row])["input_ids"])
    found = continuations(drawn.pair.target, ids[:PREFIX], N_DRAWS, warp=warp) == ids[PREFIX:]
    return binomtest(int(found.all(1).sum()), N_DRAWS)


def test_among_the_most_likely_tokens_texts_come_out_as_often_as_predicted(drawn: Drawn) -> None:
    top_k = drawn.audited.results.extraction.top_k
    assert top_k == DEFAULT_K == 20
    predicted = np.exp(drawn.suffixes.target_top_logp[:N_MEMBERS])
    rows = telling(predicted)
    for row in rows:
        found = counted(drawn, row, TopKLogitsWarper(top_k)).proportion_ci(0.9999)
        assert found.low <= predicted[row] <= found.high, (row, predicted[row])
    # Eight letters are all that these models write, so fewer tokens than 20 show a difference.
    store = FeatureStore(drawn.folder / "audit" / "private" / "store").statistics(range(N_MEMBERS))
    few = replace(store, tokens=replace(store.tokens, **{n: getattr(store.tokens, n)[:, :2] for n in TOP_FIELDS}))
    among_two = np.exp(read_suffixes(few, [False] * N_MEMBERS).target_top_logp)
    assert (among_two[rows] > predicted[rows] + 0.02).any()
    for row in rows:
        found = counted(drawn, row, TopKLogitsWarper(2)).proportion_ci(0.9999)
        assert found.low <= among_two[row] <= found.high, (row, among_two[row])


@pytest.mark.parametrize("warp", [TemperatureLogitsWarper(0.5), TopPLogitsWarper(0.8), TopKLogitsWarper(3)])
def test_no_setting_draws_a_text_more_often_than_the_bound_says(drawn: Drawn, warp: Warp) -> None:
    bound = np.exp(drawn.suffixes.target_bound[:N_MEMBERS])
    for row in telling(bound):
        assert counted(drawn, row, warp).proportion_ci(0.9999).low <= bound[row], row


def test_what_is_predicted_comes_out_as_often_when_it_is_sampled(drawn: Drawn) -> None:
    chances = np.exp(drawn.suffixes.target_logp)
    assert ((chances > 0.02) & (chances < 0.98)).sum() >= 2, chances
    for row in range(N_MEMBERS):
        ids = torch.tensor(drawn.pair.tokenizer(drawn.texts[0].texts[row])["input_ids"])
        for model, greedy, logp in (
            (drawn.pair.target, drawn.suffixes.target_greedy, drawn.suffixes.target_logp),
            (drawn.pair.reference, drawn.suffixes.reference_greedy, drawn.suffixes.reference_logp),
        ):
            n_found = int((continuations(model, ids[:PREFIX], N_DRAWS, greedy=False) == ids[PREFIX:]).all(1).sum())
            interval = binomtest(n_found, N_DRAWS).proportion_ci(0.9999)
            assert interval.low <= np.exp(logp[row]) <= interval.high, (row, n_found / N_DRAWS, chances[row])
            by_argmax = continuations(model, ids[:PREFIX], 1, greedy=True)[0]
            assert greedy[row] == bool((by_argmax == ids[PREFIX:]).all())
    assert drawn.suffixes.target_greedy.any()


def test_an_audit_counts_members_that_come_out_and_neither_non_members_nor_the_base_give(drawn: Drawn) -> None:
    found, records = drawn.audited.results.extraction, drawn.audited.records.to_pydict()
    assert (found.n_judged, found.n_nonmembers, found.suffix_tokens) == (N_MEMBERS, N_NONMEMBERS, LENGTH - PREFIX)
    needed = draws_needed(drawn.suffixes.target_logp)
    for draws, within in found.within.items():
        out = (needed > 0) & (needed <= int(draws))
        assert within.judged.value == out[:N_MEMBERS].mean()
        assert within.n_new == out[:N_MEMBERS].sum()
        assert within.nonmembers.value == within.judged_by_base.value == within.nonmembers_by_base.value == 0
    assert found.within["1000"].judged.value > 0.3
    assert [n or 0 for n in records["extractable_within"]] == needed.tolist()
    assert records["suffix_tokens"] == [LENGTH - PREFIX] * len(needed)
    assert records["greedy_match"] == drawn.suffixes.target_greedy.tolist()
    page = (drawn.folder / "audit" / "report.html").read_text("utf-8")
    assert "What can be drawn out" in page
    assert "Drawn out within 1,000 draws" in page


def test_recordings_and_prompts_give_the_same(drawn: Drawn) -> None:
    everything = Texts.concatenate(drawn.texts)
    for name in ("target", "base"):
        alone = load_alone(drawn.folder / name, options=LoadOptions(dtype="float32", device="cpu"))
        record_model(alone, everything, drawn.folder / f"{name}.jsonl")
    recorded = load_recorded_pair(drawn.folder / "target.jsonl", drawn.folder / "base.jsonl")
    prompted = [
        Texts(texts=part.texts, ids=part.ids, groups=part.groups, starts=(PREFIX,) * len(part)) for part in drawn.texts
    ]  # the answer is then the whole of the suffix
    for pair, texts, name in ((recorded, drawn.texts, "recorded"), (drawn.pair, prompted, "prompted")):
        again = audit(pair, *texts, drawn.folder / name, config=AuditConfig(attacks="difference"))
        of_store = {"top_k", "among_top"} if name == "recorded" else set()  # recordings hold fewer tokens
        found, expected = (one.results.extraction.model_dump(exclude=of_store) for one in (again, drawn.audited))
        assert found == expected, name


def test_each_person_has_a_row_with_the_texts_that_stand_out(drawn: Drawn) -> None:
    found, records = read_groups(drawn.folder / "audit").to_pylist(), drawn.audited.records.to_pylist()[:N_MEMBERS]
    assert sorted(row["n_texts"] for row in found) == [2, 3, 3]
    assert sum(row["n_extractable"] for row in found) == drawn.audited.results.extraction.within["1000"].n_new > 0
    for row in found:
        of_group = [record for record in records if record["group"] == row["group"]]
        assert row["n_texts"] == len(of_group)
        assert row["strongest"] == max(of_group, key=lambda record: record["score_difference"])["id"]
        assert row["n_flagged"] == sum(record["flagged"] for record in of_group)
        assert row["n_extractable"] == sum((record["extractable_within"] or 10**9) <= 1000 for record in of_group)


def test_score_says_of_each_group_whether_it_was_used(drawn: Drawn, tmp_path: Path) -> None:
    for name, part in zip(("candidates", "nonmembers"), drawn.texts, strict=True):
        rows = zip(part.ids, part.texts, part.groups, strict=True)
        lines = [json.dumps({"id": key, "text": text, "author": group}) for key, text, group in rows]
        (tmp_path / f"{name}.jsonl").write_text("\n".join(lines), "utf-8")
    command = ["score", str(drawn.folder / "target"), "--base", str(drawn.folder / "base"), "--attack", "difference"]
    command += ["--dtype", "float32", "--by-group", "-o", str(tmp_path / "out")]
    for name in ("candidates", "nonmembers"):
        command += [f"--{name}", str(tmp_path / f"{name}.jsonl")]
    refused = CliRunner().invoke(app, command)
    assert "--by-group" in str(refused.exception)
    printed = CliRunner().invoke(app, [*command, "--group-column", "author"]).output
    rows = read_groups(tmp_path / "out").to_pylist()
    table = printed[printed.index("strongest text") :].splitlines()[1:]
    assert sorted(line.split()[0] for line in table if line) == sorted(row["group"] for row in rows)
    for row in rows:
        line = next(line for line in table if line.startswith(row["group"]))
        assert line.split()[-1] == row["strongest"]
        assert f"  {row['p_value']:.2g}  " in line
