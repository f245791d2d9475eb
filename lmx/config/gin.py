"""Parses `.gin` files and command-line overrides into bindings with their locations.

The grammar is gin's own (`gin.config_parser`); no other part of gin is used.
"""

import difflib
import importlib
import os
import re
import tokenize
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from lmx.config.json_object import WRONG_KIND
from lmx.config.registry import (
    ConfigError,
    Ref,
    config_fields,
    find,
    find_experiments,
    get_parameters,
    is_known,
    locate_config,
    require,
    suggest,
)

T = TypeVar("T")

MAX_BYTES = 1_000_000  # of all files of a config; each counts as 1 kB or more
MAX_INCLUDES = 20  # levels
_PATH = re.compile(r"[a-z_]\w*(\.\w+)+")  # as `config show` prints it
_GIN_SYNTAX = re.compile(r"[\[\](){}@%'\"]")  # absent from text that needs no quotes


class Location(NamedTuple):
    """A line of a file, or an override on the command line."""

    source: str
    line: int  # 0 on the command line

    def __str__(self) -> str:
        return f"{self.source}:{self.line}" if self.line else self.source

    @property
    def is_override(self) -> bool:
        """Whether it is on the command line."""
        return not self.line


class BindingKey(NamedTuple):
    """What a binding sets. A macro is a key without parameter."""

    scope: tuple[str, ...]
    name: str
    parameter: str

    def __str__(self) -> str:
        return "/".join((*self.scope, f"{self.name}.{self.parameter}".rstrip(".")))


@dataclass(frozen=True, repr=False)
class Macro:
    """`%scope/NAME`, with the key of the binding that defines it."""

    key: BindingKey

    def __repr__(self) -> str:
        return f"%{self.key}"


def find_refs(value: Any, kind: type[T]) -> list[T]:
    """All references, or macros, inside a value as written."""
    if isinstance(value, kind):
        return [value]
    if isinstance(value, dict):
        value = [*value, *value.values()]
    items = value if isinstance(value, list | tuple) else ()
    return [ref for item in items for ref in find_refs(item, kind)]


class Binding(NamedTuple):
    """A value as written, before references and macros are resolved."""

    value: Any
    location: Location
    included: bool  # from a file that another file includes
    replaced: tuple["Binding", ...]  # by this one, the latest first


Bindings = dict[BindingKey, Binding]


class ParsedBindings(Bindings):
    """Bindings, and the bytes of the files that they are from."""

    bytes = 0


def bind(
    bindings: Bindings,
    key: BindingKey,
    value: Any,
    location: Location,
    *,
    included: bool = False,
) -> None:
    """Adds a binding, which replaces an earlier one of the key."""
    old = bindings.get(key)
    replaced = (old, *old.replaced) if old else ()
    bindings[key] = Binding(value, location, included, replaced)


class _Delegate:
    """Converts the references and macros that gin's parser finds."""

    def configurable_reference(self, scoped_configurable_name: str, evaluate: bool):
        *scope, name = scoped_configurable_name.split("/")
        return Ref(tuple(scope), name, evaluate)

    def macro(self, macro_name: str):
        *scope, name = macro_name.split("/")
        return Macro(BindingKey(tuple(scope), name, ""))


def parse(files: Iterable[str | Path], overrides: Iterable[str] = ()) -> Bindings:
    """All bindings, of files or shipped experiments, and then of overrides."""
    bindings = ParsedBindings()
    for file in files:
        _add_file(locate_config(file), bindings, ())
    add_overrides(bindings, overrides)
    return bindings


def add_overrides(bindings: ParsedBindings, overrides: Iterable[str]) -> None:
    """Adds overrides; one of a path such as `model.depth` is bound like a macro."""
    for override in overrides:
        location = Location(f"override {override!r}", 0)
        key, value = _split_override(override, location)
        if _PATH.fullmatch(key) and not is_known(key.partition(".")[0]):
            ((statement, _),) = _parse_statements(f"x = {value}", location)
            bind(bindings, BindingKey((), key, ""), statement.value, location)
        else:
            _add_text(f"{key} = {value}", location, bindings)


def parse_text(text: str, source: str) -> ParsedBindings:
    """The bindings of a text, which may not include files or import modules."""
    bindings = ParsedBindings()
    _add_text(text, Location(source, 1), bindings)
    return bindings


def _add_file(
    file: Path, bindings: ParsedBindings, includes: tuple[Location, ...]
) -> None:
    """Adds the bindings of a file, which the last of these lines includes."""
    prefix = "".join(f"{line}: " for line in includes[-1:])
    message = (
        f"{prefix}{file} is a folder, and not that of a run: name the .gin file in it"
    )
    try:
        require(not file.is_dir(), message)
        message = f"{prefix}{file} is no regular file: include a .gin file"
        require(not includes or file.is_file() or not file.exists(), message)
        with file.open("rb") as opened:
            content = opened.read(MAX_BYTES + 1)
        text = content.decode("utf-8-sig").replace("\r\n", "\n")
    except FileNotFoundError:
        near = _suggest_file(file)
        raise ConfigError(f"{prefix}there is no file {file}{near}") from None
    except UnicodeDecodeError as error:
        raise ConfigError(f"{prefix}{file} is not text: {error}") from error
    except OSError as error:
        raise ConfigError(f"{prefix}{file}: {error.strerror}") from error
    bindings.bytes += max(len(content), 1000)
    message = f"{prefix}{file}: a config has at most {MAX_BYTES:,} bytes, all files"
    require(bindings.bytes <= MAX_BYTES, f"{message} that it includes among them")
    _add_text(text, Location(str(file), 1), bindings, includes)


def _suggest_file(file: Path) -> str:
    """The nearest .gin file in the folder of a missing one or among the experiments."""
    files = {path.stem: str(path) for path in sorted(file.parent.glob("*.gin"))}
    if not file.suffix:
        files = {name: name for name in find_experiments()} | files
    # Compared without the suffix, which would make any two names look similar.
    if near := difflib.get_close_matches(file.stem, files, n=1):
        return f"; did you mean {files[near[0]]!r}?"
    return f"; there are {', '.join(files.values())}" if 0 < len(files) <= 12 else ""


def _add_text(
    text: str,
    source: Location,
    bindings: ParsedBindings,
    includes: tuple[Location, ...] | None = None,
) -> None:
    """Adds the bindings of a text; without `includes` it may not include or import."""
    from gin import config_parser  # here: library code without configs needs no gin

    for statement, location in _parse_statements(text, source):
        if isinstance(statement, config_parser.BindingStatement):
            scope = tuple(filter(None, statement.scope.split("/")))
            key = BindingKey(scope, statement.selector, statement.arg_name or "")
            if key.parameter:
                _check_parameter(key, location)
            bind(bindings, key, statement.value, location, included=bool(includes))
        elif isinstance(statement, config_parser.BlockDeclaration):
            find(statement.selector, location)  # its bindings follow
        elif includes is None:
            raise ConfigError(f"{location}: write it as Name.parameter=value")
        elif isinstance(statement, config_parser.ImportStatement):
            _import_module(statement.module, location)
        else:
            target = Path(location.source).parent / statement.filename
            if not os.path.exists(target):
                name = statement.filename.removeprefix("experiments/")
                shipped = find_experiments().get(name.removesuffix(".gin"))
                target = shipped or target
            _check_include(target, (*includes, location))
            _add_file(target, bindings, (*includes, location))


def _check_parameter(key: BindingKey, location: Location) -> None:
    thing = find(key.name, location, key.parameter)
    known = config_fields(thing)
    if key.parameter not in known:
        near = suggest(key.parameter, known)
        if key.parameter in get_parameters(thing):
            near = " to set: the calling code supplies it"
        raise ConfigError(
            f"{location}: {key.name} has no parameter {key.parameter!r}{near}"
        )


def _check_include(target: Path, includes: tuple[Location, ...]) -> None:
    message = f"{includes[-1]}: files are included at most {MAX_INCLUDES} levels deep"
    require(len(includes) <= MAX_INCLUDES, message)
    message = f"{includes[-1]}: {str(target)!r} is no name of a file"
    require("\0" not in str(target), message)
    real = os.path.realpath  # unlike `resolve`, it passes links in a loop
    if real(target) in {real(line.source) for line in includes}:
        *chain, location = map(str, includes)
        through = f", through {', '.join(chain)}" if chain else ""
        raise ConfigError(f"{location}: including {target} makes a cycle{through}")


def _import_module(module: str, location: Location) -> None:
    require(
        module.partition(".")[0] == "lmx",
        f"{location}: a config can import modules of lmx only: remove this line, and"
        f" add --import {module} to the command",
    )
    try:
        importlib.import_module(module)
    except ImportError as error:
        raise ConfigError(f"{location}: {error}") from error


def _parse_statements(text: str, location: Location) -> Iterator[tuple[Any, Location]]:
    """The statements of an override, or of the file of `location`, with their lines."""
    from gin import config_parser

    start, parser = 1, None
    try:
        parser = config_parser.ConfigParser(text, _Delegate())
        while statement := parser.parse_statement():
            line = statement.location.line_num if location.line else 0
            yield statement, location._replace(line=line)
            start = _current_line(parser)
        return
    except SyntaxError as error:
        line, message = error.lineno or start, error.msg
    except tokenize.TokenError as error:
        rest = map(str.strip, text.splitlines()[start - 1 :])
        code = (n for n, x in enumerate(rest, start) if x and x[0] != "#")
        line = next(code, start)
        message = "a bracket or quote of this statement is never closed"
        if "nested" in f"{error}":  # over 200 levels, from Python 3.12 on
            message = "the brackets of this statement are nested too deeply"
    except WRONG_KIND as error:  # as of {[1]: 2}
        line, message = _current_line(parser), str(error)
    if token := re.search(r"Failed to parse token '(.*)'$", message, re.DOTALL):
        message = f"{token[1][:80]} is not a value: put text in quotes"
    location = location._replace(line=line) if location.line else location
    raise ConfigError(f"{location}: {message}")


def _current_line(parser: Any) -> int:
    token = parser.current_token if parser else None
    return token.start[0] if token else 1


def _split_override(override: str, location: Location) -> tuple[str, str]:
    """`Text.path` and `'/data/x'`: the quotes that the shell removed are added."""
    key, _, value = map(str.strip, override.removeprefix("--gin.").partition("="))
    require(value, f"{location}: write it as Name.parameter=value")
    try:
        (_,) = _parse_statements(f"x = {value}", location)
    except ValueError:  # not one value in gin's syntax
        if not _GIN_SYNTAX.search(value):
            value = repr(value)
    return key, value
