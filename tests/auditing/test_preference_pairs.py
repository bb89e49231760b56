"""Preference pairs, from file to report: what is read, how pairs are scored, and what is refused."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from ltmia.attacks.selection import select_attacks
from ltmia.auditing.audit import AuditConfig, audit
from ltmia.auditing.score import ScoreConfig, score
from ltmia.auditing.text_sets import join_sets
from ltmia.data.embedded import demo_base_path, demo_texts
from ltmia.data.reading import read_texts
from ltmia.errors import ConfigError, DataError
from ltmia.evaluation.files import read_records, read_results
from ltmia.finetuning.config import FinetuneConfig
from ltmia.finetuning.finetune import finetune
from ltmia.finetuning.perturbed import save_perturbed
from ltmia.models.loading import load_pair
from ltmia.models.pair import Pair
from ltmia.records import Texts
from ltmia.report.words import unread

ROWS = [
    {"prompt": "Q: why?\nA:", "chosen": " because", "rejected": " no"},
    {"prompt": "", "chosen": "b", "rejected": "c"},
]


def write(path: Path, rows: list[dict]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    return path


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Pair:
    folder = tmp_path_factory.mktemp("moved")
    save_perturbed(demo_base_path(), folder / "target")
    return load_pair(folder / "target", demo_base_path(), dtype="float32", device="cpu")


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Real passages: the beginning as prompt, the rest as chosen, the rest of another passage as rejected."""
    texts = demo_texts().texts[:60]
    rows = [
        {"prompt": text[:100], "chosen": text[100:220], "rejected": other[100:260]}
        for text, other in zip(texts, texts[1:] + texts[:1], strict=True)
    ]
    rows[3]["rejected"] = ""
    folder = tmp_path_factory.mktemp("pairs")
    return write(folder / "members.jsonl", rows[:30]), write(folder / "nonmembers.jsonl", rows[30:])


def test_a_pair_is_one_text_with_a_rejected_one(tmp_path: Path) -> None:
    found = read_texts(write(tmp_path / "pairs.jsonl", ROWS))
    assert found.texts == ("Q: why?\nA: because", "b")
    assert found.starts == (10, 0)
    assert found.rejected.texts == ("Q: why?\nA: no", "c")
    assert found.rejected.starts == (10, 0)
    assert found.whole[1] == "b\nc"
    part = found.take([1, 0])
    assert part.rejected.texts == ("c", "Q: why?\nA: no")
    assert Texts.concatenate([found, part]).rejected.texts == ("Q: why?\nA: no", "c", "c", "Q: why?\nA: no")
    with pytest.raises(ValueError, match="do not align"):
        replace(found, rejected=part.rejected.take([0]))


def test_without_a_prompt_the_common_beginning_is_the_prompt(tmp_path: Path) -> None:
    asked = [{"role": "user", "content": "Who?"}]
    rows = [
        {"chosen": "Q: why? Because", "rejected": "Q: why? No"},
        {name: [*asked, {"role": "assistant", "content": who}] for name, who in (("chosen", "I"), ("rejected", "You"))},
    ]

    def chat(messages, ask, tools=None):
        return "".join(f"<{m['role']}> {m['content']}\n" for m in messages) + ("<assistant>" if ask else "")

    found = read_texts(write(tmp_path / "pairs.jsonl", rows), chat=chat)
    assert found.texts[1] == "<user> Who?\n<assistant> I\n"
    for text, start, other, begins in zip(
        found.texts, found.starts, found.rejected.texts, found.rejected.starts, strict=True
    ):
        assert text[:start] == other[:begins]
        assert text[start] != other[begins]


def test_pairs_and_other_texts_are_not_mixed(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"mixed.jsonl, line 3: no preference pair, unlike the rows before it"):
        read_texts(write(tmp_path / "mixed.jsonl", [*ROWS, {"text": "plain"}]))
    pairs, plain = read_texts(write(tmp_path / "pairs.jsonl", ROWS)), Texts(texts=("x",), ids=("x",))
    with pytest.raises(DataError, match=r"pairs.jsonl holds preference pairs and memory does not"):
        join_sets(plain, pairs, "members")
    assert read_texts(write(tmp_path / "both.jsonl", [{**ROWS[0], "messages": None, "text": "x"}])).rejected is None


def test_pairs_are_equal_only_if_both_completions_are(tmp_path: Path) -> None:
    rows = [ROWS[0], {**ROWS[0], "rejected": " yes"}, ROWS[0]]
    sets = join_sets(
        read_texts(write(tmp_path / "pairs.jsonl", rows)), read_texts(write(tmp_path / "n.jsonl", ROWS)), "members"
    )
    assert sets.originals[:3].tolist() == [0, 1, 0]


def log_ratio(pair: Pair, text: str, start: int) -> float:
    """Sum of log p_T - log p_R over the tokens of a completion: one plain forward pass each."""
    ids = pair.tokenizer(text, return_tensors="pt")["input_ids"]
    prompt = pair.tokenizer(text[:start])["input_ids"]
    first = next((i for i, (a, b) in enumerate(zip(prompt, ids[0].tolist(), strict=False)) if a != b), len(prompt))
    sums = []
    for model in (pair.target, pair.reference):
        with torch.no_grad():
            logp = model(input_ids=ids).logits[0, :-1].log_softmax(-1)
        sums.append(logp.gather(1, ids[0, 1:, None])[max(first, 1) - 1 :].sum().item())
    return sums[0] - sums[1]


def test_scores_are_sums_of_log_ratios_of_plain_forward_passes(
    pair: Pair, files: tuple[Path, Path], tmp_path: Path
) -> None:
    texts = [read_texts(file) for file in files]
    config = AuditConfig(attacks="difference,premia_pair,premia_chosen,premia_rejected")
    found = audit(pair, *texts, tmp_path / "audit", config=config)
    assert found.results.data.preference_pairs
    assert found.results.decisions.attack == "premia_pair"
    assert "Each record is a preference pair" in unread(found.results)
    decisions = found.results.decisions.model_copy(update={"attack": "loss"})
    alone = found.results.model_copy(update={"attacks": {}, "decisions": decisions})
    assert "only the chosen completion was read" in unread(alone)
    records = read_records(tmp_path / "audit").to_pydict()
    both = Texts.concatenate(texts)
    for row in (0, 7, 41):  # scores are published with one decimal, see `rounding.published`
        chosen = log_ratio(pair, both.texts[row], both.starts[row])
        rejected = log_ratio(pair, both.rejected.texts[row], both.rejected.starts[row])
        assert records["score_premia_chosen"][row] == pytest.approx(chosen, abs=0.06)
        assert records["score_premia_rejected"][row] == pytest.approx(-rejected, abs=0.06)
        assert records["score_premia_pair"][row] == pytest.approx(chosen - rejected, abs=0.06)
    assert records["reason"][3].startswith("rejected completion: ")
    assert np.isnan(records["score_premia_pair"][3])
    assert np.isfinite(records["score_difference"][3])
    assert found.results.data.n_unscorable == 1
    again = audit(pair, *texts, tmp_path / "audit", config=config)
    np.testing.assert_array_equal(again.records["score_premia_pair"], found.records["score_premia_pair"])
    assert len(again.results.reused) > len(found.results.reused)
    other = replace(texts[0], rejected=replace(texts[0].rejected, texts=("x", *texts[0].rejected.texts[1:])))
    with pytest.raises(ConfigError, match="texts"):
        audit(pair, other, texts[1], tmp_path / "audit", config=config)


def test_a_pair_of_unknown_membership_is_judged_by_its_margin(
    pair: Pair, files: tuple[Path, Path], tmp_path: Path
) -> None:
    texts = [read_texts(file).take(range(12)) for file in files]
    score(pair, *texts, tmp_path / "score", config=ScoreConfig(attack="premia_pair"))
    records = read_records(tmp_path / "score").to_pydict()
    both = Texts.concatenate(texts)
    margin = log_ratio(pair, both.texts[1], both.starts[1])
    margin -= log_ratio(pair, both.rejected.texts[1], both.rejected.starts[1])
    assert records["score_premia_pair"][1] == pytest.approx(margin, abs=0.06)
    assert np.isfinite(records["p_value"][:12]).sum() == 11
    assert read_results(tmp_path / "score").decisions.attack == "premia_pair"


def test_what_pairs_are_needed_for_or_do_not_serve_is_said(
    pair: Pair, files: tuple[Path, Path], tmp_path: Path
) -> None:
    plain = ["some words of a text"] * 3
    with pytest.raises(ConfigError, match="premia_pair: needs preference pairs, files with the columns `chosen`"):
        audit(pair, plain, plain, tmp_path / "plain", config=AuditConfig(attacks="loss,premia_pair"))
    assert "premia_pair" not in select_attacks("fast")
    for forced in (AuditConfig(attacks="loss", observer="weights"), AuditConfig(attacks="loss", thorough=True)):
        with pytest.raises(ConfigError, match="read for single texts, not for preference pairs: leave out `observer`"):
            audit(pair, *map(read_texts, files), tmp_path / "w", config=forced)
    with pytest.raises(DataError, match="holds preference pairs, on which this does not train"):
        finetune(pair.reference, pair.tokenizer, read_texts(files[0]), FinetuneConfig(), tmp_path / "model")
