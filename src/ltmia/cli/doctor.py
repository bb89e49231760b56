"""`ltmia doctor`: tests whether two models can be audited, or plans an audit."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ltmia.cli import options as o
from ltmia.cli.flags import in_flags, is_on_command_line, running_program
from ltmia.cli.option_groups import with_option_groups
from ltmia.cli.progress import calm_libraries

if TYPE_CHECKING:
    from ltmia.auditing.doctor import Finding


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanOptions:
    """Options of a plan."""

    n_texts: Annotated[int, typer.Option("--texts", min=1, help="With --plan: number of texts.")] = 1000
    max_length: Annotated[int, typer.Option("--max-length", min=2, help="With --plan: tokens read of each text.")] = 512
    batch_size: o.BatchSize = 16
    observer: o.Observer = o.ObserverName.auto
    thorough: o.Thorough = False
    sequential: o.Sequential = False
    device_memory: Annotated[
        float | None,
        typer.Option(
            "--device-memory",
            min=0,
            help="With --plan: memory in GiB of the device to plan for; default: this machine's.",
        ),
    ] = None
    device_tflops: Annotated[
        float | None,
        typer.Option(
            "--device-tflops", min=0, help="With --plan: peak of that device in the models' number format, in TFLOP/s."
        ),
    ] = None
    n_devices: Annotated[
        int | None,
        typer.Option(
            "--devices", min=1, help="With --plan: number of such devices; each reads its share of the texts."
        ),
    ] = None


@with_option_groups
def doctor(
    *,
    target: o.Target,
    base: o.Base = "auto",
    plan: Annotated[
        bool,
        typer.Option("--plan", help="Load no weights: say what an audit costs, from the config.json of each model."),
    ] = False,
    planned: PlanOptions,
    dtype: o.DtypeOption = o.Dtype.auto,
    device: o.Device = "auto",
    device_map: o.DeviceMap = None,
    trust_remote_code: o.TrustRemoteCode = False,
    allow_hub: o.AllowHub = False,
    verbose: o.Verbose = False,
    as_json: o.AsJson = False,
) -> None:
    """Test a pair of models before an audit: find the base, compare tokenizers, run both, and say what to fix."""
    calm_libraries(verbose=verbose)
    loading: dict[str, Any] = {
        "dtype": dtype.value,
        "device": device,
        "device_map": device_map,
        "trust_remote_code": trust_remote_code,
        "allow_hub": allow_hub,
    }
    found: Any
    if plan:
        found = _plan(target, base, planned, loading)
    else:
        from ltmia.auditing.doctor import diagnose

        _refuse_options_of_plans()
        found = diagnose(target, base, **loading)
    if as_json:
        print(json.dumps(asdict(found) | {"usable": found.usable}, indent=1))
    else:
        _print(found.findings)
    if not found.usable:
        raise typer.Exit(2)


def _plan(target: str, base: str, planned: PlanOptions, loading: dict[str, Any]) -> Any:
    from ltmia.auditing.cost import Work
    from ltmia.auditing.plan import Accelerators, plan_audit
    from ltmia.errors import ConfigError

    given = (planned.device_memory, planned.device_tflops)
    if (None in given and (any(given) or planned.n_devices is not None)) or (
        None not in given and loading["device"] != "auto"
    ):
        raise ConfigError("to plan for another device, give both `device_memory` and `device_tflops`, and no `device`")
    accelerators = None
    if planned.device_memory is not None and planned.device_tflops is not None:
        accelerators = Accelerators(
            memory_gib=planned.device_memory, tflops=planned.device_tflops, n_devices=planned.n_devices or 1
        )
    observer: Any = planned.observer.value  # typed as any string
    work = Work(
        n_texts=planned.n_texts,
        max_length=planned.max_length,
        batch_size=planned.batch_size,
        observer=observer,
        thorough=planned.thorough,
        sequential=planned.sequential,
    )
    return plan_audit(target, base, work, accelerators, **loading)


def _refuse_options_of_plans() -> None:
    """Refuse options of a plan on the command line; a file or the environment may set them for other commands."""
    from ltmia.errors import ConfigError

    for name in (field.name for field in fields(PlanOptions)):
        if is_on_command_line(name):
            raise ConfigError(f"`{name}` needs `plan=True`: without it, the models are loaded and nothing is planned")


def _print(findings: "Sequence[Finding]") -> None:
    for finding in findings:
        said = f"{finding.level}: {finding.sentence}" + (f"; {finding.cure}" if finding.cure else "")
        print(in_flags(said, running_program()))
