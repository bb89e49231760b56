"""Device, dtype, seeds, threads and versions."""

import os
import platform
import random
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import numpy as np
import torch

from ltmia.errors import ConfigError

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
COMPUTES_FLOAT16 = ("cuda", "xpu")
"""Devices on which float16 is faster than float32."""

REPORTED_PACKAGES = ("ltmia", "torch", "transformers", "peft", "numba", "numpy", "scikit-learn")


def pick_device(name: str) -> torch.device:
    """Return the device of a name; "auto" is an accelerator if there is one.

    Raises:
        ConfigError: If there is no such device on this machine.
    """
    if name == "auto":
        found = torch.accelerator.current_accelerator(check_available=True)
        return found or torch.device("cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise ConfigError(f"`device={name}`: not available here ({error})") from error
    return device


def pick_dtype(name: str, stored: torch.dtype, device: torch.device) -> torch.dtype:
    """Return the dtype to compute in.

    Args:
        name: "auto" or a key of `DTYPES`. "auto" is the dtype of the checkpoint where the hardware computes in it, and
            float32 otherwise, so that no weight of it is rounded.
        stored: Dtype of the checkpoint.
        device: Where the model will run.

    Raises:
        ConfigError: If the name is unknown.
    """
    if name == "auto":
        fast = {torch.bfloat16: computes_bfloat16(device), torch.float16: device.type in COMPUTES_FLOAT16}
        return stored if fast.get(stored, False) else torch.float32
    if name not in DTYPES:
        raise ConfigError(f"`dtype={name}`: expected auto, {', '.join(DTYPES)}")
    return DTYPES[name]


def dtype_name(dtype: torch.dtype) -> str:
    """Return the short name of a dtype, such as "bfloat16"."""
    return str(dtype).removeprefix("torch.")


def computes_bfloat16(device: torch.device) -> bool:
    """Say whether the hardware multiplies bfloat16 natively, so that it is faster than float32."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if device.type == "cpu":
        return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())
    return False


def seed_everything(seed: int) -> None:
    """Seed Python, numpy and torch."""
    random.seed(seed)
    np.random.seed(seed)  # noqa: NPY002  libraries we call still draw from the global generator
    torch.manual_seed(seed)


def environment() -> dict[str, str]:
    """Describe versions, hardware and threads, for provenance."""
    found = {"python": platform.python_version(), "platform": platform.platform(terse=True)}
    for name in REPORTED_PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "not installed"
    found["processor"] = _processor()
    found["torch_threads"] = str(torch.get_num_threads())
    accelerator = torch.accelerator.current_accelerator(check_available=True)
    found["accelerator"] = str(accelerator) if accelerator else "none"
    return found


def _processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        for line in cpuinfo.read_text("utf-8", "replace").splitlines():
            if line.startswith("model name"):
                return f"{line.partition(':')[2].strip()} x {os.cpu_count()}"
    return f"{platform.machine()} x {os.cpu_count()}"
