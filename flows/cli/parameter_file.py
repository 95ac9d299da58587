"""A file of parameters for `--params`: YAML or JSON, whose values are read as `-p` reads them."""

import re
from pathlib import Path
from typing import Any

import yaml

from trainer.contract.errors import RequestError
from trainer.contract.volume import shortened

# What the library raises besides its own: for a number of 5,000 digits, `!!bool x`, keys that are
# lists, and nesting.
_ODD_VALUES = (ArithmeticError, AttributeError, LookupError, RecursionError, TypeError, ValueError)


class _Loader(yaml.SafeLoader):
    """YAML 1.2's core schema: 0123 is a text, 1e-5 a number, and nothing a date."""

    yaml_implicit_resolvers = {}  # noqa: RUF012 - of the class, as add_implicit_resolver wants it


for _tag, _pattern, _first in (
    ("null", r"^(?:~|null|Null|NULL|)$", ["~", "n", "N", ""]),
    ("bool", r"^(?:true|True|TRUE|false|False|FALSE)$", list("tTfF")),
    ("int", r"^[-+]?(?:0|[1-9][0-9]*)$", list("-+0123456789")),
    (
        "float",
        r"^[-+]?(?:\.[0-9]+|(?:0|[1-9][0-9]*)(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?$",
        list("-+.0123456789"),
    ),
):
    _Loader.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", re.compile(_pattern), _first)


def read_parameter_file(file: Path) -> dict[str, Any]:
    """The values by name: a text, number or switch as it was typed, a topic with its own types.

    Raises:
        RequestError: It is no YAML or JSON, or holds no names and values.
    """
    try:
        loader = _Loader(file.read_text(encoding="utf-8"))
        node = loader.get_single_node()
        if not isinstance(node, yaml.MappingNode):
            found = None if node is None else loader.construct_document(node)
            raise RequestError(
                f"--params {file} holds no names and values (got {shortened(repr(found))})."
            )
        return {loader.construct_object(k): _value(loader, v) for k, v in node.value}
    except (yaml.YAMLError, *_ODD_VALUES) as error:
        raise RequestError(
            f"--params {file} is not YAML or JSON ({shortened(str(error), 500)})."
        ) from error


def _value(loader: _Loader, node: yaml.Node) -> Any:
    if isinstance(node, yaml.ScalarNode) and not node.tag.endswith(":null"):
        return node.value
    return loader.construct_object(node, deep=True)
