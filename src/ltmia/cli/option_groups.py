"""Options that `audit` and `score` share, in groups; each group is one parameter of a command."""

import inspect
from collections.abc import Callable
from dataclasses import Field, asdict, dataclass, fields, is_dataclass
from functools import wraps
from inspect import Parameter
from typing import TYPE_CHECKING, Any

from ltmia.cli import options as o
from ltmia.cli.loading import reader

if TYPE_CHECKING:
    from ltmia.records import Texts


@dataclass(frozen=True, slots=True, kw_only=True)
class TextOptions:
    """Columns that hold texts, ids and groups."""

    text_column: o.TextColumn = "text"
    id_column: o.IdColumn = None
    group_column: o.GroupColumn = None

    def read(self, read: "Callable[..., Texts]", *sources: str) -> "list[Texts]":
        """Read each source by a function such as `read_texts`."""
        return [read(source, **asdict(self)) for source in sources]


@dataclass(frozen=True, slots=True, kw_only=True)
class JudgeOptions:
    """Options for scoring and judging: fields of `JudgeConfig`."""

    classifier: o.Classifier = None
    observer: o.Observer = o.ObserverName.auto
    thorough: o.Thorough = False
    fdr: o.Fdr = 0.05
    max_length: o.MaxLength = "auto"
    batch_size: o.BatchSize = 16
    spans: o.Spans = None
    alternatives: o.Alternatives = 2000
    most_values: o.MostValues = 50
    continuations: o.Continuations = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelOptions:
    """Options for loading both models and their chat template."""

    dtype: o.DtypeOption = o.Dtype.auto
    device: o.Device = "auto"
    device_map: o.DeviceMap = None
    trust_remote_code: o.TrustRemoteCode = False
    day: o.Day = None
    allow_hub: o.AllowHub = False
    sequential: o.Sequential = False
    checkpoints: o.Checkpoints = None

    @property
    def keywords(self) -> dict[str, Any]:
        """Keywords of `load_training_run`."""
        return {name: value for name, value in asdict(self).items() if name != "day"} | {
            "checkpoints": tuple(self.checkpoints or ())
        }

    def reader(self, target: str, base: str) -> "Callable[..., Texts]":
        """Return `read_texts` for a pair of models."""
        return reader(target, base, day=self.day, trust_remote_code=self.trust_remote_code, allow_hub=self.allow_hub)


@dataclass(frozen=True, slots=True, kw_only=True)
class PrintOptions:
    """Options for printing."""

    quiet: o.Quiet = False
    verbose: o.Verbose = False
    as_json: o.AsJson = False


def with_option_groups(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command one option for each field of the groups among its parameters.

    Typer reads options from a function's signature, so the function returned has a signature with the fields in place
    of their group. When it is called, it builds the groups again.
    """
    signature = inspect.signature(command)
    groups = {name: _group_of(parameter) for name, parameter in signature.parameters.items()}
    parameters = [
        shown
        for name, parameter in signature.parameters.items()
        for shown in (
            map(_parameter, groups[name]) if groups[name] else [parameter.replace(kind=Parameter.KEYWORD_ONLY)]
        )
    ]

    @wraps(command)
    def run(**given: Any) -> None:
        for name, group in groups.items():
            if group:
                kind = signature.parameters[name].annotation
                given[name] = kind(**{field.name: given.pop(field.name) for field in group})
        command(**given)

    run.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]  # typed for no function
    return run


def _group_of(parameter: Parameter) -> "tuple[Field[Any], ...]":
    return fields(parameter.annotation) if is_dataclass(parameter.annotation) else ()


def _parameter(field: "Field[Any]") -> Parameter:
    return Parameter(field.name, Parameter.KEYWORD_ONLY, default=field.default, annotation=field.type)
