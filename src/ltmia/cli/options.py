"""Options that several commands share, written once."""

from datetime import datetime
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer


class Dtype(StrEnum):
    """Number formats that models compute in."""

    auto = "auto"
    float32 = "float32"
    bfloat16 = "bfloat16"
    float16 = "float16"


class ObserverName(StrEnum):
    """Attacker that an audit assumes."""

    auto = "auto"
    logprobs = "logprobs"
    weights = "weights"
    training_run = "training_run"


class EngineName(StrEnum):
    """Engine that does the work."""

    local = "local"
    ray = "ray"


class TrackerName(StrEnum):
    """Tracker that figures are logged to."""

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


def _max_length(value: int | str) -> int | None:
    if value == "auto" or (str(value).isdecimal() and int(value) > 1):
        return None if value == "auto" else int(value)
    raise typer.BadParameter(f"{value!r}: expected a number of tokens from 2 on, or auto")


Target = Annotated[
    str,
    typer.Argument(
        help="Fine-tuned LM: folder, hub id, PEFT adapter folder or .gguf file; audit and score also accept a file "
        "written by `ltmia record`."
    ),
]
Base = Annotated[
    str,
    typer.Option(
        "--base",
        help="Pretrained LM that the target was fine-tuned from; auto: the one that its config or card names.",
    ),
]
Out = Annotated[Path, typer.Option("--out", "-o", help="Folder for the results; running again resumes.")]
Overwrite = Annotated[
    bool,
    typer.Option("--overwrite", help="Replace what a run with other settings wrote there; your own files stay."),
]
TextColumn = Annotated[
    str,
    typer.Option(
        "--text-column",
        help="Column of the text. If there is no column `text`, prompt and completion or messages are read.",
    ),
]
IdColumn = Annotated[
    str | None,
    typer.Option(
        "--id-column", help="Column of the ids; default: `id`. If there is none, ids are made from the texts."
    ),
]
GroupColumn = Annotated[
    str | None,
    typer.Option("--group-column", help="Column that names the patient, author or document of each text."),
]
Attacks = Annotated[
    str,
    typer.Option(
        "--attacks",
        help="Attacks to run: fast, recorded (those that need no model, only a recording), all, or names separated by "
        "commas; `ltmia attacks` lists them.",
    ),
]
Classifier = Annotated[
    str | None,
    typer.Option(
        "--classifier",
        help="Classifier of the attack `ltmia`: full (default), lite, a folder or a hub id; lite needs only the "
        "log-probabilities that a server returns.",
    ),
]
Fdr = Annotated[
    float,
    typer.Option("--fdr", min=0.0, max=1.0, help="Share of flags that may be wrong on average."),
]
Observer = Annotated[
    ObserverName,
    typer.Option(
        "--observer",
        help="What an attacker sees: logprobs (an endpoint), weights (both models) or training_run (checkpoints too); "
        "auto: as much as can be read.",
    ),
]
Thorough = Annotated[
    bool,
    typer.Option(
        "--thorough",
        help="Attack on the weights: read all layers, and also the point halfway between base and target; takes "
        "longer.",
    ),
]
Checkpoints = Annotated[
    list[str] | None,
    typer.Option(
        "--checkpoints",
        help="Earlier state of the target, for the observer training_run: a model or adapter, repeated in the order of "
        "training, or the output folder of a Trainer.",
    ),
]
MaxLength = Annotated[
    Any,  # int | "auto", as `BatchSize`
    typer.Option(
        "--max-length",
        parser=_max_length,
        metavar="N|auto",
        help="Tokens read of each text, prompt included; the rest is ignored. auto: if `ltmia finetune` made the "
        "target, as many as it was trained on, at least 128; for other targets 512; of recordings, all.",
    ),
]
RecordedLength = Annotated[
    int, typer.Option("--max-length", min=2, help="Tokens read of each text; the rest is ignored.")
]
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
        help="Load one model at a time, for two models that do not fit into memory together.",
    ),
]
DtypeOption = Annotated[
    Dtype,
    typer.Option(
        "--dtype",
        help="Number format of the models; auto: the one they are stored in if it is fast here, else float32.",
    ),
]
Device = Annotated[str, typer.Option("--device", help="Device to run on: auto, cpu, cuda, cuda:1 or mps.")]
DeviceMap = Annotated[
    str | None,
    typer.Option(
        "--device-map",
        metavar="auto|LIMITS",
        help="Spread each model over devices, memory and disk: auto, or the most on each, as in 0=20GiB,cpu=60GiB.",
    ),
]
Day = Annotated[
    datetime | None,
    typer.Option(
        "--date",
        formats=["%Y-%m-%d"],
        help="Date for chat templates that write the date into conversations; default: today, with a warning.",
    ),
]
TrustRemoteCode = Annotated[bool, typer.Option("--trust-remote-code", help="Run code that comes with the model.")]
AllowHub = Annotated[
    bool, typer.Option("--allow-hub", help="Download a base from the hub if only the target's files name it.")
]
Seed = Annotated[int, typer.Option("--seed", help="Seed of resampling and calibration splits.")]
Reveal = Annotated[
    bool, typer.Option("--reveal", help="Write the texts into records.parquet, and the tokens into the report.")
]
LogTo = Annotated[
    list[TrackerName] | None,
    typer.Option("--log-to", help="Also log the figures to this tracker; repeat for several. Each needs its extra."),
]
Spans = Annotated[
    str | None,
    typer.Option(
        "--spans",
        help="Secrets in the texts: a file of JSON lines with id, start and end, or of lines `name: regular "
        "expression`; or `presidio` for what Presidio recognises (`presidio:EMAIL_ADDRESS,IBAN_CODE`: only these).",
    ),
]
Alternatives = Annotated[
    int, typer.Option("--alternatives", min=1, help="Largest number of other values that each secret is compared with.")
]
MostValues = Annotated[
    int,
    typer.Option(
        "--most-values", min=1, help="Largest number of secrets ranked in the members, and in the non-members."
    ),
]
Continuations = Annotated[
    int,
    typer.Option(
        "--continuations",
        min=0,
        help="Number of members, those with the highest scores, whose beginnings both models continue, and of as many "
        "non-members; says how near they come to the true texts.",
    ),
]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Print nothing but errors.")]
Verbose = Annotated[
    bool, typer.Option("--verbose", "-v", help="Also print what the libraries say: notices, warnings, progress bars.")
]
AsJson = Annotated[bool, typer.Option("--json", help="Print results as JSON instead of a table.")]
