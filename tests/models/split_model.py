"""Run by torchrun: every process scores the same texts by models that are split over all of them, and by whole ones.

Arguments: target, base, and a file for what process 0 finds.
"""

import json
import sys
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
from transformers import AutoModelForCausalLM, AutoTokenizer, DistributedConfig

import ltmia
from ltmia.errors import ModelError
from ltmia.models.forward import forward_pair
from ltmia.models.pair import Pair
from ltmia.models.tokens import encode_texts
from ltmia.models.weight_delta import changed_matrices
from ltmia.scoring.identity import PairIdentity

TEXTS = [f"Crate {i} of the cargo holds a letter, and a map of the coast." + " Gulls." * (i % 5) for i in range(11)]


def main(target: str, base: str, out: str) -> None:
    """Compare log-probabilities, hashes and scores."""
    dist.init_process_group("gloo")
    settings = {"dtype": torch.float32, "distributed_config": DistributedConfig(tp_plan="auto")}
    models = [AutoModelForCausalLM.from_pretrained(folder, **settings).eval() for folder in (target, base)]
    split = ltmia.load_pair(*models, tokenizer=AutoTokenizer.from_pretrained(target))
    whole = ltmia.load_pair(target, base, dtype="float32", device="cpu")
    scores = [ltmia.score_texts(pair, TEXTS, attacks="difference,loss") for pair in (split, whole)]
    logp = [_logp(pair) for pair in (split, whole)]
    if dist.get_rank() == 0:
        found = {
            "noise": float(np.abs(logp[0] - logp[1]).max()),
            "scores": max(float(np.abs(scores[0][name] - scores[1][name]).max()) for name in scores[0]),
            "local": float(sum(p.to_local().numel() for p in models[0].parameters() if hasattr(p, "to_local"))),
            "whole": float(sum(p.numel() for p in models[0].parameters())),
        }
    ours, theirs = PairIdentity.of(split), PairIdentity.of(whole)
    same = [ours.target.sha256 == theirs.target.sha256, ours.reference.sha256 == theirs.reference.sha256]
    try:
        changed_matrices(split)
    except ModelError as error:
        refused = str(error)
    if dist.get_rank() == 0:
        Path(out).write_text(json.dumps(found | {"same": same, "refused": refused}), "utf-8")
    dist.barrier()
    dist.destroy_process_group()


def _logp(pair: Pair) -> np.ndarray:
    texts = encode_texts(pair.tokenizer, TEXTS, max_length=64, vocab_size=pair.vocab_size)
    parts = [part.target.log_softmax(-1).gather(1, part.truth[:, None]) for part in forward_pair(pair, texts)]
    return torch.cat(parts).numpy()


if __name__ == "__main__":
    main(*sys.argv[1:])
