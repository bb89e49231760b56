"""Write the demo's embedded texts: State of the Union addresses, public domain.

    python scripts/make_demo_texts.py CORPORA_DIR [--out FILE]

CORPORA_DIR holds `speeches.jsonl.gz`: one object a line with `id`, `text` and `source` (the address
that the passage comes from). The output, `src/ltmia/data/demo/texts.jsonl.gz`, is the same at each run:
passages of each address are taken in the order of a hash of their id, cut at a sentence's end to at
most 130 words, and those that come out under 60 words are passed over.
"""

import argparse
import gzip
import hashlib
import json
import re
from collections import defaultdict
from pathlib import Path

N_TEXTS = 2_400
MIN_WORDS, MAX_WORDS = 60, 130
OUTPUT = Path(__file__).parents[1] / "src/ltmia/data/demo/texts.jsonl.gz"


def read_passages(path: Path) -> dict[str, list[dict[str, str]]]:
    """Return the passages of each address, in the order of a hash of their id."""
    passages = defaultdict(list)
    with gzip.open(path, "rt", encoding="utf-8") as lines:
        for line in lines:
            passage = json.loads(line)
            passages[passage["source"]].append(passage)
    return {source: sorted(passages[source], key=lambda p: sha256(p["id"])) for source in sorted(passages)}


def shorten(text: str) -> str:
    """Return whole sentences from the start, up to 130 words; empty where none fits."""
    sentences = re.split(r"(?<=[.!?])\s+", text.strip())
    kept, n_words = [], 0
    for sentence in sentences:
        n_words += len(sentence.split())
        if n_words > MAX_WORDS:
            break
        kept.append(sentence)
    return " ".join(kept)


def choose(passages: dict[str, list[dict[str, str]]]) -> list[dict[str, str]]:
    """Return `N_TEXTS` shortened passages, taken from the addresses in turn, shuffled by hash."""
    usable = []
    for group in passages.values():
        shortened = [{**p, "text": shorten(p["text"])} for p in group]
        long_enough = [p for p in shortened if len(p["text"].split()) >= MIN_WORDS]
        usable += list(enumerate(long_enough))
    usable.sort(key=lambda item: (item[0], sha256(item[1]["source"])))
    return sorted((p for _, p in usable[:N_TEXTS]), key=lambda p: sha256(p["id"]))


def sha256(text: str) -> str:
    """Return the hex digest of a text."""
    return hashlib.sha256(text.encode()).hexdigest()


def main() -> None:
    """Read the corpus named on the command line and write the embedded file."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("corpora", type=Path, metavar="CORPORA_DIR")
    parser.add_argument("--out", type=Path, default=OUTPUT, help="default: the file that is shipped")
    args = parser.parse_args()
    chosen = choose(read_passages(args.corpora / "speeches.jsonl.gz"))
    keys = ("id", "text", "source")
    lines = (json.dumps({key: p[key] for key in keys}, ensure_ascii=False) for p in chosen)
    args.out.parent.mkdir(parents=True, exist_ok=True)
    # No file name and no time in the header: the same texts give the same bytes.
    with (
        args.out.open("wb") as raw,
        gzip.GzipFile(filename="", mode="wb", fileobj=raw, compresslevel=9, mtime=0) as packed,
    ):
        packed.write("".join(f"{line}\n" for line in lines).encode("utf-8"))
    n_sources = len({p["source"] for p in chosen})
    print(f"{len(chosen)} texts of {n_sources} addresses, {args.out.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
