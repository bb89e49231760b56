"""The demo: fine-tunes the embedded LM on some of the embedded texts, then audits it."""

from functools import partial
from pathlib import Path

from ltmia.auditing.audit import AuditConfig, audit
from ltmia.auditing.question import AuditResult
from ltmia.data.embedded import demo_base_path, demo_texts
from ltmia.data.splits import draw_membership
from ltmia.finetuning.config import FinetuneConfig
from ltmia.finetuning.finetune import finetune
from ltmia.models.loading import LoadOptions, load_model, load_pair, load_tokenizer
from ltmia.models.pair import Pair
from ltmia.progress import Report, silent
from ltmia.records import Texts
from ltmia.scoring.audited_pair import PairToLoad

N_MEMBERS = 500
"""Number of members; there are twice as many non-members."""
FINETUNING = FinetuneConfig(epochs=2, learning_rate=8e-4, batch_size=16, max_length=128, seed=0)


def run_demo(out: Path, *, n_members: int = N_MEMBERS, overwrite: bool = False, report: Report = silent) -> AuditResult:
    """Fine-tune, audit, and write the results into `out`; a model already fine-tuned there is used again.

    The audit reads log-probabilities alone: with the weights it takes twice as long.
    """
    drawn = draw_membership(demo_texts(), n_members=n_members, n_nonmembers=2 * n_members, n_validation=0, seed=0)
    members, nonmembers = demo_texts().take(drawn.members), demo_texts().take(drawn.nonmembers)
    target = out.resolve() / ("target" if n_members == N_MEMBERS else f"target-{n_members}")
    pair = PairToLoad(sources=(str(target), str(demo_base_path())), load=partial(_fine_tuned, target, members, report))
    config = AuditConfig(observer="logprobs", overwrite=overwrite)
    return audit(pair, members, nonmembers, out, config=config, report=report)


def _fine_tuned(target: Path, members: Texts, report: Report) -> Pair:
    base = str(demo_base_path())
    if not (target / "model.safetensors").is_file():
        report("fine-tuning", 0, 1)
        options = LoadOptions(dtype="float32", device="cpu")
        model, _ = load_model(base, options)
        finetune(model, load_tokenizer(base, options), members.texts, FINETUNING, target)
        report("fine-tuning", 1, 1)
    return load_pair(target, base, dtype="float32", device="cpu")
