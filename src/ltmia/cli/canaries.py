"""`ltmia canaries`: makes canaries, and audits a model with them."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from ltmia.cli import option_groups as g
from ltmia.cli import options as o
from ltmia.cli.loading import day_told, pair_to_load, reader
from ltmia.cli.progress import calm_libraries, progress
from ltmia.cli.settings import Commands
from ltmia.cli.showing import show

canaries_app = typer.Typer(
    cls=Commands,
    rich_markup_mode=None,
    no_args_is_help=True,
    help="Put canaries into a training file, and measure afterwards what the model learned of them.",
)


def _numbers(value: str) -> tuple[int, ...]:
    try:
        return tuple(int(part) for part in str(value).split(","))
    except ValueError:
        raise typer.BadParameter(f"{value!r}: expected whole numbers separated by commas, such as 1,4,16") from None


@dataclass(frozen=True, slots=True, kw_only=True)
class CanaryOptions:
    """Options for canaries: fields of `CanaryConfig`."""

    n_canaries: Annotated[
        int, typer.Option("--count", min=20, help="Number of canaries; a fair coin decides for each if it is inserted.")
    ] = 300
    repeats: Annotated[
        Any,  # tuple[int, ...], which typer cannot say
        typer.Option(
            "--repeats",
            parser=_numbers,
            metavar="N,N,...",
            help="Numbers of times that canaries are inserted; each canary gets one of them at random.",
        ),
    ] = "1,4,16"
    temperature: Annotated[
        float, typer.Option("--temperature", help="Temperature at which canaries are sampled, 0.8 or more.")
    ] = 1.0
    n_tokens: Annotated[int, typer.Option("--tokens", help="Tokens sampled for each canary.")] = 64
    beginning: Annotated[
        str,
        typer.Option(
            "--beginning",
            help="Words after which the model writes canaries like your texts; no part of them. Name nothing of your "
            "data here.",
        ),
    ] = ""
    text_column: o.TextColumn = "text"
    seed: Annotated[int, typer.Option("--seed", min=0, help="Seed of texts, coins and places.")] = 0


@canaries_app.command()
@g.with_option_groups
def make(
    *,
    into: Annotated[
        Path, typer.Option("--into", help="Training file; a copy with canaries is written, the file itself stays.")
    ],
    model: Annotated[
        str, typer.Option("--model", help="LM that writes the canaries, such as the base that will be fine-tuned.")
    ],
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for the training file with canaries, and the key.")],
    canaries: CanaryOptions,
    dtype: o.DtypeOption = o.Dtype.auto,
    device: o.Device = "auto",
    trust_remote_code: o.TrustRemoteCode = False,
    day: o.Day = None,
    allow_hub: o.AllowHub = False,
    overwrite: o.Overwrite = False,
    quiet: o.Quiet = False,
    verbose: o.Verbose = False,
) -> None:
    """Sample canaries from an LM, and mix those that a coin chooses into a copy of a training file."""
    calm_libraries(verbose=verbose)
    from ltmia.canaries.make import CanaryConfig, make_canaries
    from ltmia.evaluation.wording import percent
    from ltmia.models.loading import LoadOptions, load_alone

    config = CanaryConfig(**asdict(canaries))
    read = reader(model, day=day, trust_remote_code=trust_remote_code, allow_hub=allow_hub)
    options = LoadOptions(dtype=dtype.value, device=device, trust_remote_code=trust_remote_code, allow_hub=allow_hub)
    with progress(quiet=quiet) as report:
        pair = load_alone(model, options=options)
        made = make_canaries(pair, into, out, read, config=config, overwrite=overwrite, report=report)
    if not quiet:
        share = made.n_copies / (made.n_rows + made.n_copies)
        print(f"{made.training_file}: {made.n_rows:,} rows of {into.name}, and {made.n_copies:,} of canaries")
        print(
            f"{len(made.key.texts)} canaries, {sum(made.key.inserted)} of them inserted: {percent(share)} of the rows"
        )
        print(f"Train on this file as it is. Keep the key in {out} from the training: it names the inserted ones.")


@canaries_app.command()
@g.with_option_groups
def audit(
    *,
    target: o.Target,
    canaries: Annotated[Path, typer.Option("--canaries", help="Folder written by `ltmia canaries make`.")],
    out: o.Out,
    base: o.Base = "auto",
    beside: Annotated[
        Path | None,
        typer.Option(
            "--beside", help="Folder of an audit of the same target with your own texts; shows its epsilon beside."
        ),
    ] = None,
    attacks: o.Attacks = "fast",
    judging: g.JudgeOptions,
    loading: g.ModelOptions,
    seed: o.Seed = 0,
    reveal: o.Reveal = False,
    overwrite: o.Overwrite = False,
    printing: g.PrintOptions,
) -> None:
    """Audit a model that was trained on a file with canaries: inserted ones against those left out, by repeats."""
    calm_libraries(verbose=printing.verbose)
    from ltmia.auditing.audit import AuditConfig
    from ltmia.auditing.canaries import audit_canaries

    with pair_to_load(target, base, **loading.keywords) as pair:
        read = loading.reader(target, base)
        config = AuditConfig(
            attacks=attacks,
            **asdict(judging),
            seed=seed,
            reveal=reveal,
            chat_day=day_told(read),
            overwrite=overwrite,
        )
        with progress(quiet=printing.quiet) as report:
            audit_canaries(pair, canaries, out, read, beside=beside, config=config, report=report)
    show(out, quiet=printing.quiet, as_json=printing.as_json)
