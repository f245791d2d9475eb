"""Checks values against annotations and converts them where that loses nothing."""

import inspect
import math
from collections.abc import Callable, Mapping
from types import NoneType
from typing import Any, Literal, get_args, get_origin, get_type_hints

from lmx.config.names import find_nearest
from lmx.config.registry import (
    SCALARS,
    UNIONS,
    ConfigError,
    Range,
    find,
    format_type,
    import_all,
    is_known,
    require,
    suggest,
)
from lmx.config.value import Config, format_value

SHOWN = 8  # choices in an error


def coerce_field(
    value: Any, kind: Any, label: str, location: object, ranges: tuple[Range, ...] = ()
) -> Any:
    """`coerce` for a field, which a ConfigError names; refuses numbers out of range."""
    try:
        value = coerce(value, kind)
    except (TypeError, OverflowError):
        fix = _suggest_fix(value, kind)
        raise ConfigError(
            f"{location}: {label} must be {format_type(kind)}, got"
            f" {format_value(value)}{fix}"
        ) from None
    items = value if isinstance(value, tuple) else (value,)
    for limits in ranges:
        require(
            all(limits.contains(x) for x in items if type(x) in (int, float)),
            f"{location}: {label} is {format_value(value)}: it must be {limits.text}.",
        )
    return value


def coerce(value: Any, kind: Any) -> Any:
    """`value` as the type `kind`; an int becomes a float where a float is expected.

    Raises TypeError for a value of another type.
    """
    origin, args = get_origin(kind) or kind, get_args(kind)
    if isinstance(value, Config):
        if not _is_instance(value, kind):
            raise TypeError
        return value
    if origin in UNIONS:
        return _coerce_union(value, args)
    if origin in (tuple, Any) and isinstance(value, tuple | list):
        kinds = args or (Any, ...)
        kinds = kinds[:1] * len(value) if kinds[-1] is ... else kinds
        if len(kinds) == len(value):
            return tuple(map(coerce, value, kinds))
    if origin in (Mapping, Any) and isinstance(value, Mapping):
        keys, items = args or (Any, Any)
        coerced = {coerce(k, keys): coerce(v, items) for k, v in value.items()}
        return {_coerce_scalar(k, type(k)): v for k, v in coerced.items()}
    if kind is Any:
        kind = type(value)
    return _coerce_scalar(value, args if origin is Literal else kind)


def _coerce_scalar(value: Any, kind: Any) -> Any:
    """A scalar, None, or one of the values `kind` of a Literal; bool is not int."""
    if isinstance(kind, tuple):
        if any(type(value) is type(choice) and value == choice for choice in kind):
            return value
    elif kind is float and type(value) in (int, float) and not math.isnan(value):
        return float(value)
    elif kind is not float and kind in SCALARS and type(value) is kind:
        return value
    raise TypeError


def _coerce_union(value: Any, kinds: tuple[Any, ...]) -> Any:
    """`value` as the first of several types that accepts it, its own type first."""
    for kind in sorted(kinds, key=lambda kind: kind is not type(value)):
        try:
            return coerce(value, kind)
        except TypeError:
            continue
    raise TypeError


def _is_instance(config: Config, kind: Any) -> bool:
    """Whether what a called config returns, or an uncalled one as factory, fits."""
    if config.called:
        return is_assignable(return_type(config), kind)
    if get_origin(kind) in UNIONS:
        return any(_is_instance(config, each) for each in get_args(kind))
    is_factory = (get_origin(kind) or kind) in (Callable, Any)
    return is_factory and is_assignable(return_type(config), _result_of(kind))


def return_type(config: Config) -> Any:
    """The annotation of what calling `config` returns."""
    function = find(config.name, "type")
    return function if inspect.isclass(function) else _return_hint(function)


def _return_hint(function: Callable[..., Any]) -> Any:
    try:
        return get_type_hints(function).get("return", Any)
    except NameError:  # imported for type checkers only
        return Any


def _result_of(kind: Any) -> Any:
    """X of `Callable[..., X]`."""
    return get_args(kind)[-1] if get_args(kind) else Any


def is_assignable(actual: Any, expected: Any) -> bool:
    """Whether a value annotated `actual` can be used where `expected` is required."""
    if Any in (actual, expected) or actual == expected:
        return True
    if get_origin(actual) in UNIONS:
        return all(is_assignable(kind, expected) for kind in get_args(actual))
    if get_origin(expected) in UNIONS:
        return any(is_assignable(actual, kind) for kind in get_args(expected))
    have, want = get_origin(actual) or actual, get_origin(expected) or expected
    if want is Callable:
        return _is_callable(have, actual, _result_of(expected))
    if not (isinstance(have, type) and isinstance(want, type)):
        return False
    try:
        return issubclass(have, want)
    except TypeError:  # a Protocol that cannot be checked
        return True


def _is_callable(origin: Any, actual: Any, result: Any) -> bool:
    """Whether a value annotated `actual` can be called and then returns `result`."""
    result = NoneType if result is None else result
    if origin is Callable:
        return is_assignable(_result_of(actual), result)
    call = inspect.getattr_static(origin, "__call__", None)
    return inspect.isfunction(call) and is_assignable(_return_hint(call), result)


def find_choice(name: str, kind: Any, where: object) -> Callable[..., Any]:
    """`find`, whose error lists what a config can name where `kind` is expected."""
    try:
        return find(name, where)
    except ConfigError as error:
        known = is_known(name) or "did you mean" in str(error)
        raise ConfigError(f"{error}{'' if known else _list_choices(kind)}") from error


def find_choices(*kinds: Any) -> dict[str, Callable[..., Any]]:
    """What a config can write where one of `kinds` is expected, as `@RoPE()`."""
    wanted = [part for kind in kinds for part in split_kind(kind)]
    choices = {}
    for name in import_all():
        for called in (False, True):
            config = Config(name, called, {})
            parts = [part for part in wanted if _is_factory(part) is not called]
            is_typed = return_type(config) is not Any
            if is_typed and any(_is_instance(config, part) for part in parts):
                choices[f"{config}"] = find(name, "list")
    return choices


def _is_factory(kind: Any) -> bool:
    return (get_origin(kind) or kind) is Callable


def split_kind(kind: Any) -> list[Any]:
    """The types in a union, tuple or mapping, or `kind` itself; without scalars."""
    if (get_origin(kind) or kind) in (*UNIONS, tuple, Mapping):
        return [part for each in get_args(kind) for part in split_kind(each)]
    is_plain = kind in (*SCALARS, ..., Any, Callable) or get_origin(kind) is Literal
    return [] if is_plain else [kind]


def name_kind(kind: Any) -> str:
    """The name of a type without items: that of X for `Callable[..., X]`."""
    return format_type(_result_of(kind) if _is_factory(kind) else kind)


def _list_choices(kind: Any, value: Any = None) -> str:
    """Ends a message: the choice that a word means, or the first few."""
    choices, names = [*find_choices(kind)], [*map(name_kind, split_kind(kind))]
    near = find_nearest(value, [x.strip("@()") for x in choices]) if value else None
    if near:
        return f": write {next(x for x in choices if x.strip('@()') == near)}"
    few = [*choices[:SHOWN], *["..."] * (len(choices) > SHOWN)]
    hint = f" (`lmx config list {names[0]}`)" if names else ""
    return f"; one of {', '.join(few)}{hint}" if few else ""


def _suggest_fix(value: Any, kind: Any) -> str:
    """A value that would be accepted, where it is easy to name."""
    if isinstance(value, Config):
        other = Config(value.name, not value.called, {})
        return f": write {other}" if _is_instance(other, kind) else _list_choices(kind)
    if get_origin(kind) is Literal and isinstance(value, str):
        choices = [choice for choice in get_args(kind) if isinstance(choice, str)]
        return suggest(value, choices, near_only=True)
    if type(value) not in (*SCALARS, tuple, list, dict, bytes, complex):
        return ", which a config cannot express: make it @configurable"
    return _list_choices(kind, value if isinstance(value, str) else None)
