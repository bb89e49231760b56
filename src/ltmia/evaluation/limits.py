"""Limits of the gate, given one by one or in a policy file."""

import re
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from ltmia.errors import ConfigError
from ltmia.evaluation.wording import percent

RULE = re.compile(
    r"(?:(?P<attack>[a-z0-9_]+)\.(?=auc|tpr))?(?P<figure>auc|tpr@fpr=(?P<fpr>[0-9]*\.?[0-9]+)|identifiable|epsilon|exposure"
    r"|longest_run|extractable(?P<share>_share)?@(?P<draws>[1-9][0-9]{0,11}))"
)
"""Names of figures. Only an AUC and a TPR can be of one attack: records are flagged by the one that decides."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Limit:
    """Largest allowed value of one figure."""

    figure: str
    """auc, tpr@fpr=F, identifiable, epsilon, extractable@N, extractable_share@N, longest_run or exposure. "ATTACK.auc"
    names one attack; without a name the worst one counts."""
    most: float

    @property
    def title(self) -> str:
        """Name of the figure for people."""
        match = RULE.fullmatch(self.figure)
        if match is None:
            return self.figure
        said = {
            "auc": "AUC",
            "identifiable": "identifiable records",
            "exposure": "exposure of secrets in bits",
            "longest_run": "longest run of tokens in continuations",
        }.get(match["figure"], match["figure"])
        if match["fpr"]:
            said = f"TPR at {percent(float(match['fpr']))} FPR"
        if match["draws"]:
            drawn = "1 draw" if match["draws"] == "1" else f"{int(match['draws']):,} draws"
            said = f"{'share of ' if match['share'] else ''}records extractable within {drawn}"
        return f"{said} of {match['attack']}" if match["attack"] else said

    @classmethod
    def parse(cls, text: str) -> "Limit":
        """Read "FIGURE:MOST".

        Raises:
            ConfigError: If it is not of this form.
        """
        figure, separator, most = text.rpartition(":")
        if not separator:
            raise ConfigError(f"{text!r}: expected FIGURE:MOST, such as auc:0.6 or tpr@fpr=0.01:0.05")
        return cls.of(figure, most)

    @classmethod
    def of(cls, figure: str, most: str | int | float) -> "Limit":
        """Check a figure's name and its limit.

        Raises:
            ConfigError: If there is no such figure, or the limit is not a number from 0 on.
        """
        if not RULE.fullmatch(figure):
            raise ConfigError(
                f"{figure!r}: no such figure; there are auc and tpr@fpr=0.01, also of one attack (loss.auc), "
                "identifiable, epsilon, exposure, longest_run, extractable@1000 and extractable_share@1000"
            )
        try:
            value = float(most)
        except (ValueError, OverflowError) as error:
            raise ConfigError(f"{figure}: {str(most)[:40]!r} is no number, or too large") from error
        if not 0 <= value < float("inf"):
            raise ConfigError(f"{figure}: {most} is no limit; expected a number from 0 on")
        if figure == "exposure" and value % 1:
            raise ConfigError(f"exposure: {most} is no limit; expected whole bits, as the results give them")
        return cls(figure=figure, most=value)


class Policy(BaseModel):
    """A policy file: `inconclusive = "fail"` and a table `[max]` of limits."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    max: dict[str, int | float]
    inconclusive: Literal["fail", "pass"] | None = None

    @property
    def limits(self) -> list[Limit]:
        """Limits of the policy."""
        return [Limit.of(figure, most) for figure, most in self.max.items()]


def read_policy(path: Path) -> Policy:
    """Read a policy.

    Raises:
        ConfigError: If something in the file is wrong; the message names it.
    """
    try:
        policy = Policy.model_validate(tomllib.loads(path.read_text("utf-8")))
        _ = policy.limits
    except ValidationError as error:
        first = error.errors()[0]
        raise ConfigError(f"{path}: {'.'.join(map(str, first['loc']))}: {first['msg']}") from error
    except (OSError, ValueError, RecursionError) as error:  # not UTF-8, not TOML, or numbers or nesting too large
        raise ConfigError(f"{path}: not readable as TOML: {error}") from error
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from error
    return policy


DEFAULT_LIMITS = (Limit.parse("identifiable:0"), Limit.parse("tpr@fpr=0.01:0.05"), Limit.parse("auc:0.6"))
"""Limits without a policy: no record is identifiable; an attacker with one false alarm in a hundred finds at most one
member in twenty; members and non-members are hardly distinguishable as a whole."""
