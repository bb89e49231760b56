"""Texts for a server that takes no token ids: they are sent as characters, and the server makes the tokens.

The numbers belong to the texts' ids only if the server makes the same tokens. So a text is cut where its ids, written
as characters and tokenised again, are the same ids; how many the server made is compared for each answer.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace

from transformers import PreTrainedTokenizerBase

from ltmia.models.tokens import LEAST_IDS, EncodedText

MOST_CUT = 16
"""Tokens that may be cut from the end of a text. Half a word, or half a character, is a few tokens."""
ANY_WORD = "a"


def unshared_texts(tokenizer: PreTrainedTokenizerBase, vocab_size: int) -> frozenset[str]:
    """Return the texts that one token alone has; a model's vocabulary may be larger than the tokenizer's."""
    n_tokens = min(vocab_size, len(tokenizer))  # the rest is padding
    counts = Counter(tokenizer.batch_decode([[token] for token in range(n_tokens)]))
    return frozenset(text for text, n in counts.items() if n == 1)


@dataclass(frozen=True, slots=True)
class SentTexts:
    """Turns the ids of one tokenizer into characters, and back."""

    tokenizer: PreTrainedTokenizerBase
    n_before: int
    """Number of tokens that the tokenizer puts before a text, such as BOS; the server must do so too."""
    n_texts: int
    """Number of different texts that the vocabulary's tokens have: special ones and bytes of characters have none."""

    @classmethod
    def of(cls, tokenizer: PreTrainedTokenizerBase, vocab_size: int) -> "SentTexts":
        """Ask a tokenizer what it puts before a text, and for the texts of all tokens."""
        bare = tokenizer(ANY_WORD, add_special_tokens=False)["input_ids"]
        n_before = list(tokenizer(ANY_WORD)["input_ids"]).index(bare[0])
        tokens = [[token] for token in range(min(vocab_size, len(tokenizer)))]
        written = tokenizer.batch_decode(tokens, skip_special_tokens=True)
        return cls(tokenizer, n_before, len({text.replace("\ufffd", "") for text in written}))

    def characters(self, ids: Sequence[int]) -> str:
        """Return the text of some ids, without the tokens before it."""
        return str(self.tokenizer.decode(list(ids[self.n_before :]), clean_up_tokenization_spaces=False))

    def read_again(self, ids: Sequence[int]) -> list[int]:
        """Return the ids that the characters of some ids have: those that the server makes."""
        found = self.tokenizer(self.characters(ids), add_special_tokens=False, verbose=False)["input_ids"]
        return [*ids[: self.n_before], *found]

    def is_text_of(self, token: int, theirs: str) -> bool:
        """Say whether a server's text can be that of a token; a space at its beginning makes another token.

        SentencePiece's decoder leaves out the space that its tokens have; the text of half a character is not known.
        """
        ours, raw = str(self.tokenizer.decode([token])), str(self.tokenizer.convert_ids_to_tokens(token))
        unknown = "\ufffd" in ours or token in self.tokenizer.all_special_ids
        return unknown or theirs in {ours, raw, raw.replace("\u2581", " ")}

    def sendable(self, text: EncodedText) -> EncodedText:
        """Cut a text where its characters give its ids, and score no token that the server gives no number for."""
        if text.reason is not None:
            return text
        ids, start = text.ids.tolist(), max(text.start, 1 + self.n_before)
        for n in range(len(ids), max(len(ids) - MOST_CUT, start), -1):
            if self.read_again(ids[:n]) == ids[:n]:
                if n - start < LEAST_IDS["default"] - 1:
                    break
                truncated = True if n < len(ids) else text.truncated
                return replace(text, ids=text.ids[:n], start=start, truncated=truncated)
        return replace(text, reason="too few of its tokens can be sent as characters that give the same tokens")
