"""Data types that pass between packages, with their shapes. Plain numpy: no torch, no Hugging Face.

Axis names, the same in every file:
    batch   texts in one forward pass       seq    token positions of a padded text pred    scored positions: each
    predicts one real token of a text, padding has none vocab   ids that target and reference share k       top / bottom
    tokens kept        feat   feature columns
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
from jaxtyping import Bool, Float32, Int32, Int64

Messages = Sequence[Mapping[str, Any]]
"""A conversation: `role` and `content` of each message."""
Chat = Callable[[Messages, bool, Sequence[Any] | None], str]
"""Renders a conversation as a model reads it, with the tools it may call; if the flag is set, up to the start of the
next answer."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Texts:
    """Texts in the order given; no row is ever dropped or moved."""

    texts: tuple[str, ...]
    ids: tuple[str, ...]
    """One id per text, unique: the user's own, or made from the content."""
    made_ids: frozenset[str] = frozenset()
    """Ids that were made from the content. Such an id confirms a guess at the text, so results that are passed on hold
    other ids."""
    groups: tuple[str, ...] | None = None
    """Patient, author or document of each text; None when the data have no groups."""
    starts: tuple[int, ...] | None = None
    """Index of the first scored character of each text; the prompt before it is only read. None: score everything."""
    rejected: "Texts | None" = None
    """Preference pairs: the prompt of each text with the completion that was rejected. `texts` hold the prompt with the
    chosen one. None: the texts are no preference pairs."""
    source: str = "memory"
    """Source of the rows, for messages and provenance."""

    def __post_init__(self) -> None:
        lengths = {len(column) for column in (self.texts, self.ids, self.groups, self.starts) if column is not None}
        lengths |= set() if self.rejected is None else {len(self.rejected)}
        if len(lengths) > 1:
            raise ValueError(f"texts, ids, groups, starts and rejected of {sorted(lengths)} rows do not align")

    def __len__(self) -> int:
        return len(self.texts)

    @property
    def whole(self) -> tuple[str, ...]:
        """Everything that was trained on of each record: the text, and after it the rejected one of a pair."""
        if self.rejected is None:
            return self.texts
        return tuple(f"{chosen}\n{other}" for chosen, other in zip(self.texts, self.rejected.texts, strict=True))

    def take(self, rows: Sequence[int] | Int64[np.ndarray, " rows"]) -> "Texts":
        """Return the given rows, in the order of `rows`."""
        return Texts(
            texts=tuple(self.texts[i] for i in rows),
            ids=tuple(self.ids[i] for i in rows),
            made_ids=self.made_ids,
            groups=None if self.groups is None else tuple(self.groups[i] for i in rows),
            starts=None if self.starts is None else tuple(self.starts[i] for i in rows),
            rejected=None if self.rejected is None else self.rejected.take(rows),
            source=self.source,
        )

    @classmethod
    def concatenate(cls, parts: Sequence["Texts"]) -> "Texts":
        """Join several lists of texts, in order; groups and rejected texts are kept if every list has them."""
        rejected = [part.rejected for part in parts if part.rejected is not None]
        groups = [part.groups for part in parts if part.groups is not None]
        prompted = any(part.starts is not None for part in parts)
        return cls(
            texts=tuple(text for part in parts for text in part.texts),
            ids=tuple(name for part in parts for name in part.ids),
            made_ids=frozenset().union(*(part.made_ids for part in parts)),
            groups=tuple(group for part in groups for group in part) if len(groups) == len(parts) else None,
            starts=tuple(start for part in parts for start in part.starts or (0,) * len(part)) if prompted else None,
            rejected=cls.concatenate(rejected) if rejected and len(rejected) == len(parts) else None,
            source=", ".join(part.source for part in parts),
        )


def rejected_id(name: str) -> str:
    """Return the id of the rejected text of a preference pair."""
    return f"{name} (rejected)"


def shared_beginning(first: Sequence[Any], second: Sequence[Any]) -> int:
    """Return the length of the common prefix of two texts (in characters) or two rows of ids."""
    pairs = zip(first, second, strict=False)
    return next((i for i, (a, b) in enumerate(pairs) if a != b), min(len(first), len(second)))


def without_surrogates(text: str) -> str:
    """Replace each lone surrogate by "?", since neither UTF-8 nor a tokenizer can take it."""
    return text.encode("utf-8", "replace").decode("utf-8")


def hash_strings(digest: Any, strings: Iterable[str]) -> None:
    """Feed strings to a hash of `hashlib`, each after its length, so that different lists give different bytes."""
    for string in strings:
        encoded = string.encode("utf-8", "surrogatepass")
        digest.update(len(encoded).to_bytes(8, "big") + encoded)


SERVED = frozenset({"target_logp", "reference_logp", "target_rank", "reference_rank", "top_logp", "reference_top_logp"})
"""Fields of `TokenStatistics` that can be computed from two servers of log-probabilities. `top_logp` has as many
columns as the servers return."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelStatistics:
    """Values that a server of log-probabilities returns for one model at each scored position.

    NaN, and rank 0, mark values that it did not return.
    """

    logp: Float32[np.ndarray, " pred"]
    """Log-probability of the true token."""
    rank: Int32[np.ndarray, " pred"]
    """1 + the number of tokens with a strictly higher logit."""
    top_logp: Float32[np.ndarray, "pred top"]
    """Log-probabilities of the most likely tokens, falling."""

    def __len__(self) -> int:
        return len(self.logp)

    def slice(self, start: int, stop: int) -> "ModelStatistics":
        """Return positions [start, stop) as views."""
        return ModelStatistics(**{f.name: getattr(self, f.name)[start:stop] for f in fields(self)})

    @classmethod
    def concatenate(cls, parts: Sequence["ModelStatistics"]) -> "ModelStatistics":
        """Join several sequences of positions, in order."""
        return cls(**{f.name: np.concatenate([getattr(p, f.name) for p in parts]) for f in fields(cls)})

    @property
    def known(self) -> Bool[np.ndarray, " pred"]:
        """True at positions where no value is missing."""
        return np.isfinite(self.logp) & (self.rank > 0) & np.isfinite(self.top_logp).all(axis=1)


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenStatistics:
    """Statistics of each scored position, from one pass over both models' logits.

    Everything the features and the fast attacks need, so the logits themselves can go. Log-probabilities are natural
    logarithms over the shared vocabulary; a rank is 1 + the number of tokens with a strictly higher logit.
    """

    target_logp: Float32[np.ndarray, " pred"]
    """Target's log-probability of the true token."""
    reference_logp: Float32[np.ndarray, " pred"]
    target_rank: Int32[np.ndarray, " pred"]
    """Target's rank of the true token; 0 where its logits are NaN (then every float here is)."""
    reference_rank: Int32[np.ndarray, " pred"]
    target_entropy: Float32[np.ndarray, " pred"]
    """Entropy of the target's next-token distribution, in nats."""
    reference_entropy: Float32[np.ndarray, " pred"]
    target_spread: Float32[np.ndarray, " pred"]
    """Standard deviation of log p under p (the sigma of Min-K%++)."""
    reference_spread: Float32[np.ndarray, " pred"]
    divergence: Float32[np.ndarray, " pred"]
    """Kullback-Leibler divergence of the reference from the target, sum_v p_T log(p_T / p_R), in nats."""
    reverse_divergence: Float32[np.ndarray, " pred"]
    """Kullback-Leibler divergence in the other direction, sum_v p_R log(p_R / p_T), in nats."""
    target_ratio_spread: Float32[np.ndarray, " pred"]
    """Standard deviation of log p_T - log p_R over tokens drawn from the target."""
    reference_ratio_spread: Float32[np.ndarray, " pred"]
    """Standard deviation of log p_T - log p_R over tokens drawn from the reference."""
    normalizer_gap: Float32[np.ndarray, " pred"]
    """log-sum-exp of the target's raw logits minus the reference's: turns log-ratios back into logit gaps."""
    reference_top_logp: Float32[np.ndarray, " pred"]
    """Log-probability of the reference's own most likely token."""
    top_logp: Float32[np.ndarray, "pred k"]
    """Target's log-probability of its k most likely tokens, falling."""
    top_log_ratio: Float32[np.ndarray, "pred k"]
    """log p_T - log p_R of those same tokens."""
    top_reference_rank: Int32[np.ndarray, "pred k"]
    """Reference's rank of those same tokens."""
    reference_top_target_rank: Int32[np.ndarray, "pred k"]
    """Target's rank of the reference's k most likely tokens."""
    bottom_log_ratio: Float32[np.ndarray, "pred k"]
    """log p_T - log p_R of the target's k least likely tokens, least likely first."""
    bottom_reference_rank: Int32[np.ndarray, "pred k"]

    def __len__(self) -> int:
        return len(self.target_logp)

    @property
    def log_ratio(self) -> Float32[np.ndarray, " pred"]:
        """D_t = log p_T - log p_R of the true token; positive where the target does better.

        NaN where both models say "impossible".
        """
        with np.errstate(invalid="ignore"):
            return self.target_logp - self.reference_logp

    @property
    def k(self) -> int:
        """Number of top (and of bottom) tokens kept."""
        return self.top_logp.shape[1]

    def slice(self, start: int, stop: int) -> "TokenStatistics":
        """Return positions [start, stop) as views."""
        return TokenStatistics(**{f.name: getattr(self, f.name)[start:stop] for f in fields(self)})

    @classmethod
    def concatenate(cls, parts: Sequence["TokenStatistics"]) -> "TokenStatistics":
        """Join several sequences of positions, in order."""
        return cls(**{f.name: np.concatenate([getattr(p, f.name) for p in parts]) for f in fields(cls)})


@dataclass(frozen=True, slots=True, kw_only=True)
class Expectation:
    """Expected log-ratio at each position, learned from similar tokens in other texts."""

    log_ratio: Float32[np.ndarray, " pred"]
    """Expected log-ratio D_t, in nats."""
    token_count: Float32[np.ndarray, " pred"]
    """Number of times that the token was counted in other texts."""
    pair_count: Float32[np.ndarray, " pred"]
    """Number of times that it was counted after the same previous token."""
    spread: Float32[np.ndarray, " pred"]
    """Standard deviation of (D_t - expected D_t) over all texts, at positions as far into a text as this one, in
    nats."""

    def excess(self, log_ratio: Float32[np.ndarray, " pred"]) -> Float32[np.ndarray, " pred"]:
        """Return (D_t - expected D_t) / spread."""
        return (log_ratio - self.log_ratio) / self.spread

    @classmethod
    def concatenate(cls, parts: Sequence["Expectation"]) -> "Expectation":
        """Join the expectations of several sequences of positions of one target, in order."""
        return cls(**{f.name: np.concatenate([getattr(p, f.name) for p in parts]) for f in fields(cls)})


@dataclass(frozen=True, slots=True, kw_only=True)
class RaggedStatistics:
    """Token statistics of several texts, concatenated; text i has the positions [offsets[i], offsets[i+1])."""

    tokens: TokenStatistics
    offsets: Int64[np.ndarray, " texts_plus_one"]
    vocab_size: int
    """Number of shared ids the statistics were taken over."""
    expectation: Expectation | None = None
    """Expected log-ratios; None if there were no other texts to learn from."""

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __iter__(self) -> Iterator[TokenStatistics]:
        for start, stop in zip(self.offsets[:-1], self.offsets[1:], strict=True):
            yield self.tokens.slice(int(start), int(stop))
