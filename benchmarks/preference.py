"""Trains the embedded base by DPO on real preference pairs, and audits it on the pairs: preference.py OUT [--epochs N].

A pair is the beginning of a passage as prompt, its real continuation as chosen completion, and as rejected one either
the end of the next passage or a continuation that the base wrote (as in SPIN, arXiv 2401.01335). Whole speeches are
held out.
"""

import argparse
from pathlib import Path

import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import DPOConfig, DPOTrainer

from ltmia.auditing.audit import AuditConfig
from ltmia.data.embedded import demo_base_path, demo_texts
from ltmia.evaluation.files import read_verdict
from ltmia.integrations.callback import AuditCallback, AuditPlan, hold_out

LENGTH, PROMPT_WORDS = 96, 20
"""Tokens of a passage at most, and words of the prompt."""
AT_ONCE = 100
"""Continuations that are written at once."""


def main() -> None:
    """Train, audit, and print a table."""
    options = argparse.ArgumentParser()
    options.add_argument("out", type=Path)
    options.add_argument("--pairs", type=int, default=1500)
    options.add_argument("--members", type=float, default=1 / 3, help="share of the pairs to train on")
    options.add_argument("--rejected", choices=("passage", "model"), default="passage")
    options.add_argument("--epochs", type=int, default=3)
    options.add_argument("--rate", type=float, default=1e-4)
    options.add_argument("--beta", type=float, default=0.1)
    options.add_argument("--seed", type=int, default=0)
    chosen = options.parse_args()
    torch.manual_seed(chosen.seed)
    tokenizer = AutoTokenizer.from_pretrained(demo_base_path())
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    model = AutoModelForCausalLM.from_pretrained(demo_base_path(), dtype=torch.float32)
    train, held_out = hold_out(
        preference_pairs(model, tokenizer, chosen.pairs, chosen.rejected), share=1 - chosen.members,
        group_column="speech", seed=chosen.seed,
    )  # fmt: skip
    arguments = DPOConfig(
        str(chosen.out / "checkpoints"), num_train_epochs=chosen.epochs, learning_rate=chosen.rate, beta=chosen.beta,
        max_length=LENGTH + 32, per_device_train_batch_size=8, per_device_eval_batch_size=32, report_to=[],
        seed=chosen.seed, save_strategy="no", use_cpu=True, bf16=False, gradient_checkpointing=False, logging_steps=50,
    )  # fmt: skip
    trainer = DPOTrainer(model, args=arguments, train_dataset=train, eval_dataset=held_out, processing_class=tokenizer)
    plan = AuditPlan(config=AuditConfig(overwrite=True))
    trainer.add_callback(AuditCallback(trainer, chosen.out / "audit", plan))
    trainer.train()
    results = read_verdict(chosen.out / "audit")
    print(f"{results.data.n_members} members, {results.data.n_nonmembers} non-members")
    for name, attack in sorted(results.attacks.items(), key=lambda item: -(item[1].auc.value or 0)):
        shown = [attack.auc, attack.tpr_at_fpr["0.1"], attack.tpr_at_fpr["0.01"]]
        told = ("not measured" if m.value is None else f"{m.value:.3f} [{m.low:.3f}, {m.high:.3f}]" for m in shown)
        print(f"| {name} | {' | '.join(told)} |")


def preference_pairs(model: AutoModelForCausalLM, tokenizer: AutoTokenizer, n_pairs: int, kind: str) -> Dataset:
    """Make pairs from the embedded passages, with the speech of each."""
    texts = demo_texts()
    words = [text.split() for text in texts.texts[:n_pairs]]
    prompts = [" ".join(some[:PROMPT_WORDS]) for some in words]
    real = [tokenizer(" " + " ".join(some[PROMPT_WORDS:]))["input_ids"][: LENGTH - 2 * PROMPT_WORDS] for some in words]
    written = real[1:] + real[:1] if kind == "passage" else continuations(model, tokenizer, prompts, real)
    return Dataset.from_dict({
        "prompt": prompts,
        "chosen": [tokenizer.decode(ids) for ids in real],
        "rejected": [tokenizer.decode(ids) for ids in written],
        "speech": list(texts.groups[:n_pairs]),
    })  # fmt: skip


def continuations(
    model: AutoModelForCausalLM, tokenizer: AutoTokenizer, prompts: list[str], real: list[list[int]]
) -> list[list[int]]:
    """Let the model continue each prompt with as many tokens as the real continuation has."""
    tokenizer.padding_side = "left"
    made = []
    for first in range(0, len(prompts), AT_ONCE):
        part = slice(first, first + AT_ONCE)
        asked = tokenizer(prompts[part], padding=True, return_tensors="pt")
        written = model.generate(
            asked["input_ids"], attention_mask=asked["attention_mask"], do_sample=True, max_new_tokens=LENGTH,
            min_new_tokens=LENGTH, top_k=0, pad_token_id=tokenizer.pad_token_id,
        )[:, asked["input_ids"].shape[1] :]  # fmt: skip
        made += [ids[: len(same)].tolist() for ids, same in zip(written, real[part], strict=True)]
    return made


if __name__ == "__main__":
    main()
