"""The `ltmia` command. Each command imports what it needs when it runs, so that --help is instant."""

from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ltmia.cli import classifiers, decisions, evidence
from ltmia.cli import option_groups as g
from ltmia.cli import options as o
from ltmia.cli.bench import bench
from ltmia.cli.canaries import canaries_app
from ltmia.cli.doctor import doctor
from ltmia.cli.lab import lab_app
from ltmia.cli.listing import attacks
from ltmia.cli.loading import day_told, needs_ray, pair_to_load, reader
from ltmia.cli.progress import calm_libraries, progress
from ltmia.cli.recording import record
from ltmia.cli.settings import Commands
from ltmia.cli.showing import show
from ltmia.cli.synthetic import synthetic

if TYPE_CHECKING:
    from ltmia.models.pair import Pair
    from ltmia.scoring.stored_scores import Scorer

app = typer.Typer(
    cls=Commands,
    rich_markup_mode=None,  # rich takes longer to load than all the rest of --help
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
"""The program. `--help` lists its commands in the order of work, in the panels below."""

START, AUDIT, DECIDE, RESEARCH = "Start here", "Audit", "Decide", "Research"


@app.callback()
def ltmia(
    version: Annotated[
        bool, typer.Option("--version", callback=o.print_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """Find out which texts a fine-tuned language model was trained on, and how sure that is.

    Exit codes: 0 done, 1 gate failed, 2 could not run, 3 inconclusive.
    """


@app.command(rich_help_panel=START)
def demo(
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for the results.")] = Path("demo"),
    members: Annotated[
        int,
        typer.Option("--members", min=20, max=800, help="Texts to fine-tune on; twice as many are held out."),
    ] = 500,
    overwrite: o.Overwrite = False,
    quiet: o.Quiet = False,
    verbose: o.Verbose = False,
) -> None:
    """Fine-tune a tiny built-in LM on built-in texts, audit it, and write the report."""
    calm_libraries(verbose=verbose)
    from ltmia.auditing.demo import run_demo

    with progress(quiet=quiet) as report:
        result = run_demo(out, n_members=members, overwrite=overwrite, report=report)
    show(result.folder, quiet=quiet, as_json=False)


@app.command(rich_help_panel=AUDIT)
@g.with_option_groups
def audit(
    *,
    target: o.Target,
    members: Annotated[str, typer.Option("--members", help="Texts that the target was fine-tuned on.")],
    nonmembers: Annotated[
        str, typer.Option("--nonmembers", help="Similar texts that the target was not fine-tuned on.")
    ],
    out: o.Out,
    base: o.Base = "auto",
    columns: g.TextOptions,
    attacks: o.Attacks = "fast",
    judging: g.JudgeOptions,
    loading: g.ModelOptions,
    seed: o.Seed = 0,
    deduplicate: Annotated[
        bool,
        typer.Option("--deduplicate", help="Leave out repeats within a set, and non-members that repeat a member."),
    ] = False,
    reveal: o.Reveal = False,
    log_to: o.LogTo = None,
    overwrite: o.Overwrite = False,
    printing: g.PrintOptions,
) -> None:
    """Audit a model with known members and non-members: attacks, checks, decisions and a report."""
    calm_libraries(verbose=printing.verbose)
    from ltmia.auditing.audit import AuditConfig
    from ltmia.auditing.audit import audit as run_audit
    from ltmia.evaluation.audit_folder import set_aside_on_failure
    from ltmia.integrations.trackers import log_audit, require_trackers

    require_trackers(log_to or [])
    with pair_to_load(target, base, **loading.keywords) as pair:
        with set_aside_on_failure(out):
            read = loading.reader(target, base)
            member_texts, nonmember_texts = columns.read(read, members, nonmembers)
        config = AuditConfig(
            attacks=attacks,
            **asdict(judging),
            seed=seed,
            deduplicate=deduplicate,
            reveal=reveal,
            chat_day=day_told(read),
            overwrite=overwrite,
        )
        with progress(quiet=printing.quiet) as report:
            run_audit(pair, member_texts, nonmember_texts, out, config=config, report=report)
    log_audit(out, log_to or [])
    show(out, quiet=printing.quiet, as_json=printing.as_json)


@app.command(rich_help_panel=AUDIT)
@g.with_option_groups
def score(
    *,
    target: o.Target,
    candidates: Annotated[str, typer.Option("--candidates", help="Texts that may have been used.")],
    nonmembers: Annotated[str, typer.Option("--nonmembers", help="Similar texts that were surely not used.")],
    out: o.Out,
    base: o.Base = "auto",
    columns: g.TextOptions,
    attack: Annotated[str, typer.Option("--attack", help="Attack whose scores decide.")] = "ltmia",
    judging: g.JudgeOptions,
    loading: g.ModelOptions,
    seed: o.Seed = 0,
    engine: Annotated[
        o.EngineName,
        typer.Option("--engine", help="local: this process; ray: a Ray cluster, for large sets (extra: ray)."),
    ] = o.EngineName.local,
    workers: Annotated[
        int | None,
        typer.Option("--workers", min=1, help="Number of Ray processes; default: as many as fit on the cluster."),
    ] = None,
    by_group: Annotated[
        bool, typer.Option("--by-group", help="Print each group too: was this person, or this document, used?")
    ] = False,
    overwrite: o.Overwrite = False,
    printing: g.PrintOptions,
) -> None:
    """Judge texts of unknown membership: a p-value and a q-value for each, and one p-value for all together."""
    calm_libraries(verbose=printing.verbose)
    from ltmia.auditing.score import ScoreConfig
    from ltmia.auditing.score import score as run_score
    from ltmia.errors import ConfigError
    from ltmia.evaluation.audit_folder import set_aside_on_failure
    from ltmia.models.training_run import load_training_run
    from ltmia.scoring.stored_scores import score_to_store

    sources = [_anywhere(place) for place in (target, base)]
    keywords = loading.keywords | {"checkpoints": [_anywhere(place) for place in loading.checkpoints or ()]}
    with pair_to_load(*sources, **keywords) as pair:
        with set_aside_on_failure(out):
            read = loading.reader(target, base)
            candidate_texts, nonmember_texts = columns.read(read, candidates, nonmembers)
            if by_group and (candidate_texts.groups is None or nonmember_texts.groups is None):
                raise ConfigError("--by-group: the texts have no groups; name their column by --group-column")
        config = ScoreConfig(
            attack=attack,
            **asdict(judging),
            seed=seed,
            chat_day=day_told(read),
            overwrite=overwrite,
        )
        scorer = (
            _ray_scorer(partial(load_training_run, *sources, **keywords), workers)
            if engine is o.EngineName.ray
            else score_to_store
        )
        with progress(quiet=printing.quiet) as report:
            run_score(pair, candidate_texts, nonmember_texts, out, config=config, scorer=scorer, report=report)
    show(out, quiet=printing.quiet, as_json=printing.as_json)
    if by_group and not printing.as_json and not printing.quiet:
        _show_groups(out)


@app.command(rich_help_panel=START)
def finetune(
    base: Annotated[str, typer.Argument(help="Pretrained LM: folder, hub id or .gguf file.")],
    texts: Annotated[str, typer.Option("--texts", help="Texts to train on.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder of the fine-tuned model.")],
    text_column: o.TextColumn = "text",
    lora: Annotated[bool, typer.Option("--lora", help="Train a LoRA adapter (rank 16).")] = False,
    epochs: Annotated[int, typer.Option("--epochs", min=1, help="Passes over the texts.")] = 3,
    learning_rate: Annotated[float, typer.Option("--learning-rate", help="Learning rate of AdamW.")] = 5e-5,
    batch_size: Annotated[int, typer.Option("--batch-size", min=1, help="Texts per training step.")] = 16,
    max_length: Annotated[int, typer.Option("--max-length", min=2, help="Tokens read of each text.")] = 128,
    epsilon: Annotated[
        float | None,
        typer.Option(
            "--epsilon",
            help="Train with differential privacy, delta = 0.1 / number of texts (extra: dp).",
        ),
    ] = None,
    seed: Annotated[int, typer.Option("--seed", help="Seed of the order of texts, dropout and adapter.")] = 0,
    day: o.Day = None,
    device: o.Device = "auto",
    overwrite: o.Overwrite = False,
    verbose: o.Verbose = False,
) -> None:
    """Fine-tune a base as the lab does, and write a model or adapter folder."""
    calm_libraries(verbose=verbose)
    from ltmia.finetuning.config import FinetuneConfig
    from ltmia.finetuning.finetune import finetune as run_finetune
    from ltmia.finetuning.privacy import DpConfig
    from ltmia.models.loading import LoadOptions, load_model, load_tokenizer
    from ltmia.ownership import refuse_inputs

    refuse_inputs(out, [base, texts])
    loading = LoadOptions(dtype="float32", device=device)
    members = reader(base, day=day)(texts, text_column=text_column)
    config = FinetuneConfig(
        epochs=epochs,
        learning_rate=learning_rate,
        batch_size=batch_size,
        max_length=max_length,
        lora=lora,
        seed=seed,
        dp=None if epsilon is None else DpConfig(epsilon=epsilon, delta=0.1 / max(len(members), 1)),
    )
    model, _ = load_model(base, loading)
    outcome = run_finetune(model, load_tokenizer(base, loading), members, config, out, overwrite=overwrite)
    print(f"{out}: last epoch's training loss {outcome.train_loss:.3f}, {outcome.seconds:.0f} s")
    if outcome.privacy is not None:
        print(f"spent: epsilon {outcome.privacy.epsilon:.3g} at delta {outcome.privacy.delta:.2g}")


def _show_groups(folder: Path) -> None:
    from ltmia.evaluation.files import read_groups
    from ltmia.report.terminal import group_table

    groups = read_groups(folder)
    if groups is not None:
        print("", *group_table(groups), sep="\n")


def _anywhere(place: str) -> str:
    """Name a local model so that a worker in another working directory finds it."""
    return str(Path(place).resolve()) if Path(place).exists() else place


def _ray_scorer(load: "Callable[[], Pair]", workers: int | None) -> "Scorer":
    with needs_ray():
        from ltmia.scoring.ray_scoring import RayScorer
    return RayScorer(load=load, n_workers=workers)


ELSEWHERE: dict[str, tuple[Callable[..., None], ...]] = {
    START: (doctor, attacks),
    AUDIT: (synthetic, record, decisions.report),
    DECIDE: (decisions.gate, decisions.compare, evidence.card, evidence.annex, evidence.verify),
    RESEARCH: (classifiers.train, classifiers.evaluate, bench),
}
"""Commands of other files, by panel."""
for panel, commands in ELSEWHERE.items():
    for command in commands:
        app.command(rich_help_panel=panel)(command)
app.add_typer(canaries_app, name="canaries", rich_help_panel=AUDIT)
app.add_typer(lab_app, name="lab", rich_help_panel=RESEARCH)
