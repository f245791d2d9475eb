"""What an annotation takes: the closed set of types a configuration may hold."""

import inspect
import math
from collections.abc import Callable, Iterable, Mapping
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from lmx.config.node import Node, format_value
from lmx.config.registry import ConfigError, find, suggest
from lmx.config.types import SCALARS, format_type


def coerce_field(value: Any, kind: Any, label: str, where: object) -> Any:
    """`value` as its annotation wants it, or a refusal that names both."""
    try:
        return coerce(value, kind)
    except TypeError:
        advice = _suggest_fix(value, kind)
        raise ConfigError(
            f"{where}: {label} wants {format_type(kind)}, got {format_value(value)}{advice}"
        ) from None


def coerce(value: Any, kind: Any) -> Any:
    """`value` in the type `kind`, an int made a float where a float is asked for.

    Knows scalars, None, Literal, unions, tuples, mappings, classes and factories
    (`Callable[..., X]`); raises TypeError for any other value.
    """
    origin, args = get_origin(kind) or kind, get_args(kind)
    if kind is Any:
        return _coerce_any(value)
    if isinstance(value, Node) and value.called:
        return _check_called(value, kind)
    if origin in (Union, UnionType):
        return _coerce_union(value, args)
    if isinstance(value, Node):
        return _check_factory(value, kind)
    if origin is tuple and isinstance(value, tuple | list):
        kinds = args or (Any, ...)
        kinds = kinds[:1] * len(value) if kinds[-1] is ... else kinds
        if len(kinds) == len(value):
            return tuple(map(coerce, value, kinds))
    if origin is Mapping and isinstance(value, Mapping):
        keys, items = args or (Any, Any)
        return {
            _coerce_key(coerce(k, keys)): coerce(v, items) for k, v in value.items()
        }
    return _coerce_scalar(value, args if origin is Literal else kind)


def _coerce_scalar(value: Any, kind: Any) -> Any:
    """A scalar, None, or one of the `kind` of a Literal. No bool passes for an int."""
    if isinstance(kind, tuple):
        if any(type(value) is type(word) and value == word for word in kind):
            return value
    elif kind is float and type(value) in (int, float) and not math.isnan(value):
        return float(value)
    elif kind is not float and kind in SCALARS and type(value) is kind:
        return value
    raise TypeError


def _coerce_any(value: Any) -> Any:
    """A value of no particular type, if JSON could keep it."""
    if isinstance(value, Node):
        return value
    if isinstance(value, tuple | list):
        return tuple(map(_coerce_any, value))
    if isinstance(value, Mapping):
        return {_coerce_key(key): _coerce_any(item) for key, item in value.items()}
    return _coerce_scalar(value, type(value))


def _coerce_key(value: Any) -> Any:
    return _coerce_scalar(value, type(value))


def _coerce_union(value: Any, kinds: Iterable[Any]) -> Any:
    """`value` as the first of several types that will have it, exact ones first."""
    for kind in sorted(kinds, key=lambda kind: kind is not type(value)):
        try:
            return coerce(value, kind)
        except TypeError:
            continue
    raise TypeError


def _check_called(node: Node, kind: Any) -> Node:
    """`resolve_ref`, if it returns what is wanted: maybe a callable (a hook, a schedule)."""
    if is_assignable(return_type(node), kind):
        return node
    raise TypeError


def _check_factory(node: Node, kind: Any) -> Node:
    """`resolve_ref`, if a factory (`Callable[..., X]`) of what it names is wanted."""
    if (get_origin(kind) or kind) is Callable:
        if is_assignable(
            return_type(node), get_args(kind)[-1] if get_args(kind) else Any
        ):
            return node
    raise TypeError


def return_type(node: Node) -> Any:
    """The annotation of what calling `resolve_ref` returns."""
    thing = find(node.name, "type")
    return thing if inspect.isclass(thing) else _return_hint(thing)


def _return_hint(function: Callable[..., Any]) -> Any:
    try:
        return get_type_hints(function).get("return", Any)
    except NameError:  # imported for type checkers only
        return Any


def is_assignable(actual: Any, expected: Any) -> bool:
    """Whether what is annotated `made` can stand where `wanted` is asked for."""
    if Any in (actual, expected) or actual == expected:
        return True
    if get_origin(actual) in (Union, UnionType):
        return all(is_assignable(kind, expected) for kind in get_args(actual))
    if get_origin(expected) in (Union, UnionType):
        return any(is_assignable(actual, kind) for kind in get_args(expected))
    have, want = get_origin(actual) or actual, get_origin(expected) or expected
    if want is Callable:
        return _is_callable(
            actual, get_args(expected)[-1] if get_args(expected) else Any
        )
    if not (isinstance(have, type) and isinstance(want, type)):
        return False
    try:
        return issubclass(have, want)
    except TypeError:  # a Protocol that cannot be checked
        return True


def _is_callable(actual: Any, result: Any) -> bool:
    """Whether what is annotated `made` can be called, and then returns `result`."""
    result = NoneType if result is None else result
    if (get_origin(actual) or actual) is Callable:
        return is_assignable(get_args(actual)[-1], result) if get_args(actual) else True
    call = inspect.getattr_static(get_origin(actual) or actual, "__call__", None)
    return inspect.isfunction(call) and is_assignable(_return_hint(call), result)


def _suggest_fix(value: Any, kind: Any) -> str:
    """What would do instead, where that is easily said."""
    if isinstance(value, Node):
        other = Node(value.name, not value.called, {})
        try:
            coerce(other, kind)
        except TypeError:
            return ""
        return f": write {other}"
    if get_origin(kind) is Literal and isinstance(value, str):
        near = suggest(value, filter(_is_text, get_args(kind)))
        return near if "did you mean" in near else ""
    if type(value) not in (*SCALARS, tuple, list, dict, bytes, complex):
        return ", which no page can write: make it configurable"
    return ""


def _is_text(value: Any) -> bool:
    return isinstance(value, str)
