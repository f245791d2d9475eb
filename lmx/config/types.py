"""The annotations that a configurable parameter may have, and their text form."""

from collections.abc import Callable, Iterable, Mapping, MutableMapping, Sequence
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin

T = TypeVar("T")

EXECUTION = "execution"
Execution = Annotated[T, EXECUTION]  # affects how a run is executed, not its result

SCALARS = (bool, int, float, str, NoneType)
UNIONS = (Union, UnionType)

_ALTERNATIVES = {
    **dict.fromkeys((list, set, frozenset, Sequence, Iterable), "tuple[X, ...]"),
    **dict.fromkeys((dict, MutableMapping), "Mapping[str, X]"),
    **dict.fromkeys((bytes, complex), "int, float or str"),
    type: "Callable[..., X]",
}


def is_execution(hint: Any) -> bool:
    """Whether `hint` is `Execution[X]`."""
    return get_origin(hint) is Annotated and EXECUTION in hint.__metadata__


def unsupported_reason(hint: Any) -> str | None:
    """Why no config value can satisfy an annotation (with its extras), or None."""
    if get_origin(hint) is Annotated:
        hint = get_args(hint)[0]
    origin, args = get_origin(hint) or hint, get_args(hint)
    if origin in _ALTERNATIVES:
        return f"{format_type(hint)} cannot be written in a config: annotate it as" + (
            f" {_ALTERNATIVES[origin]}"
        )
    if origin in (*UNIONS, tuple, Mapping):
        inner = [arg for arg in args if arg is not ...]
        if any(map(is_execution, inner)):
            return "Execution must be outermost: Execution[X | None]"
        return next(filter(None, map(unsupported_reason, inner)), None)
    if origin is Literal and not all(type(arg) in SCALARS for arg in args):
        return f"{format_type(hint)}: a Literal holds str, int, float, bool or None"
    if hint is Any or origin is Literal or isinstance(origin, type):
        return None
    return f"{format_type(hint)} must be a class, scalar, Literal, union, tuple or" + (
        " Mapping"
    )


def format_type(hint: Any) -> str:
    """An annotation as text, for error messages and listings."""
    origin, args = get_origin(hint) or hint, get_args(hint)
    if origin is Literal:
        return " or ".join(map(repr, args))
    if origin in UNIONS:
        return " or ".join(map(format_type, args))
    if hint is NoneType:
        return "None"
    if hint is Any:
        return "a plain value"
    if origin is Callable:
        return f"Callable[..., {format_type(args[-1])}]" if args else "Callable"
    if args:
        inner = ", ".join("..." if arg is ... else format_type(arg) for arg in args)
        return f"{getattr(origin, '__name__', origin)}[{inner}]"
    return getattr(hint, "__name__", str(hint))
