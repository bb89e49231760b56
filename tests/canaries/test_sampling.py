"""Canaries sampled from a small LM: different, in one line, the same for each size of batch."""

import pytest
import torch
from transformers import PreTrainedTokenizerFast

from ltmia.canaries import sampling
from ltmia.canaries.sampling import SampleConfig, one_line, sample_texts
from ltmia.data.duplicates import normalise_text
from ltmia.errors import ConfigError
from ltmia.finetuning.tiny import TinyConfig, build_base, train_tokenizer
from ltmia.models.pair import Pair

VOCAB = 300
WORDS = [f"Crate {i * 37 % 101} of the cargo holds {i} lamps\nand a letter." for i in range(40)]
CONFIG = SampleConfig(n_texts=12, n_tokens=16, seed=3)


def pair_of(tokenizer: PreTrainedTokenizerFast | None = None, *, max_positions: int = 64) -> Pair:
    shape = TinyConfig(vocab_size=VOCAB, model_type="gpt2", hidden_size=16, n_layers=1, max_positions=max_positions)
    model = build_base(shape, seed=0)
    return Pair(target=model, reference=model, tokenizer=tokenizer or train_tokenizer(WORDS, VOCAB))


def test_texts_differ_have_one_line_and_do_not_depend_on_the_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    pair = pair_of()
    found = sample_texts(pair, CONFIG)
    assert len({normalise_text(text) for text in found}) == 12
    for text in found:
        assert text == one_line(text)
        assert len(pair.tokenizer(text, add_special_tokens=False)["input_ids"]) >= 8
        assert not any(token in text for token in pair.tokenizer.all_special_tokens)
    monkeypatch.setattr(sampling, "AT_ONCE", 5)
    assert sample_texts(pair, CONFIG) == found
    refused = frozenset({normalise_text(found[0])})
    assert sample_texts(pair, CONFIG, refused=refused)[:11] == found[1:]
    assert sample_texts(pair, SampleConfig(n_texts=12, n_tokens=16, seed=4)) != found


def test_a_beginning_changes_the_texts_and_is_no_part_of_them() -> None:
    pair = pair_of()
    found = sample_texts(pair, SampleConfig(n_texts=5, n_tokens=16, beginning="Crate of lamps:"))
    assert found != sample_texts(pair, SampleConfig(n_texts=5, n_tokens=16))
    assert not any("Crate of lamps:" in text for text in found)


def test_a_model_that_writes_the_same_again_and_again_is_refused() -> None:
    pair = pair_of()
    with torch.no_grad():  # a constant hidden state, and one token far above the rest
        for name, weight in pair.target.named_parameters():
            if "ln_f" in name:
                weight.fill_(1.0 if name.endswith("bias") else 0.0)
        pair.target.get_output_embeddings().weight.zero_()
        pair.target.get_output_embeddings().weight[ord("a")] = 50.0
    with pytest.raises(ConfigError, match=r"gave only [01] different texts .* in 120 draws, and 12 are wanted"):
        sample_texts(pair, CONFIG)


def test_a_model_that_cannot_begin_or_is_too_short_is_refused() -> None:
    with pytest.raises(ConfigError, match="17 tokens: the model reads at most 16"):
        sample_texts(pair_of(max_positions=16), CONFIG)
    tokenizer = train_tokenizer(WORDS, VOCAB)
    tokenizer.bos_token = tokenizer.eos_token = None
    with pytest.raises(ConfigError, match="no token that begins or ends a text: give `beginning`"):
        sample_texts(pair_of(tokenizer), CONFIG)


@pytest.mark.parametrize(
    ("text", "shown"),
    [(" a\t\n b\r\n", "a b"), ("a\x00\x1b[1mb", "a[1mb"), ("a\ufffdb\u200e\u2028c", "ab c"), ("é\ud800字", "é?字")],
)
def test_what_cannot_stand_in_a_line_is_removed(text: str, shown: str) -> None:
    assert one_line(text) == shown
