"""`ltmia record`."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ltmia.cli import option_groups as g
from ltmia.cli import options as o
from ltmia.cli.loading import reader
from ltmia.cli.progress import calm_libraries, progress

if TYPE_CHECKING:
    from ltmia.models.loading import LoadOptions
    from ltmia.progress import Report
    from ltmia.records import Texts


@dataclass(frozen=True, slots=True, kw_only=True)
class EndpointOptions:
    """Options for a model behind a server."""

    endpoint: Annotated[
        str | None,
        typer.Option(
            "--endpoint",
            help="Record from a server instead: URL of its OpenAI-compatible API, such as http://localhost:8000/v1 "
            "(extra: endpoint). The texts are sent there. A key is read from the variable LTMIA_API_KEY.",
        ),
    ] = None
    served_model: Annotated[str | None, typer.Option("--model", help="Name of the model on the server.")] = None
    base_model: Annotated[
        str | None,
        typer.Option("--base-model", help="Name of its base on the server; the self-test checks that they differ."),
    ] = None
    check_against: Annotated[
        str | None,
        typer.Option(
            "--check-against", help="Local weights of the model; the self-test compares the server with them."
        ),
    ] = None
    concurrency: Annotated[
        int, typer.Option("--concurrency", min=1, help="Texts that the server is asked for at the same time.")
    ] = 8


@g.with_option_groups
def record(
    *,
    model: Annotated[
        str | None,
        typer.Argument(
            help="LM: folder, hub id, PEFT adapter folder or .gguf file; left out with --endpoint.", show_default=False
        ),
    ] = None,
    texts: Annotated[
        list[str], typer.Option("--texts", help="The texts that audit or score will read; repeat for more files.")
    ],
    out: Annotated[
        Path, typer.Option("--out", "-o", help="File to write: .jsonl.gz or .jsonl; running again resumes.")
    ],
    server: EndpointOptions,
    tokenizer: Annotated[
        str | None,
        typer.Option(
            "--tokenizer",
            help="Model whose tokenizer is used; give it if the target has tokens that its base lacks. With "
            "--endpoint: folder or hub id with tokenizer and config of the served model.",
        ),
    ] = None,
    text_column: o.TextColumn = "text",
    id_column: o.IdColumn = None,
    max_length: o.RecordedLength = 512,
    batch_size: o.BatchSize = 16,
    dtype: o.DtypeOption = o.Dtype.auto,
    device: o.Device = "auto",
    device_map: o.DeviceMap = None,
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

    known = _model_known_here(model, server, tokenizer)
    refuse_inputs(out, [name for name in (model, *texts, tokenizer, server.check_against) if name])
    allowed = {"trust_remote_code": trust_remote_code, "allow_hub": allow_hub}
    read_texts = reader(known, None, day=day, **allowed)
    read = Texts.concatenate([read_texts(source, text_column=text_column, id_column=id_column) for source in texts])
    options = LoadOptions(dtype=dtype.value, device=device, device_map=device_map, **allowed)
    with progress(quiet=quiet) as report:
        if model is None:
            _record_endpoint(server, read, out, known, options, max_length, overwrite=overwrite, report=report)
        else:
            pair = load_alone(model, tokenizer=tokenizer, options=options)
            config = RecordConfig(max_length=max_length, batch_size=batch_size)
            record_model(pair, read, out, config=config, overwrite=overwrite, report=report)
    if not quiet:
        print(f"{out}: {len(read)} texts")


def _model_known_here(model: str | None, server: EndpointOptions, tokenizer: str | None) -> str:
    """Return the model on this machine whose tokenizer and chat template are used.

    Raises:
        ConfigError: If the options do not say which model to record.
    """
    from ltmia.errors import ConfigError

    if server.endpoint is None:
        for name in ("served_model", "base_model", "check_against"):
            if getattr(server, name) is not None:
                raise ConfigError(f"`{name}` is about a server; name it with `endpoint`, or leave it out")
        if model is None:
            raise ConfigError("name the model to record, or give `endpoint`, the URL of a server that runs it")
        return tokenizer or model
    if model is not None:
        raise ConfigError(f"{model}: a model and `endpoint` were given: `served_model` names the model on the server")
    if server.served_model is None:
        raise ConfigError("`endpoint`: name the model on the server with `served_model`")
    if tokenizer is None:
        raise ConfigError(
            "`endpoint`: also name the tokenizer and config.json of the served model, with `tokenizer=FOLDER_OR_HUB_ID`"
        )
    return tokenizer


def _record_endpoint(
    server: EndpointOptions,
    texts: "Texts",
    out: Path,
    tokenizer: str,
    options: "LoadOptions",
    max_length: int,
    *,
    overwrite: bool,
    report: "Report",
) -> None:
    try:
        from ltmia.endpoint.address import API_KEY, Endpoint
        from ltmia.scoring.endpoint_recording import EndpointRecordConfig, record_endpoint
    except ModuleNotFoundError as error:
        from ltmia.errors import ConfigError

        raise ConfigError(f'`endpoint` needs {error.name}: pip install "ltmia[endpoint]"') from error
    endpoint = Endpoint(
        url=str(server.endpoint),
        model=str(server.served_model),
        api_key=os.environ.get(API_KEY) or None,
        concurrency=server.concurrency,
    )
    config = EndpointRecordConfig(
        tokenizer=tokenizer,
        base_model=server.base_model,
        check_against=server.check_against,
        max_length=max_length,
        loading=options,
    )
    record_endpoint(endpoint, texts, out, config=config, overwrite=overwrite, report=report)
