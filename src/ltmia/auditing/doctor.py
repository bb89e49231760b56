"""Checks whether a pair of models can be audited, by loading and running both, and says how to fix problems."""

import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Unpack

import numpy as np
from torch import nn

from ltmia.auditing.model_evidence import compare_losses
from ltmia.errors import ModelError
from ltmia.evaluation.model_checks import base_check
from ltmia.evaluation.wording import percent
from ltmia.features.columns import DEFAULT_K
from ltmia.features.statistics import token_statistics
from ltmia.models.forward import CHUNK_BYTES, forward_pair
from ltmia.models.head import HALF, copy_bytes
from ltmia.models.loading import LoadKeywords, load_pair
from ltmia.models.pair import Pair
from ltmia.models.runner import ModelRunner
from ltmia.models.spread import is_offloaded, largest_offloaded_bytes, n_parameters, offloaded_share, places_of
from ltmia.models.tokens import EncodedText, encode_texts
from ltmia.records import TokenStatistics
from ltmia.runtime import computes_bfloat16, dtype_name

Level = Literal["ok", "warning", "problem"]

SAMPLE = (
    "The committee will meet on Thursday to discuss the budget for the coming year.",
    "She opened the door, looked out at the rain, and decided to stay at home.",
    "Please find attached the report; let me know if you have any questions.",
)
TIMED_TEXTS = 8
TIMED_LENGTH = 128


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One fact about a pair."""

    level: Level
    """A problem makes an audit impossible; a warning means that its result may mislead."""
    sentence: str
    cure: str = ""
    """What to do; empty if nothing, or if the sentence says it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Diagnosis:
    """All facts about a pair."""

    findings: tuple[Finding, ...]
    memory_bytes: int | None = None
    """Estimate for scoring: weights, float32 copies of half-precision heads, and logits; no activations."""
    seconds_per_1000_texts: float | None = None
    """Measured on a few texts of `TIMED_LENGTH` tokens, both models and all statistics."""

    @property
    def usable(self) -> bool:
        """Whether the pair can be audited."""
        return all(finding.level != "problem" for finding in self.findings)


def diagnose(
    target: str | Path,
    base: str | Path | None = "auto",
    **keywords: Unpack[LoadKeywords],
) -> Diagnosis:
    """Load a pair as an audit does, and check it. Keywords are those of `LoadOptions`.

    Raises:
        ConfigError: If there is no such dtype or device.
    """
    try:
        pair = load_pair(target, base, **keywords)
    except ModelError as error:
        return Diagnosis(findings=(Finding(level="problem", sentence=str(error)),))
    return diagnose_pair(pair)


def diagnose_pair(pair: Pair) -> Diagnosis:
    """Check a loaded pair."""
    findings = [*_about_models(pair), *_about_ids(pair)]
    encoded = encode_texts(pair.tokenizer, SAMPLE, max_length=TIMED_LENGTH, vocab_size=pair.vocab_size)
    scorable = [text for text in encoded if text.n_scored]
    if not scorable:
        reason = encoded[0].reason
        cure = "check that the tokenizer files belong to this model"
        findings.append(Finding(level="problem", sentence=f"plain English sentences give {reason}", cure=cure))
        return Diagnosis(findings=tuple(findings))
    tokens = _run(pair, scorable)
    broken = list(_about_logits(tokens))
    findings += broken or [*_about_losses(tokens), *_about_change(pair, tokens)]
    memory, seconds = _memory(pair), _seconds_per_1000(pair)
    cost = (
        f"scoring 1,000 texts of {TIMED_LENGTH} tokens takes about {_time(seconds)}, and about {memory / 2**30:.1f} "
        "GiB of memory, without activations"
    )
    findings.append(Finding(level="ok", sentence=cost))
    return Diagnosis(findings=tuple(findings), memory_bytes=memory, seconds_per_1000_texts=seconds)


def _about_models(pair: Pair) -> Iterator[Finding]:
    if pair.reference is None:
        shared = "the base is the target with its adapter switched off: one copy of the weights serves both"
        yield Finding(level="ok", sentence=f"{pair.reference_origin.source} found; {shared}")
    for name, model, scorer in _both(pair):
        origin = pair.target_origin if name == "target" else pair.reference_origin
        parameters = f"{n_parameters(model):,} parameters, {_dtype(model)} on {', '.join(places_of(model))}"
        yield Finding(level="ok", sentence=f"{name}: {origin.source}: {model.config.model_type}, {parameters}")
        yield from _about_offloaded(name, model)
        for remark in origin.remarks:
            yield Finding(level="warning", sentence=f"the {name}: {remark}")
        if origin.trust_remote_code:
            yield Finding(level="warning", sentence=f"the {name} was allowed to run code that came with it")
        if not scorer.runs_head_apart:
            slow = "does something unknown after its output head, so it is run as a whole: correct, but slower"
            ties = f"the {name} {slow}" + (", and in half precision ranks tie" if _is_half(model) else "")
            cure = "use `dtype=float32`" if _is_half(model) else ""
            yield Finding(level="warning", sentence=ties, cure=cure)
        if _is_half(model) and not computes_bfloat16(pair.device):
            slow = f"the {name} is in {_dtype(model)}, which this hardware only emulates"
            yield Finding(level="warning", sentence=slow, cure="`dtype=float32` is faster here, if memory allows")
    models = [model for _, model, _ in _both(pair)]
    if _is_half(models[0]) != _is_half(models[1]):
        unlike = f"the target is in {_dtype(models[0])} and the base in {_dtype(models[1])}: they differ by rounding"
        yield Finding(level="warning", sentence=unlike, cure="set one `dtype` for both")


def _about_offloaded(name: str, model: Any) -> Iterator[Finding]:
    if is_offloaded(model):
        slow = f"{percent(offloaded_share(model))} of the {name}'s weights are loaded anew in each pass, so gradients "
        cure = "allow `device_map` more memory if there is any"
        yield Finding(level="warning", sentence=f"{slow}cannot be read", cure=cure)


def _about_ids(pair: Pair) -> Iterator[Finding]:
    widths = [scorer.vocab_size for _, _, scorer in _both(pair)]
    shared = pair.vocab_size
    if widths[0] == widths[1]:
        yield Finding(level="ok", sentence=f"both models know the same {shared:,} ids")
    else:
        unequal = f"the target knows {widths[0]:,} ids and the base {widths[1]:,}: compared on {shared:,} shared ids"
        yield Finding(level="ok", sentence=unequal)
    foreign = [token for token, index in pair.tokenizer.get_vocab().items() if index >= shared]
    if foreign:
        named = ", ".join(map(repr, sorted(foreign)[:3]))
        unknown = f"{len(foreign)} token(s) are unknown to one model ({named}): texts that contain one cannot be scored"
        yield Finding(level="warning", sentence=unknown, cure="remove such tokens from the texts")
    if shared < DEFAULT_K:
        yield Finding(level="problem", sentence=f"{shared} shared ids are fewer than the {DEFAULT_K} needed")
    limit = pair.max_positions
    if limit is not None:
        yield Finding(level="ok", sentence=f"both take texts of up to {limit:,} tokens")


def _about_logits(tokens: TokenStatistics) -> Iterator[Finding]:
    for name, rank in (("target", tokens.target_rank), ("reference", tokens.reference_rank)):
        if not rank.all():
            yield Finding(
                level="problem",
                sentence=f"the {name} gives NaN logits on plain English",
                cure="its weights are broken, or overflow in half precision: try `dtype=float32`, or save it again",
            )


def _about_losses(tokens: TokenStatistics) -> Iterator[Finding]:
    target, reference = -float(tokens.target_logp.mean()), -float(tokens.reference_logp.mean())
    losses = f"mean loss on plain English: target {target:.2f}, base {reference:.2f} nats per token"
    yield Finding(level="ok", sentence=losses)


def _about_change(pair: Pair, tokens: TokenStatistics) -> Iterator[Finding]:
    """Report how much the target differs from its base; no difference is suspicious, and so is a very large one."""
    check = base_check(compare_losses(pair, tokens.target_logp, tokens.reference_logp))
    if check.status != "ok":
        yield Finding(level="warning", sentence=check.sentence)
        return
    divergence = float(tokens.divergence.mean())
    yield Finding(level="ok", sentence=f"{check.sentence} Divergence {divergence:.3g} nats per token")


def _run(pair: Pair, texts: list[EncodedText]) -> TokenStatistics:
    k = min(DEFAULT_K, pair.vocab_size)
    parts = [token_statistics(part.target, part.reference, part.truth, k) for part in forward_pair(pair, texts)]
    return TokenStatistics.concatenate(parts)


def _seconds_per_1000(pair: Pair) -> float:
    length = min(TIMED_LENGTH, pair.max_positions or TIMED_LENGTH)
    ids = np.random.default_rng(0).integers(0, pair.vocab_size, (TIMED_TEXTS, length))
    texts = [EncodedText(ids=row) for row in ids]
    _run(pair, texts[:1])  # compiling and caching at first use is not timed
    started = time.perf_counter()
    _run(pair, texts)
    return (time.perf_counter() - started) / TIMED_TEXTS * 1000


def _memory(pair: Pair) -> int:
    """Estimate the bytes that scoring holds at once, on all devices.

    These are the weights that stay, the largest offloaded module, heads, and a chunk of logits of each model.
    """
    models = [pair.target] if pair.reference is None else [pair.target, pair.reference]
    stay = (p for model in models for p in model.parameters() if p.device.type != "meta")
    weights: int = sum(p.numel() * p.element_size() for p in stay)
    weights += max(map(largest_offloaded_bytes, models))
    weights += sum(
        p.numel() * p.element_size()
        for _, model, _ in _both(pair)
        for p in model.get_output_embeddings().parameters()
        if p.device.type == "meta"
    )
    heads: int = sum(
        copy_bytes(sum(p.numel() for p in model.get_output_embeddings().parameters()), next(model.parameters()).dtype)
        for _, model, scorer in _both(pair)
        if scorer.runs_head_apart
    )
    return weights + heads + 2 * CHUNK_BYTES


def _both(pair: Pair) -> list[tuple[str, Any, ModelRunner]]:
    reference: nn.Module = pair.target if pair.reference is None else pair.reference
    return [("target", pair.target, pair.target_runner), ("reference", reference, pair.reference_runner)]


def _is_half(model: Any) -> bool:
    return next(model.parameters()).dtype in HALF


def _dtype(model: Any) -> str:
    return dtype_name(next(model.parameters()).dtype)


def _time(seconds: float) -> str:
    return f"{seconds / 60:.1f} minutes" if seconds >= 100 else f"{seconds:.2g} seconds"
