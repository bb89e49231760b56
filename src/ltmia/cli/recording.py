"""`ltmia record`."""

from pathlib import Path
from typing import Annotated

import typer

from ltmia.cli import options as o
from ltmia.cli.progress import calm_libraries, progress


def record(
    model: Annotated[str, typer.Argument(help="LM: folder, hub id, PEFT adapter folder or .gguf file.")],
    texts: Annotated[
        list[str], typer.Option("--texts", help="The texts that audit or score will read; repeat for more files.")
    ],
    out: Annotated[
        Path, typer.Option("--out", "-o", help="File to write: .jsonl.gz or .jsonl; running again resumes.")
    ],
    tokenizer: Annotated[
        str | None,
        typer.Option(
            "--tokenizer", help="Model whose tokenizer is used; give it if the target has tokens that its base lacks."
        ),
    ] = None,
    text_column: o.TextColumn = "text",
    id_column: o.IdColumn = None,
    max_length: o.MaxLength = 128,
    batch_size: o.BatchSize = 16,
    dtype: o.DtypeOption = o.Dtype.auto,
    device: o.Device = "auto",
    overwrite: o.Overwrite = False,
    trust_remote_code: o.TrustRemoteCode = False,
    day: o.Day = None,
    allow_hub: o.AllowHub = False,
    quiet: o.Quiet = False,
    verbose: o.Verbose = False,
) -> None:
    """Record the log-probabilities that one model gives to texts, so that audit and score can run without the model."""
    calm_libraries(verbose=verbose)
    from ltmia.models.loading import LoadOptions, load_alone
    from ltmia.ownership import refuse_inputs
    from ltmia.records import Texts
    from ltmia.scoring.recording import RecordConfig, record_model

    refuse_inputs(out, [model, *texts, *([tokenizer] if tokenizer else [])])
    read_texts = o.reader(tokenizer or model, day=day, trust_remote_code=trust_remote_code, allow_hub=allow_hub)
    read = Texts.concatenate([read_texts(source, text_column=text_column, id_column=id_column) for source in texts])
    options = LoadOptions(dtype=dtype.value, device=device, trust_remote_code=trust_remote_code, allow_hub=allow_hub)
    pair = load_alone(model, tokenizer=tokenizer, options=options)
    config = RecordConfig(max_length=max_length, batch_size=batch_size)
    with progress(quiet=quiet) as report:
        record_model(pair, read, out, config=config, overwrite=overwrite, report=report)
    if not quiet:
        print(f"{out}: {len(read)} texts")
