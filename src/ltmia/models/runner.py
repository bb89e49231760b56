"""Turns one model's last hidden states into float32 logits.

Does not know that models come in pairs, nor how texts are batched.
"""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers import DynamicCache

from ltmia.errors import ModelError
from ltmia.models.head import HALF, Head, float32_head, plain_float32_head
from ltmia.models.offload_files import unchanged_files
from ltmia.models.spread import input_device, is_offloaded, is_split

TRIAL_LOGIT = 100.0
"""The trial scales hidden states until the largest logit has this size, at which any soft cap is visible."""
TRIAL_TOLERANCE = {torch.float32: 1e-4}
"""Largest difference between our head and the model's, relative to the largest logit."""
HALF_TOLERANCE = 1e-2
"""The same for half precision: a few roundings to 8 bits."""
AHEAD_TOLERANCE = 1e-5
"""A token's logits may change by this share of the largest logit, as float noise, when the token after it changes."""
BATCH_TOLERANCE = 1e-4
"""The same when the rest of the batch changes, because other shapes are summed in another order."""
HALF_BATCH_TOLERANCE = 5e-2
"""The same for half precision, where another order is another rounding in every layer, and more so on processors that
have no such arithmetic: 12 random layers of GPT-2's size differ by up to 0.014 in bfloat16."""
PADDED_LENGTH = 9
"""Tokens of the longer text in the trial batch."""
OFFLOADED = " (some weights are offloaded; if that is why, leave out `device_map`, or allow it more memory)"
"""Added to a failure of a model with offloaded weights."""
SPLIT = (
    " (the weights are split over several processes; if that is why, start as many as divide the numbers of attention "
    "heads and of key-value heads, or load the model whole)"
)
"""Added to a failure of a model whose weights are split over processes."""
RUN_ERRORS = (RuntimeError, ValueError, TypeError, LookupError, AttributeError, NotImplementedError)
"""Exceptions of models that cannot run on plain ids and a mask."""


class ModelRunner:
    """One model as a source of float32 logits: hidden states first, then the head on the positions asked for.

    If the logits are a linear function of the hidden states, perhaps scaled or soft-capped, the head runs separately:
    in float32 for any dtype of the model, and on real tokens only. A model that does anything else after its head is
    run whole.

    Args:
        model: Returns the model. It is called at each use, so that two models can share the memory in turn. The head
        stays in memory.
        context: Context manager that is entered for each run.

    Raises:
        ModelError: If the model cannot run on ids alone, gives logits of a wrong shape, uses later tokens, or gives a
        text other logits in another batch.
    """

    def __init__(self, model: Callable[[], Any], context: Callable[[], AbstractContextManager[Any]]) -> None:
        # Any: torch's types call a module's methods tensors.
        self._loaded = model
        self._context = context
        loaded = self._model
        self._name = getattr(getattr(loaded, "config", None), "name_or_path", "") or type(loaded).__name__
        if not (hasattr(loaded, "config") and hasattr(loaded, "get_output_embeddings")):
            raise ModelError(f"{self._name}: not a causal LM of transformers or PEFT")
        self._head: Any = loaded.get_output_embeddings()
        self._vocab_size = self._check_forward()
        self._check_batch()
        self._after_head = self._try_head()

    @property
    def _model(self) -> Any:
        return self._loaded()

    @contextmanager
    def _running(self) -> Iterator[None]:
        """Run the whole model; the head alone needs only the context: the other model may be in memory by then."""
        with self._context(), unchanged_files(self._model):
            yield

    @property
    def name(self) -> str:
        """Path or hub id of the model, or its class."""
        return self._name

    @contextmanager
    def generating(self) -> Iterator[Any]:
        """Give the model in the form in which it writes text: without a wrapper of PEFT, but with its adapter.

        Raises:
            ModelError: If it has no method for this.
        """
        with self._running():
            model = self._model.get_base_model() if hasattr(self._model, "get_base_model") else self._model
            if not (hasattr(model, "generate") and hasattr(model, "generation_config")):
                raise ModelError(f"{self._name}: has no method `generate`, so it continues no text")
            yield model

    @property
    def vocab_size(self) -> int:
        """Width of the logits."""
        return self._vocab_size

    @property
    def runs_head_apart(self) -> bool:
        """Whether the head can be run separately from the rest of the model."""
        return self._after_head is not None

    @torch.inference_mode()
    def hidden_states(self, ids: Tensor, mask: Tensor, past: DynamicCache | None = None) -> Tensor:
        """Run the model without its head; (batch, seq) ids to (batch, seq, hidden), on the device of the ids.

        If the head cannot be run separately, these are the logits themselves.

        Args:
            ids: Token ids.
            mask: 1 for each token of `past`, then for each id 1, or 0 if it is padding.
            past: Cache of the tokens before `ids`, made by `remember`; the pass appends `ids` to it.
        """
        return self.states_with_graph(ids, mask, past)

    @torch.inference_mode()
    def remember(self, ids: Tensor) -> DynamicCache | None:
        """Run the model over (1, seq) ids and return its cache of keys and values; None if it has no such cache."""
        with self._running():
            found = self._model(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=True)
        past = getattr(found, "past_key_values", None)
        return past if isinstance(past, DynamicCache) else None

    def states_with_graph(self, ids: Tensor, mask: Tensor, past: DynamicCache | None = None) -> Tensor:
        """Do the same as `hidden_states`, and record the graph for a backward pass."""
        with self._running():
            if not self.runs_head_apart:
                return self._logits(ids, mask, past)
            # A model that was loaded again has a new head.
            self._head = self._model.get_output_embeddings()
            # The model's own head runs as well; one position is enough for it.
            with _head_input(self._head, lambda hidden: hidden[..., :1, :]) as captured:
                self._logits(ids, mask, past)
            return captured[0].to(ids.device)

    def float32_head(self) -> Head:
        """Return the function from hidden states of some positions to raw float32 logits; see `head.float32_head`."""
        after_head = self._after_head
        if self._head is None or after_head is None:
            return Tensor.float
        with torch.inference_mode(), self._context():
            head = float32_head(self._head)

        def logits(hidden: Tensor) -> Tensor:
            with torch.inference_mode(), self._context():
                return after_head(head(hidden)).to(hidden.device)

        return logits

    def head_with_graph(self) -> Head:
        """Do the same as `float32_head`, and record the graph for a backward pass; slower, and it keeps the logits."""
        after_head = self._after_head
        if self._head is None or after_head is None:
            return Tensor.float
        head = plain_float32_head(self._head)
        return lambda hidden: after_head(head(hidden)).to(hidden.device)

    def _logits(self, ids: Tensor, mask: Tensor, past: DynamicCache | None = None) -> Tensor:
        if past is None:
            return self._model(input_ids=ids, attention_mask=mask, use_cache=False).logits
        return self._model(input_ids=ids, attention_mask=mask, past_key_values=past, use_cache=True).logits

    def _is_half(self) -> bool:
        return any(parameter.dtype in HALF for parameter in self._model.parameters())

    def _trial_ids(self) -> tuple[Tensor, Tensor]:
        ids = torch.arange(4, device=input_device(self._model))[None]
        return ids, torch.ones_like(ids)

    @torch.inference_mode()
    def _check_forward(self) -> int:
        """Run four tokens twice, with another last one; return the width of the logits."""
        ids, mask = self._trial_ids()
        other = ids.clone()
        other[0, -1] = 0
        try:
            with self._running():
                logits, changed = (self._logits(x, mask).float() for x in (ids, other))
        except RUN_ERRORS as error:
            hint = OFFLOADED if is_offloaded(self._model) else SPLIT if is_split(self._model) else ""
            raise ModelError(
                f"{self._name}: does not run on token ids and a mask alone, as a causal LM does{hint}: "
                f"{type(error).__name__}: {str(error)[:300]}"
            ) from error
        if logits.shape[:-1] != ids.shape:
            raise ModelError(
                f"{self._name}: gives logits of shape {tuple(logits.shape)} for ids of shape {tuple(ids.shape)}; "
                "expected one row per id (adapters that prepend virtual tokens cannot be audited)"
            )
        ahead = (logits - changed)[:, :-1].abs().max()
        tolerance = HALF_TOLERANCE if self._is_half() else AHEAD_TOLERANCE
        # NaN passes this comparison: broken weights make texts unscorable, and each text says so.
        if ahead > tolerance * _largest(logits):
            raise ModelError(
                f"{self._name}: a token's logits change with the token after it, so this is not a causal LM "
                "(a masked or bidirectional model?)"
            )
        return logits.shape[-1]

    @torch.inference_mode()
    def _check_batch(self) -> None:
        """Run four tokens alone, and padded in a batch with a longer text; check that the logits are the same."""
        ids, mask = self._trial_ids()
        row = torch.arange(PADDED_LENGTH, device=ids.device)
        padded, kept = row % ids.shape[1], (row < ids.shape[1]).long()
        batch, both = torch.stack([padded, padded.flip(0)]), torch.stack([kept, torch.ones_like(kept)])
        try:
            with self._running():
                alone, beside = self._logits(ids, mask).float()[0], self._logits(batch, both).float()[0]
        except RUN_ERRORS as error:
            raise ModelError(f"{self._name}: does not run on a padded batch: {str(error)[:300]}") from error
        noise = (alone - beside[: len(alone)]).abs().max()
        tolerance = HALF_BATCH_TOLERANCE if self._is_half() else BATCH_TOLERANCE
        # As above, NaN passes.
        if noise > tolerance * _largest(alone):
            raise ModelError(
                f"{self._name}: a text's logits change with the padding after it or the rest of its batch, so its "
                "scores would depend on the batch; it cannot be audited"
            )

    @torch.inference_mode()
    def _try_head(self) -> Callable[[Tensor], Tensor] | None:
        """Find out how the logits follow from the head, by running four tokens both ways."""
        if self._head is None:
            return None
        ids, mask = self._trial_ids()
        with self._running():
            gain = max(TRIAL_LOGIT / _largest(self._logits(ids, mask).float()), 1.0)
            with _head_input(self._head, lambda hidden: hidden * gain) as captured:
                logits = self._logits(ids, mask).float()
            if len(captured) != 1 or captured[0].shape[:2] != ids.shape:
                return None
            head = float32_head(self._head)((captured[0] * gain).flatten(0, 1)).unflatten(0, ids.shape).to(ids.device)
        tolerance = TRIAL_TOLERANCE.get(captured[0].dtype, HALF_TOLERANCE) * _largest(logits)
        for candidate in _after_head_candidates(self._model.config, head, logits):
            found = candidate(head)
            if found.shape == logits.shape and _all_close(found, logits, tolerance):
                return candidate
        return None


def _largest(logits: Tensor) -> float:
    """Return the largest finite magnitude; 1 if there is none, or if all values are zero."""
    largest = float(torch.where(logits.isfinite(), logits, 0.0).abs().max())
    return largest or 1.0


def _all_close(found: Tensor, logits: Tensor, tolerance: float) -> bool:
    # Equality first: the difference of two -inf is NaN.
    return bool(((found == logits) | ((found - logits).abs() <= tolerance)).all())


def _after_head_candidates(config: Any, head: Tensor, logits: Tensor) -> Iterator[Callable[[Tensor], Tensor]]:
    """Yield the functions that models apply after the head: none, a scale, a soft cap."""
    yield lambda x: x
    usable = head.isfinite() & (head.abs() > head.abs().median())
    if head.shape == logits.shape and bool(usable.any()):
        factor = float((logits[usable] / head[usable]).median())
        yield lambda x: x * factor
    text_config = config.get_text_config() if hasattr(config, "get_text_config") else config
    for name in ("final_logit_softcapping", "logits_soft_cap", "output_logit_soft_cap"):
        cap = getattr(text_config, name, None)
        if cap:
            yield lambda x, cap=cap: torch.tanh(x / cap) * cap  # type: ignore[misc]  # mypy types no defaults


@contextmanager
def _head_input(head: nn.Module, change: Callable[[Tensor], Tensor]) -> Iterator[list[Tensor]]:
    """Record the input of the model's head, and optionally replace it."""
    captured: list[Tensor] = []

    def catch(_module: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
        captured.append(inputs[0])
        return (change(inputs[0]), *inputs[1:])

    handle = head.register_forward_pre_hook(catch)
    try:
        yield captured
    finally:
        handle.remove()
