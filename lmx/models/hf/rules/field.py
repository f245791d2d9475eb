"""What a field of a config.json binds in lmx, and how it is read back."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from lmx.config.names import ConfigError
from lmx.config.node import plain, written
from lmx.config.parse import Ref
from lmx.config.tree import Config

Values = Mapping[str, Any]


class Rule(ABC):
    """A few fields of a config.json and what they bind, both ways."""

    @property
    @abstractmethod
    def names(self) -> tuple[str, ...]:
        """The fields it knows."""

    @abstractmethod
    def settle(self, given: Values) -> dict[str, Any]:
        """Its fields as transformers would take them, defaults filled in."""

    @abstractmethod
    def bind(self, settled: Values) -> dict[str, Any]:
        """What these fields bind, as `{"Class.parameter": value}`."""

    @abstractmethod
    def read(self, config: Config) -> dict[str, Any]:
        """Its fields, as far as the configuration has what they bind."""


@dataclass(frozen=True)
class Field(Rule):
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
    words: Mapping[Any, Any] | None = None
    aliases: tuple[str, ...] = ()
    null: bool = False
    path: str = ""

    @property
    def names(self) -> tuple[str, ...]:
        return (self.name, *self.aliases)

    def settle(self, given: Values) -> dict[str, Any]:
        told = (
            given[name]
            for name in self.names
            if name in given and (self.null or given[name] is not None)
        )
        value = next(told, self.default)
        return {self.name: value(given) if callable(value) else value}

    def bind(self, settled: Values) -> dict[str, Any]:
        value = settled[self.name]
        if self.words is None:
            return {self.binding: value}
        if value not in self.words:
            known = ", ".join(map(repr, self.words))
            raise ConfigError(f"{self.name} = {value!r}: only {known} can be had here.")
        return {self.binding: self.words[value]}

    def read(self, config: Config) -> dict[str, Any]:
        found = places(config, self.path or self.binding)
        if not found:
            return {}
        value = config[found[0]]
        if self.words is None:
            return {self.name: plain(value)}
        named = {repr(ours): theirs for theirs, ours in self.words.items()}
        return {self.name: named[written(value)]} if written(value) in named else {}


def filled(given: Values, usual: Values) -> dict[str, Any]:
    """The fields of `usual` as given, or as there where the file has none, or null."""
    told = {name: given.get(name) for name in usual}
    return {name: usual[name] if told[name] is None else told[name] for name in usual}


def same(name: str) -> Callable[[Values], Any]:
    """A default: whatever another field is."""
    return lambda given: given[name]


def quotient(over: str, under: str) -> Callable[[Values], int]:
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
class Formula(Rule):
    """One field that is one parameter, but for arithmetic."""

    name: str
    binding: str
    default: Any
    there: Callable[[Any], Any]
    back: Callable[[Any], Any]

    @property
    def names(self) -> tuple[str, ...]:
        return (self.name,)

    def settle(self, given: Values) -> dict[str, Any]:
        value = given.get(self.name)
        return {self.name: self.default if value is None else value}

    def bind(self, settled: Values) -> dict[str, Any]:
        return {self.binding: self.there(settled[self.name])}

    def read(self, config: Config) -> dict[str, Any]:
        values = [config[path] for path in places(config, self.binding)]
        known = [value for value in values if value is not None]
        return {self.name: self.back(known[0])} if known else {}


@dataclass(frozen=True)
class Derived(Rule):
    """A parameter that follows from other fields."""

    binding: str
    value: Callable[[Values], Any]

    @property
    def names(self) -> tuple[str, ...]:
        return ()

    def settle(self, given: Values) -> dict[str, Any]:
        return {}

    def bind(self, settled: Values) -> dict[str, Any]:
        return {self.binding: self.value(settled)}

    def read(self, config: Config) -> dict[str, Any]:
        return {}


def at(name: str, called: bool = False) -> Ref:
    """The reference `@name`, or `@name()`."""
    return Ref((), name, called)


def places(config: Config, binding: str) -> list[str]:
    """Where in the model the parameter of a binding is."""
    label = binding.rpartition("/")[2]
    try:
        found = config.paths(label)
    except ConfigError:
        return []
    return [path for path in found if path.startswith("model.")]
