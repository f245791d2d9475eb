"""A resolved configuration: an immutable value to build, print, compare and store."""

import contextlib
import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from typing import Any, Generic, TypeVar

from lmx.config import format, page
from lmx.config.build import build
from lmx.config.node import (
    Node,
    Provenance,
    format_value,
    iter_fields,
    map_nodes,
    to_jsonable,
)
from lmx.config.registry import ConfigError, config_fields, find, suggest

T = TypeVar("T")


class Absent:
    """What `diff` gives for a field that one of the two does not have."""

    def __repr__(self) -> str:
        return "absent"


ABSENT = Absent()


class Config(Node, Generic[T]):
    """A class or function and a value for each of its choices.

    Called, it stands for what it returns; uncalled, for a factory that still waits for
    what its caller knows. Two are equal when they mean the same, wherever it was set.
    """

    def __getitem__(self, path: str) -> Any:
        """The value at a dotted path, as in `config["model.hooks.0.every"]`."""
        return self._get(path)[0]

    def build(self) -> T:
        """Calls what is called and makes a factory of what is not, leaves first.

        A ValueError of a constructor becomes a ConfigError that adds where the fields
        it names were set.
        """
        return build(self)

    def flatten(self) -> Iterator[tuple[str, Any]]:
        """Every field by its dotted path, a reference as text before what it holds."""
        for path, owner, name in iter_fields(self):
            yield path, map_nodes(owner.fields[name], str)

    def show(self) -> str:
        """One line per field: what it is, and who decided."""
        return format.show(self)

    def draw_tree(self) -> str:
        """The references as a picture, with the values that are not defaults."""
        return format.draw_tree(self)

    def explain(self, path: str) -> str:
        """Why a field has its value: the line that set it, then what that replaced."""
        value, trail = self._get(path)
        return "\n  ".join((f"{path} = {format_value(value)}", *trail))

    def find_provenance(self, path: str) -> Provenance:
        """The lines that gave the field at `path` its value, the deciding one first."""
        return self._get(path)[1]

    def find_paths(self, label: str) -> list[str]:
        """The places of `Class.parameter`; of a dotted path, itself."""
        known = [
            (path, f"{owner.name}.{name}") for path, owner, name in iter_fields(self)
        ]
        found = [path for path, where in known if label in (path, where)]
        if not found:
            self._get(label)  # an element, such as hooks.0; or the error
        return found or [label]

    def to_gin(self) -> str:
        """One flat `.gin` page, defaults included, that loads to an equal value."""
        return page.to_gin(self)

    def to_json(self, indent: int | None = None) -> str:
        """The whole configuration, defaults included, as `from_json` reads it."""
        return json.dumps(to_jsonable(self), indent=indent, allow_nan=False)

    def digest(self) -> str:
        """Twelve letters that name this configuration and no other."""
        return hashlib.sha256(self.to_json().encode()).hexdigest()[:12]

    def identity(self) -> "Config[T]":
        """What decides the mathematics: all but the fields of execution, at any depth.

        To compare and to name, not to build.
        """
        known = config_fields(find(self.name, "identity"))
        fields = {
            name: map_nodes(value, Config.identity)
            for name, value in self.fields.items()
            if not known[name].execution
        }
        return Config(
            self.name, self.called, fields, self.provenance, self.unused_bindings
        )

    def run_id(self) -> str:
        """Twelve letters that name the identity."""
        return self.identity().digest()

    def _get(self, path: str) -> tuple[Any, Provenance]:
        """The value at `path`, and the trail of the field that holds it."""
        value: Any = self
        trail: Provenance = format.RECORDED
        for step in path.split("."):
            try:
                if isinstance(value, Node):
                    value, trail = (
                        value.fields[step],
                        format.field_provenance(value, step),
                    )
                elif isinstance(value, Mapping):
                    value = value[step]
                else:
                    value = value[int(step)] if isinstance(value, tuple) else {}[step]
            except (KeyError, ValueError, IndexError):
                near = suggest(path, [known for known, _ in self.flatten()])
                raise ConfigError(f"{self} has no field {path!r}{near}") from None
        return value, trail


def diff(old: Config, new: Config) -> dict[str, tuple[Any, Any]]:
    """The fields that differ, as `{path: (old, new)}`; ABSENT where there is none."""
    a, b = dict(old.flatten()), dict(new.flatten())
    pairs = {path: (a.get(path, ABSENT), b.get(path, ABSENT)) for path in {**a, **b}}
    return {
        path: (x, y)
        for path, (x, y) in pairs.items()
        if format_value(x) != format_value(y)
    }


@contextlib.contextmanager
def explain_errors(config: Config) -> Iterator[None]:
    """Whatever is refused inside is told with where its cause was set.

    That is the story of every `Class.parameter` which the message names without one.
    """
    try:
        yield
    except ValueError as error:
        told = [
            line
            for path, owner, name in iter_fields(config)
            if re.search(rf"\b{owner.name}\.{name}\b(?! = )", f"{error}")
            for line in config.explain(path).splitlines()
        ]
        raise ConfigError("\n  ".join((f"{error}", *told))) from error
