"""The types and ranges of parameters, each range in one place.

The configs of steps, the flow's parameters and the server's requests are made of these.
"""

import re
from dataclasses import dataclass
from datetime import datetime
from typing import Annotated, Any, Literal

from annotated_types import Ge, Gt, Le, Lt, MinLen
from pydantic import (
    AfterValidator,
    AllowInfNan,
    ConfigDict,
    GetCoreSchemaHandler,
    GetJsonSchemaHandler,
)
from pydantic_core import PydanticCustomError, core_schema

from trainer.contract.json_text import parse_json

STRICT = ConfigDict(extra="forbid", strict=True)
# Of what is asked for by topic: a form shows the docstring under each key.
TOPIC = ConfigDict(extra="forbid", strict=True, use_attribute_docstrings=True)


@dataclass(frozen=True)
class _Written:
    """Refuses what `pattern` does not match, with the rule and the remedy in words."""

    pattern: str
    rule: str
    remedy: str

    def __get_pydantic_core_schema__(
        self, source: Any, handler: GetCoreSchemaHandler
    ) -> core_schema.CoreSchema:
        return core_schema.no_info_after_validator_function(self._check, handler(source))

    def __get_pydantic_json_schema__(
        self, schema: core_schema.CoreSchema, handler: GetJsonSchemaHandler
    ) -> dict[str, Any]:
        """Prefect's server holds runs to it, and its message and its form quote what failed.

        So that is the rule in words: of a plain `pattern` it would be the regex.
        """
        # `$` also matches before a last newline.
        condition = {"pattern": f"^({self.pattern})$(?!\\n)"}
        words = f"{self.rule}. {self.remedy}"
        return {**handler(schema), "if": condition, "else": {"const": words}}

    def _check(self, value: str) -> str:
        if not re.fullmatch(self.pattern, value):
            raise PydanticCustomError("spelling", f"is not {self.rule}", {"remedy": self.remedy})
        return value


_ENDS = "beginning and ending with a letter or digit"
RunName = Annotated[
    str,
    _Written(
        r"[a-z0-9]([a-z0-9-]{0,38}[a-z0-9])?",
        "a DNS label of at most 40 characters",
        f"Use lower-case letters, digits and '-', {_ENDS}.",
    ),
]
VolumeName = Annotated[
    str,
    _Written(
        r"[a-z0-9]([a-z0-9.-]{0,251}[a-z0-9])?",
        "the name of a volume: at most 253 characters",
        f"Use lower-case letters, digits, '-' and '.', {_ENDS}.",
    ),
]
NonEmpty = Annotated[str, MinLen(1)]
Sha256 = Annotated[
    str,
    _Written(
        r"[0-9a-f]{64}",
        "a SHA-256 digest",
        "It has 64 digits, 0 to 9 and a to f. `finetune forget` prints them.",
    ),
]


def from_text(value: Any) -> Any:
    """What JSON text holds; any other value as it is."""
    if not isinstance(value, str):
        return value
    try:
        return parse_json(value)
    except ValueError as error:
        raise PydanticCustomError("json_invalid", "is not JSON") from error


def _gpu_class(value: str) -> str:
    return NO_GPU if value.lower() in ("", NO_GPU) else value


NO_GPU = "none"
GpuClass = Annotated[str, AfterValidator(_gpu_class)]
Seed = Annotated[int, Ge(0), Le(2**32 - 1)]
Count = Annotated[int, Gt(0)]
CountOrZero = Annotated[int, Ge(0)]
Percent = Annotated[int, Ge(0), Le(100)]
Share = Annotated[float, Ge(0), Le(1)]
BelowOne = Annotated[float, Ge(0), Lt(1)]
Positive = Annotated[float, Gt(0), AllowInfNan(False)]
PositiveOrZero = Annotated[float, Ge(0), AllowInfNan(False)]
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
ServingEngine = Literal["builtin", "vllm", "auto"]


def _not_zero(value: int) -> int:
    if value == 0:
        raise ValueError("must be greater than 0, or -1 to work it out")
    return value


# Of signed URLs of the usual stores, and what people put into others.
_CREDENTIAL = re.compile(
    r"[?&;](x-amz-(signature|credential|security-token)|x-goog-(signature|credential)|sig|signature|"
    r"awsaccesskeyid|access_?key(_?id)?|secret(_?key)?|(access_?|auth_?|api_?)?token|api_?key|"
    r"password|passwd|pwd)=",
    re.IGNORECASE,
)
_NOTHING = re.compile(r"(\./*)+|([A-Za-z][\w+.-]*::?/*)+")


def holds_credentials(url: str) -> bool:
    """Whether an address, chained ones too, has a user or password in it, or a signature."""
    hosts = re.findall(r"://([^/?#]*)", url)
    return any("@" in host for host in hosts) or bool(_CREDENTIAL.search(url))


def _on_volume(value: str) -> str:
    if holds_credentials(value):
        raise PydanticCustomError("credentials", "holds a password or signature, and is not shown")
    if _NOTHING.fullmatch(value):
        raise ValueError("names no file or folder")
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


def _web_origin(value: str) -> str:
    if not re.fullmatch(
        r"https?://[a-z0-9.\-]+(:[0-9]{1,5})?|https?://\[[0-9a-f:]+\](:[0-9]{1,5})?", value
    ):
        raise ValueError("is no web origin, such as https://example.org or http://localhost:3000")
    return value


# As a browser sends it: scheme, host and port, in lower case, without a path.
WebOrigin = Annotated[str, AfterValidator(_web_origin)]


def _moment(value: str) -> str:
    try:
        if value:
            datetime.fromisoformat(value)
    except ValueError as error:
        raise ValueError("is no date or time by ISO 8601, as 2030-01-31T18:00") from error
    return value


Moment = Annotated[str, AfterValidator(_moment)]
