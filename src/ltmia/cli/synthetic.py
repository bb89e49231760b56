"""`ltmia synthetic`."""

from dataclasses import asdict
from typing import Annotated

import typer

from ltmia.cli import option_groups as g
from ltmia.cli import options as o
from ltmia.cli.loading import day_told, reader
from ltmia.cli.progress import calm_libraries, progress
from ltmia.cli.showing import show


@g.with_option_groups
def synthetic(
    *,
    synthetic: Annotated[str, typer.Argument(help="Texts that a model wrote.")],
    members: Annotated[str, typer.Option("--members", help="Texts that this model was fine-tuned on.")],
    nonmembers: Annotated[str, typer.Option("--nonmembers", help="Similar texts that it was not fine-tuned on.")],
    base: Annotated[
        str, typer.Option("--base", help="LM to fine-tune on the written texts: the base of their model, or another.")
    ],
    out: o.Out,
    epochs: Annotated[int, typer.Option("--epochs", min=1, help="Passes over the written texts.")] = 3,
    learning_rate: Annotated[float, typer.Option("--learning-rate", help="Learning rate of AdamW.")] = 5e-5,
    lora: Annotated[bool, typer.Option("--lora", help="Train a LoRA adapter (rank 16).")] = False,
    columns: g.TextOptions,
    attacks: o.Attacks = "fast",
    judging: g.JudgeOptions,
    dtype: o.DtypeOption = o.Dtype.auto,
    device: o.Device = "auto",
    trust_remote_code: o.TrustRemoteCode = False,
    day: o.Day = None,
    allow_hub: o.AllowHub = False,
    seed: o.Seed = 0,
    reveal: o.Reveal = False,
    overwrite: o.Overwrite = False,
    printing: g.PrintOptions,
) -> None:
    """Audit synthetic texts: fine-tune a base on them, and measure what it tells of their model's training texts."""
    calm_libraries(verbose=printing.verbose)
    from ltmia.auditing.audit import AuditConfig
    from ltmia.auditing.synthetic import SyntheticSubject, audit_synthetic
    from ltmia.evaluation.audit_folder import set_aside_on_failure
    from ltmia.finetuning.config import FinetuneConfig
    from ltmia.models.loading import LoadOptions

    length = {} if judging.max_length is None else {"max_length": judging.max_length}
    tuning = FinetuneConfig(epochs=epochs, learning_rate=learning_rate, lora=lora, seed=seed, **length)
    with set_aside_on_failure(out):
        read = reader(base, day=day, trust_remote_code=trust_remote_code, allow_hub=allow_hub)
        member_texts, nonmember_texts = columns.read(read, members, nonmembers)
        written = read(synthetic, text_column=columns.text_column)
    config = AuditConfig(
        attacks=attacks,
        **asdict(judging),
        seed=seed,
        reveal=reveal,
        chat_day=day_told(read),
        overwrite=overwrite,
    )
    subject = SyntheticSubject(texts=written, base=base, tuning=tuning)
    options = LoadOptions(dtype=dtype.value, device=device, trust_remote_code=trust_remote_code, allow_hub=allow_hub)
    sets = member_texts, nonmember_texts
    with progress(quiet=printing.quiet) as report:
        audit_synthetic(subject, sets, out, config=config, loading=options, report=report)
    show(out, quiet=printing.quiet, as_json=printing.as_json)
