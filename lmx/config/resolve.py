"""Resolves bindings into a configuration, once, before anything is built.

Five rules. Only what the root references can be set. A reference `@s/X` reads `s/X.p`
first and `X.p` second, and passes its scope on to what X references. The later of two
bindings wins. Every value has the type of its annotation. A binding or macro that
nothing uses is an error, unless an include supplied it, or an override replaced what
it was for.

Where a config differs from gin's own runtime on purpose, docs/config.md says how.
"""

import dataclasses
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, TypeVar

from lmx.config.coerce import coerce_field, find_choice
from lmx.config.format import to_gin
from lmx.config.gin import (
    Binding,
    BindingKey,
    Bindings,
    Location,
    Macro,
    add_overrides,
    bind,
    find_refs,
    parse,
    parse_text,
)
from lmx.config.json_object import WRONG_KIND, check_depth, parse_object
from lmx.config.names import find_synonyms
from lmx.config.registry import (
    REQUIRED,
    ConfigError,
    Range,
    Ref,
    as_reference,
    config_fields,
    find,
    find_owners,
    is_known,
    require,
    suggest,
)
from lmx.config.value import (
    DEFAULT,
    RECORDED,
    Config,
    Provenance,
    format_value,
    map_items,
    to_jsonable,
    walk,
)

T = TypeVar("T")
Scope = tuple[str, ...]

MAX_NODES = 10_000  # values and references, those of macros as often as they are used
INT64 = Range(
    "from -2^63 to 2^63 - 1", lambda x: type(x) is float or -(2**63) <= x < 2**63
)
REQUIRED_MACRO = Macro(BindingKey((), "gin.REQUIRED", ""))  # to be overridden


def load(
    files: Iterable[str | Path],
    overrides: Iterable[str] = (),
    *,
    root: Callable[..., T],
) -> Config[T]:
    """The configuration of `root()` from files and then overrides."""
    return resolve(parse(files, overrides), root.__name__)


def apply_overrides(config: Config[T], overrides: Iterable[str]) -> Config[T]:
    """The configuration with overrides."""
    if not (overrides := [*overrides]):
        return config
    bindings = parse_text(to_gin(config), "config")
    add_overrides(bindings, overrides)
    return resolve(bindings, config.name)


def resolve(bindings: Bindings, root: str) -> Config[Any]:
    """The configuration of `root()` from bindings, which it must use."""
    bindings = _place_paths(bindings, root)
    resolver = Resolver(bindings)
    config = resolver.resolve_root(root)
    used = resolver.reached | resolver.find_macro_keys()
    unused = []
    for key, binding in bindings.items():
        override = binding.location.is_override
        hidden = bool(key.parameter) and key not in resolver.deciding
        if key in used and not (override and hidden):
            continue
        if not binding.included and not _is_replaced(key, bindings, root):
            reason = _explain_unused(key, root, resolver)
            raise ConfigError(f"{binding.location}: {reason}")
        unused.append(f"{binding.location}: nothing uses {key}")
    return dataclasses.replace(config, unused_bindings=tuple(unused))


def _place_paths(bindings: Bindings, root: str) -> Bindings:
    """The bindings, with an override of a path as one of the class that is there."""
    macros = Resolver(bindings).find_macro_keys()
    paths = {
        key: binding
        for key, binding in bindings.items()
        if not key.parameter and key not in macros and not _as_written(binding)
    }
    placed = {key: bindings[key] for key in bindings if key not in paths}
    for path, binding in paths.items():
        key = _find_key(path, binding.location, placed, root)
        other = placed[key].location if key in placed else binding.location
        message = f"{binding.location} and {other} set the same value: give one"
        require(other == binding.location or not other.is_override, message)
        bind(placed, key, binding.value, binding.location)
    return placed


def _find_key(
    path: BindingKey, location: Location, bindings: Bindings, root: str
) -> BindingKey:
    """What an override of a path binds. A word that is no path stays what it is."""
    resolver = Resolver(bindings)
    config = resolver.resolve_root(root)
    nodes = [place for place, node, *_ in walk(config) if isinstance(node, Config)]
    places = dict(zip(nodes, resolver.seen, strict=True))  # both parents first
    holder, _, parameter = path.name.rpartition(".")
    scope, name = places.get(holder, ((), ""))
    if not name or parameter not in config_fields(find(name, location)):
        if path.name.partition(".")[0] in config.fields:
            near = suggest(path.name, [known for known, _ in config.flatten()])
            raise ConfigError(f"{location}: {config} has no field {path}{near}")
        if holder:
            find(holder, location, parameter)  # raises
        return path
    key = BindingKey(scope, name, parameter)
    others = [
        f"{place}.{parameter}"
        for place, (inner, other) in places.items()
        if place != holder and other == name and inner[: len(scope)] == scope
    ]
    require(
        not others,
        f"{location}: write {key}=VALUE, which sets {', '.join(others)} too; or use"
        f" @NEW/{name} in place of this @{name}, and NEW/{name}.{parameter}=VALUE",
    )
    return key


def _as_written(binding: Binding) -> Binding | None:
    """The binding of a file; None if only overrides set it."""
    lines = (binding, *binding.replaced)
    return next((x for x in lines if not x.location.is_override), None)


def _is_replaced(key: BindingKey, bindings: Bindings, root: str) -> bool:
    """Whether the files alone use a binding of theirs, and the overrides do not."""
    if bindings[key].location.is_override:
        return False
    written = {k: old for k, new in bindings.items() if (old := _as_written(new))}
    resolver = Resolver(written)
    try:
        resolver.resolve_root(root)
    except ConfigError:  # incomplete without the overrides
        return True
    return key in resolver.reached | resolver.find_macro_keys()


def _explain_unused(key: BindingKey, root: str, resolver: "Resolver") -> str:
    """Why nothing uses a binding, and the nearest names that are used."""
    if key in resolver.reached:
        hiding = sorted(k for k in resolver.deciding if k[1:] == key[1:])
        found = ", ".join(f"{k} ({resolver.bindings[k].location})" for k in hiding)
        return f"{key} is hidden everywhere, by {found}"
    reason = f"nothing under @{root}() uses {key}"
    if key.parameter:
        seen = ["/".join((*scope, name)) for scope, name in resolver.seen]
        matches = sorted({f"@{x}" for x in seen if x.rpartition("/")[2] == key.name})
        near = suggest("/".join((*key.scope, key.name)), seen, near_only=True)
        return f"{reason}; there is {', '.join(matches)}" if matches else reason + near
    if is_known(key.name):
        return f"{reason}: write {key.name}.parameter=value"
    macros = [f"{k}" for k in resolver.find_macro_keys() if k != key]
    near = suggest(key.name, macros, near_only=True)
    names = {name for _, name in resolver.seen}
    for parameter in (key.name, *find_synonyms(key.name)):
        owners = find_owners(parameter)
        owners = [x for x in owners if x.split(".")[0] in names] or owners
        near = near or (f"; there is {', '.join(owners)}" if owners else "")
    return reason + near


def from_json(text: str, where: object = "JSON") -> Config[Any]:
    """The inverse of `Config.to_json`, checked against the current signatures."""
    content = parse_object(text.encode(), where)
    try:
        value = _from_jsonable(content)
    except WRONG_KIND as error:
        raise ConfigError(f"{where} is not a configuration: {error!r}") from error
    message = f'{where}: a configuration starts with {{"@Name()": {{...}}}}'
    require(isinstance(value, Ref), message)
    return Resolver({}, RECORDED).resolve_default(value, (), f"{where}")


def _from_jsonable(value: Any) -> Any:
    """The inverse of `to_jsonable`, with references in place of configs."""
    if not isinstance(value, dict):
        return map_items(value, _from_jsonable)
    name, *_ = (*value, "")
    if name == "=float":
        return float(value[name])
    if name == "=map":
        return {_from_jsonable(key): _from_jsonable(item) for key, item in value[name]}
    fields = value[name] if name.startswith("@") else value
    items = {key: _from_jsonable(item) for key, item in fields.items()}
    if fields is value:
        return items
    return Ref((), name.strip("@()"), name.endswith("()"), items)


class Resolver:
    """Follows references from a root and records the bindings that it reads."""

    def __init__(self, bindings: Bindings, source: Provenance = DEFAULT):
        self.bindings = bindings
        self.source = source  # provenance of the fields of default references
        self.reached: set[BindingKey] = set()  # they match some reference
        self.deciding: set[BindingKey] = set()  # no longer scope hides them everywhere
        self.seen: list[tuple[Scope, str]] = []  # references
        self._open: list[tuple[Scope, str]] = []
        self._nodes = 0

    def resolve_root(self, root: str) -> Config[Any]:
        """The config of `root()`. It reads all bindings that can be used."""
        try:
            config = self.resolve_ref(Ref((), root, called=True), (), "command line")
        except RecursionError:
            message = "the config is nested too deeply: simplify it."
            raise ConfigError(message) from None
        check_depth(to_jsonable(config), "the config", "Simplify it.")
        return config

    def resolve_ref(self, ref: Ref, scope: Scope, where: object) -> Config[Any]:
        """The config of a reference in a scope."""
        self._count_node(where)
        scope = ref.scope or scope
        known, node = config_fields(find(ref.name, where)), (scope, ref.name)
        require(node not in self._open, f"{where}: @{ref.name} contains itself")
        for name in ref.fields:
            if name not in known:
                near = suggest(name, known)
                raise ConfigError(f"{where}: @{ref.name} has no field {name!r}{near}")
        self._open.append(node)
        self.seen.append(node)
        fields: dict[str, Any] = {}
        provenance: dict[str, Provenance] = {}
        for name, field in known.items():
            label = f"{ref.name}.{name}"
            if keys := self._matching_keys(scope, ref.name, name):
                self._check_required(keys[0])
                binding = self.bindings[keys[0]]
                for inner in find_refs(binding.value, Ref):
                    find_choice(inner.name, field.annotation, binding.location)
                value = self.resolve_value(binding.value, scope, binding.location)
                provenance[name] = tuple(self._trace(keys))
            else:
                value = ref.fields.get(name, field.default)
                if value is REQUIRED:
                    missing = self._describe_missing(ref.name, scope)
                    raise ConfigError(f"{where}: {missing}")
                provenance[name] = self.source if name in ref.fields else DEFAULT
                origin = f"{provenance[name][0]} {label}"
                value = self.resolve_default(value, scope, origin)
            location = provenance[name][0]
            kind, limits = field.annotation, (*field.ranges, INT64)
            fields[name] = coerce_field(value, kind, label, location, limits)
        self._open.pop()
        return Config(ref.name, ref.called, fields, provenance)

    def _count_node(self, where: object) -> None:
        self._nodes += 1
        message = f"{where}: with its macros the config has over {MAX_NODES:,} values"
        require(self._nodes <= MAX_NODES, message)

    def _matching_keys(
        self, scope: Scope, name: str, parameter: str
    ) -> list[BindingKey]:
        """The bindings in all prefixes of `scope`, the longest first: it decides."""
        lengths = range(len(scope), -1, -1)
        matching = (BindingKey(scope[:n], name, parameter) for n in lengths)
        keys = [key for key in matching if key in self.bindings]
        self.reached.update(keys)
        self.deciding.update(keys[:1])
        return keys

    def _describe_missing(self, name: str, scope: Scope) -> str:
        """All values that a reference still needs."""
        missing = [
            f"{name}.{parameter}"
            for parameter, field in config_fields(find(name, "resolve")).items()
            if field.default is REQUIRED
            and not self._matching_keys(scope, name, parameter)
        ]
        pronoun = "it" if len(missing) == 1 else "them"
        return f"@{name} needs {', '.join(missing)}: set {pronoun}"

    def _check_required(self, key: BindingKey) -> None:
        """Refuses `%gin.REQUIRED`."""
        value, location, *_ = self.bindings[key]
        message = f"{location}: {key} is required: add {key}=VALUE"
        require(value != REQUIRED_MACRO, message)

    def resolve_value(
        self, value: Any, scope: Scope, where: object, macros: tuple[Macro, ...] = ()
    ) -> Any:
        """Resolves references and macros, of which `macros` are open, in any value."""
        self._count_node(where)
        if isinstance(value, Ref):
            return self.resolve_ref(value, scope, where)
        if isinstance(value, Macro):
            return self._resolve_macro(value, scope, where, macros)
        items = map_items(value, lambda x: self.resolve_value(x, scope, where, macros))
        if not isinstance(value, dict):
            return items
        try:
            keys = (self.resolve_value(key, scope, where, macros) for key in items)
            return dict(zip(keys, items.values(), strict=True))
        except TypeError:
            shown = format_value(value)
            raise ConfigError(f"{where}: a key must be a scalar: {shown}") from None

    def _resolve_macro(
        self, macro: Macro, scope: Scope, where: object, macros: tuple[Macro, ...]
    ) -> Any:
        require(macro != REQUIRED_MACRO, f"{where}: {macro} must be the whole value")
        if macro.key not in self.bindings:
            defined = [f"{key}" for key in self.bindings if not key.parameter]
            near = suggest(f"{macro.key}", defined)
            raise ConfigError(f"{where}: no macro {macro.key} is defined{near}")
        binding = self.bindings[macro.key]
        message = f"{binding.location}: {macro} is defined by itself"
        require(macro not in macros, message)
        self._check_required(macro.key)
        macros = (*macros, macro)
        return self.resolve_value(binding.value, scope, binding.location, macros)

    def resolve_default(self, value: Any, scope: Scope, where: str) -> Any:
        """A default, with its configurables resolved as if the config named them."""
        try:
            reference = as_reference(value)
        except ConfigError as error:
            raise ConfigError(f"{where}: {error}") from error
        if isinstance(reference, Ref):
            return self.resolve_ref(reference, scope, where)
        return map_items(value, lambda x: self.resolve_default(x, scope, where))

    def find_macro_keys(self) -> set[BindingKey]:
        """The macros that any binding names, also a replaced one."""
        return {
            macro.key
            for binding in self.bindings.values()
            for value in (binding.value, *(old.value for old in binding.replaced))
            for macro in find_refs(value, Macro)
        }

    def _trace(self, keys: list[BindingKey]) -> Iterator[str]:
        """The location of the deciding binding, then those it replaced or hides."""
        first, *hidden = keys
        yield self._format_origin(first)
        yield from self._trace_replaced(first)
        for key in hidden:
            binding = self.bindings[key]
            yield f"hides {key} = {format_value(binding.value)} of {binding.location}"

    def _format_origin(self, key: BindingKey) -> str:
        """The location of a binding, and those of the macros in it."""
        binding = self.bindings[key]
        macros = dict.fromkeys(find_refs(binding.value, Macro))
        origins = [f"{macro} from {self._format_origin(macro.key)}" for macro in macros]
        return f"{binding.location}{' with ' * bool(origins)}{', '.join(origins)}"

    def _trace_replaced(self, key: BindingKey) -> Iterator[str]:
        binding = self.bindings[key]
        for old in binding.replaced:
            yield f"replaces {format_value(old.value)} of {old.location}"
        for macro in dict.fromkeys(find_refs(binding.value, Macro)):
            yield from self._trace_replaced(macro.key)
