"""Networks from per-token features to one logit per text: the published one, and ours.

Both are built for named feature columns, and take `values` (batch, seq, feat), `mask` (batch, seq) and `summary`
(batch, n_summary); a text without any scored position yields a finite logit that the caller must not use.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

SUMMARY_LIMIT = 8.0
"""Standardised inputs are clipped here."""


class PublishedNetwork(nn.Module):
    """The network of the LT-MIA paper (arXiv 2604.03199): 827,906 parameters on 154 features."""

    def __init__(self, *, columns: Sequence[str], n_summary: int, lean: float = 0.0) -> None:
        super().__init__()
        del n_summary, lean  # the published network reads tokens only
        width = 192
        self.embed = nn.Sequential(nn.Linear(len(columns), width), nn.LayerNorm(width))
        self.dropout = nn.Dropout(0.05)
        layer = nn.TransformerEncoderLayer(width, 8, 576, 0.05, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.attention = nn.Sequential(nn.Linear(width, 96), nn.Tanh(), nn.Linear(96, 1))
        self.head = nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Dropout(0.05), nn.Linear(width, 1))

    def forward(self, values: Tensor, mask: Tensor, summary: Tensor) -> Tensor:
        """Return one logit per text, (batch,)."""
        del summary
        safe = _never_empty(mask)
        hidden = self.dropout(self.embed(values))
        hidden = hidden + sinusoids(hidden.shape[1], hidden.shape[2]).to(hidden)
        hidden = self.encoder(hidden, src_key_padding_mask=~safe)
        pooled = _attend(self.attention(hidden), hidden, safe)[:, 0]
        return self.head(pooled)[:, 0]


class ConvNetwork(nn.Module):
    """Our network: two residual convolutions, pooled by mean, standard deviation and four attentions.

    Inputs are standardised by mean and standard deviation of the training data. The head also sees `summary`, the
    scores of hand-made attacks. After training, the mean excess is added to the logit with the weight `lean`: this rule
    still works on targets that are unlike all training data.
    """

    def __init__(self, *, columns: Sequence[str], n_summary: int, lean: float = 0.0, width: int = 64) -> None:
        super().__init__()
        self.lean = lean
        self.excess_column = columns.index("excess") if lean else None
        self.standardize = Standardize(len(columns))
        self.standardize_summary = Standardize(n_summary)
        self.embed = nn.Linear(len(columns), width)
        self.convolutions = nn.ModuleList(nn.Conv1d(width, width, 5, padding=2) for _ in range(2))
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(2))
        self.attention = nn.Linear(width, 4)
        self.dropout = nn.Dropout(0.1)
        self.head = nn.Sequential(
            nn.Linear(6 * width + n_summary, width), nn.GELU(), nn.Dropout(0.1), nn.Linear(width, 1)
        )

    def forward(self, values: Tensor, mask: Tensor, summary: Tensor) -> Tensor:
        """Return one logit per text, (batch,)."""
        safe = _never_empty(mask)
        weight = safe[..., None].to(values.dtype)
        hidden = torch.nn.functional.gelu(self.embed(self.standardize(values))) * weight
        for convolution, norm in zip(self.convolutions, self.norms, strict=True):
            step = convolution(norm(hidden).mul(weight).transpose(1, 2)).transpose(1, 2)
            hidden = hidden + torch.nn.functional.gelu(step) * weight
        hidden = self.dropout(hidden)
        count = weight.sum(1)
        mean = hidden.sum(1) / count
        spread = (((hidden - mean[:, None]) * weight).square().sum(1) / count + 1e-6).sqrt()
        attended = _attend(self.attention(hidden), hidden, safe).flatten(1)
        rules = self.standardize_summary(summary)
        learned = self.head(torch.cat([mean, spread, attended, rules], 1))[:, 0]
        if self.training or self.excess_column is None:
            return learned
        excess = (values[:, :, self.excess_column] * weight[:, :, 0]).sum(1) / count[:, 0]
        return learned + self.lean * excess


class Standardize(nn.Module):
    """Subtract the training data's mean, divide by its standard deviation, and clip."""

    mean: Tensor
    spread: Tensor

    def __init__(self, n_features: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(n_features))
        self.register_buffer("spread", torch.ones(n_features))

    def fit(self, rows: Tensor) -> None:
        """Compute mean and standard deviation from rows of features, (n, feat)."""
        self.mean.copy_(rows.mean(0))
        self.spread.copy_(rows.std(0).clamp(min=1e-3))

    def forward(self, values: Tensor) -> Tensor:
        """Return standardised, clipped values."""
        return ((values - self.mean) / self.spread).clamp(-SUMMARY_LIMIT, SUMMARY_LIMIT)


NETWORKS: Mapping[str, type[PublishedNetwork] | type[ConvNetwork]] = {
    "published": PublishedNetwork,
    "conv": ConvNetwork,
}


def build_network(name: str, **sizes: Any) -> nn.Module:
    """Build an untrained network of the table."""
    return NETWORKS[name](**sizes)


def sinusoids(length: int, width: int) -> Tensor:
    """Return sinusoidal positions (Vaswani et al. 2017), (length, width), for texts of any length."""
    position = torch.arange(length)[:, None]
    rate = torch.exp(torch.arange(0, width, 2) * (-math.log(10000.0) / width))
    table = torch.zeros(length, width)
    table[:, 0::2] = torch.sin(position * rate)
    table[:, 1::2] = torch.cos(position * rate)[:, : width // 2]
    return table


def _attend(scores: Tensor, hidden: Tensor, mask: Tensor) -> Tensor:
    """Pool hidden states by softmax attention over valid tokens: (batch, heads, width)."""
    weights = scores.masked_fill(~mask[..., None], -torch.inf).softmax(1)
    return weights.transpose(1, 2) @ hidden


def _never_empty(mask: Tensor) -> Tensor:
    """Give an empty text one zero position, because a softmax over no positions would give NaN."""
    safe = mask.clone()
    safe[:, 0] |= ~mask.any(1)
    return safe
