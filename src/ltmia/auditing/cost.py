"""Counts what an audit needs, from the shapes of its models: FLOPs, memory and disk."""

from dataclasses import dataclass, replace

import torch

from ltmia.auditing.update import MUST_READ, UNSEEN_WEIGHTS, ObserverChoice
from ltmia.errors import ConfigError
from ltmia.models.batching import BatchSize, most_tokens
from ltmia.models.forward import CHUNK_BYTES
from ltmia.models.head import HALF, MIXED_DEVICES, copy_bytes
from ltmia.models.sizes import ModelShape, PairShape, Product
from ltmia.scoring.extraction import DEFAULT_LENGTH
from ltmia.scoring.pair_runner import STATES_BYTES
from ltmia.weights.backward import GATHER_BYTES
from ltmia.weights.gradient_file import GradientShape
from ltmia.weights.gradient_matrix import EXPECTED_STEPS, RANK
from ltmia.weights.regression import AT_ONCE
from ltmia.weights.solve import SQUARES
from ltmia.weights.update_attack import WeightsConfig

GIB = 2**30
STORE_BYTES = 276
"""Bytes of the store for each scored token, by `ltmia bench store`."""
LIBRARIES_BYTES = 650_000_000
"""Memory of a process with its libraries and no model."""
STEP_FLOPS = 300
"""FLOPs in the time that a step takes for each number in the gradients; most of it is spent on reading."""
STATISTICS_BYTES = 120
"""Most bytes that `torch_statistics` needs for each logit of a chunk, on devices other than the CPU."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """The texts to read, and how they are read."""

    n_texts: int = 1000
    """Texts of an audit, members and non-members."""
    max_length: int = DEFAULT_LENGTH
    """Tokens of each text; shorter texts cost less."""
    batch_size: BatchSize = 16
    observer: ObserverChoice = "auto"
    """The gradients of "weights" are counted for "auto" too, if both models are in memory."""
    sequential: bool = False
    """Whether only one model is in memory at a time."""
    thorough: bool = False
    """Whether more of the weights is read; see `WeightsConfig.of`."""

    def __post_init__(self) -> None:
        """Refuse impossible work.

        Raises:
            ConfigError: If it is impossible; the message names the field.
        """
        for name, least in (("n_texts", 1), ("max_length", 2)):
            if getattr(self, name) < least:
                raise ConfigError(f"`{name}={getattr(self, name)}`: expected at least {least}")
        if self.thorough and not self.reads_weights:
            raise ConfigError(UNSEEN_WEIGHTS)
        if self.sequential and self.observer in MUST_READ:
            raise ConfigError(f"`observer={self.observer}` needs both models in memory: leave out `sequential=True`")

    @property
    def reads_weights(self) -> bool:
        """Whether gradients are read."""
        return self.observer in MUST_READ or (self.observer == "auto" and not self.sequential)

    @property
    def weights(self) -> WeightsConfig:
        """How much of the weights is read."""
        return WeightsConfig.of(thorough=self.thorough)

    @property
    def reads_checkpoints(self) -> bool:
        """Whether checkpoints of the training run are read."""
        return self.observer == "training_run"


@dataclass(frozen=True, slots=True, kw_only=True)
class Flops:
    """Floating-point operations of an audit; a product and a sum are two."""

    layers: int
    """Matrix products of both models' layers."""
    attention: int
    """Products of queries, keys and values, which grow with the square of the length."""
    head: int
    """Output heads, on scored positions."""
    gradients: int = 0
    """Passes back through head and last layers, and the gradients at the chosen coordinates."""
    solve: int = 0
    """The regression of the update on the gradients, on the CPU."""

    @property
    def total(self) -> int:
        """Sum of all operations."""
        return self.layers + self.attention + self.head + self.gradients + self.solve


@dataclass(frozen=True, slots=True, kw_only=True)
class Memory:
    """Bytes that are in memory at once."""

    weights: int
    activations: int
    """Hidden states of one pass and batch, and of layers that are passed back through."""
    logits: int
    """A chunk of logits of both models, their statistics, and float32 copies of heads."""
    libraries: int = 0
    """The process itself; 0 for the memory of an accelerator."""
    solve: int = 0
    """The regression of the weights observer; 0 for the memory of an accelerator."""

    @property
    def total(self) -> int:
        """Sum of all bytes."""
        return self.weights + self.activations + self.logits + self.libraries + self.solve


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """Everything that decides FLOPs, memory and disk."""

    pair: PairShape
    work: Work
    dtype: torch.dtype
    device_type: str

    @property
    def models(self) -> tuple[ModelShape, ModelShape]:
        """Target and base."""
        return self.pair.target, self.pair.reference

    @property
    def length(self) -> int:
        """Tokens read of each text."""
        return min(self.work.max_length, *(shape.max_positions or self.work.max_length for shape in self.models))

    @property
    def pass_tokens(self) -> int:
        """Tokens that go through a model at once."""
        most = most_tokens(torch.device(self.device_type))
        n_texts = most if self.work.batch_size == "auto" else self.work.batch_size
        return max(self.length, min(n_texts * self.length, most, self.work.n_texts * self.length))

    @property
    def n_coordinates(self) -> int:
        """Coordinates that are read of the update: no more than there are."""
        config = self.work.weights
        return min(config.coordinates_of(self.work.n_texts), self.pair.target.n_readable(config.n_layers))


def count_flops(setting: Setting) -> Flops:
    """Count the FLOPs of both models on all texts, and those of the gradients."""
    work, length = setting.work, setting.length
    n_tokens, n_scored = work.n_texts * length, work.n_texts * (length - 1)
    per_token = [2 * _n_active(shape.products) for shape in setting.models]
    per_text = [shape.attention.flops(length) for shape in setting.models]
    heads = [2 * n_scored * shape.n_head for shape in setting.models]
    found = Flops(layers=n_tokens * sum(per_token), attention=work.n_texts * sum(per_text), head=sum(heads))
    if not work.reads_weights:
        return found
    target, reference = setting.models
    points = work.weights.points
    gradients = sum(_gradient_flops(setting, reference if point == 0 else target) for point in points)
    # A point between the models needs a pass of its own, and so does the base of an adapter, with an adapter of zeros.
    own = len(points) - (1 if setting.pair.is_shared else 2)
    gradients += own * (n_tokens * per_token[0] + work.n_texts * per_text[0])
    return replace(found, gradients=gradients, solve=_solve_flops(setting, len(points)))


def _gradient_flops(setting: Setting, shape: ModelShape) -> int:
    """Count the pass back through a model at one point, and the gradients at the coordinates."""
    work, length, n_layers = setting.work, setting.length, setting.work.weights.n_layers
    n_tokens, n_scored = work.n_texts * length, work.n_texts * (length - 1)
    # Logits again, and their gradient; then one product back for each product forward, two for attention.
    found = 4 * n_scored * shape.n_head + n_tokens * 2 * _n_active(shape.last(n_layers))
    share = min((n_layers or shape.attention.n_layers) / max(shape.attention.n_layers, 1), 1.0)
    found += int(2 * share * work.n_texts * shape.attention.flops(length))
    return found + n_tokens * 2 * setting.n_coordinates


def _solve_flops(setting: Setting, n_points: int) -> int:
    columns = n_points * setting.work.n_texts
    if setting.work.n_texts > AT_ONCE:
        return columns * setting.n_coordinates * (4 * RANK + EXPECTED_STEPS * STEP_FLOPS)
    return 2 * columns**2 * setting.n_coordinates + columns**3


def count_checkpoint_flops(setting: Setting) -> Flops:
    """Count the FLOPs that each checkpoint adds: a pass of a model like the target, its gradients, and a regression.

    The regression has the gradients at both ends of an interval, however many points are read of the whole update.
    """
    work, target = setting.work, setting.pair.target
    return Flops(
        layers=work.n_texts * setting.length * 2 * _n_active(target.products),
        attention=work.n_texts * target.attention.flops(setting.length),
        head=2 * work.n_texts * (setting.length - 1) * target.n_head,
        gradients=_gradient_flops(setting, target),
        solve=_solve_flops(setting, 2),
    )


def count_memory(setting: Setting) -> Memory:
    """Count the bytes that are in the device's memory at once."""
    work, width, on_cpu = setting.work, setting.dtype.itemsize, setting.device_type == "cpu"
    target, reference = setting.models
    if setting.pair.is_shared:
        weights = target.n_parameters
    elif work.sequential:
        weights = max(target.n_parameters + reference.n_head, reference.n_parameters + target.n_head)
    else:
        weights = target.n_parameters + reference.n_parameters
    if work.reads_checkpoints:
        weights += target.n_parameters  # one checkpoint at a time, beside both models
    # Experts work on a copy of a token for each expert that reads it.
    widest = max(max(p.n_in, p.n_out) * p.times for shape in setting.models for p in shape.products)
    batch = setting.pass_tokens if work.batch_size == "auto" else work.batch_size * setting.length
    kept = 2 * max(batch, setting.pass_tokens) * target.hidden_size
    activations = width * (kept + setting.pass_tokens * (8 * target.hidden_size + 4 * widest))
    logits = 2 * CHUNK_BYTES + (0 if on_cpu else CHUNK_BYTES // 4 * STATISTICS_BYTES)
    if setting.device_type not in MIXED_DEVICES:
        logits += sum(copy_bytes(shape.n_head, setting.dtype) for shape in setting.models)
    if work.reads_weights:
        config = work.weights
        last = target.last(config.n_layers)
        activations += width * setting.pass_tokens * 2 * sum(p.times * (p.n_in + p.n_out) for p in last)
        activations += 4 * setting.n_coordinates * (setting.pass_tokens // setting.length) + 3 * GATHER_BYTES
        logits += 3 * CHUNK_BYTES + (4 * target.n_head if setting.dtype in HALF else 0)
    return Memory(
        weights=width * weights,
        activations=activations,
        logits=logits,
        libraries=LIBRARIES_BYTES if on_cpu else 0,
        solve=solve_bytes(work) if on_cpu else 0,
    )


def solve_bytes(work: Work) -> int:
    """Return the memory that the regression of the weights observer takes, on the CPU."""
    columns = len(work.weights.points) * work.n_texts
    if not work.reads_weights:
        return 0
    if work.n_texts > AT_ONCE:
        return 14 * RANK * (columns + work.weights.coordinates_of(work.n_texts))
    return 8 * SQUARES * columns**2


def checkpoint_disk_bytes(setting: Setting) -> int:
    """Return the bytes on disk that each checkpoint adds: the gradients of all texts at one more point."""
    return disk_bytes(setting)["gradients"] // len(setting.work.weights.points)


def disk_bytes(setting: Setting) -> dict[str, int]:
    """Return the bytes on disk of each kind of data that the audit keeps."""
    work, config = setting.work, setting.work.weights
    n_scored = work.n_texts * (setting.length - 1)
    found = {"the store": STORE_BYTES * n_scored}
    if work.reads_weights:
        shape = GradientShape(n_texts=work.n_texts, n_points=len(config.points), n_coordinates=setting.n_coordinates)
        found["gradients"] = shape.n_bytes
    if work.sequential and not setting.pair.is_shared:
        found["hidden states"] = min(STATES_BYTES, n_scored * setting.pair.target.hidden_size * setting.dtype.itemsize)
    return found


def _n_active(products: tuple[Product, ...]) -> int:
    return sum(product.n_active for product in products)


def gib(n_bytes: int) -> str:
    """Return a number of bytes in GiB, as shown."""
    return f"{n_bytes / GIB:,.2f}" if n_bytes < 10 * GIB else f"{n_bytes / GIB:,.0f}"


def duration(seconds: float) -> str:
    """Return a time in the largest unit of which it has two."""
    for size, name in ((86_400, "days"), (3600, "hours"), (60, "minutes")):
        if seconds >= 2 * size:
            return f"{seconds / size:.1f} {name}"
    return f"{seconds:.1f} seconds"
