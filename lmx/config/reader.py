"""The walk from the root: which binding decides each field, and what it means."""

from collections.abc import Iterator, Mapping
from typing import Any, TypeVar

from lmx.config.coerce import coerce_field
from lmx.config.node import DEFAULT, Provenance, format_value
from lmx.config.parse import Binding, BindingKey, Bindings, Location, Macro, Ref
from lmx.config.registry import (
    REQUIRED,
    ConfigError,
    as_reference,
    config_fields,
    find,
    suggest,
)
from lmx.config.value import Config

T = TypeVar("T")
Scope = tuple[str, ...]

REQUIRED_MACRO = Macro("gin.REQUIRED")  # a value that must be overridden


class Resolver:
    """One walk, remembering which bindings it read.

    `reached` are the bindings that fit some reference, `deciding` those of them that
    a longer scope does not hide everywhere, `seen` the references.
    """

    def __init__(self, bindings: Bindings):
        self.bindings = bindings
        self.reached: set[BindingKey] = set()
        self.deciding: set[BindingKey] = set()
        self.seen: list[tuple[Scope, str]] = []
        self._open: list[tuple[Scope, str]] = []

    def resolve_ref(
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
        trails: dict[str, Provenance] = {}
        for name, choice in config_fields(thing).items():
            label = f"{ref.name}.{name}"
            if keys := self._matching_keys(scope, ref.name, name):
                value = self._resolve_binding(keys[0], scope)
                trails[name] = trail = tuple(self._trace(keys))
            else:
                value = (given or {}).get(name, choice.default)
                if value is REQUIRED:
                    raise ConfigError(
                        f"{where}: {self._describe_missing(ref.name, scope)}"
                    )
                value = self.resolve_default(value, scope, label)
                trails[name] = trail = DEFAULT
            fields[name] = coerce_field(value, choice.annotation, label, trail[0])
        self._open.pop()
        return Config(ref.name, ref.called, fields, trails)

    def _matching_keys(
        self, scope: Scope, name: str, parameter: str
    ) -> list[BindingKey]:
        """The bindings of all prefixes of `scope`, the longest first: it decides."""
        fits = (
            BindingKey(scope[:n], name, parameter) for n in range(len(scope), -1, -1)
        )
        keys = [key for key in fits if key in self.bindings]
        self.reached.update(keys)
        self.deciding.update(keys[:1])
        return keys

    def _describe_missing(self, name: str, scope: Scope) -> str:
        """What a reference still needs, all at once."""
        known = config_fields(find(name, "reader")).items()
        needed = [p for p, choice in known if choice.default is REQUIRED]
        lacking = [p for p in needed if not self._matching_keys(scope, name, p)]
        return f"@{name} needs {', '.join(f'{name}.{p}' for p in lacking)}: set " + (
            "it" if len(lacking) == 1 else "them"
        )

    def _resolve_binding(self, key: BindingKey, scope: Scope) -> Any:
        binding = self.bindings[key]
        if binding.value == REQUIRED_MACRO:
            raise ConfigError(
                f"{binding.location}: {key} must be given: add {key}=VALUE"
            )
        return self.resolve_value(binding.value, scope, binding.location)

    def resolve_value(
        self, value: Any, scope: Scope, where: object, way: tuple = ()
    ) -> Any:
        """`value` with references and macros followed, sequences made tuples.

        `plan` are the macros that led here.
        """
        if isinstance(value, Ref):
            return self.resolve_ref(value, scope, where)
        if isinstance(value, Macro):
            binding = self.find_macro(value, where)
            if value in way:
                raise ConfigError(f"{binding.location}: {value} is made of itself")
            if binding.value == REQUIRED_MACRO:
                name = value.name
                raise ConfigError(
                    f"{binding.location}: {name} must be given: add {name}=VALUE"
                )
            return self.resolve_value(
                binding.value, scope, binding.location, (*way, value)
            )
        if isinstance(value, list | tuple):
            return tuple(self.resolve_value(item, scope, where, way) for item in value)
        if isinstance(value, dict):
            keys = (self.resolve_value(key, scope, where, way) for key in value)
            items = [
                self.resolve_value(item, scope, where, way) for item in value.values()
            ]
            try:
                return dict(zip(keys, items, strict=True))
            except TypeError:
                raise ConfigError(
                    f"{where}: a key is a scalar: {format_value(value)}"
                ) from None
        return value

    def resolve_default(self, value: Any, scope: Scope, label: str) -> Any:
        """A default, what is configurable in it as if a page had referenced it."""
        try:
            found = as_reference(value)
        except ConfigError as error:
            raise ConfigError(f"default of {label}: {error}") from error
        if found is not None:
            ref = Ref((), found.name, found.called)
            return self.resolve_ref(ref, scope, f"default of {label}", found.fields)
        if isinstance(value, list) or type(value) is tuple:
            return tuple(self.resolve_default(item, scope, label) for item in value)
        if isinstance(value, Mapping):
            return {
                k: self.resolve_default(item, scope, label) for k, item in value.items()
            }
        return value

    def find_macro(self, macro: Macro, where: object) -> Binding:
        """What defines a macro."""
        if macro == REQUIRED_MACRO:
            raise ConfigError(
                f"{where}: {REQUIRED_MACRO} stands alone, as a whole value"
            )
        key = macro_key(macro)
        if key not in self.bindings:
            near = suggest(
                macro.name, [f"{k}" for k in self.bindings if not k.parameter]
            )
            raise ConfigError(f"{where}: no macro {macro.name} is defined{near}")
        return self.bindings[key]

    def mentioned_macros(self) -> set[BindingKey]:
        """Macros that some binding names, be it dead or replaced."""
        return {
            macro_key(macro)
            for binding in self.bindings.values()
            for old in iter_history(binding)
            for macro in find_refs(old.value, Macro)
        }

    def _trace(self, keys: list[BindingKey]) -> Iterator[str]:
        """Where the deciding binding stands, then what it replaced or hides."""
        first, *hidden = keys
        yield self._format_origin(first)
        yield from self._trace_replaced(first)
        for key in hidden:
            binding = self.bindings[key]
            yield f"hides {key} = {format_value(binding.value)} of {binding.location}"

    def _format_origin(self, key: BindingKey) -> str:
        """Where a binding stands, and where the macros in it do."""
        binding = self.bindings[key]
        macros = dict.fromkeys(find_refs(binding.value, Macro))
        through = [
            f"{macro} from {self._format_origin(macro_key(macro))}" for macro in macros
        ]
        return f"{binding.location}{' with ' * bool(through)}{', '.join(through)}"

    def _trace_replaced(self, key: BindingKey) -> Iterator[str]:
        binding, *old = iter_history(self.bindings[key])
        for other in old:
            yield f"replaces {format_value(other.value)} of {other.location}"
        for macro in dict.fromkeys(find_refs(binding.value, Macro)):
            yield from self._trace_replaced(macro_key(macro))


def macro_key(macro: Macro) -> BindingKey:
    """The binding that defines a macro."""
    *scope, name = macro.name.split("/")
    return BindingKey(tuple(scope), name, "")


def iter_history(binding: Binding | None) -> Iterator[Binding]:
    """A binding, then those it replaced, the latest first."""
    while binding is not None:
        yield binding
        binding = binding.previous


def find_refs(value: Any, kind: type[T]) -> list[T]:
    """All references, or macros, anywhere inside a value as written."""
    if isinstance(value, kind):
        return [value]
    if isinstance(value, dict):
        return [
            ref for pair in value.items() for x in pair for ref in find_refs(x, kind)
        ]
    if isinstance(value, list | tuple):
        return [ref for item in value for ref in find_refs(item, kind)]
    return []


def is_override(where: Location) -> bool:
    """Whether a binding was given on the command line."""
    return not where.line
