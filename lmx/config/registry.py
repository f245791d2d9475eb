"""What a `.gin` file can name: classes and functions, and the choices they offer.

A signature is the schema. Left of its star stands what the caller knows (a width, a
key); right of it what an experiment chooses:

    def __init__(self, width: int, rngs: nnx.Rngs, *, heads: int, kv_heads: int): ...
"""

import contextlib
import dataclasses
import difflib
import functools
import inspect
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple, TypeVar, get_type_hints

from lmx.config.discover import find_declarations, import_declaring
from lmx.config.types import Execution as Execution
from lmx.config.types import is_execution, unsupported_reason

Thing = TypeVar("Thing", bound=Callable[..., Any])

REQUIRED = inspect.Parameter.empty

_REGISTRY: dict[str, Callable[..., Any]] = {}  # filled by imports, never by experiments


class ConfigError(ValueError):
    """What was written cannot be meant. Says where, what, and what would do."""


class ConfigField(NamedTuple):
    """One parameter an experiment may set.

    `execution` choices say how a run is carried out: they do not change its identity.
    """

    annotation: Any
    default: Any = REQUIRED
    execution: bool = False


class DefaultRef(NamedTuple):
    """A default that an experiment could have written as a reference."""

    name: str
    called: bool
    fields: dict[str, Any]


def configurable(thing: Thing) -> Thing:
    """Lets `.gin` files name this class or function. Returns it as it is."""
    known = _REGISTRY.get(thing.__name__, thing)
    if (known.__module__, known.__qualname__) != (thing.__module__, thing.__qualname__):
        raise ConfigError(
            f"{thing.__name__!r} already names {known.__module__}.{known.__qualname__}:"
            f" give the one in {thing.__module__} another name."
        )
    with contextlib.suppress(NameError):  # a name defined below: checked at first use
        _inspect_fields(thing)
    _REGISTRY[thing.__name__] = thing  # a reloaded module replaces its own
    return thing


def find(name: str, where: object, parameter: str = "") -> Callable[..., Any]:
    """The class or function of that name, imported now if it ships with lmx.

    If there is none, the message begins with `location` and ends with the nearest name,
    or with those that have the parameter.
    """
    if name in _REGISTRY:
        return _REGISTRY[name]
    try:
        import_declaring(name)
    except ImportError as error:
        raise ConfigError(f"{where}: {name} cannot be had: {error}") from error
    if name in _REGISTRY:
        return _REGISTRY[name]
    near, there = (
        suggest(name, {*_REGISTRY, *find_declarations()}),
        ", ".join(find_owners(parameter)),
    )
    if there and "did you mean" not in near:
        near = f"; there is {there}"
    raise ConfigError(f"{where}: nothing configurable is named {name!r}{near}")


def is_registered(name: str) -> bool:
    """Whether something of that name was imported."""
    return name in _REGISTRY


def find_owners(parameter: str) -> list[str]:
    """`Name.parameter` for every name known so far that has the parameter, sorted."""
    names = (
        name
        for name in sorted(_REGISTRY)
        if parameter in config_fields(_REGISTRY[name])
    )
    return [f"{name}.{parameter}" for name in names]


def get_parameters(thing: Callable[..., Any]) -> Mapping[str, inspect.Parameter]:
    """The whole signature, with what only a caller gives."""
    # The metaclass of NNX hides the signature of a class, but not of its __init__.
    function = thing.__init__ if inspect.isclass(thing) else thing
    return inspect.signature(function).parameters


@functools.cache
def config_fields(thing: Callable[..., Any]) -> dict[str, ConfigField]:
    """What an experiment may set: the keyword-only parameters, in order."""
    return _inspect_fields(thing)


def _inspect_fields(thing: Callable[..., Any]) -> dict[str, ConfigField]:
    function = thing.__init__ if inspect.isclass(thing) else thing
    plain, full = get_type_hints(function), get_type_hints(function, None, None, True)
    made = _factory_defaults(thing)
    found = {}
    for name, parameter in get_parameters(thing).items():
        if parameter.kind is not parameter.KEYWORD_ONLY:
            continue
        label = f"{thing.__name__}.{name}"
        if name not in full:
            raise ConfigError(f"{label} has no annotation: what may it be?")
        if wrong := unsupported_reason(full[name]):
            raise ConfigError(f"{label}: {wrong}")
        default = made.get(name, parameter.default)
        found[name] = ConfigField(plain[name], default, is_execution(full[name]))
    return found


def _factory_defaults(thing: Callable[..., Any]) -> dict[str, Any]:
    """What the default factories of a dataclass make."""
    if not (inspect.isclass(thing) and dataclasses.is_dataclass(thing)):
        return {}
    return {
        field.name: field.default_factory()
        for field in dataclasses.fields(thing)
        if field.default_factory is not dataclasses.MISSING
    }


def as_reference(value: Any) -> DefaultRef | None:
    """A default that is configurable itself, or an instance of what is; or None."""
    if _is_registered(value):
        return DefaultRef(value.__name__, False, {})
    kind = type(value)
    if not _is_registered(kind):
        return None
    if not dataclasses.is_dataclass(kind):
        raise ConfigError(
            f"a default made by {kind.__name__} hides how it was made: make"
            f" {kind.__name__} a dataclass, or leave it to the experiment."
        )
    return DefaultRef(
        kind.__name__, True, {n: getattr(value, n) for n in config_fields(kind)}
    )


def _is_registered(thing: Any) -> bool:
    name = getattr(thing, "__name__", None)
    return isinstance(name, str) and _REGISTRY.get(name) is thing


def suggest(name: str, candidates: Iterable[str]) -> str:
    """ "; did you mean 'heads'?", or the few words there are, or nothing."""
    candidates = sorted(set(candidates))
    near = difflib.get_close_matches(
        name, candidates, n=1
    ) or difflib.get_close_matches(name.rsplit(".", 1)[-1], candidates, n=1)
    if near:
        return f"; did you mean {near[0]!r}?"
    return f"; there are {', '.join(candidates)}" if 0 < len(candidates) <= 12 else ""
