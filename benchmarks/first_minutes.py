"""Time what a newcomer waits for: the installation, the first --help, the demo.

    python benchmarks/first_minutes.py OUT

`--steps` chooses among `install` (into an environment of its own below OUT, torch first), `weight` (what the installed
packages take on disk), `help` and `demo`. Without `install` the other steps are of the environment that runs this
script. Seconds are those of the clock and, behind them, of the processor.
"""

import argparse
import os
import subprocess
import sys
import time
import venv
from collections.abc import Iterable, Sequence
from pathlib import Path

ROOT = Path(__file__).parents[1]
TORCH = "torch==2.13.0"
STEPS = ("install", "weight", "help", "demo")
HEAVIEST = 12
"""Packages that are listed."""
TIMES = 3
"""That --help is run: the first run also reads files from the disk."""


def main() -> None:
    """Run the steps and print a line for each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--steps", nargs="+", choices=STEPS, default=STEPS)
    parser.add_argument("--members", type=int, default=500, help="of the demo")
    arguments = parser.parse_args()
    python = Path(sys.executable)
    if "install" in arguments.steps:
        python = install(arguments.out / "environment")
    if "weight" in arguments.steps:
        print_weight(python)
    if "help" in arguments.steps:
        runs = [timed([python, "-m", "ltmia", "--help"]) for _ in range(TIMES)]
        print("--help:", ", ".join(f"{wall:.2f} s ({cpu:.2f})" for wall, cpu in runs))
    if "demo" in arguments.steps:
        wall, cpu = timed([python, "-m", "ltmia", "demo", "-o", arguments.out / "demo", "--members", arguments.members])
        print(f"demo: {wall:.0f} s ({cpu:.0f})")


def install(environment: Path) -> Path:
    """Install the package into a new environment; return its Python."""
    venv.create(environment, with_pip=True, clear=True)
    python = environment / "bin" / "python"
    pip = [python, "-m", "pip", "install", "--quiet", "-c", ROOT / "constraints.txt"]
    for what in (TORCH, ROOT):
        wall, cpu = timed([*pip, what])
        print(f"install {Path(what).name}: {wall:.0f} s ({cpu:.0f})")
    return python


def timed(command: Sequence[object]) -> tuple[float, float]:
    """Run a command; return its seconds by the clock, and of the processor with all that it started."""
    before, began = os.times(), time.monotonic()
    subprocess.run([str(word) for word in command], check=True, stdout=subprocess.DEVNULL)
    after = os.times()
    used = after.children_user - before.children_user + after.children_system - before.children_system
    return time.monotonic() - began, used


def print_weight(python: Path) -> None:
    """Print what the heaviest packages of an environment take on disk, and all together."""
    code = "import sysconfig; print(sysconfig.get_path('purelib'))"
    place = Path(subprocess.run([python, "-c", code], check=True, capture_output=True, text=True).stdout.strip())
    sizes = sorted(((size_of(path), path.name) for path in place.iterdir() if path.is_dir()), reverse=True)
    for size, name in sizes[:HEAVIEST]:
        print(f"{name}: {size / 1e6:.0f} MB")
    whole = sum(size for size, _ in sizes)
    torch = sum(size for size, name in sizes if name in ("torch", "triton", "nvidia"))
    print(f"all packages: {whole / 1e6:.0f} MB, without torch {(whole - torch) / 1e6:.0f} MB")


def size_of(folder: Path) -> int:
    """Return the bytes of all files below a folder."""
    files: Iterable[Path] = (path for path in folder.rglob("*") if path.is_file() and not path.is_symlink())
    return sum(path.stat().st_size for path in files)


if __name__ == "__main__":
    main()
