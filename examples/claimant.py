"""The claimant: were my texts used to fine-tune this model? python examples/claimant.py OUT.

You do not know what the model was trained on. You have the model, its base, texts that may have been used, and texts of
the same kind that surely were not. Here a model is made that was trained on one half of the candidates.
"""

import argparse
from pathlib import Path

import numpy as np

import ltmia


def main(out: Path) -> None:
    """Judge the candidates one by one and together."""
    pool = ltmia.demo_texts()
    drawn = ltmia.draw_membership(pool, n_members=60, n_nonmembers=120, n_validation=60, seed=2)
    unseen = pool.take(drawn.nonmembers)
    candidates = pool.take(np.concatenate([drawn.members, drawn.validation]))
    base, target = str(ltmia.demo_base_path()), out / "somebodys-model"
    options = ltmia.LoadOptions(dtype="float32", device="cpu")
    model, _ = ltmia.load_model(base, options)
    texts = pool.take(drawn.members).texts
    ltmia.finetune(
        model,
        ltmia.load_tokenizer(base, options),
        texts,
        ltmia.FinetuneConfig(epochs=2, learning_rate=1e-3, max_length=64),
        target,
    )

    pair = ltmia.load_pair(target, base, dtype="float32", device="cpu")
    # Name one attack before you see results: if you choose the best one afterwards, both answers are wrong.
    claim = ltmia.score(
        pair, candidates, unseen, out / "claim", config=ltmia.ScoreConfig(attack="wbc", fdr=0.1, max_length=64)
    )

    test = claim.results.set_test
    print(f"All candidates together: p = {test.p_value:.4f}; one outscores an unseen text in {test.effect.value:.0%}")
    flagged = np.array(claim.records["flagged"].to_pylist()[: len(candidates)])
    print(f"One by one, at a false discovery rate of 10 %: {flagged.sum()} of {len(candidates)} called used,")
    print(f"of which {flagged[: len(drawn.members)].sum()} were. (A real claimant cannot know this last figure.)")
    print(f"Can candidates and unseen texts be told apart without the model? {claim.results.validity.blind.sentence}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path)
    main(parser.parse_args().out)
