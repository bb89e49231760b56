"""Make the labelled stores behind the first classifier: python scripts/first_grid.py CORPORA BASES OUT.

CORPORA holds the `DOMAIN.jsonl.gz` files, BASES one folder per pretrained tiny LM, OUT gets one store a combination.
Finished stores are kept, so the same command resumes. Prints each combination's baseline AUCs.
"""

import json
import sys
import zlib
from pathlib import Path

import torch

from ltmia.data.reading import read_texts
from ltmia.lm.finetuning import FinetuneConfig
from ltmia.pipelines.combination import (
    POOL_BUCKETS,
    CombinationConfig,
    combination_figures,
    document_bucket,
    make_combination,
)
from ltmia.records import Texts

TRAINING_CORPORA = ("kernel_docs", "manpages", "commentary", "package_descriptions", "email")
EXAM_CORPORA = ("speeches", "dictionary", "python_code")
EXAM_BASES = ("recurrent_gemma-a",)
TRAINING_BASES = ("gpt2-a", "llama-a", "gpt_neox-a", "qwen2-a")

# name: learning rate, epochs, members, LoRA. From barely to heavily trained.
REGIMES = {
    "faint": (6e-5, 1, 800, False),
    "weak": (1.2e-4, 1, 800, False),
    "medium": (2.5e-4, 2, 800, False),
    "strong": (6e-4, 3, 600, False),
    "lora": (2e-3, 1, 800, True),
}


def pool_of(corpora: Path, name: str, buckets: tuple[int, ...]) -> Texts:
    """Read the documents of a corpus that may be fine-tuned on."""
    texts = read_texts(corpora / f"{name}.jsonl.gz", group_column="source")
    groups = texts.groups or texts.ids
    rows = [i for i, source in enumerate(groups) if document_bucket(source) in buckets]
    kept = texts.take(rows)
    return Texts(texts=kept.texts, ids=kept.ids, groups=kept.groups, source=name)


def combinations() -> list[tuple[str, str, str, int]]:
    """List (base, corpus, regime, non-members): regimes rotate, so that each base and corpus sees several."""
    listed, names = [], list(REGIMES)
    for turn in range(2):
        for b, base in enumerate(TRAINING_BASES):
            for c, corpus in enumerate(TRAINING_CORPORA):
                listed.append((base, corpus, names[(2 * b + c + 2 * turn) % len(names)], 800))
        if turn == 0:
            for base in EXAM_BASES:
                for corpus in EXAM_CORPORA:
                    listed += [(base, corpus, regime, 1500) for regime in ("faint", "medium")]
    return listed


def main() -> None:
    """Make every store that is missing."""
    corpora, bases, out = (Path(argument) for argument in sys.argv[1:4])
    torch.set_num_threads(1)
    out.mkdir(parents=True, exist_ok=True)
    for base, corpus, regime, n_nonmembers in combinations():
        if not (bases / base / "model.safetensors").is_file():
            continue
        name = f"{base}.{corpus}.{regime}"
        rate, epochs, n_members, lora = REGIMES[regime]
        seed = zlib.crc32(name.encode())
        config = CombinationConfig(
            name=name,
            n_members=n_members,
            n_nonmembers=n_nonmembers,
            finetuning=FinetuneConfig(learning_rate=rate, epochs=epochs, lora=lora, seed=seed % 2**31, max_length=128),
            seed=seed,
        )
        buckets = POOL_BUCKETS if corpus in TRAINING_CORPORA else (0, 1, 2, 3, 4, 5, *POOL_BUCKETS)
        store = make_combination(bases / base, pool_of(corpora, corpus, buckets), config, out / name)
        print(
            name,
            json.dumps({k: round(v, 3) for k, v in combination_figures(store).items()}),
            flush=True,
        )


if __name__ == "__main__":
    main()
