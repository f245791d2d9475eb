"""What an annotation takes: the closed set of types a configuration may hold."""

import inspect
import math
from collections.abc import Callable, Iterable, Mapping
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from lmx.config.annotation import SCALARS, words
from lmx.config.names import ConfigError, find, hint
from lmx.config.node import Node, written


def typed(value: Any, kind: Any, label: str, where: object) -> Any:
    """`value` as its annotation wants it, or a refusal that names both."""
    try:
        return conform(value, kind)
    except TypeError:
        advice = _advice(value, kind)
        raise ConfigError(
            f"{where}: {label} wants {words(kind)}, got {written(value)}{advice}"
        ) from None


def conform(value: Any, kind: Any) -> Any:
    """`value` in the type `kind`, an int made a float where a float is asked for.

    Knows scalars, None, Literal, unions, tuples, mappings, classes and factories
    (`Callable[..., X]`); raises TypeError for any other value.
    """
    origin, args = get_origin(kind) or kind, get_args(kind)
    if kind is Any:
        return _plain(value)
    if isinstance(value, Node) and value.called:
        return _called(value, kind)
    if origin in (Union, UnionType):
        return _first(value, args)
    if isinstance(value, Node):
        return _factory(value, kind)
    if origin is tuple and isinstance(value, tuple | list):
        kinds = args or (Any, ...)
        kinds = kinds[:1] * len(value) if kinds[-1] is ... else kinds
        if len(kinds) == len(value):
            return tuple(map(conform, value, kinds))
    if origin is Mapping and isinstance(value, Mapping):
        keys, items = args or (Any, Any)
        return {_key(conform(k, keys)): conform(v, items) for k, v in value.items()}
    return _scalar(value, args if origin is Literal else kind)


def _scalar(value: Any, kind: Any) -> Any:
    """A scalar, None, or one of the `kind` of a Literal. No bool passes for an int."""
    if isinstance(kind, tuple):
        if any(type(value) is type(word) and value == word for word in kind):
            return value
    elif kind is float and type(value) in (int, float) and not math.isnan(value):
        return float(value)
    elif kind is not float and kind in SCALARS and type(value) is kind:
        return value
    raise TypeError


def _plain(value: Any) -> Any:
    """A value of no particular type, if JSON could keep it."""
    if isinstance(value, Node):
        return value
    if isinstance(value, tuple | list):
        return tuple(map(_plain, value))
    if isinstance(value, Mapping):
        return {_key(key): _plain(item) for key, item in value.items()}
    return _scalar(value, type(value))


def _key(value: Any) -> Any:
    return _scalar(value, type(value))


def _first(value: Any, kinds: Iterable[Any]) -> Any:
    """`value` as the first of several types that will have it, exact ones first."""
    for kind in sorted(kinds, key=lambda kind: kind is not type(value)):
        try:
            return conform(value, kind)
        except TypeError:
            continue
    raise TypeError


def _called(node: Node, kind: Any) -> Node:
    """`node`, if it returns what is wanted: maybe a callable (a hook, a schedule)."""
    if fits(product(node), kind):
        return node
    raise TypeError


def _factory(node: Node, kind: Any) -> Node:
    """`node`, if a factory (`Callable[..., X]`) of what it names is wanted."""
    if (get_origin(kind) or kind) is Callable:
        if fits(product(node), get_args(kind)[-1] if get_args(kind) else Any):
            return node
    raise TypeError


def product(node: Node) -> Any:
    """The annotation of what calling `node` returns."""
    thing = find(node.name, "type")
    return thing if inspect.isclass(thing) else _returned(thing)


def _returned(function: Callable[..., Any]) -> Any:
    try:
        return get_type_hints(function).get("return", Any)
    except NameError:  # imported for type checkers only
        return Any


def fits(made: Any, wanted: Any) -> bool:
    """Whether what is annotated `made` can stand where `wanted` is asked for."""
    if Any in (made, wanted) or made == wanted:
        return True
    if get_origin(made) in (Union, UnionType):
        return all(fits(kind, wanted) for kind in get_args(made))
    if get_origin(wanted) in (Union, UnionType):
        return any(fits(made, kind) for kind in get_args(wanted))
    have, want = get_origin(made) or made, get_origin(wanted) or wanted
    if want is Callable:
        return _callable(made, get_args(wanted)[-1] if get_args(wanted) else Any)
    if not (isinstance(have, type) and isinstance(want, type)):
        return False
    try:
        return issubclass(have, want)
    except TypeError:  # a Protocol that cannot be checked
        return True


def _callable(made: Any, result: Any) -> bool:
    """Whether what is annotated `made` can be called, and then returns `result`."""
    result = NoneType if result is None else result
    if (get_origin(made) or made) is Callable:
        return fits(get_args(made)[-1], result) if get_args(made) else True
    call = inspect.getattr_static(get_origin(made) or made, "__call__", None)
    return inspect.isfunction(call) and fits(_returned(call), result)


def _advice(value: Any, kind: Any) -> str:
    """What would do instead, where that is easily said."""
    if isinstance(value, Node):
        other = Node(value.name, not value.called, {})
        try:
            conform(other, kind)
        except TypeError:
            return ""
        return f": write {other}"
    if get_origin(kind) is Literal and isinstance(value, str):
        near = hint(value, filter(_is_text, get_args(kind)))
        return near if "did you mean" in near else ""
    if type(value) not in (*SCALARS, tuple, list, dict, bytes, complex):
        return ", which no page can write: make it configurable"
    return ""


def _is_text(value: Any) -> bool:
    return isinstance(value, str)
