"""The plain data of a configuration: a name, its fields, and where each came from."""

import functools
import json
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

Provenance = tuple[
    str, ...
]  # the lines that gave a field its value, the deciding one first

DEFAULT: Provenance = ("default",)


@dataclass(frozen=True, eq=False)
class Node:
    """A class or function and a value for each of its choices.

    Values are scalars, None, tuples, mappings and nodes. Two nodes are equal when they
    mean the same, wherever it was set.
    """

    name: str
    called: bool
    fields: Mapping[str, Any]
    provenance: Mapping[str, Provenance] = field(default_factory=dict)
    unused_bindings: tuple[
        str, ...
    ] = ()  # bindings that reached nothing, and were let pass

    def __post_init__(self):
        object.__setattr__(self, "fields", _freeze(self.fields))
        object.__setattr__(self, "trails", MappingProxyType(dict(self.provenance)))

    def __str__(self) -> str:
        return f"@{self.name}()" if self.called else f"@{self.name}"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Node) and self._json == other._json

    def __hash__(self) -> int:
        return hash(self._json)

    def __reduce__(self):
        """Pickles, which a read-only mapping does not."""
        fields = {name: map_nodes(v, _itself) for name, v in self.fields.items()}
        args = (
            self.name,
            self.called,
            fields,
            dict(self.provenance),
            self.unused_bindings,
        )
        return type(self), args

    @functools.cached_property
    def _json(self) -> str:
        return json.dumps(to_jsonable(self), allow_nan=False)


def _itself(node: Node) -> Node:
    return node


def _freeze(value: Any) -> Any:
    if isinstance(value, tuple | list):
        return tuple(map(_freeze, value))
    if isinstance(value, Mapping):
        return MappingProxyType({key: _freeze(item) for key, item in value.items()})
    return value


def map_nodes(value: Any, leaf: Callable[[Any], Any]) -> Any:
    """`value` with `leaf` of each node directly inside, in new tuples and dicts."""
    if isinstance(value, Node):
        return leaf(value)
    if isinstance(value, tuple):
        return tuple(map_nodes(item, leaf) for item in value)
    if isinstance(value, Mapping):
        return {key: map_nodes(item, leaf) for key, item in value.items()}
    return value


def child_nodes(value: Any, path: str) -> Iterator[tuple[str, Node]]:
    """Each node directly inside the value at `path`, with its own path."""
    if isinstance(value, Node):
        yield path, value
    elif isinstance(value, tuple):
        for index, item in enumerate(value):
            yield from child_nodes(item, f"{path}.{index}")
    elif isinstance(value, Mapping):
        for key, item in value.items():
            yield from child_nodes(item, f"{path}.{key}")


def iter_fields(node: Node, prefix: str = "") -> Iterator[tuple[str, Node, str]]:
    """Every field below `resolve_ref`: dotted path, owner and name, parents first."""
    for name, value in node.fields.items():
        yield prefix + name, node, name
        for path, inner in child_nodes(value, prefix + name):
            yield from iter_fields(inner, f"{path}.")


def to_jsonable(value: Any) -> Any:
    """`value` in what JSON knows: `{"@RoPE()": {"base": 10000.0}}`.

    Mappings whose keys JSON would bend are `{"=map": [[key, value], ...]}`.
    """
    if isinstance(value, Node):
        return {
            str(value): {key: to_jsonable(item) for key, item in value.fields.items()}
        }
    if isinstance(value, tuple):
        return [to_jsonable(item) for item in value]
    if isinstance(value, Mapping):
        if all(isinstance(key, str) and key[:1] not in ("@", "=") for key in value):
            return {key: to_jsonable(item) for key, item in value.items()}
        return {
            "=map": [
                [to_jsonable(key), to_jsonable(item)] for key, item in value.items()
            ]
        }
    if isinstance(value, float) and math.isinf(value):
        return {"=float": repr(value)}
    return value


def format_value(value: Any, format_ref: Callable[[Any], str] = str) -> str:
    """`value` as a `.gin` page writes it, each node by `format_ref`."""
    if isinstance(value, Node):
        return format_ref(value)
    if isinstance(value, tuple | list):
        items = ", ".join(format_value(item, format_ref) for item in value)
        return f"({items},)" if len(value) == 1 else f"({items})"
    if isinstance(value, Mapping):
        pairs = (
            (format_value(k), format_value(v, format_ref)) for k, v in value.items()
        )
        return "{" + ", ".join(f"{key}: {item}" for key, item in pairs) + "}"
    if isinstance(value, float) and math.isinf(value):
        return "1e999" if value > 0 else "-1e999"  # what a literal can say
    return repr(value)
