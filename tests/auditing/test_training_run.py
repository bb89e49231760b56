"""An audit with checkpoints: what an attacker with the training run sees stands beside the weaker observers."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from commands import run_ltmia
from ltmia.auditing.audit import AuditConfig, audit
from ltmia.auditing.score import ScoreConfig, score
from ltmia.data.reading import read_texts
from ltmia.errors import ConfigError, ModelError
from ltmia.evaluation.files import read_records, read_results
from ltmia.evaluation.summary import summarise
from ltmia.models.training_run import load_training_run
from ltmia.records import Texts
from ltmia.report.words import observer_lines

SMALL = "model.safetensors"


@pytest.fixture(scope="module")
def root(materials: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder as a Trainer leaves it, with states on the way from base to target; step 9 sorts before 10 as a number."""
    folder = tmp_path_factory.mktemp("run")
    base, target = (load_file(materials / name / SMALL) for name in ("my-base", "my-model"))
    for step, share in ((9, 0.3), (10, 0.6), (15, 1.0)):
        state = folder / f"checkpoint-{step}"
        state.mkdir()
        for path in (materials / "my-model").iterdir():
            if path.name != SMALL and path.is_file():
                (state / path.name).write_bytes(path.read_bytes())
        between = {name: torch.lerp(base[name].to(weight), weight, share) for name, weight in target.items()}
        save_file(between, state / SMALL, metadata={"format": "pt"})
    (folder / "logs").mkdir()
    return folder


@pytest.fixture(scope="module")
def texts(materials: Path) -> tuple[Texts, Texts]:
    members, nonmembers = read_texts(materials / "train.jsonl"), read_texts(materials / "held-out.jsonl")
    return members.take(range(20)), nonmembers.take(range(30))


@pytest.fixture(scope="module")
def audited(materials: Path, root: Path, texts: tuple[Texts, Texts], tmp_path_factory: pytest.TempPathFactory) -> Path:
    pair = load_training_run(materials / "my-model", materials / "my-base", [root], dtype="float32", device="cpu")
    folder = tmp_path_factory.mktemp("audit")
    audit(pair, *texts, folder, config=AuditConfig(attacks="ltmia", observer="training_run"))
    return folder


def test_each_observer_has_its_own_attack_and_the_strongest_decides(audited: Path) -> None:
    results, records = read_results(audited), read_records(audited)
    deciding = {name: found.attack for name, found in results.observers.items()}
    assert deciding == {"training_run": "checkpoints", "weights": "ltmia_weights", "logprobs": "ltmia"}
    assert results.decisions.attack == "checkpoints"
    assert "score_checkpoints" in records.column_names
    assert "an attacker who also holds checkpoints" in summarise(results).observer
    assert any("hold checkpoints of the training run: " in line for line in observer_lines(results))
    run = results.training_run
    assert run is not None
    assert [Path(found.source).name for found in run.checkpoints] == ["checkpoint-9", "checkpoint-10"]
    assert len({found.sha256 for found in run.checkpoints} | {results.target.sha256}) == 3
    assert run.n_left_out == 1, "the last one is the target itself"
    assert len(run.explained) == 3


def test_weaker_observers_are_not_affected(
    audited: Path, materials: Path, texts: tuple[Texts, Texts], tmp_path: Path
) -> None:
    pair = load_training_run(materials / "my-model", materials / "my-base", dtype="float32", device="cpu")
    alone = audit(pair, *texts, tmp_path, config=AuditConfig(attacks="ltmia", observer="weights")).results
    both = read_results(audited)
    assert "training_run" not in alone.observers, "nobody said that there are checkpoints"
    assert alone.observers["weights"].decisions == both.observers["weights"].decisions
    assert alone.attacks == {name: found for name, found in both.attacks.items() if name != "checkpoints"}


def test_the_command_reads_checkpoints(materials: Path, root: Path, tmp_path: Path) -> None:
    sets = []
    for option, name, n in (("--members", "train.jsonl", 12), ("--nonmembers", "held-out.jsonl", 24)):
        lines = (materials / name).read_text("utf-8").splitlines(keepends=True)
        (tmp_path / name).write_text("".join(lines[:n]), "utf-8")
        sets += [option, str(tmp_path / name)]
    command = ["audit", str(materials / "my-model"), "--base", str(materials / "my-base"), *sets]
    command += ["-o", str(tmp_path / "out"), "--attacks", "ltmia"]
    checkpoints = ["--checkpoints", str(root / "checkpoint-9"), "--checkpoints", str(root / "checkpoint-10")]
    done = run_ltmia(*command, *checkpoints, "--observer", "training_run")
    assert done.returncode == 0, done.stderr
    assert "Attackers who also hold checkpoints of the training run" in done.stdout
    other = run_ltmia(*command, *checkpoints[:2], "--observer", "training_run")
    assert other.returncode == 2, "other checkpoints are another audit"
    assert "checkpoints" in other.stderr


def test_other_checkpoints_are_another_audit_in_python_too(
    audited: Path, materials: Path, root: Path, texts: tuple[Texts, Texts]
) -> None:
    config = AuditConfig(attacks="ltmia", observer="training_run")
    for checkpoints in ([root / "checkpoint-9"], []):
        pair = load_training_run(
            materials / "my-model", materials / "my-base", checkpoints, dtype="float32", device="cpu"
        )
        with pytest.raises(ConfigError, match="checkpoints"):
            audit(pair, *texts, audited, config=config)


def test_candidates_are_judged_by_checkpoints(
    materials: Path, root: Path, texts: tuple[Texts, Texts], tmp_path: Path
) -> None:
    pair = load_training_run(
        materials / "my-model", materials / "my-base", [root / "checkpoint-9"], dtype="float32", device="cpu"
    )
    found = score(pair, texts[0].take(range(8)), texts[1], tmp_path, config=ScoreConfig(observer="auto")).results
    assert found.decisions.attack == "checkpoints"


@pytest.mark.parametrize(
    ("checkpoints", "observer", "message"),
    [
        (True, "logprobs", "observer `logprobs`: it does not see the checkpoints"),
        (True, "weights", "observer `weights`: it does not see the checkpoints"),
        (False, "training_run", "give the states of the training run"),
    ],
)
def test_observer_and_checkpoints_go_together(
    checkpoints: bool,
    observer: str,
    message: str,
    materials: Path,
    root: Path,
    texts: tuple[Texts, Texts],
    tmp_path: Path,
) -> None:
    kept = [root] if checkpoints else []
    pair = load_training_run(materials / "my-model", materials / "my-base", kept, dtype="float32", device="cpu")
    config = AuditConfig(attacks="loss", observer=observer)  # type: ignore[arg-type]  # typed as any string
    with pytest.raises(ConfigError, match=message):
        audit(pair, *texts, tmp_path, config=config)
    with pytest.raises(ConfigError, match="checkpoints: is run by the observer training_run"):
        audit(pair, *texts, tmp_path, config=AuditConfig(attacks="checkpoints", observer="auto"))


def test_impossible_checkpoints_are_refused_before_anything_is_loaded(
    materials: Path, root: Path, tmp_path: Path
) -> None:
    (tmp_path / "empty").mkdir()
    for checkpoints, message in (
        ([tmp_path / "nothing"], "there is nothing there"),
        ([tmp_path / "empty"], "empty"),
        ([root, root / "checkpoint-9"], "given twice"),
    ):
        with pytest.raises(ModelError, match=message):
            load_training_run(tmp_path / "no target", materials / "my-base", checkpoints)
    with pytest.raises(ModelError, match="leave out `sequential=True`"):
        load_training_run(materials / "my-model", materials / "my-base", [root], sequential=True)
