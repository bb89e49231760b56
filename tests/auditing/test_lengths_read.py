"""What an audit says it read of long texts is what the models took."""

import pytest

from ltmia.auditing.audit import AuditConfig, audit
from ltmia.errors import ConfigError
from ltmia.finetuning.config import FinetuneConfig
from ltmia.finetuning.finetune import finetune
from ltmia.finetuning.tiny import TinyConfig, build_base
from ltmia.finetuning.training import save_model
from ltmia.models.loading import load_pair
from ltmia.models.pair import Pair
from ltmia.records import Texts
from ltmia.report.words import unread
from ltmia.scoring.audited_pair import LEAST_LENGTH
from ltmia.scoring.extraction import DEFAULT_LENGTH
from ltmia.scoring.in_memory import score_texts
from ltmia.scoring.recorded_pair import load_recorded_pair
from ltmia.scoring.recording import RecordConfig, record_model
from plain_loops import TOKENIZER


def small(seed):
    shape = TinyConfig(model_type="gpt2", vocab_size=300, hidden_size=32, n_layers=2, n_heads=2)
    model = build_base(shape, seed=seed)
    assert model.config.max_position_embeddings < 2048
    return model.eval()


def test_no_more_is_claimed_than_the_models_take(tmp_path):
    pair = Pair(target=small(1), reference=small(2), tokenizer=TOKENIZER)
    limit = pair.target.config.max_position_embeddings
    members = [f"Crate {i} of the cargo holds a letter. " * 200 for i in range(4)]
    nonmembers = [f"Snow on pier {i}. " * 200 for i in range(4)]
    for asked, read, cure in (
        (2048, limit, "The models accept no longer texts"),
        (64, 64, "A larger `max_length` reads more"),
    ):
        config = AuditConfig(attacks="loss", max_length=asked)
        found = audit(pair, members, nonmembers, tmp_path / str(asked), config=config).results
        assert (found.settings["max_length"], found.settings["max_positions"]) == (read, limit)
        assert f"Only the first {read} tokens of each text were read. 8 of 8" in unread(found)
        assert cure in unread(found)


@pytest.mark.parametrize(("told", "read"), [(None, DEFAULT_LENGTH), (200, 200), (8, LEAST_LENGTH)])
def test_as_much_is_read_as_was_trained_on(tmp_path, told, read):
    folder, texts = tmp_path / "target", ["Crate 3 of the cargo holds a letter. " * 300] * 4
    for name in ("base", "target"):
        save_model(small(1 if name == "base" else 2), TOKENIZER, tmp_path / name)
    if told is not None:
        finetune(small(1), TOKENIZER, texts, FinetuneConfig(epochs=1, max_length=told), tmp_path / "tuned")
        folder = tmp_path / "tuned"
    pair = load_pair(folder, tmp_path / "base")
    config = AuditConfig(attacks="loss", observer="logprobs")
    found = audit(pair, texts[:2], texts[2:], tmp_path / "out", config=config).results
    assert found.settings["max_length"] == read
    assert score_texts(pair, texts[:1], attacks="loss")["loss"][0] == pytest.approx(
        score_texts(pair, texts[:1], attacks="loss", max_length=read)["loss"][0]
    )


def test_all_that_is_recorded_is_read(tmp_path):
    texts = Texts(texts=tuple(f"Crate {i} of the cargo. " * 100 for i in range(4)), ids=tuple("abcd"))
    paths = [tmp_path / f"{name}.jsonl" for name in ("target", "base")]
    for seed, path in enumerate(paths):
        pair = Pair(target=small(seed), reference=small(seed), tokenizer=TOKENIZER)
        record_model(pair, texts, path, config=RecordConfig(max_length=333))
    sides = [texts.take(rows) for rows in ([0, 1], [2, 3])]
    config = AuditConfig(attacks="loss")
    found = audit(load_recorded_pair(*paths), *sides, tmp_path / "out", config=config).results
    assert (found.settings["max_length"], found.data.n_cut) == (333, 4)


@pytest.mark.parametrize("asked", [0, 1, -3])
def test_a_length_without_a_scored_token_is_refused(tmp_path, asked):
    pair = Pair(target=small(1), reference=small(2), tokenizer=TOKENIZER)
    for run in (
        lambda: score_texts(pair, ["a crate"], attacks="loss", max_length=asked),
        lambda: audit(pair, ["a crate"], ["a pier"], tmp_path / "out", config=AuditConfig(max_length=asked)),
    ):
        with pytest.raises(ConfigError, match=rf"`max_length={asked}`: expected 2 or more"):
            run()
    assert not (tmp_path / "out" / "results.json").exists()
