"""An audit answers for each observer: what log-probabilities give away, and what the weights add."""

import copy
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from commands import run_ltmia
from disks import mounted
from ltmia.attacks.table import WITH_WEIGHTS
from ltmia.auditing.audit import AuditConfig, audit
from ltmia.auditing.score import ScoreConfig, score
from ltmia.data.reading import read_texts
from ltmia.errors import ConfigError, ModelError, StoreError
from ltmia.evaluation.comparison import compare_audits
from ltmia.evaluation.files import read_records, read_results
from ltmia.models.loading import load_pair
from ltmia.models.pair import Pair
from ltmia.records import Texts
from ltmia.report.words import observer_lines
from ltmia.scoring.recorded_pair import load_recorded_pair
from ltmia.scoring.recording import record_model

ATTACKS = "ltmia,difference"


@pytest.fixture(scope="module")
def pair(materials: Path) -> Pair:
    return load_pair(materials / "my-model", materials / "my-base", dtype="float32", device="cpu")


@pytest.fixture(scope="module")
def texts(materials: Path) -> tuple[Texts, Texts]:
    members, nonmembers = read_texts(materials / "train.jsonl"), read_texts(materials / "held-out.jsonl")
    return members.take(range(40)), nonmembers.take(range(60))


@pytest.fixture(scope="module")
def audited(pair: Pair, texts: tuple[Texts, Texts], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("observers")
    audit(pair, *texts, folder, config=AuditConfig(attacks=ATTACKS, observer="auto"))
    return folder


def test_both_observers_stand_side_by_side_and_the_stronger_decides(audited: Path) -> None:
    results, records = read_results(audited), read_records(audited)
    assert {key: found.attack for key, found in results.observers.items()} == {
        "weights": "ltmia_weights",
        "logprobs": "ltmia",
    }
    assert results.decisions.attack == "ltmia_weights"
    together, alone = (np.array(records[f"score_{name}"]) for name in ("ltmia_weights", "ltmia"))
    assert np.corrcoef(together, alone)[0, 1] > 0.5
    assert results.update is not None
    assert 0 < results.update.explained < 1
    for name in ("update", "ltmia_weights", "ltmia"):
        assert (results.attacks[name].auc.value or 0) > 0.7, "two epochs at a high rate leave a plain trace"
    values = {name: results.attacks[name].auc.value or 0 for name in ("update", "ltmia_weights", "ltmia")}
    assert values["ltmia_weights"] > max(values["update"], values["ltmia"]) - 0.02
    assert any("weights of both models" in line for line in observer_lines(results))
    assert results.update.rounded == 0
    rounded = results.model_copy(update={"update": results.update.model_copy(update={"rounded": 0.5})})
    assert "50 % of the target's weights look rounded" in observer_lines(rounded)[-1]
    assert results.update.unread == 0
    stacked = results.model_copy(update={"update": results.update.model_copy(update={"unread": 0.86})})
    assert "86 % of the weights that changed in these layers were not read" in observer_lines(stacked)[-1]


def test_the_weaker_observer_decides_as_it_would_alone(
    audited: Path, pair: Pair, texts: tuple[Texts, Texts], tmp_path: Path
) -> None:
    alone = audit(pair, *texts, tmp_path, config=AuditConfig(attacks=ATTACKS, observer="logprobs")).results
    both = read_results(audited)
    assert alone.observers["logprobs"].decisions == both.observers["logprobs"].decisions
    assert alone.decisions.attack == "ltmia"
    assert alone.attacks["ltmia"] == both.attacks["ltmia"]
    assert not {"update", "ltmia_weights"} & set(alone.attacks)
    assert "the observer `weights`" in (alone.observers["weights"].reason or "")
    assert alone.update is None


def test_recordings_say_that_the_weights_were_not_read(
    pair: Pair, texts: tuple[Texts, Texts], tmp_path: Path, materials: Path
) -> None:
    some = Texts.concatenate([texts[0].take(range(20)), texts[1].take(range(30))])
    for name, source in (("target", "my-model"), ("base", "my-base")):
        loaded = load_pair(materials / source, materials / "my-base", dtype="float32", device="cpu")
        record_model(loaded, some, tmp_path / f"{name}.jsonl")
    recorded = load_recorded_pair(tmp_path / "target.jsonl", tmp_path / "base.jsonl")
    sets = some.take(range(20)), some.take(range(20, 50))
    found = audit(
        recorded, *sets, tmp_path / "auto", config=AuditConfig(attacks="ltmia", classifier="lite", observer="auto")
    ).results
    assert found.decisions.attack == "ltmia"
    assert "recordings" in (found.observers["weights"].reason or "")
    config = AuditConfig(attacks="ltmia", classifier="lite")
    for forced in (replace(config, observer="weights"), replace(config, thorough=True)):
        with pytest.raises(ModelError, match="recordings"):  # what was refused leaves no settings behind
            audit(recorded, *sets, tmp_path / "forced", config=forced)


def test_an_attack_on_weights_contradicts_an_observer_of_log_probabilities(
    pair: Pair, texts: tuple[Texts, Texts], tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match="update: reads the weights"):
        audit(pair, *texts, tmp_path, config=AuditConfig(attacks="update", observer="logprobs"))


def test_candidates_are_judged_with_the_weights_where_they_are_at_hand(
    pair: Pair, texts: tuple[Texts, Texts], tmp_path: Path, materials: Path
) -> None:
    few = texts[0].take(range(10))
    found = score(pair, few, texts[1], tmp_path / "auto", config=ScoreConfig(observer="auto")).results
    assert found.decisions.attack == "ltmia_weights"
    assert (found.set_test.p_value or 1) < 0.01
    alone = score(pair, few, texts[1], tmp_path / "alone", config=ScoreConfig(observer="logprobs"))
    assert alone.results.decisions.attack == "ltmia"
    assert "score_update" not in alone.records.column_names


def test_a_thorough_audit_reads_more_of_the_weights_and_none_without_them(
    pair: Pair, texts: tuple[Texts, Texts], tmp_path: Path, audited: Path
) -> None:
    quick = read_results(audited).update
    config = AuditConfig(attacks=ATTACKS, thorough=True)
    results = audit(pair, *texts, tmp_path / "thorough", config=config).results
    found = results.update
    assert quick is not None
    assert found is not None
    assert (quick.points, found.points) == ([0.0, 1.0], [0.0, 0.5, 1.0])
    assert found.explained > quick.explained
    said = f"The update was read at {found.n_coordinates:,} weights of layers 0 to {found.layers[-1]}, "
    said += "and each text's gradient at 0, 0.5 and 1 of the way from base (0) to target (1)."
    assert said in observer_lines(results)
    with pytest.raises(ConfigError, match="`thorough=True` reads more of the weights"):
        AuditConfig(thorough=True, observer="logprobs")  # before a training whose end it would be asked at


@pytest.mark.parametrize("attack", ["ltmia", WITH_WEIGHTS, "difference"])
def test_a_comparison_counts_the_flags_of_the_attack_that_is_compared(audited: Path, attack: str) -> None:
    results, records = read_results(audited), read_records(audited)
    outputs, weights = (results.observers[name].decisions for name in ("logprobs", "weights"))
    for decisions, n_flagged in ((outputs, 3), (weights, 7), (results.decisions, 7)):
        object.__setattr__(decisions, "n_flagged", n_flagged)
    found = compare_audits((results, records), (results, records), attack=attack)
    assert found.identifiable == {"ltmia": (3, 3), WITH_WEIGHTS: (7, 7), "difference": None}[attack]
    assert ("identifiable" in found.sentence) == (attack != "difference")


def test_the_command_takes_the_observer(materials: Path, tmp_path: Path) -> None:
    out = str(tmp_path / "out")
    sets = []
    for option, name, n in (("--members", "train.jsonl", 20), ("--nonmembers", "held-out.jsonl", 30)):
        lines = (materials / name).read_text("utf-8").splitlines(keepends=True)
        (tmp_path / name).write_text("".join(lines[:n]), "utf-8")
        sets += [option, str(tmp_path / name)]
    where = [str(materials / "my-model"), "--base", str(materials / "my-base"), "-o", out]
    done = run_ltmia("audit", *where, *sets, "--attacks", "ltmia,update", "--observer", "weights")
    assert done.returncode == 0, done.stderr
    assert "Attackers who hold the weights of both models" in done.stdout


@pytest.fixture
def only_biases(pair: Pair) -> Pair:
    """A target of which fine-tuning changed no matrix."""
    target = copy.deepcopy(pair.reference)
    with torch.no_grad():
        target.get_parameter("transformer.h.0.mlp.c_fc.bias").add_(0.5)
    return Pair(target=target, reference=pair.reference, tokenizer=pair.tokenizer)


@pytest.mark.parametrize("name", ["update", "ltmia_weights"])
def test_an_attack_on_weights_that_was_named_must_run(
    only_biases: Pair, texts: tuple[Texts, Texts], tmp_path: Path, name: str
) -> None:
    """Nothing else would answer the question; the control did, as if it were an attack."""
    with pytest.raises(ModelError, match=r"no matrix .*such as transformer\.h\.0\.mlp\.c_fc\.bias"):
        audit(only_biases, *texts, tmp_path / "audit", config=AuditConfig(attacks=name))
    if name == "update":
        with pytest.raises(ModelError, match="no matrix"):
            score(only_biases, *texts, tmp_path / "score", config=ScoreConfig(attack=name))


def test_a_disk_without_room_for_gradients_leaves_the_weights_out(
    pair: Pair, texts: tuple[Texts, Texts], tmp_path: Path
) -> None:
    few = texts[0].take(range(12)), texts[1].take(range(18))
    with mounted(tmp_path / "disk", "size=10m") as disk:
        config = AuditConfig(attacks="ltmia", classifier="lite")
        results = audit(pair, *few, disk / "out", config=config).results
        with pytest.raises(StoreError, match=r"11 MiB and \d+ MiB are free: make room, or leave the weights out"):
            audit(pair, *few, disk / "must", config=replace(config, observer="weights"))
        passed_on = (disk / "out" / "results.json").read_text("utf-8") + (disk / "out" / "report.html").read_text(
            "utf-8"
        )
    assert results.decisions.attack == "ltmia"
    assert "11 MiB" in (results.observers["weights"].reason or "")
    assert str(tmp_path) not in passed_on


def test_the_noise_check_does_not_depend_on_the_attacks_named(
    pair: Pair, texts: tuple[Texts, Texts], tmp_path: Path
) -> None:
    few = texts[0].take(range(12)), texts[1].take(range(18))
    found = audit(pair, *few, tmp_path, config=AuditConfig(attacks="loss")).results
    assert found.validity.backend.status == "ok"
    assert "difference" not in found.attacks
