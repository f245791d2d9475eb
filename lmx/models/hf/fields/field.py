"""Mappings between fields of a config.json and gin bindings, in both directions."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from lmx.config.gin import Ref
from lmx.config.registry import ConfigError
from lmx.config.value import Config, format_value, to_jsonable

Values = Mapping[str, Any]


class FieldMap(NamedTuple):
    """Maps a few fields of a config.json to bindings and back.

    Attributes:
        names: the fields that it reads.
        with_defaults: the fields as transformers reads them, defaults filled in.
        to_bindings: the bindings of these fields, as `{"Class.parameter": value}`.
        to_hf: the fields of a configuration; none if it lacks the parameters.
    """

    names: tuple[str, ...]
    with_defaults: Callable[[Values], dict[str, Any]]
    to_bindings: Callable[[Values], dict[str, Any]]
    to_hf: Callable[[Config], dict[str, Any]]


def map_field(
    name: str,
    binding: str,
    default: Any | Callable[[Values], Any] = None,
    *,
    values: Mapping[Any, Any] | None = None,
    aliases: tuple[str, ...] = (),
    nullable: bool = False,
    path: str = "",
) -> FieldMap:
    """Maps one field to one parameter.

    `default` replaces a missing field or a null; a function receives the fields mapped
    before. `values` translates the values of the field, `aliases` are other names for
    it. A `nullable` field keeps its null. `path` says where to read the parameter, if
    several parts of a model have one.
    """
    names = (name, *aliases)

    def with_defaults(fields: Values) -> dict[str, Any]:
        given = (fields[n] for n in names if n in fields)
        value = next((v for v in given if nullable or v is not None), default)
        return {name: value(fields) if callable(value) else value}

    def to_bindings(fields: Values) -> dict[str, Any]:
        value = fields[name]
        if values is not None and value not in values:
            known = ", ".join(map(repr, values))
            raise ConfigError(f"{name} = {value!r}: lmx supports only {known}.")
        return {binding: value if values is None else values[value]}

    def to_hf(config: Config) -> dict[str, Any]:
        found = find_values(config, path or binding)
        if not found:
            return {}
        if values is None:
            return {name: to_jsonable(found[0])}
        theirs = {format_value(value): key for key, value in values.items()}
        text = format_value(found[0])
        return {name: theirs[text]} if text in theirs else {}

    return FieldMap(names, with_defaults, to_bindings, to_hf)


def map_fields(
    defaults: Values,
    to_bindings: Callable[[Values], dict[str, Any]],
    to_hf: Callable[[Config], dict[str, Any]],
) -> FieldMap:
    """Maps several fields whose defaults are constants."""

    def with_defaults(fields: Values) -> dict[str, Any]:
        given = {name: fields.get(name) for name in defaults}
        return {n: defaults[n] if v is None else v for n, v in given.items()}

    return FieldMap(tuple(defaults), with_defaults, to_bindings, to_hf)


def derive(binding: str, compute: Callable[[Values], Any]) -> FieldMap:
    """Binds a parameter that follows from fields mapped before."""
    return map_fields({}, lambda fields: {binding: compute(fields)}, lambda config: {})


def ref(name: str, called: bool = False, scope: str = "") -> Ref:
    """The reference `@scope/name`, or `@scope/name()`."""
    return Ref((scope,) if scope else (), name, called)


def find_values(config: Config, binding: str) -> list[Any]:
    """The values of a parameter in all parts of the model."""
    try:
        paths = config.find_paths(binding.rpartition("/")[2])
    except ConfigError:
        return []
    return [config[path] for path in paths if path.startswith("model.")]


def list_layers(config: Config, part: str) -> list[Config]:
    """The `attention` or `mlp` of each layer."""
    first = config["model.first_mlps"] if part == "mlp" else ()
    cycle = config[f"model.{part}"]
    cycle = cycle if isinstance(cycle, tuple) else (cycle,)
    rest = range(config["model.depth"] - len(first))
    return [*first, *(cycle[i % len(cycle)] for i in rest)]


def find_cycle(kinds: list[str]) -> list[str]:
    """The shortest prefix that repeats to `kinds`; the last repetition may be cut."""
    periods = range(1, len(kinds) + 1)
    return next(kinds[:n] for n in periods if kinds[n:] == kinds[: len(kinds) - n])
