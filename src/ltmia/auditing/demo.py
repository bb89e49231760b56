"""The whole story on embedded data: fine-tune the embedded LM on half of the embedded texts, then audit it."""

from pathlib import Path

from ltmia.auditing.audit import AuditConfig, audit
from ltmia.auditing.question import AuditResult
from ltmia.data.embedded import demo_base_path, demo_texts
from ltmia.data.splits import draw_membership
from ltmia.finetuning.config import FinetuneConfig
from ltmia.finetuning.finetune import finetune
from ltmia.models.loading import LoadOptions, load_model, load_pair, load_tokenizer
from ltmia.progress import Report, silent

N_MEMBERS = 500
"""And twice as many non-members."""
FINETUNING = FinetuneConfig(epochs=2, learning_rate=8e-4, batch_size=16, max_length=128, seed=0)


def run_demo(out: Path, *, n_members: int = N_MEMBERS, report: Report = silent) -> AuditResult:
    """Fine-tune, audit, and write the results into `out`; a model already fine-tuned there is used again."""
    drawn = draw_membership(demo_texts(), n_members=n_members, n_nonmembers=2 * n_members, n_validation=0, seed=0)
    members, nonmembers = demo_texts().take(drawn.members), demo_texts().take(drawn.nonmembers)
    base, target = demo_base_path(), out / ("target" if n_members == N_MEMBERS else f"target-{n_members}")
    if not (target / "model.safetensors").is_file():
        report("fine-tuning", 0, 1)
        options = LoadOptions(dtype="float32", device="cpu")
        model, _ = load_model(str(base), options)
        finetune(model, load_tokenizer(str(base), options), members.texts, FINETUNING, target)
        report("fine-tuning", 1, 1)
    pair = load_pair(target, base, dtype="float32", device="cpu")
    return audit(pair, members, nonmembers, out, config=AuditConfig(), report=report)
