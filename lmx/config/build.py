"""From a configuration to what it stands for: objects, and factories of objects."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from lmx.config.node import DEFAULT, Node, format_value, map_nodes
from lmx.config.registry import ConfigError, find


@dataclass(frozen=True)
class Factory:
    """Makes what an uncalled configuration names, once its caller gives the rest.

    What the configuration itself calls is made anew at every call, as in gin, so that
    two layers share nothing by accident. Hashes and pickles as its configuration.
    """

    config: Node

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return instantiate(self.config, *args, **kwargs)


def build(node: Node) -> Any:
    """What a called node returns; the factory of an uncalled one."""
    return instantiate(node) if node.called else Factory(node)


def instantiate(node: Node, /, *args: Any, **kwargs: Any) -> Any:
    """Calls what `resolve_ref` names, from the leaves up. Keywords win over its fields."""
    thing = find(node.name, "build")
    chosen = {name: v for name, v in node.fields.items() if name not in kwargs}
    values = {name: map_nodes(value, build) for name, value in chosen.items()}
    try:
        return thing(*args, **values, **kwargs)
    except ConfigError:
        raise
    except ValueError as error:
        raise ConfigError(
            "\n".join((f"{error}", *_list_origins(node, error)))
        ) from error


def _list_origins(node: Node, error: ValueError) -> list[str]:
    """Where the fields that an error names were set; of all set ones if it names none.

    A field that the message holds only inside another's name is not named.
    """
    words = set(re.findall(r"\w+", str(error)))
    chosen: Mapping[str, Any] = node.fields
    named = [name for name in chosen if name in words]
    told = [name for name in chosen if node.provenance.get(name) not in (None, DEFAULT)]
    return [f"  {_format_origin(node, name)}" for name in named or told]


def _format_origin(node: Node, name: str) -> str:
    text = f"{node.name}.{name} = {format_value(node.fields[name])}"
    trail = node.provenance.get(name)
    if not trail:
        return text
    if trail == DEFAULT:
        return f"{text} by default"
    return f"{text} set {'by' if trail[0].startswith('override') else 'at'} {trail[0]}"
