"""A resolved configuration: an immutable value to build, compare and store."""

import contextlib
import dataclasses
import functools
import hashlib
import json
import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Generic, TypeVar

from lmx.config.registry import ConfigError, config_fields, find, suggest

T = TypeVar("T")
Provenance = tuple[str, ...]  # the lines that set a field, the deciding line first

DEFAULT: Provenance = ("default",)
RECORDED: Provenance = ("recorded",)  # read from JSON, which stores no provenance


@dataclass(frozen=True, eq=False)
class Config(Generic[T]):
    """A class or function with a value for each of its configurable parameters.

    A called config stands for the object that it builds, an uncalled one for a factory
    that its caller completes. Equality ignores provenance.
    """

    name: str
    called: bool
    fields: Mapping[str, Any]
    provenance: Mapping[str, Provenance] = field(default_factory=dict)
    unused_bindings: tuple[str, ...] = ()  # accepted, though nothing uses them

    def __post_init__(self):
        object.__setattr__(self, "fields", _freeze(self.fields))
        object.__setattr__(self, "provenance", MappingProxyType({**self.provenance}))

    def __str__(self) -> str:
        return f"@{self.name}()" if self.called else f"@{self.name}"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Config) and self._json == other._json

    def __hash__(self) -> int:
        return hash(self._json)

    def __reduce__(self):
        """Replaces read-only mappings, which cannot be pickled, by dicts."""
        fields = {k: map_nodes(v, lambda node: node) for k, v in self.fields.items()}
        provenance = dict(self.provenance)
        args = (self.name, self.called, fields, provenance, self.unused_bindings)
        return type(self), args

    def __getitem__(self, path: str) -> Any:
        """The value at a dotted path, as in `config["model.hooks.0.every"]`."""
        return self._get(path)[0]

    @functools.cached_property
    def _json(self) -> str:
        return self.to_json()

    def build(self) -> T:
        """Calls the called configs, innermost first; makes a `Factory` of the others.

        A ConfigError for a ValueError of a constructor also says where the fields in
        the message were set.
        """
        result: Any = instantiate(self) if self.called else Factory(self)
        return result

    def flatten(self) -> Iterator[tuple[str, Any]]:
        """Each field by its dotted path; a config is given as text, then its fields."""
        for path, owner, name in iter_fields(self):
            yield path, map_nodes(owner.fields[name], str)

    def explain(self, path: str) -> str:
        """The value at a path, the line that set it, and the lines it replaced."""
        value, provenance = self._get(path)
        return "\n  ".join((f"{path} = {format_value(value)}", *provenance))

    def find_provenance(self, path: str) -> Provenance:
        """The lines that set the field at `path`, the deciding line first."""
        return self._get(path)[1]

    def find_paths(self, label: str) -> list[str]:
        """The paths of every `Class.parameter`; a dotted path is returned unchanged."""
        labels = {
            path: f"{owner.name}.{name}" for path, owner, name in iter_fields(self)
        }
        paths = [path for path, known in labels.items() if label in (path, known)]
        if not paths:
            self._get(label)  # an element such as hooks.0, or an error
        return paths or [label]

    def to_json(self, indent: int | None = None) -> str:
        """The whole configuration with its defaults, for `from_json`."""
        return json.dumps(to_jsonable(self), indent=indent, allow_nan=False)

    def digest(self) -> str:
        """Twelve hexadecimal digits that identify this configuration."""
        return hashlib.sha256(self._json.encode()).hexdigest()[:12]

    def identity(self) -> "Config[T]":
        """All but execution fields, at any depth; it can be compared and not built."""
        known = config_fields(find(self.name, "identity"))
        fields = {
            name: map_nodes(value, Config.identity)
            for name, value in self.fields.items()
            if not known[name].execution
        }
        return dataclasses.replace(self, fields=fields)

    def run_id(self) -> str:
        """Twelve hexadecimal digits that identify `identity()`."""
        return self.identity().digest()

    def field_provenance(self, name: str) -> Provenance:
        """The lines that set one field of this config."""
        return self.provenance.get(name, RECORDED)

    def _get(self, path: str) -> tuple[Any, Provenance]:
        """The value at `path`, and the provenance of the field that holds it."""
        for known, value, owner, name in walk(self):
            if known == path and owner is not None:
                return value, owner.field_provenance(name)
        near = suggest(path, [known for known, _ in self.flatten()])
        raise ConfigError(f"{self} has no field {path!r}{near}")


@dataclass(frozen=True)
class Factory:
    """Builds an uncalled config when its caller supplies the remaining arguments.

    Nested called configs are built anew at every call, so that layers share no object.
    """

    config: Config

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return instantiate(self.config, *args, **kwargs)


def instantiate(config: Config, /, *args: Any, **kwargs: Any) -> Any:
    """Calls what `config` names. Keyword arguments take precedence over its fields."""
    function = find(config.name, "build")
    values = {
        name: map_nodes(value, Config.build)
        for name, value in config.fields.items()
        if name not in kwargs
    }
    try:
        return function(*args, **values, **kwargs)
    except ConfigError:
        raise
    except ValueError as error:
        origins = _list_origins(config, str(error))
        raise ConfigError("\n  ".join((f"{error}", *origins))) from error


def _list_origins(config: Config, message: str) -> Iterator[str]:
    """Where the fields named in an error were set; if it names none, all bound ones."""
    words = set(re.findall(r"\w+", message))
    origins = {DEFAULT: " by default", RECORDED: ""}
    bound = [n for n in config.fields if config.field_provenance(n) not in origins]
    for name in [name for name in config.fields if name in words] or bound:
        provenance = config.field_provenance(name)
        preposition = "by" if provenance[0].startswith("override") else "at"
        setting = f" set {preposition} {provenance[0]}"
        value = format_value(config.fields[name])
        yield f"{config.name}.{name} = {value}{origins.get(provenance, setting)}"


def _freeze(value: Any) -> Any:
    value = map_items(value, _freeze)
    return MappingProxyType(value) if isinstance(value, dict) else value


def map_items(value: Any, function: Callable[[Any], Any]) -> Any:
    """A new tuple or dict of `function` of each item; any other value unchanged."""
    if type(value) in (tuple, list):
        return tuple(map(function, value))
    if isinstance(value, Mapping):
        return {key: function(item) for key, item in value.items()}
    return value


def map_nodes(value: Any, function: Callable[[Any], Any]) -> Any:
    """`value` with `function` applied to each outermost config, in new containers."""
    if isinstance(value, Config):
        return function(value)
    return map_items(value, lambda item: map_nodes(item, function))


def walk(
    value: Any, path: str = "", owner: Config | None = None, name: str = ""
) -> Iterator[tuple[str, Any, Config | None, str]]:
    """Dotted path, value, and the config and field that hold it; parents first."""
    yield path, value, owner, name
    fields = value.fields if isinstance(value, Config) else value
    children: Iterable[tuple[Any, Any]] = ()
    if isinstance(fields, Mapping):
        children = fields.items()
    elif isinstance(fields, tuple):
        children = enumerate(fields)
    for key, item in children:
        inner = f"{path}.{key}".lstrip(".")
        is_field = isinstance(value, Config)
        holder, field_name = (value, str(key)) if is_field else (owner, name)
        yield from walk(item, inner, holder, field_name)


def iter_fields(config: Config) -> Iterator[tuple[str, Config, str]]:
    """Every field at any depth: dotted path, the config that holds it, and its name."""
    for path, value, owner, name in walk(config):
        if owner is not None and value is owner.fields[name]:
            yield path, owner, name


def to_jsonable(value: Any) -> Any:
    """`value` as JSON data: `{"@RoPE()": {"theta": 10000.0}}`.

    Mappings with keys that JSON would change are `{"=map": [[key, value], ...]}`.
    """
    if isinstance(value, Config):
        return {str(value): {k: to_jsonable(item) for k, item in value.fields.items()}}
    if isinstance(value, tuple):
        return [to_jsonable(item) for item in value]
    if isinstance(value, Mapping):
        if all(isinstance(key, str) and key[:1] not in ("@", "=") for key in value):
            return {key: to_jsonable(item) for key, item in value.items()}
        return {"=map": [[*map(to_jsonable, pair)] for pair in value.items()]}
    if isinstance(value, float) and math.isinf(value):
        return {"=float": repr(value)}
    return value


def format_value(value: Any, format_ref: Callable[[Any], str] = str) -> str:
    """`value` in `.gin` syntax, each config formatted by `format_ref`."""
    if isinstance(value, Config):
        return format_ref(value)
    if isinstance(value, tuple | list):
        items = ", ".join(format_value(item, format_ref) for item in value)
        return f"({items},)" if len(value) == 1 else f"({items})"
    if isinstance(value, Mapping):
        pairs = (map(lambda x: format_value(x, format_ref), p) for p in value.items())
        return "{" + ", ".join(map(": ".join, pairs)) + "}"
    if isinstance(value, float) and math.isinf(value):
        return "1e999" if value > 0 else "-1e999"  # gin has no literal for infinity
    if isinstance(value, int) and value.bit_length() > 64:
        return hex(value)  # Python refuses to print thousands of decimal digits
    return repr(value)


class Absent:
    """The value in `diff` of a field that only the other configuration has."""

    def __repr__(self) -> str:
        return "absent"


ABSENT = Absent()


def diff(old: Config, new: Config) -> dict[str, tuple[Any, Any]]:
    """The fields that differ, as `{path: (old, new)}`; ABSENT for a missing field."""
    a, b = dict(old.flatten()), dict(new.flatten())
    pairs = {path: (a.get(path, ABSENT), b.get(path, ABSENT)) for path in {**a, **b}}
    return {
        p: (x, y) for p, (x, y) in pairs.items() if format_value(x) != format_value(y)
    }


@contextlib.contextmanager
def explain_errors(config: Config) -> Iterator[None]:
    """Adds to a ValueError the provenance of each `Class.parameter` without a value."""
    try:
        yield
    except ValueError as error:
        lines = [
            line
            for path, owner, name in iter_fields(config)
            if re.search(rf"\b{owner.name}\.{name}\b(?! = )", f"{error}")
            for line in config.explain(path).splitlines()
        ]
        raise ConfigError("\n  ".join((f"{error}", *lines))) from error
