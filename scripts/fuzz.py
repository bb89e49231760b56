"""Feed hostile files to everything that reads a file: only our own errors may come out.

    python scripts/fuzz.py all --cases 10000          each reader in a process of its own
    python scripts/fuzz.py recipe --cases 100000

Guided by coverage (atheris, the extra `fuzz`). A case over five seconds or 2 GiB, or any error that is not ours, stops
that reader's run with a traceback and keeps the case. Exits 1 if any reader broke.
"""

import argparse
import re
import shutil
import sys
import tempfile
import time
from pathlib import Path

from clean_process import preload, start

SLOW = {"report": 20}
"""How many times as long a case takes for this reader; it gets that many times fewer cases."""
SECONDS, MEBIBYTES, MOST_BYTES = 5, 2048, 4096
"""Bounds of one case. Seconds are processor time, so a busy machine breaks nothing."""
HANG_SECONDS = 60
"""The same by the clock on the wall."""
READERS = (
    "jsonl", "jsonl_gz", "csv", "txt", "conversations", "parquet", "stdin", "recording", "recipe", "policy", "limit",
    "results", "records", "report", "manifest", "store_texts", "journal", "classifier_config", "classifier_weights",
)  # fmt: skip
"""Those of `fuzz_readers`, which only `fuzz_instrumented` may import: atheris has to watch."""


def fuzz(reader: str, cases: int, folder: Path) -> None:
    """Search for a case that breaks a reader; ends the process."""
    import atheris
    from fuzz_readers import SEEDS, feed

    seeds, case = folder / "seeds", folder / "case"
    seeds.mkdir()
    case.mkdir()
    for i, seed in enumerate(SEEDS.get(reader, (b"\0", b"\1{}"))):
        (seeds / str(i)).write_bytes(seed)
    bounds = [
        f"-runs={max(1, cases // SLOW.get(reader, 1))}",
        f"-timeout={HANG_SECONDS}",
        f"-rss_limit_mb={MEBIBYTES}",
        f"-max_len={MOST_BYTES}",
    ]
    options = [*bounds, "-print_final_stats=1", f"-artifact_prefix={tempfile.gettempdir()}/ltmia-{reader}-", str(seeds)]

    def one(content: bytes) -> None:
        before = time.process_time()
        feed(reader, case, content)
        if time.process_time() - before > SECONDS:
            raise TimeoutError(f"a case of {len(content)} bytes took over {SECONDS} s")

    atheris.Setup([sys.argv[0], *options], one)
    atheris.Fuzz()


def run(reader: str, cases: int) -> bool:
    """Fuzz one reader in a process of its own, and print how it went; say whether it held."""
    memory = Path("/dev/shm")
    folder = Path(tempfile.mkdtemp(prefix="ltmia-fuzz-", dir=memory if memory.is_dir() else None))
    began = time.monotonic()
    code = start(fuzz, (reader, cases, folder), folder / "output").ended(None)  # libFuzzer stops a case that hangs
    output = (folder / "output").read_text("utf-8", "replace")
    shutil.rmtree(folder, ignore_errors=True)
    figures = dict(re.findall(r"stat::(\w+):\s+(\d+)", output))
    coverage = re.findall(r"cov: (\d+)", output)
    print(
        f"{reader}: {'BROKE' if code else 'held'}, {figures.get('number_of_executed_units', '?')} cases, "
        f"{coverage[-1] if coverage else '?'} branches, {figures.get('peak_rss_mb', '?')} MiB at most, "
        f"{time.monotonic() - began:.0f} s",
        flush=True,
    )
    if code:
        print(f"exit code {code}", *output.splitlines()[-50:], sep="\n", flush=True)
    return code == 0


def main() -> None:
    """Fuzz one reader or all."""
    parser = argparse.ArgumentParser(description="Feed hostile files to everything that reads a file.")
    parser.add_argument("reader", choices=("all", *READERS))
    parser.add_argument("--cases", type=int, default=10_000)
    args = parser.parse_args()
    preload("fuzz_instrumented")
    held = [run(reader, args.cases) for reader in (READERS if args.reader == "all" else [args.reader])]
    raise SystemExit(0 if all(held) else 1)


if __name__ == "__main__":
    main()
