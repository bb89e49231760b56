"""A target in float32, quantised and run as it is, and quantised and unpacked again: how much does each reveal?

python benchmarks/quantised.py TARGET BASE MEMBERS.jsonl OTHERS.jsonl OUT [--ways nf4 int8]. Needs bitsandbytes. The
base stays in float32. Recordings and audits in OUT resume. Prints differences in AUC with 95 % intervals of paired
resampling by document.
"""

import argparse
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoModelForCausalLM, BitsAndBytesConfig, PreTrainedTokenizerBase

from ltmia.auditing.audit import AuditConfig, audit
from ltmia.auditing.text_sets import join_sets
from ltmia.data.reading import read_texts
from ltmia.data.recordings import Recording, RecordingHeader, write_recording
from ltmia.evaluation.comparison import compare_audits
from ltmia.evaluation.files import read_records, read_results
from ltmia.features.columns import LITE_TOP
from ltmia.models.loading import LoadOptions, load_model, load_tokenizer
from ltmia.models.pair import Pair
from ltmia.models.tokens import encode_texts
from ltmia.records import Texts
from ltmia.scoring.recorded_pair import load_recorded_pair
from ltmia.scoring.recording import recorded_line, target_statistics

OPTIONS = LoadOptions(dtype="float32", device="cpu")
AT_ONCE = 8
"""Texts that run together."""
SETTINGS: dict[str, dict[str, Any]] = {
    "nf4": {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "bnb_4bit_compute_dtype": torch.float32},
    "int8": {"load_in_8bit": True},
}
"""Ways of quantising, and their settings in bitsandbytes."""


def main() -> None:
    """Record the base and each form of the target, audit each form, then compare them."""
    parser = argparse.ArgumentParser(description=__doc__)
    for name in ("target", "base", "members", "others", "out"):
        parser.add_argument(name, type=Path)
    parser.add_argument("--ways", nargs="+", choices=tuple(SETTINGS), default=list(SETTINGS))
    parser.add_argument("--attacks", nargs="+", default=["ltmia", "wbc", "difference"])
    parser.add_argument("--group-column", default="source")
    args = parser.parse_args()
    sets = [read_texts(path, group_column=args.group_column) for path in (args.members, args.others)]
    tokenizer = load_tokenizer(str(args.base), OPTIONS)
    whole = join_sets(*sets, "members").texts

    def recorded(name: str, model: Any) -> Path:
        path = args.out / f"{name}.jsonl.gz"
        if not path.exists():
            record(Pair(target=model, reference=model, tokenizer=tokenizer), name, whole, path)
        print(f"recorded: {name}", flush=True)
        return path

    args.out.mkdir(parents=True, exist_ok=True)
    base = recorded("base", load_model(str(args.base), OPTIONS)[0])
    targets = {}
    for way in args.ways:
        stored = args.out / f"{way}-weights"
        packed = quantised(args.target, way)
        save(packed, tokenizer, stored)
        targets[f"{way}-packed"] = recorded(f"{way}-packed", packed)
        targets[f"{way}-unpacked"] = recorded(f"{way}-unpacked", load_model(str(stored), OPTIONS)[0])
    targets["float32"] = recorded("float32", load_model(str(args.target), OPTIONS)[0])
    for name, target in targets.items():
        config = AuditConfig(attacks=",".join(args.attacks), classifier="lite")
        audit(load_recorded_pair(target, base), *sets, args.out / name, config=config)
    pairs = [p for way in args.ways for p in (("float32", f"{way}-unpacked"), (f"{way}-unpacked", f"{way}-packed"))]
    for first, second in pairs:
        print(f"{second} differs from {first} by {differences(targets[first], targets[second])}")
        for attack in args.attacks:
            print(f"{attack}: {compared(args.out / first, args.out / second, attack)}", flush=True)


def quantised(target: Path, way: str) -> Any:
    """Load a target with its weights packed."""
    config = BitsAndBytesConfig(**SETTINGS[way])
    return AutoModelForCausalLM.from_pretrained(
        target, quantization_config=config, dtype=torch.float32, device_map="cpu"
    ).eval()


def record(pair: Pair, name: str, texts: Texts, path: Path) -> None:
    """Write a recording. `record_model` would first hash the weights, which changes packed ones that have run."""
    encoded = encode_texts(pair.tokenizer, texts.texts, max_length=128, vocab_size=pair.vocab_size)
    header = RecordingHeader(
        model=name, vocab_size=pair.vocab_size, n_top=LITE_TOP, recorded_by="benchmarks/quantised.py"
    )
    lines = [recorded_line(texts, row, text, None) for row, text in enumerate(encoded)]
    scorable = [row for row, text in enumerate(encoded) if text.n_scored]
    for some in (scorable[i : i + AT_ONCE] for i in range(0, len(scorable), AT_ONCE)):
        for row, found in zip(some, target_statistics(pair, [encoded[row] for row in some]), strict=True):
            lines[row] = recorded_line(texts, row, encoded[row], found)
    write_recording(path, header, lines)


def save(packed: Any, tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    """Store packed weights. They must not have run before: on a CPU the first run packs them otherwise."""
    packed.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def differences(first: Path, second: Path) -> str:
    """Say how much two recordings of the same texts differ, in nats per token."""
    pairs = zip(Recording(first), Recording(second), strict=True)
    found = np.concatenate([np.subtract(a.logp, b.logp) for a, b in pairs if a.reason is None])
    return f"{np.abs(found).mean():.2g} nats on average, {np.abs(found).max():.2g} at most, {len(found)} tokens"


def compared(first: Path, second: Path, attack: str) -> str:
    """Return the AUC of two audits, and their difference with its interval, to four places."""
    audits = [(read_results(folder), read_records(folder)) for folder in (first, second)]
    change = compare_audits(audits[0], audits[1], attack=attack).auc
    aucs = [results.attacks[attack].auc.value for results, _ in audits]
    words = [f"{folder.name} {auc:.4f}" for folder, auc in zip((first, second), aucs, strict=True)]
    return f"{words[0]}, {words[1]}: {change.value:+.4f} [{change.low:+.4f}, {change.high:+.4f}]"


if __name__ == "__main__":
    main()
