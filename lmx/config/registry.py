"""What a `.gin` file can name: classes, functions, their parameters, and experiments.

A signature is the schema. The calling code supplies the positional parameters, before
the star; a config sets the keyword-only parameters, after it:

    def __init__(self, width: int, rngs: nnx.Rngs, *, heads: int, kv_heads: int): ...

`**kwargs` stands for the parameters of the one call that it is passed on to, as in
`super().__init__(width, rngs, **kwargs)`: without those that the call gives a value.
"""

import ast
import contextlib
import dataclasses
import functools
import importlib
import inspect
import math
import re
import textwrap
from collections.abc import Callable, Iterable, Mapping, MutableMapping, Sequence
from pathlib import Path
from types import NoneType, UnionType
from typing import (
    Annotated,
    Any,
    Literal,
    NamedTuple,
    TypeVar,
    Union,
    get_args,
    get_origin,
    get_type_hints,
)

from lmx.config.names import find_nearest

Thing = TypeVar("Thing", bound=Callable[..., Any])
T = TypeVar("T")

EXECUTION = "execution"
Execution = Annotated[T, EXECUTION]  # affects how a run is executed, not its result


class Range(NamedTuple):
    """The numbers that a field can hold, stated beside its type: `Positive[float]`."""

    text: str
    contains: Callable[[float], bool]


Positive = Annotated[T, Range("above 0, and finite", lambda x: 0 < x < math.inf)]
NonNegative = Annotated[T, Range("0 or more, and finite", lambda x: 0 <= x < math.inf)]
Fraction = Annotated[T, Range("from 0 to 1", lambda x: 0 <= x <= 1)]
PositiveFraction = Annotated[T, Range("above 0, and at most 1", lambda x: 0 < x <= 1)]
OpenFraction = Annotated[T, Range("above 0, and below 1", lambda x: 0 < x < 1)]
Rate = Annotated[T, Range("0 or more, and below 1", lambda x: 0 <= x < 1)]


def at_least(least: int) -> Range:
    """The numbers from `least` on, as a range beside a type."""
    return Range(f"{least} or more, and finite", lambda x: least <= x < math.inf)


def multiple_of(number: int) -> Range:
    """The positive multiples of a number, as a range beside a type."""
    return Range(f"a multiple of {number}", lambda x: x > 0 and x % number == 0)


SCALARS = (bool, int, float, str, NoneType)
UNIONS = (Union, UnionType)

_ALTERNATIVES = {
    **dict.fromkeys((list, set, frozenset, Sequence, Iterable), "tuple[X, ...]"),
    **dict.fromkeys((dict, MutableMapping), "Mapping[str, X]"),
    **dict.fromkeys((bytes, complex), "int, float or str"),
    type: "Callable[..., X]",
}

REQUIRED = inspect.Parameter.empty

_LMX = Path(__file__).parents[1]
_DECLARATION = re.compile(
    r"^@configurable\n(?:@.*\n)*(?:class|def) (\w+)|^configurable\((\w+)\)",
    re.MULTILINE,
)
_REGISTRY: dict[str, Callable[..., Any]] = {}  # filled by imports, never by configs
FINDERS: list[Callable[[str], None]] = []  # may import what registers an unknown name


class ConfigError(ValueError):
    """Invalid configuration; the message has the location, the problem and the fix."""


def check_fields(config: object, **checks: tuple[bool, str]) -> None:
    """Raises ConfigError for a field whose check is False; its text is the rule."""
    for name, (is_valid, rule) in checks.items():
        owner, value = type(config).__name__, getattr(config, name)
        require(is_valid, f"{owner}.{name} is {value}: it must be {rule}.")


def require(condition: object, message: str) -> None:
    """Raises a ConfigError with this message unless the condition holds."""
    if not condition:
        raise ConfigError(message)


def check_argument(condition: object, message: str) -> None:
    """Raises ValueError unless it holds; `instantiate` adds where that was set."""
    if not condition:
        raise ValueError(message)


class ConfigField(NamedTuple):
    """One parameter that a config may set."""

    annotation: Any
    default: Any = REQUIRED
    execution: bool = False  # not part of the identity of a run
    ranges: tuple[Range, ...] = ()  # a number must be in each


@dataclasses.dataclass(frozen=True, repr=False)
class Ref:
    """`@scope/Name` or `@scope/Name()`; `fields` take precedence over its defaults."""

    scope: tuple[str, ...]
    name: str
    called: bool
    fields: Mapping[str, Any] = dataclasses.field(default_factory=dict, compare=False)

    def __repr__(self) -> str:
        return f"@{'/'.join((*self.scope, self.name))}{'()' if self.called else ''}"


def configurable(thing: Thing) -> Thing:
    """Lets `.gin` files name this class or function, which is returned unchanged."""
    known = _REGISTRY.get(thing.__name__, thing)
    if (known.__module__, known.__qualname__) != (thing.__module__, thing.__qualname__):
        raise ConfigError(
            f"{thing.__name__!r} already names {known.__module__}.{known.__qualname__}:"
            f" give the one in {thing.__module__} another name."
        )
    with contextlib.suppress(NameError):  # a name defined below: checked at first use
        config_fields(thing)
    _REGISTRY[thing.__name__] = thing  # a reloaded module replaces its own
    return thing


def find(name: str, where: object, parameter: str = "") -> Callable[..., Any]:
    """The class or function of that name; imports it if it ships with lmx.

    The error starts with `where`, and suggests names near it or with the parameter.
    """
    if name not in _REGISTRY:
        try:
            for module in find_declarations().get(name, ()):
                importlib.import_module(module)
        except ImportError as error:
            raise ConfigError(f"{where}: cannot import {name}: {error}") from error
    for finder in FINDERS if name not in _REGISTRY else ():
        finder(name)
    if name in _REGISTRY:
        return _REGISTRY[name]
    near = suggest(name, {*_REGISTRY, *find_declarations()})
    found = ", ".join(find_owners(parameter))
    if found and "did you mean" not in near:
        near = f"; there is {found}"
    module = name.rpartition(".")[0] or "MODULE"
    near += f" (a class of your own: --import {module})"
    raise ConfigError(f"{where}: nothing configurable is named {name!r}{near}")


def import_all() -> list[str]:
    """Every name, sorted, but those whose modules need packages that are missing."""
    for name in {*find_declarations()} - {*_REGISTRY}:
        with contextlib.suppress(ConfigError):
            find(name, "list")
    return sorted(_REGISTRY)


def is_known(name: str) -> bool:
    """Whether something configurable has that name, imported or not."""
    return name in _REGISTRY or name in find_declarations()


@functools.cache
def find_declarations() -> Mapping[str, tuple[str, ...]]:
    """The modules that declare each configurable name of lmx.

    They are read as text: no package imports another only to register its names.
    """
    modules: dict[str, tuple[str, ...]] = {}
    for file in sorted(_LMX.rglob("*.py")):
        module = ".".join(("lmx", *file.relative_to(_LMX).with_suffix("").parts))
        for names in _DECLARATION.findall(file.read_text(encoding="utf-8")):
            modules["".join(names)] = (*modules.get("".join(names), ()), module)
    return modules


def find_experiments() -> dict[str, Path]:
    """The files of the shipped experiments by name, such as `families/llama3_8b`."""
    folders = (_LMX / "experiments", _LMX.parent / "experiments")  # wheel, checkout
    folder = next(filter(Path.is_dir, folders), folders[0])
    files = sorted(folder.rglob("*.gin"))
    return {file.relative_to(folder).with_suffix("").as_posix(): file for file in files}


def locate_config(name: str | Path) -> Path:
    """The path of a config: a shipped experiment if the name is not a file."""
    path = Path(name)
    return path if path.is_file() else find_experiments().get(str(name), path)


def find_owners(parameter: str) -> list[str]:
    """`Name.parameter` of every imported name that has the parameter, sorted."""
    known = sorted(_REGISTRY.items())
    return [f"{name}.{parameter}" for name, x in known if parameter in config_fields(x)]


def get_parameters(thing: Callable[..., Any]) -> Mapping[str, inspect.Parameter]:
    """The signature, with the parameters that the calling code supplies."""
    return inspect.signature(_get_function(thing)).parameters


def _get_function(thing: Callable[..., Any]) -> Callable[..., Any]:
    # The metaclass of NNX hides the signature of a class, but not of its __init__.
    return thing.__init__ if inspect.isclass(thing) else thing


def config_fields(thing: Callable[..., Any]) -> dict[str, ConfigField]:
    """The keyword-only parameters, in order, those behind `**kwargs` first."""
    return _read_fields(thing, _get_function(thing))


@functools.cache
def _read_fields(
    thing: Callable[..., Any], function: Callable[..., Any]
) -> dict[str, ConfigField]:
    """The fields of `thing` in this function: itself, or a constructor in its MRO."""
    hints, extras = get_type_hints(function), get_type_hints(function, None, None, True)
    attributes = getattr(thing, "__dataclass_fields__", {}).values()
    factories = [x for x in attributes if x.default_factory is not dataclasses.MISSING]
    defaults = {field.name: field.default_factory() for field in factories}
    fields = {}
    for name, parameter in inspect.signature(function).parameters.items():
        label = f"{thing.__name__}.{name}"
        if parameter.kind is parameter.VAR_KEYWORD and function is not object.__init__:
            fields = _forwarded_fields(thing, function, name) | fields
        if parameter.kind is not parameter.KEYWORD_ONLY:
            continue
        require(name in extras, f"{label} has no annotation: add its type.")
        reason = unsupported_reason(extras[name])
        require(not reason, f"{label}: {reason}")
        default = defaults.get(name, parameter.default)
        metadata = getattr(extras[name], "__metadata__", ())
        ranges = tuple(x for x in metadata if isinstance(x, Range))
        fields[name] = ConfigField(hints[name], default, EXECUTION in metadata, ranges)
    return fields


def _forwarded_fields(
    thing: Callable[..., Any], function: Callable[..., Any], kwargs: str
) -> dict[str, ConfigField]:
    """The fields of the one call that the function passes `**kwargs` on to."""
    try:
        tree = ast.parse(textwrap.dedent(inspect.getsource(function)))
    except (OSError, TypeError, SyntaxError):  # no source
        tree = ast.Module([], [])
    calls = [
        node
        for node in ast.walk(tree)
        if isinstance(node, ast.Call)
        and any(k.arg is None and ast.unparse(k.value) == kwargs for k in node.keywords)
    ]
    fields = _find_callee_fields(thing, function, *calls) if len(calls) == 1 else None
    if fields is None:
        raise ConfigError(
            f"{thing.__name__}: a config cannot see the parameters behind **{kwargs}:"
            f" pass them to one call, as in super().__init__(..., **{kwargs}), of a"
            " class or function that a module names, in a file; or name them."
        )
    own = inspect.signature(function).parameters
    given = {keyword.arg for keyword in calls[0].keywords} - {*own}
    return {name: field for name, field in fields.items() if name not in given}


def _find_callee_fields(
    thing: Callable[..., Any], function: Callable[..., Any], call: ast.Call
) -> Mapping[str, ConfigField] | None:
    """The fields of what a call in a function calls; None if that is unknown."""
    path = ast.unparse(call.func)
    if path == "super().__init__" and inspect.isclass(thing):
        kinds = [vars(kind) for kind in thing.__mro__ if "__init__" in vars(kind)]
        constructors = [kind["__init__"] for kind in kinds]
        return _read_fields(thing, constructors[constructors.index(function) + 1])
    first, *rest = path.split(".")
    closure = inspect.getclosurevars(function)
    target = {**closure.globals, **closure.nonlocals}.get(first)
    target = functools.reduce(lambda x, name: getattr(x, name, None), rest, target)
    return config_fields(target) if callable(target) else None


def unsupported_reason(hint: Any) -> str | None:
    """Why no config value can satisfy an annotation (with its extras), or None."""
    if get_origin(hint) is Annotated:
        hint = get_args(hint)[0]
    origin, args = get_origin(hint) or hint, get_args(hint)
    if origin in _ALTERNATIVES:
        advice = f"annotate it as {_ALTERNATIVES[origin]}"
        return f"{format_type(hint)} cannot be written in a config: {advice}"
    if origin in (*UNIONS, tuple, Mapping):
        inner = [arg for arg in args if arg is not ...]
        if any(EXECUTION in getattr(arg, "__metadata__", ()) for arg in inner):
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


def as_reference(value: Any) -> Any:
    """`value`, or the reference to it if it or its class is configurable."""
    if _is_registered(value):
        return Ref((), value.__name__, False)
    kind = type(value)
    if not _is_registered(kind):
        return value
    require(
        dataclasses.is_dataclass(kind),
        f"the arguments of a {kind.__name__} instance are unknown: make"
        f" {kind.__name__} a dataclass, or give it no default.",
    )
    fields = {name: getattr(value, name) for name in config_fields(kind)}
    return Ref((), kind.__name__, True, fields)


def _is_registered(thing: Any) -> bool:
    name = getattr(thing, "__name__", None)
    return isinstance(name, str) and _REGISTRY.get(name) is thing


def suggest(name: str, candidates: Iterable[str], *, near_only: bool = False) -> str:
    """Ends a message: the nearest candidate, or all if there are few, or nothing."""
    words = sorted(set(candidates))
    if near := find_nearest(name, words):
        return f"; did you mean {near!r}?"
    few = 0 < len(words) <= 12 and not near_only
    return f"; there are {', '.join(words)}" if few else ""
