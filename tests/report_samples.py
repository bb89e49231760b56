"""Audits to draw reports of: a real one, a hostile one, and a large one of random numbers."""

from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pyarrow as pa

from ltmia.auditing.audit import AuditConfig, audit
from ltmia.data.embedded import demo_base_path, demo_texts
from ltmia.evaluation.audit_folder import MARKED, run_in
from ltmia.evaluation.calibration import judge_audit
from ltmia.evaluation.files import write_records, write_results, write_tokens
from ltmia.evaluation.intervals import measure_attack
from ltmia.evaluation.pair_info import ModelInfo, TokenizerInfo
from ltmia.evaluation.results import Check, DataInfo, Results, SetTest, Timing, Validity
from ltmia.evaluation.section import Measure
from ltmia.evaluation.token_bands import USUAL
from ltmia.finetuning.config import FinetuneConfig
from ltmia.finetuning.finetune import finetune
from ltmia.models.loading import LoadOptions, load_model, load_tokenizer
from ltmia.models.pair import Pair
from ltmia.ownership import Marker
from ltmia.records import Texts

HOSTILE = (
    '<script>document.title="ran"</script>',
    '</script><script>document.title="ran"</script>',
    '<!--<script>document.title="ran"//',
    '</style><img src=x onerror=document.title="ran">',
    "\"'`><svg onload=document.title='ran'>",
    "\u202eright to left\u2066 isolate \u200f",
    "{{ 7 * 7 }}{% raw %}${document.title='ran'}",
    "line\u2028paragraph\u2029\r\n\ttab",
    '=HYPERLINK("http://127.0.0.1/")',
    "w" * 10_000,
    "👩‍👩‍👧‍👦🏳️‍🌈" * 200,
    "\u0301" * 300 + "z\u0335" * 50,
)
"""Strings that try to run, to leave their cell, or to break the page."""


N_MEMBERS, N_NONMEMBERS = 40, 200
"""Of a real audit: as few as let most members be flagged."""
FIRST_NONMEMBER = 60


def tune(folder: Path) -> None:
    """Fine-tune the embedded base on the members, hard enough for most to be identifiable."""
    base, options = str(demo_base_path()), LoadOptions(dtype="float32", device="cpu")
    model, _ = load_model(base, options)
    config = FinetuneConfig(epochs=4, learning_rate=1e-3)
    finetune(model, load_tokenizer(base, options), demo_texts().texts[:N_MEMBERS], config, folder)


def sample_texts(start: int, stop: int, *, hostile: bool = False) -> Texts:
    """Take embedded texts; hostile ones begin with, and are called, what tries to break the page."""
    rows = range(start, stop)
    texts, groups = demo_texts().texts, demo_texts().groups
    if not hostile:
        return Texts(texts=texts[start:stop], ids=demo_texts().ids[start:stop], groups=groups[start:stop])
    attacks = [HOSTILE[i % len(HOSTILE)] for i in rows]
    return Texts(
        texts=tuple(f"{attack[:80]} {texts[i]}" for attack, i in zip(attacks, rows, strict=True)),
        ids=tuple(f"{attack}{i}" for attack, i in zip(attacks, rows, strict=True)),
        groups=tuple(attacks),
    )


def real_audit(
    pair: Pair, folder: Path, *, hostile: bool = False, reveal: bool = False, n_nonmembers: int = N_NONMEMBERS
) -> Path:
    """Audit the members and as many non-members as it takes to flag most of them."""
    members = sample_texts(0, N_MEMBERS, hostile=hostile)
    nonmembers = sample_texts(FIRST_NONMEMBER, FIRST_NONMEMBER + n_nonmembers, hostile=hostile)
    config = AuditConfig(attacks="ltmia,wbc,loss,difference", observer="logprobs", reveal=reveal)
    audit(pair, members, nonmembers, folder, config=config, command=HOSTILE[1] if hostile else None)
    return folder


def made_up_audit(folder: Path, n: int, *, names: tuple[str, ...] = (), attacks: int = 12, reveal: bool = True) -> Path:
    """Write a folder of random numbers: n records, half of them members; `names` are all its strings."""
    n_tokens = 128
    rng = np.random.default_rng(0)
    labels = np.repeat([1, 0], [n // 2, n - n // 2])
    attack_names = ["ltmia", "bag_of_words", *(names or [f"attack_{i}" for i in range(attacks - 2)])]
    scores = {name: rng.normal(labels * (name != "bag_of_words") * 1.5, 1.0) for name in attack_names}
    members, nonmembers = scores["ltmia"][labels == 1], scores["ltmia"][labels == 0]
    decided = judge_audit(members, nonmembers, attack="ltmia", fdr=0.05)
    p, q, flagged = np.full(n, np.nan), np.full(n, np.nan), np.zeros(n, np.bool_)
    judged = np.concatenate([np.arange(n // 2), n // 2 + decided.held_out_rows])
    for column, field in ((p, "p_values"), (q, "q_values"), (flagged, "flagged")):
        column[judged] = np.concatenate([getattr(decided.members, field), getattr(decided.held_out, field)])
    say = names[0] if names else "text"
    records = {
        "id": [f"{names[i % len(names)]}{i}" for i in range(n)] if names else [f"{i:036d}" for i in range(n)],
        "label": labels,
        "group": [names[i % len(names)] if names else f"{i // 3:012d}" for i in range(n)],
        "n_tokens": np.full(n, n_tokens),
        **{f"score_{name}": values for name, values in scores.items()},
        "p_value": p,
        "q_value": q,
        "flagged": flagged,
        "reason": pa.array([say if i % 50 == 0 else None for i in range(n)], pa.string()),
        **{name: pa.array(np.where(np.arange(n) % 2, usual, None), pa.int64()) for name, usual in USUAL.items()},
        "strongest_third": [("first", "middle", "last")[i % 3] for i in range(n)],
    }
    with run_in(folder, Marker(kind=MARKED["audit"])) as run:
        write_records(records, folder, run.run_id)
    kept = np.arange(min(n, 300, 30_000 // n_tokens))
    lists = [rng.normal(0, 0.5, n_tokens).astype(np.float32) for _ in kept]
    words = [names[t % len(names)] if names else "w" for t in range(n_tokens)]
    tokens = {"row": kept, "difference": lists, "attribution": lists, "token": [words for _ in kept]}
    write_tokens(tokens, run)
    measured = {
        name: measure_attack(values[labels == 1], values[labels == 0], n_resamples=20)
        for name, values in scores.items()
    }
    model = ModelInfo(source=say, revision=say, sha256="0" * 64, architecture=say, n_parameters=1, dtype="float32")
    checks = {
        "blind": "ok", "near_duplicates": "warning", "length_only": "failed", "out_of_distribution": "not_measured",
        "backend": "ok", "power": "ok",
    }  # fmt: skip
    results = Results(
        run_id=run.run_id,
        ltmia_version="0",
        kind="audit",
        created=datetime(2026, 1, 1, tzinfo=UTC),
        command=say,
        settings={"classifier": say, "reveal": reveal},
        environment={"processor": say},
        target=model,
        reference=model,
        tokenizer=TokenizerInfo(sha256="0" * 64, vocab_size=1),
        data=DataInfo(n_members=n // 2, n_nonmembers=n - n // 2),
        attacks=measured,
        decisions=decided.summary,
        set_test=SetTest(p_value=0.5, effect=Measure(value=0.5)),
        validity=Validity(**{name: Check(status=status, sentence=say) for name, status in checks.items()}),
        verdict=say,
        timing=Timing(seconds=1, texts_per_second=1, forward_seconds=1, feature_seconds=1),
    )
    write_results(results, folder)
    return folder
