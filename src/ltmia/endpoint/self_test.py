"""Tests a server of log-probabilities before its numbers are used.

What a cache, a forgotten adapter or another tokenizer does to the numbers looks plausible. So some of the texts are
asked for several times, and the answers are compared with each other, with the base's, and with local weights.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from transformers import PreTrainedTokenizerBase

from ltmia.endpoint.client import Server
from ltmia.endpoint.protocol import OTHER_TOKENS_MADE, Answer, Form
from ltmia.errors import DataError, ModelError
from ltmia.models.tokens import EncodedText
from ltmia.progress import Report
from ltmia.records import ModelStatistics, shared_beginning

N_TEXTS = 20
"""Texts that are asked for."""
MEAN_NOISE, LARGEST_NOISE = 0.1, 2.0
"""Largest differences in nats, on average and of one token, that number formats and batches explain. A model of 135M
parameters in bfloat16 differs from itself in float32 by 0.04 and 0.4."""
OTHER_TOKENS = 0.02
"""Largest share of tokens that a server may write otherwise than the tokenizer, such as bytes of half a character."""
OTHER_TEXT = 0.5
"""Largest share of one text's tokens: if more are others, the answer is about another text."""
LEAST_EFFECT = 1e-3
"""Differences in nats, on average, that rounding makes between two names of one model."""
CACHE_CURE = "Start the server without a cache of prompts (`--no-enable-prefix-caching`)."
SHIFT_CURE = (
    "llama-cpp-python does so for a model without a token before each text (BOS). Start its server with "
    "`--kv_overrides tokenizer.ggml.add_bos_token=bool:true`, and name by `tokenizer` one that adds the same token "
    "(AutoTokenizer.from_pretrained(MODEL, add_bos_token=True).save_pretrained(FOLDER))."
)

Local = Callable[[Sequence[EncodedText]], list[ModelStatistics]]
"""Gives the statistics that local weights give to texts."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Noise:
    """Differences between two sets of log-probabilities of the same tokens, in nats."""

    mean: float
    """Of the true tokens, absolute, on average."""
    largest: float
    """Of the true tokens, absolute."""

    @classmethod
    def between(cls, ours: Sequence[ModelStatistics], theirs: Sequence[ModelStatistics]) -> "Noise":
        """Compare statistics text by text; no value is missing."""
        parts = [np.abs(a.logp.astype(np.float64) - b.logp) for a, b in zip(ours, theirs, strict=True)]
        found = np.concatenate(parts)
        return cls(mean=float(found.mean()), largest=float(found.max()))

    @property
    def is_small(self) -> bool:
        """Whether number formats and batch sizes alone can cause such differences."""
        return self.mean <= MEAN_NOISE and self.largest <= LARGEST_NOISE

    def is_explained(self, effect: "Noise | None") -> bool:
        """Say whether number formats and batches explain it.

        Half of what fine-tuning changed is too much as well: part of an adapter may be missing.
        """
        return self.is_small and (effect is None or self.mean <= effect.mean / 2)

    def __str__(self) -> str:
        return f"{self.mean:.2g} nats on average and {self.largest:.2g} at most"


@dataclass(frozen=True, slots=True, kw_only=True)
class Passed:
    """What a self-test found."""

    said: str
    """All of it in one line, for the recording's header."""
    effect: Noise | None
    """How much the target differs from its base; None if no base is named."""


@dataclass(frozen=True, slots=True)
class Words:
    """The texts of a tokenizer's tokens."""

    tokenizer: PreTrainedTokenizerBase
    _known: dict[int, tuple[str, ...]] = field(default_factory=dict)

    def of(self, token: int) -> tuple[str, ...]:
        """Return the forms in which servers write a token: decoded, as in the vocabulary, or its id."""
        if token not in self._known:
            raw = self.tokenizer.convert_ids_to_tokens(token)
            self._known[token] = (str(self.tokenizer.decode([token])), str(raw), f"token_id:{token}")
        return self._known[token]

    def are_of(self, token: int, theirs: str) -> bool:
        """Say whether a text is of a token; that of half a character is not known, and spaces do not count."""
        ours, known = self.of(token), theirs.replace("\ufffd", "").strip()
        # What came before can be written into it as half a character, but its own text must be there.
        return "\ufffd" in ours[0] or known in {form.strip() for form in ours}

    def other(self, ids: Sequence[int], answer: Answer) -> list[tuple[int, str]]:
        """Return the tokens for which the server has another text, with that text; a special token may have none."""
        said = [(token, their) for token, their in zip(ids, answer.tokens, strict=True) if their is not None]
        special = set(self.tokenizer.all_special_ids)
        return [
            (token, their)
            for token, their in said
            if not (self.are_of(token, their) or (not their and token in special))
        ]

    def are_of_other_text(self, ids: Sequence[int], answer: Answer) -> bool:
        """Say whether an answer is about other tokens than these, which numbers were asked for."""
        return len(self.other(ids, answer)) > OTHER_TEXT * sum(their is not None for their in answer.tokens)


@dataclass(frozen=True, slots=True, kw_only=True)
class SelfTest:
    """The texts of a self-test and what it may compare with."""

    texts: Sequence[EncodedText]
    tokenizer: PreTrainedTokenizerBase
    base_model: str | None = None
    """Name of the base on the same server: the target must differ from it."""
    local: Local | None = None
    """Local weights that the server should agree with."""

    @classmethod
    def sample(cls, encoded: Sequence[EncodedText], first: int) -> list[EncodedText]:
        """Return the texts to ask for: of all lengths, the longest among them, to be scored from their first id on."""
        scorable = sorted((text for text in encoded if text.n_scored), key=lambda text: len(text.ids))
        places = np.linspace(len(scorable) - 1, 0, min(N_TEXTS, len(scorable))).round().astype(int)
        return [replace(scorable[place], start=first) for place in places]

    def run(self, server: Server, form: Form, report: Report) -> "Passed":
        """Ask, compare, and return what was found.

        Raises:
            ModelError: If the server fails; the message says what to set.
            DataError: If an answer lacks something.
        """
        rows = [text.ids.tolist() for text in self.texts]
        first = self._ask(server, form, rows, report)
        self._check_tokens(server, form, first)
        self._check_places(server, first)
        beginnings = self._check_beginnings(server, form, rows, first, report)
        again = self._ask(server, form, rows[::-1], report)[::-1]
        noise = Noise.between(_numbers(first), _numbers(again))
        if not noise.is_small:
            raise ModelError(
                f"{_place(server)}: asked again in another order, it gives other log-probabilities to the same texts: "
                f"they differ by {noise}. {CACHE_CURE}"
            )
        found = [f"repeated answers differ by {noise}", beginnings]
        effect = self._check_base(server, form, rows, _numbers(again), noise, report)
        found.append("not compared with the base" if effect is None else f"differs from {self.base_model} by {effect}")
        local = self._check_local(server, _numbers(again), effect)
        found.append("not compared with local weights" if local is None else f"differs from local weights by {local}")
        return Passed(said="; ".join(found), effect=effect)

    def _ask(
        self, server: Server, form: Form, rows: Sequence[Sequence[int]], report: Report, model: str | None = None
    ) -> list[Answer]:
        found: dict[int, Answer] = {}
        prompts = ((i, f"text {i + 1} of the self-test", row) for i, row in enumerate(rows))
        try:
            for batch in server.ask(form, prompts, model):
                found |= dict(batch)
                report("self-test", len(found), len(rows))
        except DataError as error:
            raise ModelError(f"{error}. {_cure(str(error))}") from None
        return [found[i] for i in range(len(rows))]

    def _check_tokens(self, server: Server, form: Form, answers: Sequence[Answer]) -> None:
        """Compare the server's text of each token with the tokenizer's."""
        words = Words(self.tokenizer)
        pairs = {
            pair
            for text, answer in zip(self.texts, answers, strict=True)
            for pair in zip(text.ids[form.first :].tolist(), answer.tokens, strict=True)
        }
        other = sorted((token, their) for token, their in pairs if their is not None and not words.are_of(token, their))
        if len(other) > OTHER_TOKENS * len(pairs):
            token, their = other[0]
            ours = words.of(token)[0]
            raise ModelError(
                f"{_place(server)}: the server has another tokenizer: {len(other)} of {len(pairs)} tokens have another "
                f"text there, such as {token}: {server.shown(their)[:40]!r}, here {ours[:40]!r}. Name the served "
                "model's own by `tokenizer`"
            )

    def _check_places(self, server: Server, answers: Sequence[Answer]) -> None:
        """Refuse numbers that belong to the token after the one that they are given for.

        A model that has read a token finds the next one likelier than that token once more.
        """
        pairs = [(answer.statistics.logp, answer.following) for answer in answers if answer.following is not None]
        given = np.concatenate([logp[np.isfinite(after)] for logp, after in pairs] or [np.zeros(0)])
        after = np.concatenate([after[np.isfinite(after)] for _, after in pairs] or [np.zeros(0)])
        # Not their means: one impossible token would decide them.
        if len(given) and np.median(after - given) > MEAN_NOISE:
            raise ModelError(
                f"{_place(server)}: its numbers are shifted by one: in place of each token the next one has a "
                f"log-probability of {np.median(after):.2f} (median), and the token itself {np.median(given):.2f}. "
                f"{SHIFT_CURE}"
            )

    def _check_beginnings(
        self, server: Server, form: Form, rows: Sequence[Sequence[int]], answers: Sequence[Answer], report: Report
    ) -> str:
        """Ask for texts that begin like others and go on differently, and return what was found.

        The beginning must get the same numbers, and the rest others.
        """
        mixed = [[*row[: len(row) // 2], *row[len(row) // 2 :][::-1]] for row in rows]
        if form.sent is not None:
            mixed = [form.sent.read_again(row) for row in mixed]
        n_compared = 0
        for row, mix, before, now in zip(
            rows, mixed, _numbers(answers), _numbers(self._ask(server, form, mixed, report)), strict=True
        ):
            n_shared, n_both = shared_beginning(row, mix) - form.first, min(len(row), len(mix)) - form.first
            if n_shared < 1 or n_both <= n_shared:
                continue
            n_compared += 1
            noise = Noise.between([before.slice(0, n_shared)], [now.slice(0, n_shared)])
            if not noise.is_small:
                raise ModelError(
                    f"{_place(server)}: two texts with the same beginning get different log-probabilities there: they "
                    f"differ by {noise}. {CACHE_CURE}"
                )
            rest = before.slice(n_shared, n_both), now.slice(n_shared, n_both)
            if all(np.array_equal(getattr(rest[0], name), getattr(rest[1], name)) for name in ("logp", "top_logp")):
                raise ModelError(
                    f"{_place(server)}: two texts that only begin alike get the same log-probabilities throughout. "
                    f"{CACHE_CURE}"
                )
        return f"{n_compared} texts compared with others that begin alike"

    def _check_base(
        self,
        server: Server,
        form: Form,
        rows: Sequence[Sequence[int]],
        target: Sequence[ModelStatistics],
        noise: Noise,
        report: Report,
    ) -> Noise | None:
        """Return how much the target differs from the base; None if no base is named."""
        if self.base_model is None:
            return None
        base = _numbers(self._ask(server, form, rows, report, self.base_model))
        effect = Noise.between(target, base)
        if effect.mean <= max(2 * noise.mean, LEAST_EFFECT):
            raise ModelError(
                f"{_place(server)}: the model answers like its base {self.base_model!r}: they differ by {effect}, "
                f"repeated answers by {noise}. Fine-tuning has changed nothing, or the adapter is not applied: start "
                "the server with it (`--enable-lora --lora-modules NAME=FOLDER`), or merge it into its base and serve "
                "the result"
            )
        return effect

    def _check_local(self, server: Server, target: Sequence[ModelStatistics], effect: Noise | None) -> Noise | None:
        """Return how much the server differs from local weights; None if there are none."""
        if self.local is None:
            return None
        noise = Noise.between(target, self.local(self.texts))
        if not noise.is_explained(effect):
            raise ModelError(
                f"{_place(server)}: its log-probabilities are not those of the local weights: they differ by {noise}; "
                f"number formats explain {MEAN_NOISE} and {LARGEST_NOISE}, and less than half of what fine-tuning "
                "changed. Serve the same weights, unquantised, with "
                "`--logprobs-mode raw_logprobs`, and merge an adapter into its base first"
            )
        return noise


def _numbers(answers: Sequence[Answer]) -> list[ModelStatistics]:
    return [answer.statistics for answer in answers]


def _place(server: Server) -> str:
    return f"{server.endpoint.base}, model {server.endpoint.model!r}"


def _cure(words: str) -> str:
    if "most likely" in words:
        return "Start the server with `--max-logprobs 20` or more; for the form with `echo`, with `--max-logprobs -1`."
    if "put a token before" in words:
        return "Stop the server from adding tokens of its own, such as one for the beginning of a text (BOS)."
    if OTHER_TOKENS_MADE in words:
        return (
            "Name the served model's own tokenizer by `tokenizer`. If the server puts a token before each text (BOS), "
            "the tokenizer must do so too: AutoTokenizer.from_pretrained(MODEL, add_bos_token=True)."
            "save_pretrained(FOLDER)."
        )
    if "were sent" in words:
        return "Set a smaller `max_length`, or start the server with a larger context (`--max-model-len`)."
    if "no log-prob" in words and "add up" in words:
        return "Start the server with `--logprobs-mode raw_logprobs`."
    if "cache" in words:
        return CACHE_CURE
    return "Check `endpoint` and the server's log: this server cannot be used."
