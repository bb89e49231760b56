"""Compare `ltmia doctor --plan` with real runs: python benchmarks/plan.py OUT [options].

Random models of several shapes are planned from their config.json in OUT, and then run. Both are measured in turns, in
processor seconds of one thread, so that other work on the machine slows both alike; medians are printed.
"""

import argparse
import json
import statistics
import time
from collections import deque
from pathlib import Path

import torch
from transformers import AutoConfig, AutoModelForCausalLM

from ltmia.auditing.cost import Work
from ltmia.auditing.plan import RANGE, Plan, plan_audit
from ltmia.models.pair import Pair
from ltmia.scoring.bench import BenchConfig, extraction_of, number_tokenizer, random_texts
from ltmia.scoring.extraction import extract_batches


def llama(width: int, inner: int, layers: int, heads: int, vocab: int) -> dict[str, object]:
    """Return the config of a model of Llama's kind."""
    sizes = {
        "hidden_size": width,
        "intermediate_size": inner,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
    }
    return {"model_type": "llama", **sizes, "vocab_size": vocab, "tie_word_embeddings": True}


def gpt2(width: int, layers: int, heads: int, vocab: int) -> dict[str, object]:
    """Return the config of a model of GPT-2's kind."""
    return {"model_type": "gpt2", "n_embd": width, "n_layer": layers, "n_head": heads, "vocab_size": vocab}


SHAPES = {
    "llama-1M": llama(96, 256, 4, 4, 8192),
    "gpt2-10M": gpt2(288, 7, 6, 8192),
    "llama-50M": llama(512, 1408, 12, 8, 16_384),
    "gpt2-124M": gpt2(768, 12, 12, 50_257),
    "llama-135M": llama(576, 1536, 30, 9, 49_152),
}
END = {"bos_token_id": None, "eos_token_id": None}


def main() -> None:
    """Print a row for each shape."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--shapes", nargs="+", choices=SHAPES, default=list(SHAPES))
    parser.add_argument("--texts", type=int, default=8)
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    torch.set_num_threads(1)
    print("| model | parameters | FLOPs per token | planned ms per token | measured | planned / measured |")
    print("|---|---|---|---|---|---|")
    for name in args.shapes:
        folder = args.out / name
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "config.json").write_text(json.dumps(SHAPES[name] | END), "utf-8")
        row(name, folder, args)


def row(name: str, folder: Path, args: argparse.Namespace) -> None:
    """Plan and run one shape in turns, and print its row."""
    config = AutoConfig.from_pretrained(folder)
    models = [AutoModelForCausalLM.from_config(config).eval() for _ in range(2)]
    pair = Pair(target=models[0], reference=models[1], tokenizer=number_tokenizer(config.vocab_size))
    work = BenchConfig(vocab_size=config.vocab_size, n_texts=args.texts, n_tokens=args.tokens, threads=1)
    texts = random_texts(work)
    planned, measured = [], []
    run(pair, texts, work)
    for _ in range(args.rounds):
        plan = planned_run(folder, args)
        planned.append(plan.seconds[0] / RANGE[0])
        measured.append(run(pair, texts, work))
    ours, real = (1000 * statistics.median(seconds) / plan.n_tokens for seconds in (planned, measured))
    flops = f"{plan.n_flops / plan.n_tokens:.3g}"
    print(
        f"| {name} | {plan.n_parameters // 2:,} | {flops} | {ours:.3g} | {real:.3g} | {ours / real:.2f} |", flush=True
    )


def planned_run(folder: Path, args: argparse.Namespace) -> Plan:
    """Plan from the config alone."""
    work = Work(n_texts=args.texts, max_length=args.tokens, observer="logprobs")
    return plan_audit(str(folder), work=work, clock=time.process_time, dtype="float32", device="cpu")


def run(pair: Pair, texts: list[str], work: BenchConfig) -> float:
    """Run both models and all fast attacks; return seconds of the processor."""
    started = time.process_time()
    deque(extract_batches(pair, texts, extraction_of(work)), maxlen=0)
    return time.process_time() - started


if __name__ == "__main__":
    main()
