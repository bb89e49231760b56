"""Texts to ids: rows kept, special tokens where they belong, and nothing hostile gets through."""

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tokenizers.processors import TemplateProcessing

from ltmia.finetuning.tiny import END_ID, train_tokenizer
from ltmia.models.tokens import CHARACTERS_PER_TOKEN, encode_texts

TEXTS = ["The lamp burns low.", "Crate nine of the cargo holds a letter and a map.", "Snow on the pier."]
TOKENIZER = train_tokenizer(TEXTS * 3, 300)
BOS = 300


def with_ends(*, single):
    """A tokenizer that puts tokens of its own around a text."""
    tokenizer = train_tokenizer(TEXTS * 3, 300)
    tokenizer.add_special_tokens({"bos_token": "<s>"})
    ends = [("<s>", BOS), ("<|endoftext|>", END_ID)]
    tokenizer._tokenizer.post_processor = TemplateProcessing(single=single, special_tokens=ends)
    return tokenizer


def encode(texts, tokenizer=TOKENIZER, **options):
    return encode_texts(tokenizer, texts, **({"max_length": 24, "vocab_size": 301} | options))


def ids_of(text, tokenizer=TOKENIZER, **options):
    return encode([text], tokenizer, **options)[0].ids.tolist()


def plain(text):
    return TOKENIZER.encode(text, add_special_tokens=False)


@given(
    texts=st.lists(st.text(st.characters(), max_size=60), max_size=6),
    max_length=st.integers(2, 30),
    encoding=st.sampled_from(["default", "published"]),
)
@example(texts=["\x80"], max_length=2, encoding="published")
@settings(deadline=None, max_examples=60)
def test_every_text_keeps_its_row(texts, max_length, encoding):
    found = encode(texts, max_length=max_length, encoding=encoding)
    assert len(found) == len(texts)
    for text, encoded in zip(texts, found, strict=True):
        ids = plain(text.encode("utf-8", "replace").decode())
        expected = ids[:max_length] if encoding == "default" else [*ids[: max_length - 1], END_ID]
        if encoding == "default" and len(ids) > 1 and ids[-1] == END_ID:
            continue
        assert encoded.ids.tolist() == expected
        assert (encoded.reason is None) == (len(expected) > (2 if encoding == "default" else 1))
        assert encoded.n_scored == (0 if encoded.reason else len(expected) - 1)
        assert encoded.reason or encoded.truncated == (len(ids) > max_length - (encoding == "published"))
        assert encoded.ids.dtype == np.int64


def test_published_encoding_adds_no_special_token_but_the_end():
    tokenizer = with_ends(single="<s> $A <|endoftext|>")
    for text in TEXTS:
        assert ids_of(text, tokenizer, encoding="published") == [*plain(text)[:23], END_ID]
    assert encode(["x"], encoding="published")[0].n_scored == 1
    assert encode([""], encoding="published")[0].reason == "1 token(s): too few to score"


def test_a_bos_token_lets_the_first_word_be_scored_and_an_eos_behind_is_taken_off():
    text = TEXTS[2]
    assert ids_of(text, with_ends(single="<s> $A")) == [BOS, *plain(text)]
    assert ids_of(text, with_ends(single="<s> $A <|endoftext|>")) == [BOS, *plain(text)]
    assert ids_of(text, with_ends(single="$A <|endoftext|>")) == plain(text)
    long = TEXTS[1] * 9
    assert ids_of(long, with_ends(single="<s> $A <|endoftext|>")) == [BOS, *plain(long)][:24]
    assert encode([""], with_ends(single="<s> $A <|endoftext|>"))[0].reason == "1 token(s): too few to score"


def test_a_tokenizer_without_eos_or_pad_will_do():
    tokenizer = train_tokenizer(TEXTS * 3, 300)
    tokenizer.eos_token = tokenizer.pad_token = None
    assert tokenizer.eos_token_id is None
    for encoding in ("default", "published"):
        assert ids_of(TEXTS[0], tokenizer, encoding=encoding) == plain(TEXTS[0])


@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_and_truncation_that_a_tokenizer_was_saved_with_play_no_part(side):
    tokenizer = train_tokenizer(TEXTS * 3, 300)
    tokenizer.padding_side = tokenizer.truncation_side = side
    tokenizer.model_max_length = 5
    tokenizer._tokenizer.enable_padding(length=64, pad_id=7, direction=side)
    tokenizer._tokenizer.enable_truncation(3, direction=side)
    for text, encoded in zip(TEXTS, encode(TEXTS, tokenizer), strict=True):
        assert encoded.ids.tolist() == plain(text)[:24]


def test_hostile_texts_give_ids_or_a_reason():
    texts = [
        "",
        "a",
        "lamp " * 20_000,
        "x" * 100_000,
        "\ud800",
        "\ud83d \ude00 low",
        "a\x00b",
        "\u202eevil",
        TEXTS[0],
        TEXTS[0],
    ]
    found = encode(texts)
    assert [i for i, text in enumerate(found) if text.reason] == [0, 1, 4]
    assert found[0].reason == "0 token(s): too few to score"
    assert found[4].ids.tolist() == plain("?")
    assert found[5].ids.tolist() == plain("? ? low")
    assert len(found[3].ids) == 24
    assert found[8].ids.tolist() == found[9].ids.tolist()


def test_the_far_end_of_a_long_text_is_not_even_read():
    head = "lamp " * (24 * CHARACTERS_PER_TOKEN)
    assert ids_of(head + "\x00" * 10**6) == ids_of(head)


def test_ids_that_one_model_does_not_know_make_a_text_unscorable():
    tokenizer = train_tokenizer(TEXTS * 3, 300)
    tokenizer.add_tokens(["<patient>"])
    found = encode(["a <patient> b", TEXTS[0]], tokenizer, vocab_size=300)
    assert found[0].reason == "a token is unknown to one of the two models"
    assert found[0].n_scored == 0
    assert found[1].reason is None


def test_special_tokens_written_out_in_a_text_do_not_stop_it():
    found = encode(["low <|endoftext|> lamp", "<|endoftext|>" * 3])
    assert found[0].reason is None
    assert END_ID in found[0].ids[1:-1]
    assert len(found[1].ids) == 2


def test_more_texts_than_are_encoded_at_once_stay_in_order():
    texts = [f"lamp {i}" for i in range(2345)]
    assert [e.ids.tolist() for e in encode(texts)] == [plain(text) for text in texts]


def test_one_id_is_too_few():
    with pytest.raises(ValueError, match="at least 2 ids are needed"):
        encode(TEXTS, max_length=1)
