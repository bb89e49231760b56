"""Runs the models again for attacks that need more than the shared pass: prefixes, gradients, neighbours.

Knows models and tokens; does not know the attacks.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import torch
from jaxtyping import Float64, Int64
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from ltmia.models.batching import BatchSize, length_batches
from ltmia.models.forward import fitting_batch_size, pad_ids, positions_at_once
from ltmia.models.pair import Pair
from ltmia.models.runner import ModelRunner
from ltmia.models.spread import check_in_memory
from ltmia.models.tokens import EncodedText, encode_texts

PROPOSALS = 6
"""Substitutes considered at each position, as in the published benchmark's search by single swaps."""
NO_LOSSES = np.empty(0)


class PairQueries:
    """Computes token losses, gradient norms and neighbours of texts with one pair of models."""

    def __init__(self, pair: Pair, *, max_length: int, batch_size: BatchSize, remember: Sequence[str] = ()) -> None:
        """Prepare to run a pair.

        Args:
            pair: Target and reference.
            max_length: Token ids read of each text, without a prefix.
            batch_size: Texts of full length per forward pass.
            remember: Texts whose losses several attacks need; they are computed once and kept.
        """
        self._pair = pair
        self._max_length = max_length if pair.max_positions is None else min(max_length, pair.max_positions)
        self._batch_size = batch_size
        self._sizes: dict[int, int] = {}
        self._wanted = frozenset(remember)
        self._remembered: dict[str, Float64[np.ndarray, " _"]] = {}

    def fitting_shots(self, shots: Sequence[str], most: int) -> tuple[str, ...]:
        """Return the first shots, at most `most`, that together leave room for a text after them."""
        limit = self._pair.max_positions
        chosen: list[str] = []
        for shot in shots:
            if len(chosen) == most:
                break
            length = len(self._prefix_ids("".join([*chosen, shot])))
            if limit is None or length + self._max_length <= limit:
                chosen.append(shot)
        return tuple(chosen)

    def token_losses(self, texts: Sequence[str], prefix: str = "") -> list[Float64[np.ndarray, " _"]]:
        """Return -log p of each text's tokens under the target, in nats, after a prefix that is not scored itself.

        Each text has the same positions with and without a prefix. A text that is unscorable, or does not fit after the
        prefix, has no losses.
        """
        if prefix:
            return self._losses(texts, self._prefix_ids(prefix))
        missing = [text for text in texts if text not in self._remembered]
        fresh = dict(zip(missing, self._losses(missing, None), strict=True))
        self._remembered |= {text: losses for text, losses in fresh.items() if text in self._wanted}
        return [fresh[text] if text in fresh else self._remembered[text] for text in texts]

    def gradient_norms(self, texts: Sequence[str], order: float) -> Float64[np.ndarray, " texts"]:
        """Return the mean over the target's parameter tensors of the norm of the mean loss's gradient.

        Args:
            texts: One backward pass each.
            order: Order of the norm: 1, 2 or infinity.

        Raises:
            ModelError: If some weights are offloaded.
        """
        check_in_memory(self._pair.target, "the attack `gradient_norm` reads the gradient of every weight")
        norms = np.full(len(texts), np.nan)
        with _gradients(self._pair.target) as parameters:
            for i, text in enumerate(self._encode(texts)):
                if text.n_scored:
                    norms[i] = _mean_norm(self._loss(text), parameters, order)
        return norms

    def neighbours(self, text: str, n: int) -> list[str]:
        """Return at most n texts, each with one token swapped for one that the reference LM proposes in its place.

        The best swaps by p(substitute) / (1 - p(token)), Mattern et al. 2023, arXiv 2305.18462, section 3.2.
        """
        encoded = self._encode([text])[0]
        if not encoded.n_scored:
            return []
        logp = next(self._logp(self._pair.reference_runner, [encoded], None))
        truth = torch.from_numpy(encoded.ids[1:])[:, None].to(logp.device)
        own = logp.gather(1, truth)
        # The text's own token is not a substitute.
        best = logp.scatter(1, truth, -torch.inf).topk(min(PROPOSALS, logp.shape[1] - 1), dim=1)
        scores = best.values - torch.log1p(-own.exp().clamp(max=1 - 1e-6))
        order = scores.flatten().argsort(descending=True, stable=True)[:n].tolist()
        return [self._swapped(encoded.ids, i // best.indices.shape[1], int(best.indices.flatten()[i])) for i in order]

    def _swapped(self, ids: Int64[np.ndarray, " seq"], position: int, token: int) -> str:
        changed = ids.copy()
        changed[position + 1] = token
        return str(self._pair.tokenizer.decode(changed.tolist(), skip_special_tokens=True))

    def _encode(self, texts: Sequence[str]) -> list[EncodedText]:
        return encode_texts(self._pair.tokenizer, texts, max_length=self._max_length, vocab_size=self._pair.vocab_size)

    def _prefix_ids(self, prefix: str) -> Int64[np.ndarray, " seq"]:
        limit = self._pair.max_positions or len(prefix.encode("utf-8", "replace")) + self._max_length
        # One id more than the limit shows whether the prefix is too long.
        encoded = encode_texts(self._pair.tokenizer, [prefix], max_length=limit + 1, vocab_size=self._pair.vocab_size)[
            0
        ]
        return encoded.ids

    def _losses(
        self, texts: Sequence[str], prefix: Int64[np.ndarray, " seq"] | None
    ) -> list[Float64[np.ndarray, " _"]]:
        encoded = self._encode(texts)
        losses = [NO_LOSSES] * len(texts)
        limit = self._pair.max_positions
        if prefix is not None and limit is not None:
            fits = [len(prefix) + len(text.ids) <= limit for text in encoded]
            encoded = [
                text if fit else EncodedText(ids=text.ids, reason="does not fit after the prefix")
                for text, fit in zip(encoded, fits, strict=True)
            ]
        longest = max((len(text.ids) for text in encoded if text.n_scored), default=1)
        for rows in length_batches(encoded, self._fitting_size(longest + (0 if prefix is None else len(prefix)))):
            found = self._logp(self._pair.target_runner, [encoded[row] for row in rows], prefix)
            for row, logp in zip(rows, found, strict=True):
                truth = torch.from_numpy(encoded[row].ids[1:])[:, None].to(logp.device)
                losses[row] = -logp.gather(1, truth)[:, 0].cpu().double().numpy()
        return losses

    def _fitting_size(self, length: int) -> int:
        if length not in self._sizes:
            self._sizes[length] = fitting_batch_size(self._pair, self._batch_size, length)
        return self._sizes[length]

    def _logp(
        self, runner: ModelRunner, texts: Sequence[EncodedText], prefix: Int64[np.ndarray, " seq"] | None
    ) -> Iterator[Tensor]:
        """Yield the log-probabilities of each text, (pred, vocab), for all its own ids but the first."""
        pair = self._pair
        rows = [text.ids if prefix is None else np.concatenate([prefix, self._bare(text.ids)]) for text in texts]
        ids, mask = pad_ids(rows, 0)
        hidden = runner.hidden_states(ids.to(pair.device), mask.to(pair.device))
        head = runner.float32_head()
        step = positions_at_once(pair.vocab_size)
        for row, text, states in zip(rows, texts, hidden, strict=True):
            parts = states[len(row) - 1 - text.n_scored : len(row) - 1].split(step)
            yield torch.cat([head(part)[:, : pair.vocab_size].log_softmax(-1) for part in parts])

    def _bare(self, ids: Int64[np.ndarray, " seq"]) -> Int64[np.ndarray, " seq"]:
        """Remove the BOS token, because a text after a prefix does not begin with one."""
        return ids[1:] if ids[0] == self._pair.tokenizer.bos_token_id else ids

    def _loss(self, text: EncodedText) -> Tensor:
        ids = torch.from_numpy(text.ids)[None].to(self._pair.device)
        logits = self._pair.target(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False).logits
        return cross_entropy(logits[0, :-1, : self._pair.vocab_size].float(), ids[0, 1:])


@contextmanager
def _gradients(model: nn.Module) -> Iterator[list[nn.Parameter]]:
    """Let every parameter have a gradient while the block runs."""
    parameters = [parameter for parameter in model.parameters() if parameter.is_floating_point()]
    before = [parameter.requires_grad for parameter in parameters]
    for parameter in parameters:
        parameter.requires_grad_(True)
    try:
        yield parameters
    finally:
        for parameter, required in zip(parameters, before, strict=True):
            parameter.requires_grad_(required)


def _mean_norm(loss: Tensor, parameters: Sequence[nn.Parameter], order: float) -> float:
    gradients = torch.autograd.grad(loss, parameters, allow_unused=True)
    norms = [torch.linalg.vector_norm(g.float(), order).cpu() for g in gradients if g is not None]
    return float(torch.stack(norms).mean())
