"""Pretrain the demo's embedded base LM: python scripts/make_demo_base.py CORPORA.

A GPT-2 shape of about a million parameters on public-domain corpora only (commentary, novels, scripture), so that it
may be shipped; the demo's speeches are new to it. Stored in bfloat16. About ten minutes on one core.
"""

import random
import shutil
import sys
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from ltmia.data.reading import read_texts
from ltmia.finetuning.pretraining import PretrainConfig, pretrain
from ltmia.finetuning.tiny import TinyConfig, build_base, train_tokenizer

CORPORA = ("commentary", "novels", "scripture")
FOLDER = Path(__file__).parent.parent / "src" / "ltmia" / "data" / "demo" / "base"


def main() -> None:
    """Train in a scratch folder, then write the shipped one."""
    corpora = Path(sys.argv[1])
    scratch = Path(sys.argv[2] if len(sys.argv) > 2 else "demo-base")
    torch.set_num_threads(1)
    texts = [t for name in CORPORA for t in read_texts(corpora / f"{name}.jsonl.gz").texts]
    random.Random(0).shuffle(texts)
    tokenizer = train_tokenizer(texts, 2048)
    config = TinyConfig(model_type="gpt2", vocab_size=len(tokenizer), hidden_size=128, n_layers=3, n_heads=4)
    held_out, training = texts[:200], texts[200:]
    record = pretrain(
        build_base(config, seed=0),
        tokenizer,
        training,
        PretrainConfig(n_tokens=4_000_000),
        out=scratch,
        held_out=held_out,
    )
    print(record)
    shutil.rmtree(FOLDER, ignore_errors=True)
    model = AutoModelForCausalLM.from_pretrained(scratch, dtype=torch.bfloat16)
    model.save_pretrained(FOLDER)
    AutoTokenizer.from_pretrained(scratch).save_pretrained(FOLDER)


if __name__ == "__main__":
    main()
