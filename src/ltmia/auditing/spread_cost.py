"""Counts where the weights of both models lie if each is spread over devices, memory and disk (`device_map`)."""

from collections.abc import Iterator
from dataclasses import dataclass, replace

from ltmia.auditing.cost import GIB, Memory, Setting, Work, duration, gib
from ltmia.auditing.doctor import Finding
from ltmia.auditing.update import MUST_READ
from ltmia.errors import ConfigError
from ltmia.models.spread import FREE_SHARE, Place, memory_limits

BYTES_PER_SECOND = GIB
"""Speed that a plan assumes for loading offloaded weights."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Spread:
    """Bytes of weights by the place where they lie, for the models that are loaded at the same time."""

    accelerators: int
    cpu: int
    disk: int
    n_accelerators: int
    """Accelerators that hold weights; 0 if the CPU computes."""
    n_passes: int
    """Passes that load the offloaded weights."""

    @property
    def offloaded(self) -> int:
        """Bytes that are loaded anew in each pass."""
        return self.disk + (self.cpu if self.n_accelerators else 0)

    @property
    def on_each_device(self) -> int:
        """Bytes that stay on a device that computes."""
        return self.accelerators // self.n_accelerators if self.n_accelerators else self.cpu

    @property
    def host_bytes(self) -> int:
        """Bytes in the memory of the computer beside those on accelerators."""
        return self.cpu if self.n_accelerators else 0


def count_spread(setting: Setting, device_map: str, given: tuple[int, int] | None = None) -> Spread:
    """Count the bytes in each place.

    Args:
        setting: Both models, and the work.
        device_map: See `spread.memory_limits`.
        given: Number of accelerators that are not at hand, and the bytes of each; the computer's memory then counts as
            large enough.

    Raises:
        ConfigError: If the device map is none, or has limits for accelerators that are not at hand.
    """
    if given is None:
        limits = memory_limits(device_map)
    elif device_map == "auto":
        limits = {place: int(FREE_SHARE * given[1]) for place in range(given[0])}
    else:
        raise ConfigError("a plan for accelerators that are not at hand knows only `device_map=auto`")
    sizes = [shape.n_parameters * setting.dtype.itemsize for shape in setting.models]
    sizes = sizes[:1] if setting.pair.is_shared else sizes
    parts: list[dict[Place, int]] = []
    for size in [max(sizes)] if setting.work.sequential else sizes:
        parts.append(_fill(limits, size, rest="disk" if given is None else "cpu"))
        if device_map == "auto":  # the next model gets its share of what this one left
            limits = {place: limit - int(FREE_SHARE * parts[-1].get(place, 0)) for place, limit in limits.items()}
    total = {place: sum(part.get(place, 0) for part in parts) for part in parts for place in part}
    accelerators = [place for place in limits if place != "cpu"]
    n_tokens = setting.work.n_texts * setting.length
    return Spread(
        accelerators=sum(total.get(place, 0) for place in accelerators),
        cpu=total.get("cpu", 0),
        disk=total.get("disk", 0),
        n_accelerators=len(accelerators),
        # One copy of the weights that serves both models, or one model after the other, is loaded twice as often.
        n_passes=-(-n_tokens // setting.pass_tokens) * (1 if len(parts) == len(setting.models) else 2),
    )


def about_spread(spread: Spread, work: Work) -> Iterator[Finding]:
    """Say where the weights lie, and how often the offloaded ones are loaded."""
    places = [("on accelerators", spread.accelerators), ("in memory", spread.cpu), ("on disk", spread.disk)]
    parts = ", ".join(f"{gib(n_bytes)} GiB {place}" for place, n_bytes in places if n_bytes)
    turns = "; one accelerator computes at a time" if spread.n_accelerators > 1 else ""
    yield Finding(level="ok", sentence=f"weights of the models that are loaded together: {parts}{turns}")
    if not spread.offloaded:
        return
    if work.thorough or work.observer in MUST_READ:
        asked = "thorough=True" if work.thorough else f"observer={work.observer}"
        yield Finding(
            level="problem",
            sentence=f"`{asked}` needs all weights on devices that compute",
            cure="leave it out, or leave out `device_map`",
        )
    n_bytes = spread.n_passes * spread.offloaded
    yield Finding(
        level="warning",
        sentence=f"{gib(spread.offloaded)} GiB of them are loaded anew in each of {spread.n_passes:,} passes, "
        f"{gib(n_bytes)} GiB in all: at 1 GiB/s this adds {duration(n_bytes / BYTES_PER_SECOND)}, and no gradients "
        "are read",
        cure="a larger `batch_size` takes fewer passes" if spread.n_accelerators else "",
    )


def cure_of_spread(_setting: Setting, _free: int) -> str:
    """Return what to do if the models do not fit, although they are spread."""
    return "give `device_map` lower limits, or `batch_size=1`"


def _fill(limits: dict[Place, int], size: int, rest: str) -> dict[Place, int]:
    """Put the bytes of one model into the places in turn, up to the limit of each."""
    found: dict[Place, int] = {}
    for place, limit in limits.items():
        found[place] = min(size, limit)
        size -= found[place]
    found[rest] = found.get(rest, 0) + size
    return found


def spread_memory(memory: Memory, setting: Setting, spread: Spread | None) -> Memory:
    """Return the memory of each device: its weights, the largest offloaded matrix, and heads that are loaded."""
    if spread is None:
        return memory
    weights = spread.on_each_device
    if spread.offloaded:
        heads = [shape.n_head for shape in setting.models]
        largest = max(p.n_active for shape in setting.models for p in shape.products)
        weights += setting.dtype.itemsize * (sum(heads) + max(largest, *heads))
    return replace(memory, weights=weights)
