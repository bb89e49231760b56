"""Gradients of single texts at chosen coordinates, from one backward pass over a batch of texts.

The gradient of a text's loss with respect to the matrix of a linear layer is the sum over its tokens of the outer
products of d, the loss's gradient at the layer's output, and h, the layer's input. So the coordinate (i, j) of a text
is the sum of d[t, i] h[t, j]. It does not depend on other texts of the batch, and the full matrix is never computed.

The backward pass ends at the lowest layer that is read: no parameter requires a gradient, and the graph begins at the
output of that layer. Layers below keep no activations.
"""

import math
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from types import TracebackType
from typing import Any

import numpy as np
import torch
from jaxtyping import Float32, Int64, Shaped
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from ltmia.models.forward import pad_ids, positions_at_once, scored_positions
from ltmia.models.runner import ModelRunner
from ltmia.models.weight_delta import ChangedMatrix, Layout, owner_of

DENSE_SHARE = 1 / 50
"""If a larger share of a matrix's coordinates is read, its whole gradient is computed, because one matrix product is
then faster."""
GATHER_BYTES = 64 * 2**20
"""Bytes of the products that are summed over tokens at a time."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class MatrixPlaces:
    """Coordinates of one matrix, or of its part in a subspace of its rows."""

    name: str
    """Name of the parameter."""
    layout: Layout
    shape: tuple[int, ...]
    flat: Int64[np.ndarray, " coordinate"]
    """Indices in the flattened parameter, or in (out, rank) if there is a subspace, in rising order."""
    rows: Float32[Tensor, "rank in"] | None = None
    """Orthonormal basis of the subspace; None: all of the matrix."""

    @classmethod
    def of(
        cls,
        matrix: ChangedMatrix,
        flat: Int64[np.ndarray, " coordinate"],
        rows: Float32[Tensor, "rank in"] | None = None,
    ) -> "MatrixPlaces":
        """Describe coordinates of a changed matrix."""
        return cls(name=matrix.name, layout=matrix.layout, shape=tuple(matrix.target.shape), flat=flat, rows=rows)

    def outputs_and_inputs(self) -> tuple[Int64[np.ndarray, " coordinate"], Int64[np.ndarray, " coordinate"]]:
        """Return for each coordinate the index of the layer's output, and the index of its input or of the subspace."""
        if self.rows is not None:
            return np.divmod(self.flat, len(self.rows))
        first, second = np.divmod(self.flat, self.shape[1])
        return (second, first) if self.layout == "transposed" else (first, second)

    def values(self, whole: Tensor) -> Tensor:
        """Return the values at the coordinates of a tensor shaped like the parameter."""
        return self._at(whole, self.rows)

    def variances(self, whole: Tensor) -> Tensor:
        """Return the variances at the coordinates, from those of independent entries of the parameter."""
        return self._at(whole, None if self.rows is None else self.rows.square())

    def _at(self, whole: Tensor, rows: Float32[Tensor, "rank in"] | None) -> Tensor:
        if rows is not None:
            oriented = whole.T if self.layout == "transposed" else whole
            whole = oriented.float() @ rows.to(whole.device).T
        return whole.reshape(-1).index_select(0, torch.from_numpy(self.flat).to(whole.device))


class TextGradients:
    """Computes gradients of texts under one model; a context, in which parameters need no gradient.

    Args:
        model: Model that holds the matrices.
        runner: Runs the model.
        places: Coordinates to read.
        batched: Read linear layers from a batch of texts. Otherwise texts go one by one, and any parameter can be read.
            If a layer mixes the tokens of several texts, its gradients are NaN, and `mixing` names it.
        pad_id: Id that texts are padded with.
    """

    def __init__(
        self, model: nn.Module, runner: ModelRunner, places: Sequence[MatrixPlaces], *, batched: bool, pad_id: int = 0
    ) -> None:
        self._model = model
        self._runner = runner
        self._places = places
        self._batched = batched
        self._pad_id = pad_id
        self._parameters = dict(model.named_parameters())
        self._before = {name: (p.requires_grad, p.grad) for name, p in self._parameters.items()}
        self._n = sum(len(place.flat) for place in places)
        self._batch: tuple[int, int] = (0, 0)
        self._out = torch.zeros(0)
        self._stack = ExitStack()
        self.backward_seconds = 0.0
        """Seconds spent after the forward passes."""
        self.mixing: set[str] = set()
        """Names of matrices whose layers were called with tokens of several texts mixed."""

    def __enter__(self) -> "TextGradients":
        with self._stack as stack:
            stack.callback(self._restore)
            self._prepare(stack)
            self._stack = stack.pop_all()
        return self

    def _prepare(self, stack: ExitStack) -> None:
        for name, parameter in self._parameters.items():
            parameter.grad = None  # those of a training under way are put back
            parameter.requires_grad_(not self._batched and any(place.name == name for place in self._places))
        self._head = self._runner.head_with_graph()
        start = 0
        for place in self._places if self._batched else ():
            reader = _LayerReader(self, place, start)
            handle = owner_of(self._model, place.name).register_forward_hook(reader)
            stack.callback(handle.remove)
            start += len(place.flat)

    def _restore(self) -> None:
        for name, parameter in self._parameters.items():
            required, gradient = self._before[name]
            parameter.requires_grad_(required)
            parameter.grad = gradient

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._stack.close()

    def __call__(
        self, rows: Sequence[Int64[np.ndarray, " _"]], starts: Sequence[int]
    ) -> Float32[Tensor, "batch coordinate"]:
        """Return the gradient of each text's mean loss at the coordinates, on the CPU; see `with_states`."""
        return self.with_states(rows, starts)[0]

    @torch.inference_mode(False)
    @torch.enable_grad()
    def with_states(
        self, rows: Sequence[Int64[np.ndarray, " _"]], starts: Sequence[int]
    ) -> tuple[Float32[Tensor, "batch coordinate"], Shaped[Tensor, "pred hidden"]]:
        """Return the gradients of a batch, and the hidden states that `scored_states` would give for it.

        Args:
            rows: Token ids of each text.
            starts: Index of each text's first predicted id that counts.
        """
        device = next(iter(self._parameters.values())).device
        ids, mask = pad_ids(rows, self._pad_id)
        counted = scored_positions(mask, starts)
        shares = counted / counted.sum(1, keepdim=True)
        self._batch = (len(rows), ids.shape[1])
        self._out = torch.zeros(len(rows), self._n, device=device)
        states = self._runner.states_with_graph(ids.to(device), mask.to(device))[:, :-1][counted]
        started = time.perf_counter()
        pull = _loss_gradient(self._head, states, ids[:, 1:][counted].to(device), shares[counted].to(device))
        factor = _room_for_float16(pull)
        if states.requires_grad:  # otherwise no layer that is read affects the loss
            states.backward(pull * factor)
        if not self._batched:
            self._take_parameter_gradients()
        out = self._out.cpu() / factor
        self.backward_seconds += time.perf_counter() - started
        return out, states.detach()

    def collect(self, place: MatrixPlaces, start: int, inputs: Tensor, pull: Tensor) -> None:
        """Add the contribution of one call of a layer.

        Args:
            place: Coordinates of the layer's matrix.
            start: First column of the matrix in the result.
            inputs: Input of the layer, (batch, seq, in), or with other axes before the last.
            pull: The loss's gradient at the layer's output, of the same axes.
        """
        part = self._out[:, start : start + len(place.flat)]
        if inputs.numel() != self._batch[0] * self._batch[1] * inputs.shape[-1]:
            self.mixing.add(place.name)
            part.fill_(torch.nan)
            return
        # Some layers get all tokens in one row. If their order is another one, `choose_coordinates` sees it.
        inputs, pull = (x.reshape(*self._batch, x.shape[-1]) for x in (inputs, pull))
        outputs, columns = (torch.from_numpy(index).to(pull.device) for index in place.outputs_and_inputs())
        if place.rows is not None:
            inputs = inputs.float() @ place.rows.to(inputs.device).T
        if len(place.flat) >= DENSE_SHARE * pull.shape[2] * inputs.shape[2]:
            whole = torch.bmm(pull.float().transpose(1, 2), inputs.float())
            part += whole[:, outputs, columns].to(part.device)
            return
        tokens = self._batch[0] * self._batch[1]
        by_output, by_input = (x.reshape(tokens, -1).T.float().contiguous() for x in (pull, inputs))
        step = max(GATHER_BYTES // (4 * tokens), 1)
        for first in range(0, len(place.flat), step):
            some = slice(first, first + step)
            product = by_output.index_select(0, outputs[some]).mul_(by_input.index_select(0, columns[some]))
            part[:, some] += product.view(-1, *self._batch).sum(2).T.to(part.device)

    def _take_parameter_gradients(self) -> None:
        start = 0
        for place in self._places:
            parameter = self._parameters[place.name]
            if parameter.grad is not None:
                self._out[0, start : start + len(place.flat)] = place.values(parameter.grad).float()
            parameter.grad = None
            start += len(place.flat)


@dataclass(frozen=True, slots=True, eq=False)
class _LayerReader:
    """Forward hook of a layer whose gradients are read."""

    owner: TextGradients
    place: MatrixPlaces
    start: int

    def __call__(self, _module: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> Tensor:
        if not output.requires_grad:
            # The graph begins here, with a copy, because later operations may change their input in place.
            output = output.detach().requires_grad_().clone()
        kept = inputs[0].detach()
        output.register_hook(lambda pull: self.owner.collect(self.place, self.start, kept, pull))
        return output


def _room_for_float16(pull: Tensor) -> float:
    """Return the power of two that brings the largest number to about 1: float16 has no digits left for much less."""
    largest = float(pull.abs().max())
    return math.ldexp(1.0, 1 - math.frexp(largest)[1]) if 0 < largest < math.inf else 1.0


def _loss_gradient(head: Any, states: Tensor, truth: Tensor, shares: Tensor) -> Tensor:
    """Return the gradient of the summed mean losses with respect to the hidden states, a few positions at a time.

    Args:
        head: Function from hidden states to logits.
        states: Hidden states, (pred, hidden).
        truth: Ids of the true next tokens, (pred,).
        shares: One over the number of scored positions of each position's text, (pred,).
    """
    pulls: list[Tensor] = []
    width = 1
    start = 0
    while start < len(states):
        step = positions_at_once(width) if pulls else 1
        part = slice(start, start + step)
        some = states[part].detach().requires_grad_()
        logits = head(some)
        width = logits.shape[-1]
        losses = cross_entropy(logits, truth[part], reduction="none")
        (pull,) = torch.autograd.grad((losses * shares[part]).sum(), some)
        pulls.append(pull)
        start += step
    return torch.cat(pulls)
