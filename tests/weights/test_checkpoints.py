"""The attack on checkpoints, on a small model that was really trained: it finds in which interval a text was used."""

import copy
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from ltmia.errors import ModelError
from ltmia.finetuning.lora import add_lora
from ltmia.finetuning.tiny import TinyConfig, build_base, train_tokenizer
from ltmia.models.pair import Checkpoint, Pair
from ltmia.models.tokens import EncodedText
from ltmia.weights.checkpoints import RunScores, read_path, score_run
from ltmia.weights.update_attack import UpdateAttack, WeightsConfig

TOKENIZER = train_tokenizer(["The lamp burns low on the pier, and snow falls."] * 3, 280)
N_MEMBERS, N_TEXTS, BATCH, EVERY = 36, 108, 4, 3
CONFIG = WeightsConfig(n_coordinates=3_000)


def some_texts() -> list[EncodedText]:
    rng = np.random.default_rng(0)
    odds = rng.dirichlet(np.full(279, 0.3))
    return [EncodedText(ids=1 + rng.choice(279, rng.integers(8, 14), p=odds)) for _ in range(N_TEXTS)]


class Run:
    """One epoch over the members; keeps the state after every `EVERY` steps, and the last one."""

    def __init__(self, model, texts, learning_rate: float) -> None:
        self.states, self.interval = [], np.full(N_TEXTS, -1)
        weights = [weight for weight in model.parameters() if weight.requires_grad]
        optimizer = torch.optim.AdamW(weights, lr=learning_rate, weight_decay=0.0)
        batches = np.array_split(np.random.default_rng(1).permutation(N_MEMBERS), N_MEMBERS // BATCH)
        for step, batch in enumerate(batches):
            optimizer.zero_grad()
            for i in batch:
                ids = torch.from_numpy(texts[i].ids)[None]
                (model(input_ids=ids, labels=ids).loss / len(batch)).backward()
            optimizer.step()
            self.interval[batch] = step // EVERY
            if (step + 1) % EVERY == 0 or step + 1 == len(batches):
                self.states.append(copy.deepcopy(model).eval())


@pytest.fixture(scope="module")
def texts() -> list[EncodedText]:
    return some_texts()


@pytest.fixture(scope="module")
def base():
    return build_base(
        TinyConfig(model_type="llama", vocab_size=280, hidden_size=32, n_layers=3, n_heads=2), seed=0
    ).eval()


@pytest.fixture(scope="module")
def run(base, texts) -> Run:
    return Run(copy.deepcopy(base), texts, 1e-3)


def pair_of(target, base) -> Pair:
    return Pair(target=target, reference=base, tokenizer=TOKENIZER)


def checkpoint(name: str, target, base) -> Checkpoint:
    return Checkpoint(source=name, load=lambda: pair_of(target, base))


def kept(run: Run, base) -> list[Checkpoint]:
    return [checkpoint(f"state {i}", state, base) for i, state in enumerate(run.states[:-1])]


def hashed(pair: Pair) -> str:
    return str(sum(weight.double().sum().item() for weight in pair.target.parameters()))


def scored(pair: Pair, texts, checkpoints, folder: Path, identity=hashed) -> tuple[np.ndarray, RunScores]:
    with UpdateAttack(pair, texts, folder / "whole", identity=hashed(pair), config=CONFIG) as attack:
        path = read_path(attack, checkpoints)  # before anything is run
        return attack.score().score, score_run(attack, path, folder / "run", identity=identity)


@pytest.fixture(scope="module")
def found(run: Run, base, texts, tmp_path_factory) -> tuple[np.ndarray, RunScores]:
    return scored(pair_of(run.states[-1], base), texts, kept(run, base), tmp_path_factory.mktemp("run"))


def auc(score: np.ndarray) -> float:
    used = np.arange(len(score)) < N_MEMBERS
    return float((score[used][:, None] > score[~used]).mean())


def test_members_stand_out_more_than_in_the_whole_update(found) -> None:
    whole, by_checkpoints = found
    assert auc(by_checkpoints.score) > max(0.98, auc(whole))
    assert by_checkpoints.checkpoints == ("state 0", "state 1")
    assert by_checkpoints.left_out == ()
    assert all(0.3 < share < 1 for share in by_checkpoints.explained)


def test_a_member_is_found_in_the_interval_in_which_it_was_used_or_the_next(found, run: Run) -> None:
    _, by_checkpoints = found
    late = by_checkpoints.by_interval[:, :N_MEMBERS].argmax(axis=0) - run.interval[:N_MEMBERS]
    assert np.isin(late, (0, 1)).mean() > 0.95, "Adam's momentum carries a gradient on for some steps"
    assert (late == 0).mean() > 0.5
    assert set(run.interval[:N_MEMBERS]) == {0, 1, 2}


def test_each_interval_is_the_attack_on_its_two_ends(found, run: Run, base, texts, tmp_path: Path) -> None:
    _, by_checkpoints = found
    ends = [base, *run.states]
    for number in (0, 2):
        alone = pair_of(ends[number + 1], ends[number])
        with UpdateAttack(alone, texts, tmp_path / str(number), identity="a", config=CONFIG) as attack:
            np.testing.assert_allclose(attack.score().score, by_checkpoints.by_interval[number], rtol=1e-3, atol=1e-3)
    together = np.exp(by_checkpoints.by_interval).sum(axis=0)
    np.testing.assert_allclose(by_checkpoints.score, np.log(together), rtol=1e-9)


def test_checkpoints_of_an_adapter_are_read(base, texts, tmp_path: Path) -> None:
    run = Run(add_lora(copy.deepcopy(base), rank=4, alpha=8, seed=0), texts, 5e-3)
    states = [Pair(target=state, tokenizer=TOKENIZER) for state in run.states]
    checkpoints = [Checkpoint(source=str(i), load=lambda pair=pair: pair) for i, pair in enumerate(states[:-1])]
    whole, by_checkpoints = scored(states[-1], texts, checkpoints, tmp_path)
    assert auc(by_checkpoints.score) > max(0.95, auc(whole))


def test_gradients_are_read_again_only_if_a_checkpoint_changed(found, run: Run, base, texts, tmp_path: Path) -> None:
    pair, checkpoints = pair_of(run.states[-1], base), kept(run, base)
    _, first = scored(pair, texts, checkpoints, tmp_path)
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "run").rglob("gradients-*")}
    assert len(before) == 2
    _, again = scored(pair, texts, checkpoints, tmp_path)
    assert {path: path.stat().st_mtime_ns for path in before} == before
    np.testing.assert_array_equal(first.by_interval, again.by_interval)
    np.testing.assert_array_equal(first.by_interval, found[1].by_interval)
    swapped = [checkpoint("other", run.states[1], base), checkpoints[1]]
    _, other = scored(pair, texts, swapped, tmp_path)
    assert other.left_out == ("state 1",), "the same weights twice"
    assert not np.array_equal(other.by_interval[0], first.by_interval[0])


def test_checkpoints_without_a_change_end_no_interval_and_are_named(run: Run, base, texts, tmp_path: Path) -> None:
    pair = pair_of(run.states[-1], base)
    ends = [checkpoint("the base", base, base), checkpoint("the target", run.states[-1], base)]
    later = checkpoint("later than the target", run.states[1], base)
    _, found = scored(pair, texts, [ends[0], *kept(run, base)[:1], ends[1], later], tmp_path)
    assert found.left_out == ("the base", "the target", "later than the target")
    assert found.checkpoints == ("state 0",)
    with pytest.raises(ModelError, match="the base, the target: none holds other weights"):
        scored(pair, texts, ends, tmp_path)


def test_a_checkpoint_of_another_form_is_refused(run: Run, base, texts, tmp_path: Path) -> None:
    adapter = Pair(target=add_lora(copy.deepcopy(base), rank=4, alpha=8, seed=0).eval(), tokenizer=TOKENIZER)
    with pytest.raises(ModelError, match="a checkpoint of the same training run"):
        scored(pair_of(run.states[-1], base), texts, [Checkpoint(source="x", load=lambda: adapter)], tmp_path)


def test_checkpoints_of_another_run_or_in_another_order_are_refused(run: Run, base, texts, tmp_path: Path) -> None:
    pair, (first, second) = pair_of(run.states[-1], base), kept(run, base)
    with pytest.raises(ModelError, match="state 1: the weights move back after it"):
        scored(pair, texts, [second, first], tmp_path)
    known = [replace(state, is_known=True) for state in (second, first)]
    with UpdateAttack(pair, texts, tmp_path / "whole", identity="a", config=CONFIG) as attack:
        assert len(read_path(attack, known).states) == 2, "a training that swings to and fro is read all the same"
    others = [EncodedText(ids=np.roll(text.ids, 3)) for text in texts]
    foreign = Run(copy.deepcopy(base), others, 1e-3).states[-1]
    with pytest.raises(ModelError, match="foreign: the weights move back after it"):
        scored(pair, texts, [checkpoint("foreign", foreign, base)], tmp_path)


def test_a_checkpoint_that_is_exchanged_while_it_is_read_is_refused(run: Run, base, texts, tmp_path: Path) -> None:
    states = iter(run.states[:2])
    exchanged = Checkpoint(source="exchanged", load=lambda: pair_of(next(states), base))
    with pytest.raises(ModelError, match="exchanged: its weights changed while they were read"):
        scored(pair_of(run.states[-1], base), texts, [exchanged], tmp_path)


def test_a_text_without_a_gradient_has_no_score(run: Run, base, texts, tmp_path: Path) -> None:
    unscorable = EncodedText(ids=np.array([5]), reason="1 token(s): too few to score")
    _, found = scored(pair_of(run.states[-1], base), [*texts, unscorable], kept(run, base)[:1], tmp_path)
    assert np.isnan(found.score[-1])
    assert np.isfinite(found.score[:-1]).all()
