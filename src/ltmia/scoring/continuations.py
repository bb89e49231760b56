"""Continues the beginnings of some texts with both models."""

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby

import numpy as np
from jaxtyping import Int64

from ltmia.errors import ModelError
from ltmia.models.batching import Halving, most_tokens
from ltmia.models.continuation import continue_beginnings
from ltmia.models.endings import ROWS_AT_ONCE
from ltmia.models.pair import Pair
from ltmia.models.runner import ModelRunner
from ltmia.models.tokens import EncodedText
from ltmia.progress import Report, silent
from ltmia.scoring.kept_continuations import KeptContinuations
from ltmia.scoring.kept_lines import Model

N_SAMPLED = 4
"""Continuations of each text that are drawn at random, beside the greedy one."""

Ids = Int64[np.ndarray, " _"]


@dataclass(frozen=True, slots=True, kw_only=True)
class CutText:
    """A text as token ids, cut into what the models are given and what they should write."""

    beginning: Ids
    """At least one id, special tokens included."""
    suffix: Ids
    """The true continuation, at least one id."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Continued:
    """What each model wrote after the beginning of one text, as token ids: the greedy continuation first."""

    target: tuple[tuple[int, ...], ...]
    reference: tuple[tuple[int, ...], ...]


def continue_texts(
    pair: Pair, texts: Sequence[CutText], *, seed: int, kept: KeptContinuations, report: Report = silent
) -> list[Continued]:
    """Continue the beginning of each text, for as many tokens as its suffix has.

    Args:
        pair: Target and reference.
        texts: The texts. What is written after one does not depend on the others.
        seed: Seed of the continuations that are drawn at random.
        kept: Where continuations are kept for the next run of the same work.
        report: Called with progress.

    Raises:
        ModelError: If a model cannot write text.
    """
    found: dict[Model, list[tuple[tuple[int, ...], ...]]] = {}
    # One model after the other, because only one may be in memory.
    models: tuple[tuple[Model, ModelRunner], ...] = (
        ("target", pair.target_runner), ("reference", pair.reference_runner),
    )  # fmt: skip
    for turn, (model, runner) in enumerate(models):
        keys = [kept.key(model, _content(text, seed)) for text in texts]
        known = {key: line.ids for key in keys if (line := kept.find(key)) is not None}
        left = {key: text for key, text in zip(keys, texts, strict=True) if key not in known}
        done = turn * len(texts) + len(texts) - len(left)
        report("continuing beginnings", done, 2 * len(texts))
        for written, seconds in _written(pair, runner, list(left.items()), seed):
            for key, ids in written.items():
                kept.keep(key, model, seconds / len(written), ids=ids)
            known |= written
            done += len(written)
            report("continuing beginnings", done, 2 * len(texts))
        found[model] = [known[key] for key in keys]
    sides = zip(found["target"], found["reference"], strict=True)
    return [Continued(target=target, reference=reference) for target, reference in sides]


def _content(text: CutText, seed: int) -> bytes:
    """Return everything that decides how a text is continued."""
    sizes = np.array([len(text.beginning), len(text.suffix), N_SAMPLED, seed], np.int64)
    return sizes.tobytes() + text.beginning.tobytes()


Written = dict[str, tuple[tuple[int, ...], ...]]


def _written(
    pair: Pair, runner: ModelRunner, texts: Sequence[tuple[str, CutText]], seed: int
) -> Iterator[tuple[Written, float]]:
    """Yield the continuations of some texts at a time, by key, and the seconds that they took."""
    encoded = [EncodedText(ids=np.concatenate([text.beginning, text.suffix])) for _, text in texts]
    halving = Halving(encoded)

    def work(rows: list[int]) -> tuple[Written, float]:
        started = time.perf_counter()
        written = _continue(pair, runner, [texts[row] for row in rows], seed)
        return written, time.perf_counter() - started

    for batch in _batches(pair, [text for _, text in texts]):
        yield from halving.run(batch, work)


def _batches(pair: Pair, texts: Sequence[CutText]) -> Iterator[list[int]]:
    """Group texts whose beginnings have the same length, so that nothing is padded; the longest first."""
    order = sorted(range(len(texts)), key=lambda row: -len(texts[row].beginning))
    for length, rows_of_length in groupby(order, key=lambda row: len(texts[row].beginning)):
        rows = list(rows_of_length)
        tokens = (1 + N_SAMPLED) * (length + max(len(texts[row].suffix) for row in rows))
        size = max(ROWS_AT_ONCE * most_tokens(pair.device) // tokens, 1)
        yield from (rows[start : start + size] for start in range(0, len(rows), size))


def _continue(pair: Pair, runner: ModelRunner, texts: Sequence[tuple[str, CutText]], seed: int) -> Written:
    n_each, n_new = 1 + N_SAMPLED, max(len(text.suffix) for _, text in texts)
    beginnings = np.repeat(np.stack([text.beginning for _, text in texts]), n_each, axis=0)
    numbers = np.full((len(beginnings), n_new), np.nan)
    for i, (key, _) in enumerate(texts):
        rng = np.random.default_rng([seed, int(key[:16], 16)])
        numbers[i * n_each + 1 : (i + 1) * n_each] = rng.random((n_new, N_SAMPLED)).T
    try:
        found = continue_beginnings(runner, beginnings, numbers, pair.vocab_size)
    except ModelError as error:
        raise ModelError(f"{error}; set `continuations=0`") from error
    return {
        key: tuple(tuple(ids[: len(text.suffix)].tolist()) for ids in found[i * n_each : (i + 1) * n_each])
        for i, (key, text) in enumerate(texts)
    }
