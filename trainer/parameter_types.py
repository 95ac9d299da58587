"""The types and ranges of parameters, each range in one place.

The configs of steps, the flow's parameters and the server's requests are made of these.
"""

import re
from datetime import datetime
from typing import Annotated, Literal

from annotated_types import Ge, Gt, Le, MinLen
from pydantic import AfterValidator, ConfigDict, StringConstraints
from pydantic_core import PydanticCustomError

STRICT = ConfigDict(extra="forbid", strict=True)

DNS_LABEL = r"^[a-z0-9]([a-z0-9-]{0,38}[a-z0-9])?$"

RunName = Annotated[str, StringConstraints(pattern=DNS_LABEL)]
VolumeName = Annotated[str, StringConstraints(pattern=r"^[a-z0-9]([a-z0-9.-]{0,251}[a-z0-9])?$")]
NonEmpty = Annotated[str, MinLen(1)]
Seed = Annotated[int, Ge(0), Le(2**32 - 1)]
Count = Annotated[int, Gt(0)]
CountOrZero = Annotated[int, Ge(0)]
Percent = Annotated[int, Ge(0), Le(100)]
Share = Annotated[float, Ge(0), Le(1)]
Positive = Annotated[float, Gt(0)]
PositiveOrZero = Annotated[float, Ge(0)]
ZeroStage = Annotated[int, Ge(0), Le(3)]
Order = Literal[
    "",
    "size_ascending",
    "size_descending",
    "name_ascending",
    "name_descending",
    "random",
    "shuffle",
    "none",
]
ServingEngine = Literal["builtin", "vllm"]


def _not_zero(value: int) -> int:
    if value == 0:
        raise ValueError("must be greater than 0, or -1 to work it out")
    return value


def _on_volume(value: str) -> str:
    if value.startswith("/") or ".." in value.split("/"):
        raise ValueError("leads out of the volume")
    return value


# Relative to the volume's root; links that lead out of it are refused where they are followed.
VolumePath = Annotated[str, AfterValidator(_on_volume)]
BatchSize = Annotated[int, Ge(-1), AfterValidator(_not_zero)]
BoundaryIndex = Annotated[int, Ge(-1)]


def _no_secret(value: str) -> str:
    """Names of Secrets and variables are short words; keys are long, and must not be shown."""
    is_long = len(value) >= 32 and "-" not in value
    if is_long or not re.fullmatch(r"[\w.-]{0,253}", value):
        raise PydanticCustomError("secret", "looks like a key, and is not shown")
    return value


# Of a Kubernetes Secret; locally of an environment variable or a Prefect Secret block.
SecretName = Annotated[str, AfterValidator(_no_secret)]


def _moment(value: str) -> str:
    try:
        if value:
            datetime.fromisoformat(value)
    except ValueError as error:
        raise ValueError("is no date or time by ISO 8601, as 2030-01-31T18:00") from error
    return value


Moment = Annotated[str, AfterValidator(_moment)]
