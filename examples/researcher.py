"""The researcher: compare an attack of your own with the others, on one store: python examples/researcher.py OUT.

A store holds the numbers that both models gave for each token, so you can try an idea in seconds, without the models.
The idea here: a training text is one where the target gained on many tokens, not one where it gained much on a few.
"""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

import ltmia

if TYPE_CHECKING:
    from ltmia.evaluation.section import Measure
    from ltmia.records import TokenStatistics


def share_gained(tokens: "TokenStatistics") -> float:
    """Return the share of tokens that the target finds likelier than its base did; NaN for a text without tokens."""
    return float((tokens.log_ratio > 0).mean()) if len(tokens) else np.nan


def shown(measure: "Measure") -> str:
    """Write a figure with its interval, or why there is none."""
    return (
        f"{measure.value:.3f} [{measure.low:.3f}, {measure.high:.3f}]"
        if measure.value is not None
        else str(measure.reason)
    )


def main(out: Path) -> None:
    """Fill a store by an audit, then measure the new attack with the code that measures all others."""
    # These are not public names. They are imported here, so that --help need not wait for them.
    from ltmia.evaluation.intervals import measure_attack
    from ltmia.features.store import FeatureStore

    pool = ltmia.demo_texts()
    drawn = ltmia.draw_membership(pool, n_members=80, n_nonmembers=160, n_validation=0, seed=3)
    members, nonmembers = pool.take(drawn.members), pool.take(drawn.nonmembers)
    base, target = str(ltmia.demo_base_path()), out / "target"
    options = ltmia.LoadOptions(dtype="float32", device="cpu")
    model, _ = ltmia.load_model(base, options)
    training = ltmia.FinetuneConfig(epochs=1, learning_rate=1e-3, max_length=64)
    ltmia.finetune(model, ltmia.load_tokenizer(base, options), members.texts, training, target)
    pair = ltmia.load_pair(target, base, dtype="float32", device="cpu")
    config = ltmia.AuditConfig(attacks="ltmia,wbc,difference", max_length=64)
    ltmia.audit(pair, members, nonmembers, out / "audit", config=config)

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
