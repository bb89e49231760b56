"""Logs the figures of an audit to an experiment tracker: MLflow, Weights & Biases, trackio, TensorBoard.

Each is an extra and is imported only if it is used. All get the same figures under the same names.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path

from ltmia.errors import ConfigError
from ltmia.evaluation.files import read_verdict
from ltmia.evaluation.results import Results
from ltmia.integrations.figures import figures, measured

PROJECT = "ltmia"
"""Prefix of each name, and name of the project if the tracker needs one and no run is open."""
TENSORBOARD_FOLDER = "runs"


@dataclass(frozen=True, slots=True, kw_only=True)
class _Logged:
    """Values for a tracker."""

    run: str
    """Name of the run, if none is open."""
    parameters: Mapping[str, str | int | float]
    figures: Mapping[str, float]
    step: int | None
    """Training step of the model that was audited; None after training."""


def log_audit(folder: Path | str, trackers: Iterable[str], *, step: int | None = None) -> None:
    """Log the figures of a finished audit.

    If this process has an open run of MLflow, Weights & Biases or trackio, it gets the figures; else a new run does.

    Args:
        folder: Folder of an audit or a score.
        trackers: Names, see `TRACKERS`.
        step: Training step of the model that was audited.

    Raises:
        ConfigError: If a tracker is unknown or not installed; nothing is logged then.
        StoreError: If the folder holds no audit.
    """
    trackers = list(trackers)
    require_trackers(trackers)
    logged = _logged(read_verdict(Path(folder)), step)
    for name in trackers:
        TRACKERS[name][1](logged)


def require_trackers(trackers: Iterable[str]) -> None:
    """Import trackers, so that a missing one is noticed before the work begins.

    Raises:
        ConfigError: If one is unknown or not installed.
    """
    for name in trackers:
        if name not in TRACKERS:
            raise ConfigError(f"{name!r}: no such tracker; there are {', '.join(TRACKERS)}")
        try:
            import_module(TRACKERS[name][0])
        except ModuleNotFoundError as error:
            raise ConfigError(f'{name} is not installed ({error.name}): pip install "ltmia[{name}]"') from error


def _logged(results: Results, step: int | None) -> _Logged:
    found = figures(results)
    missing = [figure.name for figure in found if figure.measure.value is None]
    parameters: dict[str, str | int | float] = {
        "run_id": results.run_id,
        "ltmia_version": results.ltmia_version,
        "subject": results.subject or "the target",
        "target_sha256": results.target.sha256,
        "reference_sha256": results.reference.sha256,
        "attack_that_decides": results.decisions.attack,
        "fdr": results.decisions.fdr,
        "n_members": results.data.n_members,
        "n_candidates": results.data.n_candidates,
        "n_nonmembers": results.data.n_nonmembers,
        "not_measured": ", ".join(missing) or "nothing",
        "checks_not_passed": ", ".join(n for n, check in results.validity if check.status != "ok") or "none",
    }
    return _Logged(
        run=f"{PROJECT}-{results.run_id}",
        parameters={f"{PROJECT}/{name}": value for name, value in parameters.items()},
        figures={f"{PROJECT}/{name}": value for name, value in measured(found).items()},
        step=step,
    )


def _mlflow(logged: _Logged) -> None:
    import mlflow

    is_open = mlflow.active_run() is not None
    if not is_open:
        mlflow.start_run(run_name=logged.run)
    try:
        # Tags, because parameters of an open run cannot be set again at a later step.
        mlflow.set_tags({name.replace("/", "."): str(value) for name, value in logged.parameters.items()})
        mlflow.log_metrics(dict(logged.figures), step=logged.step)
    finally:
        if not is_open:
            mlflow.end_run()


def _wandb(logged: _Logged) -> None:
    import wandb

    is_open = wandb.run is not None
    run = wandb.run if is_open else wandb.init(project=PROJECT, name=logged.run)
    run.config.update(dict(logged.parameters), allow_val_change=True)
    run.log(dict(logged.figures) | _step(logged))
    if not is_open:
        run.finish()


def _trackio(logged: _Logged) -> None:
    import trackio
    from trackio import context_vars

    is_open = context_vars.current_run.get() is not None
    if not is_open:
        trackio.init(project=PROJECT, name=logged.run, config=dict(logged.parameters))
    trackio.log(dict(logged.figures) | _step(logged))
    if not is_open:
        trackio.finish()


def _step(logged: _Logged) -> dict[str, float]:
    """Return the step as a figure, because these trackers count steps of their own."""
    return {} if logged.step is None else {f"{PROJECT}/step": logged.step}


def _tensorboard(logged: _Logged) -> None:
    from torch.utils.tensorboard import SummaryWriter

    with SummaryWriter(str(Path(TENSORBOARD_FOLDER) / logged.run)) as writer:
        for name, value in logged.figures.items():
            writer.add_scalar(name, value, global_step=logged.step)
        for name, parameter in logged.parameters.items():
            writer.add_text(name, str(parameter), global_step=logged.step)


TRACKERS: Mapping[str, tuple[str, Callable[[_Logged], None]]] = {
    "mlflow": ("mlflow", _mlflow),
    "wandb": ("wandb", _wandb),
    "trackio": ("trackio", _trackio),
    "tensorboard": ("torch.utils.tensorboard", _tensorboard),
}
"""Module to import and function that logs, by name of the tracker, which is also the name of the extra."""
