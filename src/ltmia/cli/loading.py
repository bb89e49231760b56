"""Loads what the options of a command name: texts, and the pair of models."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime
from functools import partial
from typing import TYPE_CHECKING, Any

import typer

from ltmia.cli.options import Dtype

if TYPE_CHECKING:
    from ltmia.records import Texts
    from ltmia.scoring.audited_pair import PairToLoad


def reader(
    model: str,
    base: str | None = None,
    *,
    day: datetime | None = None,
    trust_remote_code: bool = False,
    allow_hub: bool = False,
) -> "Callable[..., Texts]":
    """Return `read_texts` with the chat template of a model."""
    from ltmia.data.reading import read_texts
    from ltmia.data.recordings import is_recording
    from ltmia.models.chat import chat_template

    if is_recording(model):
        return read_texts
    told = None if day is None else day.date()
    chat = chat_template(model, base, day=told, trust_remote_code=trust_remote_code, allow_hub=allow_hub)
    return partial(read_texts, chat=chat)


def day_told(read: "Callable[..., Texts]") -> str | None:
    """Return the date that the chat template wrote into the conversations; None if it wrote none."""
    chat = read.keywords["chat"] if isinstance(read, partial) else None
    return None if chat is None or chat.day_told is None else chat.day_told.isoformat()


@contextmanager
def pair_to_load(target: str, base: str, **options: Any) -> "Iterator[PairToLoad]":
    """Give a loader for both models, or for the recordings of both.

    Under a launcher such as torchrun only its first process goes on. The others run batches for it, and end here.
    """
    from ltmia.errors import ConfigError
    from ltmia.scoring.processes import runs_the_command, serve, shared_out, started_by_launcher

    pair = _pair_to_load(target, base, **options)
    if started_by_launcher() and options.get("device_map"):
        raise ConfigError("`device_map` gives each model all devices, and a launcher each process one: leave out one")
    if not runs_the_command():
        raise typer.Exit(0 if serve(pair.load) else 2)
    with shared_out(pair) as shared:
        yield shared


def _pair_to_load(target: str, base: str, **options: Any) -> "PairToLoad":
    from ltmia.data.recordings import is_recording
    from ltmia.errors import ConfigError
    from ltmia.models.training_run import checkpoints_in, load_training_run
    from ltmia.scoring.audited_pair import PairToLoad
    from ltmia.scoring.recorded_pair import load_recorded_pair

    if is_recording(target) or is_recording(base):
        if options.get("checkpoints"):
            raise ConfigError("--checkpoints: the training run is read from weights, and a recording holds none")
        return PairToLoad(sources=(target, base), load=partial(load_recorded_pair, target, base))
    named = {} if options["dtype"] == Dtype.auto else {"dtype": options["dtype"].value}
    options["checkpoints"] = checkpoints_in(options.get("checkpoints", ()))
    return PairToLoad(
        sources=(target, base),
        load=partial(load_training_run, target, base, **options),
        checkpoints=options["checkpoints"],
        settings=named,
    )


@contextmanager
def needs_ray() -> Iterator[None]:
    """Turn a missing Ray into an error that says what to install.

    Raises:
        ConfigError: If Ray is not installed.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        from ltmia.errors import ConfigError

        raise ConfigError('--engine ray needs Ray: pip install "ltmia[ray]"') from error
