"""The walk from the root: which binding decides each field, and what it means."""

from collections.abc import Iterator, Mapping
from typing import Any, TypeVar

from lmx.config.names import REQUIRED, ConfigError, choices, find, hint, named
from lmx.config.node import DEFAULT, Trail, written
from lmx.config.parse import Binding, Bindings, Key, Macro, Ref, Where
from lmx.config.tree import Config
from lmx.config.typed import typed

T = TypeVar("T")
Scope = tuple[str, ...]

ASKED = Macro("gin.REQUIRED")  # a value that must be overridden


class Reader:
    """One walk, remembering which bindings it read.

    `reached` are the bindings that fit some reference, `deciding` those of them that
    a longer scope does not hide everywhere, `seen` the references.
    """

    def __init__(self, bindings: Bindings):
        self.bindings = bindings
        self.reached: set[Key] = set()
        self.deciding: set[Key] = set()
        self.seen: list[tuple[Scope, str]] = []
        self._open: list[tuple[Scope, str]] = []

    def node(
        self,
        ref: Ref,
        scope: Scope,
        where: object,
        given: Mapping[str, Any] | None = None,
    ) -> Config[Any]:
        """What `ref` means in a scope; `given` are defaults that precede its own."""
        scope = ref.scope or scope
        thing, here = find(ref.name, where), (scope, ref.name)
        if here in self._open:
            raise ConfigError(f"{where}: @{ref.name} contains itself")
        self._open.append(here)
        self.seen.append(here)
        fields: dict[str, Any] = {}
        trails: dict[str, Trail] = {}
        for name, choice in choices(thing).items():
            label = f"{ref.name}.{name}"
            if keys := self._keys(scope, ref.name, name):
                value = self._bound(keys[0], scope)
                trails[name] = trail = tuple(self._trail(keys))
            else:
                value = (given or {}).get(name, choice.default)
                if value is REQUIRED:
                    raise ConfigError(f"{where}: {self._missing(ref.name, scope)}")
                value = self.default(value, scope, label)
                trails[name] = trail = DEFAULT
            fields[name] = typed(value, choice.hint, label, trail[0])
        self._open.pop()
        return Config(ref.name, ref.called, fields, trails)

    def _keys(self, scope: Scope, name: str, parameter: str) -> list[Key]:
        """The bindings of all prefixes of `scope`, the longest first: it decides."""
        fits = (Key(scope[:n], name, parameter) for n in range(len(scope), -1, -1))
        keys = [key for key in fits if key in self.bindings]
        self.reached.update(keys)
        self.deciding.update(keys[:1])
        return keys

    def _missing(self, name: str, scope: Scope) -> str:
        """What a reference still needs, all at once."""
        known = choices(find(name, "reader")).items()
        needed = [p for p, choice in known if choice.default is REQUIRED]
        lacking = [p for p in needed if not self._keys(scope, name, p)]
        return f"@{name} needs {', '.join(f'{name}.{p}' for p in lacking)}: set " + (
            "it" if len(lacking) == 1 else "them"
        )

    def _bound(self, key: Key, scope: Scope) -> Any:
        binding = self.bindings[key]
        if binding.value == ASKED:
            raise ConfigError(f"{binding.where}: {key} must be given: add {key}=VALUE")
        return self.value(binding.value, scope, binding.where)

    def value(self, value: Any, scope: Scope, where: object, way: tuple = ()) -> Any:
        """`value` with references and macros followed, sequences made tuples.

        `way` are the macros that led here.
        """
        if isinstance(value, Ref):
            return self.node(value, scope, where)
        if isinstance(value, Macro):
            binding = self.macro(value, where)
            if value in way:
                raise ConfigError(f"{binding.where}: {value} is made of itself")
            if binding.value == ASKED:
                name = value.name
                raise ConfigError(
                    f"{binding.where}: {name} must be given: add {name}=VALUE"
                )
            return self.value(binding.value, scope, binding.where, (*way, value))
        if isinstance(value, list | tuple):
            return tuple(self.value(item, scope, where, way) for item in value)
        if isinstance(value, dict):
            keys = (self.value(key, scope, where, way) for key in value)
            items = [self.value(item, scope, where, way) for item in value.values()]
            try:
                return dict(zip(keys, items, strict=True))
            except TypeError:
                raise ConfigError(
                    f"{where}: a key is a scalar: {written(value)}"
                ) from None
        return value

    def default(self, value: Any, scope: Scope, label: str) -> Any:
        """A default, what is configurable in it as if a page had referenced it."""
        try:
            found = named(value)
        except ConfigError as error:
            raise ConfigError(f"default of {label}: {error}") from error
        if found is not None:
            ref = Ref((), found.name, found.called)
            return self.node(ref, scope, f"default of {label}", found.fields)
        if isinstance(value, list) or type(value) is tuple:
            return tuple(self.default(item, scope, label) for item in value)
        if isinstance(value, Mapping):
            return {k: self.default(item, scope, label) for k, item in value.items()}
        return value

    def macro(self, macro: Macro, where: object) -> Binding:
        """What defines a macro."""
        if macro == ASKED:
            raise ConfigError(f"{where}: {ASKED} stands alone, as a whole value")
        key = macro_key(macro)
        if key not in self.bindings:
            near = hint(macro.name, [f"{k}" for k in self.bindings if not k.parameter])
            raise ConfigError(f"{where}: no macro {macro.name} is defined{near}")
        return self.bindings[key]

    def mentioned(self) -> set[Key]:
        """Macros that some binding names, be it dead or replaced."""
        return {
            macro_key(macro)
            for binding in self.bindings.values()
            for old in history(binding)
            for macro in refs(old.value, Macro)
        }

    def _trail(self, keys: list[Key]) -> Iterator[str]:
        """Where the deciding binding stands, then what it replaced or hides."""
        first, *hidden = keys
        yield self._origin(first)
        yield from self._replaced(first)
        for key in hidden:
            binding = self.bindings[key]
            yield f"hides {key} = {written(binding.value)} of {binding.where}"

    def _origin(self, key: Key) -> str:
        """Where a binding stands, and where the macros in it do."""
        binding = self.bindings[key]
        macros = dict.fromkeys(refs(binding.value, Macro))
        through = [f"{macro} from {self._origin(macro_key(macro))}" for macro in macros]
        return f"{binding.where}{' with ' * bool(through)}{', '.join(through)}"

    def _replaced(self, key: Key) -> Iterator[str]:
        binding, *old = history(self.bindings[key])
        for other in old:
            yield f"replaces {written(other.value)} of {other.where}"
        for macro in dict.fromkeys(refs(binding.value, Macro)):
            yield from self._replaced(macro_key(macro))


def macro_key(macro: Macro) -> Key:
    """The binding that defines a macro."""
    *scope, name = macro.name.split("/")
    return Key(tuple(scope), name, "")


def history(binding: Binding | None) -> Iterator[Binding]:
    """A binding, then those it replaced, the latest first."""
    while binding is not None:
        yield binding
        binding = binding.replaces


def refs(value: Any, kind: type[T]) -> list[T]:
    """All references, or macros, anywhere inside a value as written."""
    if isinstance(value, kind):
        return [value]
    if isinstance(value, dict):
        return [ref for pair in value.items() for x in pair for ref in refs(x, kind)]
    if isinstance(value, list | tuple):
        return [ref for item in value for ref in refs(item, kind)]
    return []


def is_override(where: Where) -> bool:
    """Whether a binding was given on the command line."""
    return not where.line
