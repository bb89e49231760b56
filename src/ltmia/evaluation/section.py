"""What the sections of `results.json` are made of."""

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

Rate = Annotated[str, Field(pattern=r"^(0\.[0-9]{0,8}[1-9]|1)$")]
"""False-positive rate as a key: "0.01", never "0.010"."""
Count = Annotated[int, Field(ge=0)]
Share = Annotated[float, Field(ge=0, le=1)]
Amount = Annotated[float, Field(ge=0)]


class Section(BaseModel):
    """Base of all sections: unknown keys and figures that are not finite are errors."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)
