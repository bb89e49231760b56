"""Finds the checkpoints of a training run, which are loaded one at a time as targets beside the same base."""

from collections.abc import Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Unpack

from ltmia.errors import ModelError
from ltmia.models.loading import LoadKeywords, LoadOptions, load_model, load_pair
from ltmia.models.pair import Checkpoint, Pair
from ltmia.models.sources import ModelSource, check_adapter, find_source
from ltmia.models.weight_files import CHECKPOINT, check_weights
from ltmia.runtime import dtype_name
from ltmia.shown_names import shown_path


def load_training_run(
    target: str | Path,
    base: str | Path | None = None,
    checkpoints: Sequence[str | Path] = (),
    *,
    sequential: bool = False,
    are_known: bool = False,
    **keywords: Unpack[LoadKeywords],
) -> Pair:
    """Load a fine-tuned target and its base, and find earlier states of the target.

    Args:
        target: See `load_pair`.
        base: See `load_pair`.
        checkpoints: Models or adapters as for the target, in the order of training. A folder that holds folders
            `checkpoint-STEP`, as a Trainer writes them, stands for all of these.
        sequential: See `load_pair`; only without checkpoints.
        are_known: Whether the checkpoints are known to be of the target's training run, and in order.
        **keywords: `LoadOptions`, for all of them.

    Raises:
        ModelError: If one of them is missing, unsafe or unusable.
        ConfigError: If there is no such dtype or device.
    """
    if sequential and checkpoints:
        raise ModelError("checkpoints are read with both models in memory: leave out `sequential=True`")
    sources = [find_source(name) for name in checkpoints_in(checkpoints)]
    for source in sources:
        (check_adapter if source.is_adapter else check_weights)(source)
    pair = load_pair(target, base, sequential=sequential, **keywords)
    same = replace(LoadOptions(**keywords), dtype=dtype_name(pair.dtype))
    if same.device_map is None:
        same = replace(same, device=str(pair.device))
    pair.checkpoints = tuple(
        Checkpoint(
            source=shown_path(source.given),
            place=source.name,
            load=partial(_load, pair, base, source, same),
            is_known=are_known,
        )
        for source in sources
    )
    return pair


def checkpoints_in(checkpoints: Sequence[str | Path]) -> list[str]:
    """Replace each folder of a Trainer by the checkpoints in it, in the order of their steps.

    Raises:
        ModelError: If a checkpoint is there twice.
    """
    found: list[str] = []
    for given in checkpoints:
        folder = Path(given)
        steps = {int(match[1]): path for path in _folders(folder) if (match := CHECKPOINT.fullmatch(path.name))}
        found += [str(steps[step]) for step in sorted(steps)] if steps else [str(given)]
    repeated = sorted({name for name in found if found.count(name) > 1})
    if repeated:
        raise ModelError(f"{', '.join(repeated)}: given twice; name each checkpoint once, in the order of training")
    return found


def _folders(folder: Path) -> list[Path]:
    return [path for path in folder.iterdir() if path.is_dir()] if folder.is_dir() else []


def _load(pair: Pair, base: str | Path | None, source: ModelSource, options: LoadOptions) -> Pair:
    """Load a checkpoint in the form of the target: as an adapter on its base, or as a whole model."""
    if pair.reference is None:
        return load_pair(source.given, base, tokenizer=pair.tokenizer, **asdict(options))
    model, origin = load_model(source, options)
    return Pair(
        target=model,
        reference=pair.reference,
        tokenizer=pair.tokenizer,
        target_origin=origin,
        reference_origin=pair.reference_origin,
    )
