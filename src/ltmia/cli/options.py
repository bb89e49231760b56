"""Options that several commands share, written once."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime
from enum import StrEnum
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from ltmia.records import Texts
    from ltmia.scoring.audited_pair import PairToLoad


class Dtype(StrEnum):
    """What models compute in."""

    auto = "auto"
    float32 = "float32"
    bfloat16 = "bfloat16"
    float16 = "float16"


class ObserverName(StrEnum):
    """Which attacker an audit stands for."""

    auto = "auto"
    logprobs = "logprobs"
    weights = "weights"


class EngineName(StrEnum):
    """Who does the work."""

    local = "local"
    ray = "ray"


class TrackerName(StrEnum):
    """Where figures are logged."""

    mlflow = "mlflow"
    wandb = "wandb"
    trackio = "trackio"
    tensorboard = "tensorboard"


def print_version(wanted: bool) -> None:
    """Print the version and end the command, if wanted."""
    if wanted:
        from importlib.metadata import version

        print(version("ltmia"))
        raise typer.Exit


def _batch_size(value: int | str) -> int | str:
    if value == "auto" or (str(value).isdecimal() and int(value) > 0):
        return value if value == "auto" else int(value)
    raise typer.BadParameter(f"{value!r}: expected a number of texts, or auto")


Target = Annotated[
    str,
    typer.Argument(
        help="Fine-tuned LM: folder, hub id, PEFT adapter folder or .gguf file; audit and score also take what "
        "`ltmia record` writes."
    ),
]
Base = Annotated[
    str,
    typer.Option("--base", help="Pretrained LM it was fine-tuned from; auto: ask its config or card."),
]
Out = Annotated[Path, typer.Option("--out", "-o", help="Folder for results; re-running resumes.")]
Overwrite = Annotated[
    bool,
    typer.Option("--overwrite", help="Replace what ltmia made there with other settings; other files stay."),
]
TextColumn = Annotated[
    str,
    typer.Option(
        "--text-column",
        help="Column that holds the text; where there is no `text`: prompt and completion, or messages.",
    ),
]
IdColumn = Annotated[
    str | None,
    typer.Option("--id-column", help="Column of ids; default: id, else made from the text."),
]
GroupColumn = Annotated[
    str | None,
    typer.Option("--group-column", help="Column of patients, authors or documents."),
]
Attacks = Annotated[
    str,
    typer.Option("--attacks", help="fast, recorded, all, or names with commas; `ltmia attacks` lists them."),
]
Classifier = Annotated[
    str | None,
    typer.Option(
        "--classifier",
        help="full (the default) or lite, which come along, or the folder or hub id of another; lite reads only what "
        "a server of log-probabilities gives.",
    ),
]
Fdr = Annotated[float, typer.Option("--fdr", min=0.0, max=1.0, help="False discovery rate to flag records at.")]
Observer = Annotated[
    ObserverName,
    typer.Option(
        "--observer",
        help="What an attacker sees: logprobs (an endpoint) or weights (both models); auto: weights if readable.",
    ),
]
MaxLength = Annotated[int, typer.Option("--max-length", min=2, help="Tokens read of each text; the rest is ignored.")]
BatchSize = Annotated[
    Any,  # int | "auto", which typer cannot say
    typer.Option(
        "--batch-size",
        parser=_batch_size,
        metavar="N|auto",
        help="Texts per forward pass, halved if memory runs out; auto: as many as fit.",
    ),
]
Sequential = Annotated[
    bool,
    typer.Option(
        "--sequential-models",
        help="For two models that do not fit into memory together: load each when its turn comes.",
    ),
]
DtypeOption = Annotated[
    Dtype,
    typer.Option("--dtype", help="auto: bfloat16 if stored in half precision and fast here."),
]
Device = Annotated[str, typer.Option("--device", help="auto, cpu, cuda, cuda:1, mps.")]
Day = Annotated[
    datetime | None,
    typer.Option(
        "--date",
        formats=["%Y-%m-%d"],
        help="Day that a chat template is told which writes it into conversations; default: today, with a warning.",
    ),
]
TrustRemoteCode = Annotated[bool, typer.Option("--trust-remote-code", help="Run code that comes with the model.")]
AllowHub = Annotated[
    bool, typer.Option("--allow-hub", help="Ask the hub for a base that only the target's own files name.")
]
Seed = Annotated[int, typer.Option("--seed", help="Of resampling and calibration splits.")]
Reveal = Annotated[
    bool, typer.Option("--reveal", help="Write the texts into records.parquet, and the tokens into the report.")
]
LogTo = Annotated[
    list[TrackerName] | None,
    typer.Option("--log-to", help="Log the figures to a tracker too; give it again for more; each is an extra."),
]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Print nothing but errors.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print results as JSON instead of a table.")]


def reader(
    model: str,
    base: str | None = None,
    *,
    day: datetime | None = None,
    trust_remote_code: bool = False,
    allow_hub: bool = False,
) -> "Callable[..., Texts]":
    """Return `read_texts` for a model: what writes messages out as it reads them is known."""
    from ltmia.data.reading import read_texts
    from ltmia.data.recordings import is_recording
    from ltmia.models.chat import chat_template

    if is_recording(model):
        return read_texts
    told = None if day is None else day.date()
    chat = chat_template(model, base, day=told, trust_remote_code=trust_remote_code, allow_hub=allow_hub)
    return partial(read_texts, chat=chat)


def day_told(read: "Callable[..., Texts]") -> str | None:
    """Return the day that stands in the conversations a reader gave, if the template asked for one."""
    chat = read.keywords["chat"] if isinstance(read, partial) else None
    return None if chat is None or chat.day_told is None else chat.day_told.isoformat()


def pair_to_load(target: str, base: str, **options: Any) -> "PairToLoad":
    """Say how to load both models, or to open the recordings of both."""
    from ltmia.data.recordings import is_recording
    from ltmia.models.loading import load_pair
    from ltmia.scoring.audited_pair import PairToLoad
    from ltmia.scoring.recorded_pair import load_recorded_pair

    if is_recording(target) or is_recording(base):
        return PairToLoad(sources=(target, base), load=partial(load_recorded_pair, target, base))
    return PairToLoad(sources=(target, base), load=partial(load_pair, target, base, **options))


@contextmanager
def needs_ray() -> Iterator[None]:
    """Say what to install if an import inside does not find Ray.

    Raises:
        ConfigError: If Ray is not installed.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        from ltmia.errors import ConfigError

        raise ConfigError('--engine ray needs Ray: pip install "ltmia[ray]"') from error
