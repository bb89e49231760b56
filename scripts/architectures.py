"""Test every causal LM architecture of transformers that can be made tiny, and write a page with the outcomes.

    python scripts/architectures.py docs/architectures.md [NAME ...] [--limit SECONDS]

Each model is built from its config alone (random weights), and a perturbed copy is its target. Our batched pass is
compared with a plain loop in float32 over single texts. Architectures run one after another in a child process. If one
takes longer than the limit, or crashes, the others still run.
"""

import argparse
import copy
import json
import math
import multiprocessing
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from ltmia.attacks.table import LEARNED
from ltmia.errors import ModelError
from ltmia.finetuning.perturbed import move_weights
from ltmia.finetuning.tiny import train_tokenizer
from ltmia.models.pair import Pair
from ltmia.models.tokens import encode_texts
from ltmia.scoring.extraction import ExtractionConfig, extract_batches
from ltmia.scoring.in_memory import extract_features, score_texts

TEXTS = (
    "The lamp burns low.",
    "Crate nine of the cargo holds a letter, and a map of the coast that nobody has read for years.",
    "Ships. Ships and more ships; the harbour is full of them, and of gulls.",
    "",
    "Snow on the pier.",
    "Naïve café — 灯 burns, zz zz zz.",
)
TOKENIZER = train_tokenizer(TEXTS * 3, 300)
MAX_LENGTH = 40
TOLERANCE = 1e-4
"""Between batch sizes, and between our pass and the plain loop, in nats and in scores relative to their size."""
ROUNDED = {LEARNED: 2e-3}
"""The same for what is made from the store's float16: noise in the last digit changes how it is rounded."""
MOST_PARAMETERS = 3_000_000
MAY_BE_NAN = ("surp",)
"""NaN by definition where the target is never sure of a token."""

SMALL: dict[str, Any] = {
    **dict.fromkeys(
        ("hidden_size", "n_embd", "d_model", "dim", "embedding_size", "emb_dim", "word_embed_proj_dim"), 32
    ),
    **dict.fromkeys(("num_hidden_layers", "n_layer", "n_layers", "num_layers", "decoder_layers", "encoder_layers"), 2),
    **dict.fromkeys(("num_encoder_layers", "num_decoder_layers", "num_blocks", "first_k_dense_replace"), 2),
    **dict.fromkeys(
        ("num_attention_heads", "n_head", "n_heads", "decoder_attention_heads", "encoder_attention_heads"), 4
    ),
    **dict.fromkeys(("num_encoder_attention_heads", "num_decoder_attention_heads", "num_heads"), 4),
    **dict.fromkeys(("num_key_value_heads", "multi_query_group_num"), 2),
    **dict.fromkeys(
        ("intermediate_size", "ffn_dim", "decoder_ffn_dim", "encoder_ffn_dim", "n_inner", "d_ff", "dff"), 64
    ),
    **dict.fromkeys(("moe_intermediate_size", "shared_expert_intermediate_size", "expert_ffn_hidden_size"), 32),
    **dict.fromkeys(("shared_intermediate_size", "intermediate_size_mlp", "moe_latent_size", "ffn_hidden_size"), 32),
    **dict.fromkeys(("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts"), 4),
    **dict.fromkeys(("num_experts_per_tok", "moe_topk", "moe_k", "num_experts_per_token", "top_k_experts"), 2),
    **dict.fromkeys(("n_group", "topk_group"), 1),
    **dict.fromkeys(("head_dim", "v_head_dim", "qk_nope_head_dim", "kv_channels", "global_head_dim"), 8),
    **dict.fromkeys(("qk_rope_head_dim", "attention_head_dim", "rotary_dim"), 8),
    **dict.fromkeys(("q_lora_rank", "kv_lora_rank"), 16),
    **dict.fromkeys(("linear_num_key_heads", "linear_num_value_heads"), 4),
    **dict.fromkeys(("linear_key_head_dim", "linear_value_head_dim"), 8),
    **dict.fromkeys(("state_size", "mamba_d_state", "ssm_state_size", "mamba_d_head", "mamba_headdim"), 8),
    **dict.fromkeys(("max_position_embeddings", "n_positions", "context_length", "max_seq_len", "n_ctx"), 128),
    **dict.fromkeys(("attention_hidden_size", "lru_width"), 32),
    "hidden_size_per_layer_input": 8,
    "vocab_size_per_layer_input": 300,
    "sliding_window": 8,
    "attention_window_size": 8,
    "is_decoder": True,
    "max_source_positions": 128,
    "max_target_positions": 128,
}
"""What the configs call their sizes; used where a config has the name."""

LATENT = (
    "axk1", "axk2", "deepseek_v2", "deepseek_v3", "deepseek_v32", "glm4_moe_lite", "glm_moe_dsa", "longcat_flash",
    "minicpm3", "youtu",
)  # fmt: skip
"""Attention with keys of two parts."""
PADDED = (
    "camembert",
    "data2vec-text",
    "prophetnet",
    "roberta",
    "roberta-prelayernorm",
    "xlm-roberta",
    "xlm-roberta-xl",
    "xmod",
)
"""Positions are counted from the padding token on, so there must be one."""
TOKENS: dict[str, Any] = {"vocab_size": 300, "pad_token_id": None, "bos_token_id": 0, "eos_token_id": 0}
SPECIAL: dict[str, dict[str, Any]] = {
    **{name: {"num_key_value_heads": 4} for name in LATENT},
    **{name: {"pad_token_id": 1} for name in PADDED},
    **{name: {"num_key_value_heads": 4} for name in ("dots3_note", "dots3_note_text")},
    **{name: {"pad_token_id": 1} for name in ("emu3", "gemma4", "gemma4_unified")},
    "bamba": {"mamba_n_heads": 8, "attn_layer_indices": [1]},
    "gpt_neo": {"attention_types": [[["global", "local"], 1]], "window_size": 8},
    "granitemoehybrid": {"mamba_n_heads": 8, "layer_types": ["mamba", "attention"]},
    "kimi_linear": {"linear_attn_config": None},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"]},
    "mamba2": {"num_heads": 8},
    "modernbert-decoder": {"pad_token_id": 0},
    "reformer": {"axial_pos_embds_dim": (16, 16), "axial_pos_shape": (8, 16), "attn_layers": ["local", "local"]},
    "roc_bert": {"pronunciation_vocab_size": 300, "shape_vocab_size": 300},
    "zamba": {"num_hidden_layers": 3, "layer_types": ["linear_attention", "linear_attention", "hybrid"]},
    "zamba2": {"layer_types": ["linear_attention", "hybrid"]},
    "zaya": {"num_experts_per_tok": 1},
}
"""Sizes that the table above does not get right."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """How one architecture went."""

    name: str
    state: str
    """works, wrong (a defect of ours), refused (by us, with the reason) or not built (by transformers)."""
    reason: str = ""
    seconds: float = 0.0
    head_apart: bool = False
    difference: float = math.nan
    """Largest deviation of a token's log-probability from the plain loop, nats."""


def tiny_config(name: str) -> PreTrainedConfig:
    """Return a config of a model of a few thousand parameters."""
    special = TOKENS | SPECIAL.get(name, {})
    return AutoConfig.for_model(name, **(small_values(AutoConfig.for_model(name), special) | special))


def small_values(plain: PreTrainedConfig, special: dict[str, Any]) -> dict[str, Any]:
    """Return small sizes under the names that a config knows, and that the configs in it know: of text, of images."""
    wanted = SMALL | special
    found = {key: wanted[key] for key in plain.to_dict() if key in wanted}
    for name in plain.sub_configs:
        part = getattr(plain, name, None)
        if isinstance(part, PreTrainedConfig):
            found[name] = {"model_type": part.model_type, **small_values(part, special)}
    return found


def build(name: str, seed: int = 0) -> PreTrainedModel:
    """Build a tiny model of one architecture with random weights."""
    config = tiny_config(name)
    with torch.device("meta"):
        size = AutoModelForCausalLM.from_config(config).num_parameters()
    if size > MOST_PARAMETERS:
        raise ValueError(f"{size:,} parameters with the sizes tried")
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32, attn_implementation="eager").eval()
    head = model.get_output_embeddings()
    if head is not None and hasattr(head, "weight"):
        with torch.no_grad():  # larger logits, so that errors in caps and scales are visible
            head.weight.mul_(0.5 / head.weight.std().clamp_min(1e-6))
    return model


def perturbed(model: PreTrainedModel) -> PreTrainedModel:
    """Return a copy whose weights have moved a little, as by fine-tuning."""
    other = copy.deepcopy(model)
    move_weights(other, 0.1, seed=1)
    return other


def plain_logp(model: PreTrainedModel, ids: np.ndarray, n_ids: int) -> np.ndarray:
    """Return the log-probabilities of the true tokens of one text alone."""
    row = torch.from_numpy(ids)
    with torch.no_grad():
        logits = model(input_ids=row[None], use_cache=False).logits[0].double()[:-1, :n_ids]
    return logits.log_softmax(-1).gather(1, row[1:, None])[:, 0].numpy()


def deviation(pair: Pair) -> float:
    """Return how far our pass lies from the plain loop at most, over texts, models and batch sizes."""
    encoded = encode_texts(TOKENIZER, TEXTS, max_length=MAX_LENGTH, vocab_size=pair.vocab_size)
    models = {"target": pair.target, "reference": pair.reference}
    expected = {
        (name, row): plain_logp(model, text.ids, pair.vocab_size)
        for name, model in models.items()
        for row, text in enumerate(encoded)
        if text.n_scored
    }
    worst = 0.0
    for size in (1, 4):
        for batch in extract_batches(pair, TEXTS, ExtractionConfig(k=5, max_length=MAX_LENGTH, batch_size=size)):
            for row, tokens in zip(batch.rows, batch.statistics, strict=True):
                for name in models:
                    if len(tokens):
                        found = getattr(tokens, f"{name}_logp")
                        worst = max(worst, float(np.abs(found - expected[name, row]).max()))
                        worst = math.inf if math.isnan(worst) or not np.isfinite(found).all() else worst
    return worst


def faults(pair: Pair) -> Iterator[str]:
    """Say what is wrong with scores and features: not finite, or dependent on the batch."""
    scorable = np.array([text != "" for text in TEXTS])
    one, many = (score_texts(pair, TEXTS, max_length=MAX_LENGTH, batch_size=size) for size in (1, 4))
    for name, scores in one.items():
        if name not in MAY_BE_NAN and not np.isfinite(scores[scorable]).all():
            yield f"{name} is not finite"
        if not np.isnan(scores[~scorable]).all():
            yield f"{name} scores an empty text"
        tolerance = ROUNDED.get(name, TOLERANCE)
        if not np.allclose(scores, many[name], atol=tolerance, rtol=TOLERANCE, equal_nan=True):
            yield f"{name} depends on the batch by {np.nanmax(np.abs(scores - many[name])):.1e}"
    for kind in ("published", "logratio"):
        first, second = (
            extract_features(pair, TEXTS, version=kind, max_length=MAX_LENGTH, batch_size=b) for b in (1, 4)
        )
        if not np.isfinite(first.values).all():
            yield f"{kind} features are not finite"
        # A rank jumps if two logits differ by float noise only; no other feature changes.
        if np.isclose(first.values, second.values, atol=TOLERANCE, rtol=TOLERANCE).mean() < 0.999:
            yield f"{kind} features depend on the batch"


def run_architecture(name: str) -> Outcome:
    """Build one architecture and hold our pass against the plain loop."""
    began = time.monotonic()
    try:
        reference = build(name)
        target = perturbed(reference)
    except Exception as error:  # noqa: BLE001  whatever a config raises is the finding
        return Outcome(name=name, state="not built", reason=_brief(error))
    try:
        pair = Pair(target=target, reference=reference, tokenizer=TOKENIZER)
    except ModelError as error:
        return Outcome(name=name, state="refused", reason=_brief(error))
    try:
        difference = deviation(pair)
        found = list(faults(pair))
    except Exception as error:  # noqa: BLE001  whatever our pass raises is the finding
        return Outcome(name=name, state="wrong", reason=_brief(error))
    if difference > TOLERANCE:
        found.insert(0, f"{difference:.1e} nats from the plain loop")
    return Outcome(
        name=name,
        state="wrong" if found else "works",
        reason="; ".join(found),
        seconds=time.monotonic() - began,
        head_apart=pair.target_runner.runs_head_apart,
        difference=difference,
    )


def _brief(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:220]}"


def _serve(channel: Connection) -> None:
    torch.set_num_threads(1)
    run_architecture("gpt2")  # so that imports and compilation do not count as time of the first one
    channel.send(None)
    while name := channel.recv():
        channel.send(run_architecture(name))


def run(names: Sequence[str], limit: float) -> Iterator[Outcome]:
    """Run architectures in child processes, each within a time limit."""
    context = multiprocessing.get_context("spawn")
    child = channel = None
    for name in names:
        if child is None or channel is None:
            channel, theirs = context.Pipe()
            child = context.Process(target=_serve, args=(theirs,), daemon=True)
            child.start()
            theirs.close()
            channel.recv()
        channel.send(name)
        try:
            outcome = channel.recv() if channel.poll(limit) else None
            reason = f"over {limit:.0f} s"
        except EOFError:
            outcome, reason = None, "the process died"
        if outcome is None:
            child.kill()
            child = None
            outcome = Outcome(name=name, state="not built", reason=reason)
        yield outcome
    if child is not None and channel is not None:
        channel.send(None)
        child.join(10)


def page(outcomes: Sequence[Outcome]) -> str:
    """Return docs/architectures.md."""
    by_state = {
        state: [o for o in outcomes if o.state == state] for state in ("works", "wrong", "refused", "not built")
    }
    worst = max((o.difference for o in by_state["works"]), default=math.nan)
    lines = [
        "# Architectures",
        "",
        f"Every causal LM of transformers {version('transformers')} was built at a tiny size from its config, with "
        "random weights. This model is the reference, and a copy with slightly changed weights is the target. This "
        "command wrote the page:",
        "",
        "```sh",
        "python scripts/architectures.py docs/architectures.md",
        "```",
        "",
        f"{len(outcomes)} architectures: {len(by_state['works'])} work, {len(by_state['wrong'])} go wrong, "
        f"{len(by_state['refused'])} are refused, {len(by_state['not built'])} could not be built. *Works* means "
        "two things. Every log-probability equals that of a plain float32 loop over single texts within 1e-4 nats "
        f"(largest deviation {worst:.0e}). The scores of every fast attack and of the classifier, and both kinds of "
        "features, are finite and the same in batches of 1 and of 4: within 1e-4, or within 2e-3 for the classifier's "
        "logit, which is made from the store's float16. The tables give the reason why others are refused or were not "
        "built. An architecture that is not listed as working may still work at its real size: `ltmia doctor` tests "
        "it.",
        "",
        "## Works",
        "",
        ", ".join(o.name if o.head_apart else f"{o.name} (run whole)" for o in by_state["works"]) + ".",
    ]
    if not all(o.head_apart for o in by_state["works"]):
        lines += [
            "",
            "*Run whole*: the model changes its logits after the output head in an unknown way, so the head is not "
            "run separately in float32.",
        ]
    for state in ("wrong", "refused", "not built"):
        if by_state[state]:
            lines += ["", f"## {state.capitalize()}", "", "| architecture | reason |", "|---|---|"]
            lines += [f"| {o.name} | {o.reason.replace('|', '/')} |" for o in by_state[state]]
    return "\n".join(lines) + "\n"


def main() -> None:
    """Run architectures and write the page."""
    parser = argparse.ArgumentParser(description="Run every architecture that can be made tiny through the whole pass.")
    parser.add_argument("out", type=Path)
    parser.add_argument("names", nargs="*", default=list(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES))
    parser.add_argument("--kept", type=Path, help="Where outcomes are kept; those found there are not measured again.")
    parser.add_argument("--limit", type=float, default=90.0, help="Seconds an architecture may take.")
    args = parser.parse_args()
    lines = args.kept.read_text("utf-8").splitlines() if args.kept and args.kept.exists() else []
    outcomes = {outcome.name: outcome for outcome in (Outcome(**json.loads(line)) for line in lines)}
    for outcome in run([name for name in args.names if name not in outcomes], args.limit):
        outcomes[outcome.name] = outcome
        if args.kept:
            with args.kept.open("a", encoding="utf-8") as file:
                file.write(json.dumps(asdict(outcome)) + "\n")
        print(f"{outcome.name}: {outcome.state} {outcome.reason} ({outcome.seconds:.1f} s)", flush=True)
    ordered = [outcomes[name] for name in sorted(outcomes)]
    args.out.write_text(page(ordered), "utf-8")
    raise SystemExit(1 if any(outcome.state == "wrong" for outcome in ordered) else 0)


if __name__ == "__main__":
    main()
