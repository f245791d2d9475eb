"""A resolved configuration: an immutable value to build, print, compare and store."""

import contextlib
import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from typing import Any, Generic, TypeVar

from lmx.config import draw, page
from lmx.config.build import build
from lmx.config.names import ConfigError, choices, find, hint
from lmx.config.node import Node, Trail, map_nodes, places, plain, written

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
        return self._walk(path)[0]

    def build(self) -> T:
        """Calls what is called and makes a factory of what is not, leaves first.

        A ValueError of a constructor becomes a ConfigError that adds where the fields
        it names were set.
        """
        return build(self)

    def flat(self) -> Iterator[tuple[str, Any]]:
        """Every field by its dotted path, a reference as text before what it holds."""
        for path, owner, name in places(self):
            yield path, map_nodes(owner.fields[name], str)

    def show(self) -> str:
        """One line per field: what it is, and who decided."""
        return draw.show(self)

    def tree(self) -> str:
        """The references as a picture, with the values that are not defaults."""
        return draw.tree(self)

    def why(self, path: str) -> str:
        """Why a field has its value: the line that set it, then what that replaced."""
        value, trail = self._walk(path)
        return "\n  ".join((f"{path} = {written(value)}", *trail))

    def trail(self, path: str) -> Trail:
        """The lines that gave the field at `path` its value, the deciding one first."""
        return self._walk(path)[1]

    def paths(self, label: str) -> list[str]:
        """The places of `Class.parameter`; of a dotted path, itself."""
        known = [(path, f"{owner.name}.{name}") for path, owner, name in places(self)]
        found = [path for path, where in known if label in (path, where)]
        if not found:
            self._walk(label)  # an element, such as hooks.0; or the error
        return found or [label]

    def text(self) -> str:
        """One flat `.gin` page, defaults included, that loads to an equal value."""
        return page.text(self)

    def json(self, indent: int | None = None) -> str:
        """The whole configuration, defaults included, as `from_json` reads it."""
        return json.dumps(plain(self), indent=indent, allow_nan=False)

    def digest(self) -> str:
        """Twelve letters that name this configuration and no other."""
        return hashlib.sha256(self.json().encode()).hexdigest()[:12]

    def identity(self) -> "Config[T]":
        """What decides the mathematics: all but the fields of execution, at any depth.

        To compare and to name, not to build.
        """
        known = choices(find(self.name, "identity"))
        fields = {
            name: map_nodes(value, Config.identity)
            for name, value in self.fields.items()
            if not known[name].execution
        }
        return Config(self.name, self.called, fields, self.trails, self.notes)

    def run_id(self) -> str:
        """Twelve letters that name the identity."""
        return self.identity().digest()

    def _walk(self, path: str) -> tuple[Any, Trail]:
        """The value at `path`, and the trail of the field that holds it."""
        value: Any = self
        trail: Trail = draw.RECORDED
        for step in path.split("."):
            try:
                if isinstance(value, Node):
                    value, trail = value.fields[step], draw.origin(value, step)
                elif isinstance(value, Mapping):
                    value = value[step]
                else:
                    value = value[int(step)] if isinstance(value, tuple) else {}[step]
            except (KeyError, ValueError, IndexError):
                near = hint(path, [known for known, _ in self.flat()])
                raise ConfigError(f"{self} has no field {path!r}{near}") from None
        return value, trail


def diff(old: Config, new: Config) -> dict[str, tuple[Any, Any]]:
    """The fields that differ, as `{path: (old, new)}`; ABSENT where there is none."""
    a, b = dict(old.flat()), dict(new.flat())
    pairs = {path: (a.get(path, ABSENT), b.get(path, ABSENT)) for path in {**a, **b}}
    return {path: (x, y) for path, (x, y) in pairs.items() if written(x) != written(y)}


@contextlib.contextmanager
def explained(config: Config) -> Iterator[None]:
    """Whatever is refused inside is told with where its cause was set.

    That is the story of every `Class.parameter` which the message names without one.
    """
    try:
        yield
    except ValueError as error:
        told = [
            line
            for path, owner, name in places(config)
            if re.search(rf"\b{owner.name}\.{name}\b(?! = )", f"{error}")
            for line in config.why(path).splitlines()
        ]
        raise ConfigError("\n  ".join((f"{error}", *told))) from error
