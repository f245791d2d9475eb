"""What a field of a config.json binds in lmx, and how it is read back."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from lmx.config.parse import Ref
from lmx.config.registry import ConfigError
from lmx.config.value import Config, format_value, to_jsonable

Values = Mapping[str, Any]


class FieldMap(ABC):
    """A few fields of a config.json and what they bind, both ways."""

    @property
    @abstractmethod
    def names(self) -> tuple[str, ...]:
        """The fields it knows."""

    @abstractmethod
    def with_defaults(self, given: Values) -> dict[str, Any]:
        """Its fields as transformers would take them, defaults filled in."""

    @abstractmethod
    def to_bindings(self, settled: Values) -> dict[str, Any]:
        """What these fields bind, as `{"Class.parameter": value}`."""

    @abstractmethod
    def to_hf(self, config: Config) -> dict[str, Any]:
        """Its fields, as far as the configuration has what they bind."""


@dataclass(frozen=True)
class DirectField(FieldMap):
    """One field that is one parameter.

    Attributes:
        default: its value where the file has none, or null; or a function of the
            fields before.
        words: what its values are called here, where they are not the same.
        aliases: other names that files have for it; the first that has a value counts.
        null: whether a file may say null and mean it.
        path: where in the configuration it is read, if other parts have one too.
    """

    name: str
    binding: str
    default: Any | Callable[[Values], Any] = None
    value_map: Mapping[Any, Any] | None = None
    aliases: tuple[str, ...] = ()
    nullable: bool = False
    path: str = ""

    @property
    def names(self) -> tuple[str, ...]:
        return (self.name, *self.aliases)

    def with_defaults(self, given: Values) -> dict[str, Any]:
        told = (
            given[name]
            for name in self.names
            if name in given and (self.nullable or given[name] is not None)
        )
        value = next(told, self.default)
        return {self.name: value(given) if callable(value) else value}

    def to_bindings(self, settled: Values) -> dict[str, Any]:
        value = settled[self.name]
        if self.value_map is None:
            return {self.binding: value}
        if value not in self.value_map:
            known = ", ".join(map(repr, self.value_map))
            raise ConfigError(f"{self.name} = {value!r}: only {known} can be had here.")
        return {self.binding: self.value_map[value]}

    def to_hf(self, config: Config) -> dict[str, Any]:
        found = find_paths(config, self.path or self.binding)
        if not found:
            return {}
        value = config[found[0]]
        if self.value_map is None:
            return {self.name: to_jsonable(value)}
        named = {repr(ours): theirs for theirs, ours in self.value_map.items()}
        return (
            {self.name: named[format_value(value)]}
            if format_value(value) in named
            else {}
        )


def fill_defaults(given: Values, usual: Values) -> dict[str, Any]:
    """The fields of `usual` as given, or as there where the file has none, or null."""
    told = {name: given.get(name) for name in usual}
    return {name: usual[name] if told[name] is None else told[name] for name in usual}


def default_to_field(name: str) -> Callable[[Values], Any]:
    """A default: whatever another field is."""
    return lambda given: given[name]


def default_to_quotient(over: str, under: str) -> Callable[[Values], int]:
    """A default: one field divided by another."""

    def divided(given: Values) -> int:
        a, b = given[over], given[under]
        if type(a) is not int or type(b) is not int or b < 1:
            raise ConfigError(
                f"{over} = {a!r} and {under} = {b!r} must be whole numbers above 0."
            )
        return a // b

    return divided


@dataclass(frozen=True)
class ConvertedField(FieldMap):
    """One field that is one parameter, but for arithmetic."""

    name: str
    binding: str
    default: Any
    to_lmx: Callable[[Any], Any]
    from_lmx: Callable[[Any], Any]

    @property
    def names(self) -> tuple[str, ...]:
        return (self.name,)

    def with_defaults(self, given: Values) -> dict[str, Any]:
        value = given.get(self.name)
        return {self.name: self.default if value is None else value}

    def to_bindings(self, settled: Values) -> dict[str, Any]:
        return {self.binding: self.to_lmx(settled[self.name])}

    def to_hf(self, config: Config) -> dict[str, Any]:
        values = [config[path] for path in find_paths(config, self.binding)]
        known = [value for value in values if value is not None]
        return {self.name: self.from_lmx(known[0])} if known else {}


@dataclass(frozen=True)
class DerivedParameter(FieldMap):
    """A parameter that follows from other fields."""

    binding: str
    compute: Callable[[Values], Any]

    @property
    def names(self) -> tuple[str, ...]:
        return ()

    def with_defaults(self, given: Values) -> dict[str, Any]:
        return {}

    def to_bindings(self, settled: Values) -> dict[str, Any]:
        return {self.binding: self.compute(settled)}

    def to_hf(self, config: Config) -> dict[str, Any]:
        return {}


def ref(name: str, called: bool = False) -> Ref:
    """The reference `@name`, or `@name()`."""
    return Ref((), name, called)


def find_paths(config: Config, binding: str) -> list[str]:
    """Where in the model the parameter of a binding is."""
    label = binding.rpartition("/")[2]
    try:
        found = config.find_paths(label)
    except ConfigError:
        return []
    return [path for path in found if path.startswith("model.")]
