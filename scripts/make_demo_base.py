"""Pretrain the demo's embedded base LM: python scripts/make_demo_base.py CORPORA [--out DIR].

A GPT-2 shape of about a million parameters on public-domain corpora only (commentary, novels, scripture), so that it
may be shipped; the demo's speeches are new to it. Stored in bfloat16. About ten minutes on one core.
"""

import argparse
import random
import shutil
import tempfile
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from ltmia.data.reading import read_texts
from ltmia.finetuning.pretraining import PretrainConfig, pretrain
from ltmia.finetuning.tiny import TinyConfig, build_base, train_tokenizer

CORPORA = ("commentary", "novels", "scripture")
FOLDER = Path(__file__).parent.parent / "src" / "ltmia" / "data" / "demo" / "base"


def main() -> None:
    """Train in a scratch folder, then write the shipped one, or another."""
    parser = argparse.ArgumentParser(description="Pretrain the demo's embedded base LM.")
    parser.add_argument("corpora", type=Path, help="folder of commentary, novels and scripture, as NAME.jsonl.gz")
    parser.add_argument("--out", type=Path, default=FOLDER, help="default: the folder that is shipped")
    parser.add_argument("--tokens", type=int, default=4_000_000)
    parser.add_argument("--held-out", type=int, default=200, help="Texts that are not trained on.")
    args = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as scratch:
        trained = Path(scratch) / "base"
        train(args, trained)
        shutil.rmtree(args.out, ignore_errors=True)
        model = AutoModelForCausalLM.from_pretrained(trained, dtype=torch.bfloat16)
        model.save_pretrained(args.out)
        AutoTokenizer.from_pretrained(trained).save_pretrained(args.out)


def train(args: argparse.Namespace, out: Path) -> None:
    """Train tokenizer and model into a new folder."""
    texts = [t for name in CORPORA for t in read_texts(args.corpora / f"{name}.jsonl.gz").texts]
    random.Random(0).shuffle(texts)
    tokenizer = train_tokenizer(texts, 2048)
    config = TinyConfig(model_type="gpt2", vocab_size=len(tokenizer), hidden_size=128, n_layers=3, n_heads=4)
    held_out, training = texts[: args.held_out], texts[args.held_out :]
    record = pretrain(
        build_base(config, seed=0),
        tokenizer,
        training,
        PretrainConfig(n_tokens=args.tokens),
        out=out,
        held_out=held_out,
    )
    print(record)


if __name__ == "__main__":
    main()
