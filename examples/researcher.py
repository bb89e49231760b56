"""The researcher: an attack of one's own beside the others, on one store: python examples/researcher.py OUT.

A store holds what both models said of every token, so that an idea is tried in seconds and without the models. The idea
here: a training text is one where the target gained on many tokens, not one where it gained much on a few.
"""

import argparse
from pathlib import Path

import numpy as np

from ltmia import load_pair
from ltmia.auditing.audit import AuditConfig, audit
from ltmia.data.embedded import demo_base_path, demo_texts
from ltmia.data.splits import draw_membership
from ltmia.evaluation.intervals import measure_attack
from ltmia.evaluation.results import Measure
from ltmia.features.store import FeatureStore
from ltmia.finetuning.config import FinetuneConfig
from ltmia.finetuning.finetune import finetune
from ltmia.models.loading import LoadOptions, load_model, load_tokenizer
from ltmia.records import TokenStatistics


def share_gained(tokens: TokenStatistics) -> float:
    """Return the share of tokens that the target finds likelier than its base did; NaN for a text without tokens."""
    return float((tokens.log_ratio > 0).mean()) if len(tokens) else np.nan


def shown(measure: Measure) -> str:
    """Write a figure with its interval, or why there is none."""
    return (
        f"{measure.value:.3f} [{measure.low:.3f}, {measure.high:.3f}]"
        if measure.value is not None
        else str(measure.reason)
    )


def main(out: Path) -> None:
    """Fill a store by an audit, then measure the new attack with the code that measures all others."""
    pool = demo_texts()
    drawn = draw_membership(pool, n_members=80, n_nonmembers=160, n_validation=0, seed=3)
    members, nonmembers = pool.take(drawn.members), pool.take(drawn.nonmembers)
    base, target = str(demo_base_path()), out / "target"
    options = LoadOptions(dtype="float32", device="cpu")
    model, _ = load_model(base, options)
    config = FinetuneConfig(epochs=1, learning_rate=1e-3, max_length=64)
    finetune(model, load_tokenizer(base, options), members.texts, config, target)
    pair = load_pair(target, base, dtype="float32", device="cpu")
    audit(pair, members, nonmembers, out / "audit", config=AuditConfig(attacks="ltmia,wbc,difference", max_length=64))

    store = FeatureStore(out / "audit" / "private" / "store")
    texts = store.statistics(np.arange(len(store)))
    mine = np.array([share_gained(tokens) for tokens in texts])
    # Texts of one speech are not independent: resample whole speeches.
    _, groups = np.unique([*(members.groups or ()), *(nonmembers.groups or ())], return_inverse=True)
    n = len(members)
    for name, scores in {"share_gained": mine, **{a: store.scores(a) for a in ("wbc", "difference")}}.items():
        found = measure_attack(scores[:n], scores[n:], member_groups=groups[:n], nonmember_groups=groups[n:])
        print(f"{name}: AUC {shown(found.auc)}, TPR at 10 % FPR {shown(found.tpr_at_fpr['0.1'])}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path)
    main(parser.parse_args().out)
