"""Training on stores: the same classifier whatever interrupts it, early stopping, and the published schedule."""

import os
import pickle
import re
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from commands import run_ltmia
from killed import die, killed
from ltmia.classifier import checkpoint
from ltmia.classifier.checkpoint import CHECKPOINT_FILE, EpochRecord, best_epoch
from ltmia.classifier.combinations import Combination, TrainingData, load_ahead, n_summary, tensors
from ltmia.classifier.membership import MembershipClassifier
from ltmia.classifier.networks import build_network
from ltmia.classifier.training import TrainingConfig, macro_auc, training_step
from ltmia.errors import ConfigError, StoreError
from ltmia.features.columns import feature_columns
from ltmia.folders import hold_folder, work_path
from ltmia.lab import train as training
from ltmia.models.identity import parameters_sha256
from planted_stores import K, make_store

CONFIG = TrainingConfig(epochs=3, half_batch=20)
STEPS = 6
"""Of one epoch: two stores of 60 members, 20 at a time."""


@pytest.fixture(scope="module")
def stores(tmp_path_factory: pytest.TempPathFactory) -> list[Combination]:
    root = tmp_path_factory.mktemp("stores")
    return [Combination(make_store(root / f"c{i}", gain=1.0, seed=i)) for i in range(3)]


@pytest.fixture(scope="module")
def data(stores: list[Combination]) -> TrainingData:
    return training.hold_out(stores, ["c2"], "excess")


def run(
    data: TrainingData,
    out: Path,
    *,
    config: TrainingConfig = CONFIG,
    network: str = "conv",
    start: Path | None = None,
    **told,
) -> list[str]:
    """Train into `out`; return the lines told."""
    lines: list[str] = []
    if start is None:
        classifier = training.untrained(network, data)
    else:
        classifier = training.going_on_from(MembershipClassifier.from_pretrained(start), data)
    training.train(classifier, data, config, out, tell=lines.append, **told)
    return lines


@pytest.fixture(scope="module")
def undisturbed(data: TrainingData, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("undisturbed") / "model"
    run(data, out)
    return out


def killed_at_step(data: TrainingData, out: Path, step: int, **how) -> None:
    killed(lambda: run(data, out, report=lambda _task, done, _total: die() if done == step else None, **how))


def while_writing_the_second_checkpoint(data: TrainingData, out: Path) -> None:
    write, calls = checkpoint.save_file, iter(range(9))

    def half(tensors: dict[str, torch.Tensor], path: Path, note: dict[str, str]) -> None:
        write(tensors, path, note)
        if next(calls) == 1:
            path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
            die()

    checkpoint.save_file = half  # in the child only
    run(data, out)


def after_the_last_epoch(data: TrainingData, out: Path) -> None:
    MembershipClassifier.save_pretrained = die
    run(data, out)


def once_the_classifier_is_saved_under_another_name(data: TrainingData, out: Path) -> None:
    save = MembershipClassifier.save_pretrained
    MembershipClassifier.save_pretrained = lambda *given: (save(*given), die())
    run(data, out)


def before_the_checkpoints_are_removed(data: TrainingData, out: Path) -> None:
    training.remove_work_folder = die
    run(data, out)


def same_files(one: Path, two: Path) -> bool:
    names = [sorted(path.name for path in folder.iterdir()) for folder in (one, two)]
    return names[0] == names[1] and all((one / n).read_bytes() == (two / n).read_bytes() for n in names[0])


@pytest.mark.parametrize("steps", [(1,), (STEPS,), (STEPS + 1,), (2 * STEPS + 3,), (2, STEPS + 2, 3 * STEPS)])
def test_killed_at_any_step_it_comes_to_the_same_bits(
    data: TrainingData, undisturbed: Path, tmp_path: Path, steps: tuple[int, ...]
) -> None:
    out = tmp_path / "model"
    for step in steps:
        killed_at_step(data, out, step)
        assert not out.exists()
    finished = (steps[-1] - 1) // STEPS
    lines = run(data, out)
    assert [line.split(":")[0] for line in lines if line.startswith("epoch")] == [
        f"epoch {i + 1} of 3" for i in range(finished, 3)
    ]
    assert ("going on from the last finished epoch" in lines) == (finished > 0)
    assert same_files(out, undisturbed)
    assert list(tmp_path.iterdir()) == [out]


@pytest.mark.parametrize(
    "work",
    [
        while_writing_the_second_checkpoint,
        after_the_last_epoch,
        once_the_classifier_is_saved_under_another_name,
        before_the_checkpoints_are_removed,
    ],
)
def test_killed_while_files_are_written_it_comes_to_the_same_bits(
    data: TrainingData, undisturbed: Path, tmp_path: Path, work: Callable[[TrainingData, Path], None]
) -> None:
    out = tmp_path / "model"
    killed(lambda: work(data, out))
    run(data, out)
    assert same_files(out, undisturbed)
    assert list(tmp_path.iterdir()) == [out]


def test_the_published_network_resumes_too(stores: list[Combination], tmp_path: Path) -> None:
    data = training.hold_out(stores, ["c2"], "published")
    config = training.usual_config(training.untrained("published", data), data, epochs=2)
    how = {"network": "published", "config": config}
    run(data, tmp_path / "whole", **how)
    killed_at_step(data, tmp_path / "model", 3, **how)
    run(data, tmp_path / "model", **how)
    assert same_files(tmp_path / "model", tmp_path / "whole")


def test_training_goes_on_from_a_trained_classifier(
    stores: list[Combination], undisturbed: Path, tmp_path: Path
) -> None:
    more, start = training.hold_out(stores[2:], [], "excess"), MembershipClassifier.from_pretrained(undisturbed)
    batch = stores[2].batch(np.arange(30), "excess")
    run(more, tmp_path / "hardly", start=undisturbed, config=TrainingConfig(epochs=1, learning_rate=1e-12))
    hardly = MembershipClassifier.from_pretrained(tmp_path / "hardly")
    np.testing.assert_allclose(hardly.predict_logit(batch), start.predict_logit(batch), atol=1e-5)
    assert hardly.domain_.names == (*start.domain_.names, "c2")
    assert hardly.domain_.distance(batch) < start.domain_.distance(batch), "it has seen this one now"
    assert hardly.domain_.limit == start.domain_.limit
    assert hardly.settings_["start"] == parameters_sha256(start.network_) != parameters_sha256(hardly.network_)

    faint = training.hold_out([Combination(make_store(tmp_path / "faint", gain=0.3, seed=7))], [], "excess")
    run(faint, tmp_path / "further", start=undisturbed, config=TrainingConfig(half_batch=20).going_on())
    further = MembershipClassifier.from_pretrained(tmp_path / "further")
    before, after = (macro_auc(c.network_, faint.training, "excess") for c in (start, further))
    assert after > before
    assert torch.equal(further.network_.standardize.mean, start.network_.standardize.mean)


@pytest.mark.parametrize("network", ["conv", "published"])
def test_going_on_is_gentler(data: TrainingData, network: str) -> None:
    first = training.untrained(network, data)
    again = MembershipClassifier.going_on_from(first)
    before, after = (training.usual_config(classifier, data, epochs=2) for classifier in (first, again))
    assert after.learning_rate == pytest.approx(0.15 * before.learning_rate)
    assert replace(after, learning_rate=before.learning_rate) == before


def test_going_on_resumes_too(stores: list[Combination], undisturbed: Path, tmp_path: Path) -> None:
    data = training.hold_out(stores, ["c2"], "excess")
    run(data, tmp_path / "whole", start=undisturbed)
    killed_at_step(data, tmp_path / "model", STEPS + 1, start=undisturbed)
    run(data, tmp_path / "model", start=undisturbed)
    assert same_files(tmp_path / "model", tmp_path / "whole")


def test_a_start_of_another_width_is_refused(undisturbed: Path, tmp_path: Path) -> None:
    start = MembershipClassifier.from_pretrained(undisturbed)
    start.feature_version = "published"
    narrow = [Combination(make_store(tmp_path / "narrow", gain=1.0, seed=5, k=3))]
    with pytest.raises(ConfigError, match=r"the stores keep 3 top tokens, the classifier to start from reads 5"):
        training.going_on_from(start, training.hold_out(narrow, [], "published"))


def test_other_settings_start_anew_and_say_so(data: TrainingData, undisturbed: Path, tmp_path: Path) -> None:
    out = tmp_path / "model"
    killed_at_step(data, out, STEPS + 1, config=TrainingConfig(epochs=5, half_batch=20, seed=1))
    dropped = next(line for line in run(data, out) if "other settings is dropped" in line)
    assert f"epochs (5 there, {CONFIG.epochs} now)" in dropped
    assert "seed (1 there, 0 now)" in dropped
    assert same_files(out, undisturbed)


def test_a_finished_classifier_is_neither_made_again_nor_replaced(
    data: TrainingData, undisturbed: Path, tmp_path: Path
) -> None:
    out = Path(shutil.copytree(undisturbed, tmp_path / "model"))
    assert run(data, out, report=die) == [f"{out}: trained by these settings already"]
    with pytest.raises(ConfigError, match=r"other settings: half_batch .*`overwrite=True`"):
        run(data, out, config=TrainingConfig(epochs=3), report=die)
    (tmp_path / "stores").mkdir()
    (tmp_path / "stores" / "precious").touch()
    with pytest.raises(ConfigError, match=r"holds 'precious', and no \.ltmia\.json says that ltmia made this folder"):
        run(data, tmp_path / "stores", report=die)
    assert same_files(out, undisturbed)
    assert (tmp_path / "stores" / "precious").exists()


def test_told_to_it_replaces_a_classifier_and_leaves_what_lies_beside(
    data: TrainingData, undisturbed: Path, tmp_path: Path
) -> None:
    out = tmp_path / "model"
    run(data, out, config=TrainingConfig(epochs=1, half_batch=20))
    (out / "thesis.txt").write_text("years")
    run(data, out, overwrite=True)
    assert (out / "thesis.txt").read_text() == "years"
    (out / "thesis.txt").unlink()
    assert same_files(out, undisturbed)


def test_two_at_once_are_refused(data: TrainingData, tmp_path: Path) -> None:
    with hold_folder(work_path(tmp_path / "model")), pytest.raises(ConfigError, match="another run is at work"):
        run(data, tmp_path / "model")


class Bomb:
    def __reduce__(self) -> tuple[Callable[[str], int], tuple[str]]:
        return os.system, ("touch ran",)


@pytest.mark.parametrize(
    "damage",
    [
        lambda content: content[: len(content) // 2],
        lambda content: content[:-9] + bytes([content[-9] ^ 1]) + content[-8:],
        lambda _content: b"",
        lambda _content: pickle.dumps(Bomb()),
    ],
    ids=["truncated", "one bit", "empty", "pickle"],
)
def test_a_damaged_checkpoint_is_named(
    data: TrainingData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, damage: Callable[[bytes], bytes]
) -> None:
    monkeypatch.chdir(tmp_path)
    killed_at_step(data, tmp_path / "model", STEPS + 1)
    path = work_path(tmp_path / "model") / CHECKPOINT_FILE
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(StoreError, match=f"not a usable checkpoint .*remove {path.parent} to train from the start"):
        run(data, tmp_path / "model")
    assert not (tmp_path / "ran").exists()
    assert not (tmp_path / "model").exists()


def test_it_stops_when_the_held_out_auc_rises_no_more(tmp_path: Path) -> None:
    easy = [Combination(make_store(tmp_path / f"e{i}", gain=6.0, seed=i, n=40)) for i in range(2)]
    config = TrainingConfig(epochs=30, half_batch=10, patience=2)
    fitted = MembershipClassifier(k=K).fit(easy[:1], easy[1:], config=config)
    found = [record.validation_auc for record in fitted.history_]
    assert max(found) == 1.0  # and cannot rise
    assert len(found) == found.index(1.0) + 3
    assert macro_auc(fitted.network_, easy[1:], "excess") == 1.0


def test_stopping_early_goes_on_to_stop_early(stores: list[Combination], tmp_path: Path) -> None:
    data = training.hold_out(stores, ["c2"], "excess")
    config = TrainingConfig(epochs=12, half_batch=20, patience=1, learning_rate=1e-9)
    run(data, tmp_path / "whole", config=config)
    whole = MembershipClassifier.from_pretrained(tmp_path / "whole")
    assert len(whole.history_) < 12
    killed(lambda: after_stopping(data, tmp_path / "model", config))
    assert not [line for line in run(data, tmp_path / "model", config=config) if line.startswith("epoch")]
    assert same_files(tmp_path / "model", tmp_path / "whole")


def after_stopping(data: TrainingData, out: Path, config: TrainingConfig) -> None:
    MembershipClassifier.save_pretrained = die
    run(data, out, config=config)


def test_patience_needs_something_held_out(stores: list[Combination]) -> None:
    with pytest.raises(ConfigError, match="patience = 2: needs combinations that are held out"):
        MembershipClassifier(k=K).fit(stores, config=TrainingConfig(patience=2))


@pytest.mark.parametrize(
    ("aucs", "expected"), [([None, None], 1), ([0.5, 0.7, 0.6], 1), ([0.7, 0.7, 0.2], 0), ([0.1, 0.2], 1), ([0.0], 0)]
)
def test_the_best_epoch_is_the_first_of_the_highest(aucs: list[float | None], expected: int) -> None:
    assert best_epoch([EpochRecord(epoch=i, loss=0.0, validation_auc=a) for i, a in enumerate(aucs)]) == expected


def test_the_published_schedule_is_that_of_the_paper_at_its_size() -> None:
    config = TrainingConfig.published(600_000)
    assert config.batches_per_step * 2 * config.half_batch == pytest.approx(16_384, rel=0.02)
    assert config.warmup * config.epochs == 10
    assert (config.learning_rate, config.weight_decay, config.label_smoothing) == (9.88e-4, 0.028, 0.02)
    assert (config.pairwise_weight, config.grad_clip) == (0, 1)
    assert TrainingConfig.published(300).batches_per_step == 1


def test_batches_loaded_ahead_are_those_asked_for_in_order(stores: list[Combination]) -> None:
    parts = [(store, np.arange(i, i + 5)) for i in range(7) for store in stores]
    for loaded, (store, rows) in zip(load_ahead(parts, "logratio"), parts, strict=True):
        assert loaded.name == store.name
        assert torch.equal(loaded.labels, torch.from_numpy(store.labels[rows]).float())
        for mine, direct in zip(loaded.inputs, tensors(store.batch(rows, "logratio")), strict=True):
            assert torch.equal(mine, direct)
    assert list(load_ahead([], "logratio")) == []
    with pytest.raises(IndexError):
        list(load_ahead([parts[0], (stores[0], np.array([10**6]))], "logratio"))


def test_a_step_of_several_combinations_follows_their_common_gradient(stores: list[Combination]) -> None:
    config = TrainingConfig(pairwise_weight=0.0, label_smoothing=0.02, grad_clip=1e9)
    sizes = {"columns": feature_columns("published", K), "n_summary": n_summary("published")}
    networks = []
    for _ in range(2):
        torch.manual_seed(3)
        networks.append(build_network("published", **sizes).eval())
    mine, plain = networks
    parts = [(store, np.arange(10 * i, 10 * i + 10)) for i, store in enumerate(stores)]
    optimizer = torch.optim.SGD(mine.parameters(), 1.0)
    training_step(mine, load_ahead(parts, "published"), len(parts), config, optimizer)
    logits = torch.cat([plain(*tensors(store.batch(rows, "published"))) for store, rows in parts])
    labels = torch.cat([torch.from_numpy(store.labels[rows]) for store, rows in parts]).double() * 0.98 + 0.01
    p = logits.double().sigmoid()
    loss = -(labels * p.log() + (1 - labels) * (1 - p).log()).mean()
    loss.backward()
    for (name, a), b in zip(mine.named_parameters(), plain.parameters(), strict=True):
        if b.grad is not None:
            torch.testing.assert_close(a, b - b.grad, atol=1e-5, rtol=1e-5, msg=name)


def test_what_cannot_be_trained_on_is_named(stores: list[Combination], tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="`hold_out=c9`: no such base, corpus or store; there are c0, c1, c2"):
        training.hold_out(stores, ["c9"], "excess")
    with pytest.raises(ConfigError, match="0 combinations to train on, 3 held out"):
        training.hold_out(stores, ["c0", "c1", "c2"], "excess")
    wide = Combination(make_store(tmp_path / "wide", gain=1.0, seed=4, n=20, k=7))
    mixed = training.hold_out([*stores, wide], [], "published")
    with pytest.raises(ConfigError, match=r"keep \[5, 7\] top tokens"):
        training.untrained("published", mixed)
    wide.members = wide.members[:0]
    with pytest.raises(StoreError, match="wide: 0 members and 10 non-members"):
        training.hold_out([*stores, wide], [], "excess")


@pytest.fixture(scope="module")
def folder(stores: list[Combination]) -> Iterator[str]:
    return str(stores[0].store.folder.parent)


def test_the_command_shows_each_epoch_and_is_quiet_when_asked(folder: str, tmp_path: Path) -> None:
    command = ("train", folder, "-o", str(tmp_path / "model"), "--hold-out", "c2", "--epochs", "2")
    done = run_ltmia(*command)
    assert done.returncode == 0, done.stderr
    lines = [line for line in done.stderr.splitlines() if line.startswith("epoch")]
    assert [line.split(":")[0] for line in lines] == ["epoch 1 of 2", "epoch 2 of 2"]
    assert all(re.fullmatch(r"epoch \d of 2: loss \d\.\d{4}, held-out AUC \d\.\d{4}", line) for line in lines)
    assert "trained on 2 combinations, 1 held out; the weights are those of epoch" in done.stdout
    done = run_ltmia(*command, "--quiet")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_the_command_retrains_the_published_method(folder: str, tmp_path: Path) -> None:
    options = ("--network", "published", "--feature-version", "published", "--epochs", "1", "--quiet")
    done = run_ltmia("train", folder, "-o", str(tmp_path / "model"), *options)
    assert done.returncode == 0, done.stderr
    found = MembershipClassifier.from_pretrained(tmp_path / "model")
    assert (found.network, found.feature_version, found.k) == ("published", "published", K)
    assert found.settings_["label_smoothing"] == 0.02


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--network", "convolution"), "'convolution': expected published, conv"),
        (("--feature-version", "excessive"), "'excessive': expected published, logratio, excess"),
        (("--start", "full", "--network", "conv"), "has a network and features already"),
        (("--patience", "3"), "needs --hold-out"),
        (("--seed", "-1"), "--seed"),
    ],
)
def test_impossible_options_are_named(folder: str, tmp_path: Path, options: tuple[str, ...], message: str) -> None:
    done = run_ltmia("train", folder, "-o", str(tmp_path / "model"), *options, env={"COLUMNS": "200", "NO_COLOR": "1"})
    assert done.returncode == 2
    assert message in done.stderr
    assert not list(tmp_path.iterdir())
