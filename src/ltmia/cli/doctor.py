"""`ltmia doctor`: tests whether two models can be audited."""

import json
from dataclasses import asdict

import typer

from ltmia.cli import options as o
from ltmia.cli.flags import in_flags, running_program
from ltmia.cli.progress import calm_libraries


def doctor(
    target: o.Target,
    base: o.Base = "auto",
    dtype: o.DtypeOption = o.Dtype.auto,
    device: o.Device = "auto",
    trust_remote_code: o.TrustRemoteCode = False,
    allow_hub: o.AllowHub = False,
    verbose: o.Verbose = False,
    as_json: o.AsJson = False,
) -> None:
    """Test a pair of models before an audit: find the base, compare tokenizers, run both, and say what to fix."""
    calm_libraries(verbose=verbose)
    from ltmia.auditing.doctor import diagnose

    found = diagnose(
        target, base, dtype=dtype.value, device=device, trust_remote_code=trust_remote_code, allow_hub=allow_hub
    )
    if as_json:
        print(json.dumps(asdict(found) | {"usable": found.usable}, indent=1))
    for finding in () if as_json else found.findings:
        said = f"{finding.level}: {finding.sentence}" + (f" {finding.cure}" if finding.cure else "")
        print(in_flags(said, running_program()))
    if not found.usable:
        raise typer.Exit(2)
