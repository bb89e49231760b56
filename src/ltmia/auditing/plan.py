"""Says what an audit will cost, from the two models' configs alone: FLOPs, memory, disk and time."""

import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Unpack

import torch

from ltmia.auditing.cost import (
    GIB,
    LIBRARIES_BYTES,
    Flops,
    Memory,
    Setting,
    Work,
    checkpoint_disk_bytes,
    count_checkpoint_flops,
    count_flops,
    count_memory,
    disk_bytes,
    duration,
    gib,
    solve_bytes,
)
from ltmia.auditing.doctor import Finding
from ltmia.auditing.speed import Clock, Speed, measure_speed
from ltmia.auditing.spread_cost import Spread, about_spread, count_spread, cure_of_spread, spread_memory
from ltmia.auditing.update import MUST_READ
from ltmia.errors import ConfigError
from ltmia.evaluation.wording import percent
from ltmia.models.batching import free_bytes
from ltmia.models.head import HALF, MIXED_DEVICES
from ltmia.models.loading import LoadKeywords, LoadOptions
from ltmia.models.sizes import PairShape, pair_shape
from ltmia.models.spread import computing_device
from ltmia.runtime import dtype_name, pick_dtype

RANGE = (0.8, 1.25)
"""Range around a time whose parts were measured."""
SHARES = (0.2, 0.5)
"""Shares of an accelerator's peak that passes over texts usually reach; taken if its speed is not measured."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Accelerators:
    """Devices that are not at hand, with figures from their data sheet."""

    memory_gib: float
    """Memory of each, in GiB."""
    tflops: float
    """Peak of each in the models' number format, in 10^12 FLOPs per second."""
    n_devices: int = 1

    def __post_init__(self) -> None:
        """Refuse impossible figures.

        Raises:
            ConfigError: If a figure is not above 0.
        """
        for name in ("memory_gib", "tflops", "n_devices"):
            if not 0 < getattr(self, name) < float("inf"):
                raise ConfigError(f"{name} = {getattr(self, name)}: expected a number above 0")


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """Cost of an audit's passes over its texts; statistics of the report and other attacks come on top."""

    findings: tuple[Finding, ...]
    n_parameters: int
    """Parameters of both models; shared ones count once."""
    dtype: str
    n_tokens: int
    """Tokens that each model reads."""
    flops: Flops
    n_flops: int
    """Sum of `flops`."""
    memory: Memory
    """Memory of the device."""
    memory_bytes: int
    """Sum of `memory`."""
    host_bytes: int
    """Memory that the computer itself needs besides, if the models are on an accelerator."""
    free_bytes: int | None
    disk_bytes: int
    seconds: tuple[float, float]
    """Lowest and highest likely time."""

    @property
    def usable(self) -> bool:
        """Whether the models fit."""
        return all(finding.level != "problem" for finding in self.findings)


def plan_audit(
    target: str,
    base: str | None = "auto",
    work: Work | None = None,
    accelerators: Accelerators | None = None,
    *,
    clock: Clock = time.perf_counter,
    **keywords: Unpack[LoadKeywords],
) -> Plan:
    """Plan an audit.

    Args:
        target: Folder or hub id with a config.json or adapter_config.json.
        base: The same for the base; see `pair_shape`.
        work: Texts and options.
        accelerators: Devices to plan for. None: the one at hand, whose speed is measured.
        clock: Clock for measuring it.
        **keywords: `LoadOptions`, field by field.

    Raises:
        ModelError: If a config is missing, damaged or of an unknown architecture.
        ConfigError: If there is no such dtype or device.
    """
    options, work = LoadOptions(**keywords), work or Work()
    pair, device = pair_shape(target, base, options), computing_device(options.device, options.device_map)
    setting = Setting(
        pair=pair,
        work=work,
        dtype=_dtype(pair, options.dtype, device, at_hand=accelerators is None),
        device_type=device.type if accelerators is None else MIXED_DEVICES[0],
    )
    setting, spread = _spread(setting, options.device_map, accelerators)
    flops, memory = count_flops(setting), spread_memory(count_memory(setting), setting, spread)
    if accelerators is None:
        free = free_bytes(device)
        seconds, where = _measured_seconds(setting, flops, device, clock)
    else:
        free = int(accelerators.memory_gib * GIB)
        seconds, where = _given_seconds(flops, accelerators, in_turn=spread is not None)
    return Plan(
        findings=(
            *_about(setting, flops),
            *(() if spread is None else about_spread(spread, work)),
            *_about_memory(setting, memory, free, spread),
            *_about_disk(setting),
            Finding(level="ok", sentence=f"time: {duration(seconds[0])} to {duration(seconds[1])} on {where}"),
            *_about_checkpoints(setting, flops),
        ),
        n_parameters=pair.n_parameters,
        dtype=dtype_name(setting.dtype),
        n_tokens=work.n_texts * setting.length,
        flops=flops,
        n_flops=flops.total,
        memory=memory,
        memory_bytes=memory.total,
        host_bytes=_host_bytes(setting, spread),
        free_bytes=free,
        disk_bytes=sum(disk_bytes(setting).values()),
        seconds=seconds,
    )


def _measured_seconds(
    setting: Setting, flops: Flops, device: torch.device, clock: Clock
) -> tuple[tuple[float, float], str]:
    """Return the likely range of the time on a device at hand, and its description."""
    speed = measure_speed(
        setting.pair.target,
        tokens=setting.pass_tokens,
        length=setting.length,
        dtype=setting.dtype,
        device=device,
        clock=clock,
    )
    likely = _seconds(setting, flops, speed)
    return (RANGE[0] * likely, RANGE[1] * likely), f"{device}, at the speed measured now"


def _spread(
    setting: Setting, device_map: str | None, accelerators: Accelerators | None
) -> tuple[Setting, Spread | None]:
    """Return where weights lie, if models are spread, and the setting: with offloaded ones, no gradients are read."""
    if device_map is None:
        return setting, None
    given = None if accelerators is None else (accelerators.n_devices, int(accelerators.memory_gib * GIB))
    spread = count_spread(setting, device_map, given)
    if spread.offloaded and setting.work.observer == "auto" and not setting.work.thorough:
        setting = replace(setting, work=replace(setting.work, observer="logprobs"))
    return setting, spread


def _host_bytes(setting: Setting, spread: Spread | None) -> int:
    beside = 0 if setting.device_type == "cpu" else LIBRARIES_BYTES + solve_bytes(setting.work)
    return beside + (spread.host_bytes if spread else 0)


def _given_seconds(flops: Flops, accelerators: Accelerators, *, in_turn: bool) -> tuple[tuple[float, float], str]:
    """Return the same for devices whose peak is given; in turn: only one computes at a time."""
    low, high = SHARES
    n_at_once = 1 if in_turn else accelerators.n_devices
    at_peak = (flops.total - flops.solve) / (accelerators.tflops * 1e12 * n_at_once)
    where = f"{accelerators.n_devices} given device(s), if passes reach {percent(low)} to {percent(high)} of the peak"
    return (at_peak / high, at_peak / low), where


def _dtype(pair: PairShape, name: str, device: torch.device, *, at_hand: bool) -> torch.dtype:
    stored = {shape.stored for shape in (pair.reference, *(() if pair.is_shared else (pair.target,)))}
    if name == "auto" and not at_hand:
        return torch.bfloat16 if all(dtype in HALF for dtype in stored) else torch.float32
    picked = {pick_dtype(name, dtype, device) for dtype in stored}
    return torch.float32 if len(picked) > 1 else picked.pop()


def _seconds(setting: Setting, flops: Flops, speed: Speed) -> float:
    models = (flops.layers + flops.gradients + flops.solve) / speed.layers
    models += flops.attention / speed.attention + flops.head / speed.head
    return models + setting.work.n_texts * setting.length * speed.token_seconds


def _about(setting: Setting, flops: Flops) -> Iterator[Finding]:
    for name, shape in zip(("target", "base"), setting.models, strict=True):
        size = f"{shape.n_parameters:,} parameters, {shape.n_active:,} of them used for each token"
        yield Finding(level="ok", sentence=f"{name}: {shape.name}: {shape.model_type}, {size}")
        for note in shape.notes:
            yield Finding(level="warning", sentence=f"the {name}: {note}")
    for note in setting.pair.notes:
        yield Finding(level="ok", sentence=note)
    if setting.pair.is_shared:
        yield Finding(level="ok", sentence="one copy of the weights serves both: the target is an adapter on its base")
    work = setting.work
    read = f"{work.n_texts:,} texts of {setting.length:,} tokens: each model reads {work.n_texts * setting.length:,}"
    parts = ", ".join(
        f"{name} {getattr(flops, name):.1e}"
        for name in ("layers", "attention", "head", "gradients", "solve")
        if getattr(flops, name)
    )
    yield Finding(level="ok", sentence=f"{read} tokens, {flops.total:.2e} FLOPs in all ({parts})")


def _about_memory(setting: Setting, memory: Memory, free: int | None, spread: Spread | None) -> Iterator[Finding]:
    cure, host = _cure if spread is None else cure_of_spread, _host_bytes(setting, spread)
    parts = ", ".join(
        f"{name} {gib(getattr(memory, name))}"
        for name in ("weights", "activations", "logits", "libraries", "solve")
        if getattr(memory, name)
    )
    need = f"memory in {dtype_name(setting.dtype)}: {gib(memory.total)} GiB ({parts})"
    if free is None:
        yield Finding(level="warning", sentence=f"{need}; the device does not say how much is free")
    elif memory.total <= free:
        yield Finding(level="ok", sentence=f"{need}, of {gib(free)} GiB free")
    else:
        sentence = f"{need} do not fit into {gib(free)} GiB"
        yield Finding(level="problem", sentence=sentence, cure=cure(setting, free))
    if host:
        yield Finding(level="ok", sentence=f"memory of the computer itself: {gib(host)} GiB besides")


def _cure(setting: Setting, free: int) -> str:
    """Return the smallest change of options with which the work fits."""
    tried = [(names, other, count_memory(other).total) for names, other in _alternatives(setting)]
    for names, _, n_bytes in tried:
        if n_bytes <= free:
            return f"{names} fits: {gib(n_bytes)} GiB"
    least = min(n_bytes for *_, n_bytes in tried)
    return (
        f"no option makes it fit into one device: it takes {gib(least)} GiB; `device_map=auto` spreads each model "
        "over devices, memory and disk"
    )


def _alternatives(setting: Setting) -> Iterator[tuple[str, Setting]]:
    work = setting.work
    small = replace(setting, work=replace(work, batch_size=1))
    yield "`batch_size=1`", small
    half = replace(setting, dtype=torch.bfloat16)
    if setting.dtype not in HALF:
        yield "`dtype=bfloat16`", half
        yield "`dtype=bfloat16` with `batch_size=1`", replace(small, dtype=torch.bfloat16)
    quick = replace(work, thorough=False)
    if work.thorough:
        yield "leaving out `thorough`", replace(setting, work=quick)
    without = " without `thorough`" if work.thorough else ""
    if work.reads_weights:
        yield f"`observer=logprobs`{without}", replace(setting, work=replace(quick, observer="logprobs"))
    if not setting.pair.is_shared:
        must_read = work.observer in MUST_READ
        alone = replace(quick, observer="logprobs" if must_read else work.observer, sequential=True)
        seen = (" with `observer=logprobs`" if must_read else "") + without
        yield f"`sequential=True`{seen}", replace(setting, work=alone)
        yield (
            f"`sequential=True` with `dtype=bfloat16` and `batch_size=1`{seen}",
            replace(half if setting.dtype not in HALF else setting, work=replace(alone, batch_size=1)),
        )


def _about_checkpoints(setting: Setting, flops: Flops) -> Iterator[Finding]:
    """Say what each checkpoint adds, because their number is not known."""
    if setting.work.reads_checkpoints:
        more = count_checkpoint_flops(setting).total
        yield Finding(
            level="ok",
            sentence=f"each checkpoint adds {more:.1e} FLOPs, {percent(more / flops.total)} of the time above, and "
            f"{gib(checkpoint_disk_bytes(setting))} GiB on disk; memory for one is counted above",
        )


def _about_disk(setting: Setting) -> Iterator[Finding]:
    parts = disk_bytes(setting)
    named = ", ".join(f"{name} {gib(n_bytes)}" for name, n_bytes in parts.items())
    yield Finding(level="ok", sentence=f"disk: {gib(sum(parts.values()))} GiB ({named}) besides the models' files")
