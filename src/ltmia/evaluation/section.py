"""What the sections of `results.json` are made of."""

from typing import Annotated

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

Rate = Annotated[str, Field(pattern=r"^(0\.[0-9]{0,8}[1-9]|1)$")]
"""False-positive rate as a key: "0.01", never "0.010"."""
Count = Annotated[int, Field(ge=0)]
Share = Annotated[float, Field(ge=0, le=1)]
Amount = Annotated[float, Field(ge=0)]


class Section(BaseModel):
    """Base of all sections: unknown keys and figures that are not finite are errors."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class Measure(Section):
    """A figure with its 95 % interval, or nulls and the reason why it cannot be given."""

    value: float | None = None
    low: float | None = None
    high: float | None = None
    reason: str | None = None


def _of_shares(measure: Measure) -> Measure:
    ends = [end for end in (measure.low, measure.value, measure.high) if end is not None]
    if ends != sorted(ends) or not all(0 <= end <= 1 for end in ends):
        raise ValueError(f"low, value, high are {ends}: expected numbers from 0 to 1, rising")
    return measure


ShareMeasure = Annotated[Measure, AfterValidator(_of_shares)]
"""A figure from 0 to 1, within its interval."""
