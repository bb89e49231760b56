"""Trains a classifier on stores: holds combinations out, and resumes an interrupted training."""

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ltmia.classifier.checkpoint import CHECKPOINT_FILE, EpochRecord, best_epoch
from ltmia.classifier.combinations import Combination, TrainingData
from ltmia.classifier.membership import CONFIG_FILE, MembershipClassifier, classifier_marker
from ltmia.classifier.training import TrainingConfig
from ltmia.errors import ConfigError
from ltmia.features.columns import feature_columns
from ltmia.folders import move_into_place, remove_work_folder, work_folder, work_path
from ltmia.ownership import check_folder, differing, read_marker
from ltmia.progress import Report, silent


def hold_out(combinations: Sequence[Combination], names: Iterable[str], version: str) -> TrainingData:
    """Set aside the combinations of some bases, corpora or stores.

    Raises:
        ConfigError: If a name is not a base, corpus or store, or if nothing is left to train on.
    """
    known = {name for combination in combinations for name in _names(combination)}
    for name in names:
        if name not in known:
            raise ConfigError(f"`hold_out={name}`: no such base, corpus or store; there are {', '.join(sorted(known))}")
    validation = [c for c in combinations if _names(c) & set(names)]
    training = [c for c in combinations if not _names(c) & set(names)]
    return TrainingData(training=training, validation=validation, version=version)


def untrained(network: str, data: TrainingData) -> MembershipClassifier:
    """Return an untrained classifier for the features of the data.

    Raises:
        ConfigError: If the widths of the features differ, because the stores keep different numbers of top tokens.
    """
    return MembershipClassifier(network=network, feature_version=data.version, k=_top_tokens(data))


def going_on_from(start: MembershipClassifier, data: TrainingData) -> MembershipClassifier:
    """Return a classifier that continues the training of a fitted one.

    Raises:
        ConfigError: If the data's features are not as wide as those it was fitted to.
    """
    k = _top_tokens(data)
    if feature_columns(data.version, k) != feature_columns(data.version, start.k):
        raise ConfigError(
            f"the stores keep {k} top tokens, the classifier to start from reads {start.k}: extract again"
        )
    return MembershipClassifier.going_on_from(start)


def _top_tokens(data: TrainingData) -> int:
    ks = sorted({combination.store.k for combination in (*data.training, *data.validation)})
    if len({feature_columns(data.version, k) for k in ks}) > 1:
        raise ConfigError(f"the stores keep {ks} top tokens, so their {data.version!r} features differ: use one kind")
    return ks[0]


def usual_config(classifier: MembershipClassifier, data: TrainingData, **changes: Any) -> TrainingConfig:
    """Return the default settings of training: those of the paper for the published network."""
    published = classifier.network == "published"
    config = TrainingConfig.published(data.n_texts, **changes) if published else TrainingConfig(**changes)
    return config if classifier.start is None else config.going_on()


def train(
    classifier: MembershipClassifier,
    data: TrainingData,
    config: TrainingConfig,
    out: Path,
    *,
    overwrite: bool = False,
    report: Report = silent,
    tell: Callable[[str], None] = lambda _line: None,
) -> MembershipClassifier:
    """Train a classifier and save it as `out` when it is finished.

    The state after each epoch is kept in a hidden folder next to `out`. The same call after an interruption resumes and
    arrives at the same weights; a call with other settings starts from nothing. A finished classifier is replaced only
    if asked.

    Args:
        classifier: Not fitted yet, see `untrained` and `going_on_from`.
        data: What to learn from, and what is held out.
        config: Options.
        out: Folder of the classifier.
        overwrite: Replace a classifier that was trained with other settings; files that are not ours stay.
        report: Called with progress.
        tell: Called with a line for each epoch, and with what was found of earlier runs.

    Raises:
        ConfigError: If `out` holds something else than a classifier of these settings, or another run is at work on it.
    """
    out = Path(out).absolute()
    settings = json.loads(json.dumps(classifier.settings(data, config)))
    marker = classifier_marker(settings)
    if not _is_done(out, settings):
        check_folder(out, marker, overwrite=overwrite)
        _say_what_was_found(work_path(out), settings, tell)
        with work_folder(out, settings) as work:
            classifier.fit(
                data.training,
                data.validation,
                config=config,
                checkpoint=work / CHECKPOINT_FILE,
                report=lambda record: tell(epoch_line(record, config.epochs)),
                on_step=lambda done, total: report("training", done, total),
            )
            classifier.save_pretrained(work / "classifier")
            move_into_place(work / "classifier", out, marker)
            remove_work_folder(out)
        return classifier
    tell(f"{out}: trained by these settings already")
    remove_work_folder(out)
    return MembershipClassifier.from_pretrained(out)


def epoch_line(record: EpochRecord, epochs: int) -> str:
    """Return a line with the figures of an epoch."""
    line = f"epoch {record.epoch + 1} of {epochs}: loss {record.loss:.4f}"
    return line if record.validation_auc is None else f"{line}, held-out AUC {record.validation_auc:.4f}"


def kept_line(classifier: MembershipClassifier) -> str:
    """Return a line that names the epoch whose weights a fitted classifier has."""
    kept = best_epoch(classifier.history_)
    measured = classifier.history_[kept].validation_auc
    line = f"the weights are those of epoch {kept + 1} of {len(classifier.history_)}"
    return line if measured is None else f"{line}, held-out AUC {measured:.4f}"


def _names(combination: Combination) -> set[str]:
    return {combination.name, *combination.origin}


def _is_done(out: Path, settings: Mapping[str, Any]) -> bool:
    """Return whether a classifier with these settings already exists."""
    found = read_marker(out)
    whole = found is not None and all((out / name).is_file() for name in found.files)
    return whole and _read(out / CONFIG_FILE).get("settings") == settings


def _say_what_was_found(work: Path, settings: Mapping[str, Any], tell: Callable[[str], None]) -> None:
    found = read_marker(work)
    if found is not None and (work / CHECKPOINT_FILE).exists():
        other = differing(found.settings, settings)
        if other:
            tell(f"an unfinished training with other settings is dropped: {', '.join(other)}; starting from nothing")
        else:
            tell("going on from the last finished epoch")


def _read(path: Path) -> dict[str, Any]:
    """Return the JSON object in a file; empty if there is no file."""
    try:
        found = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}
