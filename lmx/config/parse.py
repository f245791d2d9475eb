"""`.gin` files and command-line overrides -> bindings that know where they stand.

The grammar is gin's own (`gin.config_parser`); nothing else of gin is used.
"""

import difflib
import importlib
import re
import tokenize
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from lmx.config.registry import (
    ConfigError,
    config_fields,
    find,
    get_parameters,
    suggest,
)

GIN = re.compile(r"[\[\](){}@%'\"]")  # what no word has that could go without quotes


class Location(NamedTuple):
    """A line of a file, or an override on the command line."""

    source: str
    line: int  # 0 on the command line

    def __str__(self) -> str:
        return f"{self.source}:{self.line}" if self.line else self.source


@dataclass(frozen=True, repr=False)
class Ref:
    """`@scope/Name` or, called, `@scope/Name()`."""

    scope: tuple[str, ...]
    name: str
    called: bool

    def __repr__(self) -> str:
        return f"@{'/'.join((*self.scope, self.name))}{'()' if self.called else ''}"


@dataclass(frozen=True, repr=False)
class Macro:
    """`%NAME`."""

    name: str

    def __repr__(self) -> str:
        return f"%{self.name}"


class BindingKey(NamedTuple):
    """What a binding sets. A macro is a key with no parameter."""

    scope: tuple[str, ...]
    name: str
    parameter: str

    def __str__(self) -> str:
        return "/".join((*self.scope, f"{self.name}.{self.parameter}".rstrip(".")))


class Binding(NamedTuple):
    """A value as written, before references and macros are followed."""

    value: Any
    location: Location
    included: bool  # from a file that another one includes
    previous: "Binding | None"


Bindings = dict[BindingKey, Binding]


class _Delegate:
    """What gin's parser makes of references and macros."""

    def configurable_reference(self, scoped_configurable_name: str, evaluate: bool):
        *scope, name = scoped_configurable_name.split("/")
        return Ref(tuple(scope), name, evaluate)

    def macro(self, macro_name: str):
        return Macro(macro_name)


def _import_gin_parser() -> Any:
    """Gin's parser, had when there is something to parse: Python code needs none."""
    from gin import config_parser

    return config_parser


def parse(files: Iterable[str | Path], overrides: Iterable[str] = ()) -> Bindings:
    """All bindings, the later of two replacing the earlier, overrides last."""
    bindings: Bindings = {}
    for file in files:
        _read(Path(file), bindings, {})
    for override in overrides:
        where = Location(f"override {override!r}", 0)
        for statement in _parse_statements(_add_quotes(override, where), where):
            _add_binding(statement, where, bindings, included=False)
    return bindings


def parse_text(text: str, source: str) -> Bindings:
    """The bindings of a page that is no file; it includes and imports nothing."""
    bindings: Bindings = {}
    for statement in _parse_statements(text, Location(source, 1)):
        where = Location(source, statement.location.line_num)
        _add_binding(statement, where, bindings, included=False)
    return bindings


def _read(file: Path, bindings: Bindings, opened: dict[Path, Location]) -> None:
    """Adds the bindings of a file and of those it includes, in the order written.

    `opened` has the files on the way here, each with the line that included the next.
    """
    *_, includer = (None, *opened.values())
    text = _read_text(file, includer)
    for statement in _parse_statements(text, Location(str(file), 1)):
        where = Location(str(file), statement.location.line_num)
        if isinstance(statement, _import_gin_parser().IncludeStatement):
            here, there = file.resolve(), file.parent / statement.filename
            if there.resolve() in {here, *opened}:
                way = ", ".join(map(str, opened.values()))
                raise ConfigError(
                    f"{where}: including {there} goes round in a circle"
                    + (f", by way of {way}" if way else "")
                )
            _read(there, bindings, {**opened, here: where})
        elif isinstance(statement, _import_gin_parser().ImportStatement):
            _import(statement.module, where)
        else:
            _add_binding(statement, where, bindings, included=bool(opened))


def _read_text(file: Path, includer: Location | None) -> str:
    """What stands in a file, or why it cannot be read."""
    where = f"{includer}: " if includer else ""
    if file.is_dir():
        raise ConfigError(f"{where}{file} is a folder: name the .gin file in it")
    if not file.exists():
        raise ConfigError(f"{where}there is no file {file}{_suggest_file(file)}")
    try:
        return file.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ConfigError(f"{where}{file} is no text: {error}") from error
    except OSError as error:
        raise ConfigError(f"{where}{file}: {error.strerror}") from error


def _suggest_file(file: Path) -> str:
    """The nearest page beside a file that is not there, or the few there are."""
    pages = {page.stem: str(page) for page in sorted(file.parent.glob("*.gin"))}
    # Without the ending, which would make any two names look near.
    if near := difflib.get_close_matches(file.stem, pages, n=1):
        return f"; did you mean {pages[near[0]]!r}?"
    return f"; there are {', '.join(pages.values())}" if 0 < len(pages) <= 12 else ""


def _import(module: str, where: Location) -> None:
    if module.partition(".")[0] != "lmx":
        raise ConfigError(
            f"{where}: a page imports modules of lmx only: leave this line out, and"
            f" add --import {module} to the command"
        )
    try:
        importlib.import_module(module)
    except ImportError as error:
        raise ConfigError(f"{where}: {error}") from error


def _add_binding(
    statement: Any, where: Location, into: Bindings, *, included: bool
) -> None:
    """Adds one binding, if something can hear it."""
    if isinstance(statement, _import_gin_parser().BlockDeclaration):
        find(statement.selector, where)
        return  # its bindings follow
    if not isinstance(statement, _import_gin_parser().BindingStatement):
        raise ConfigError(f"{where}: write it as Name.parameter=value")
    scope = tuple(filter(None, statement.scope.split("/")))
    key = BindingKey(scope, statement.selector, statement.arg_name or "")
    if key.parameter:
        _check(key, where)
    into[key] = Binding(statement.value, where, included, into.get(key))


def _check(key: BindingKey, where: Location) -> None:
    """Refuses a parameter that nothing has."""
    thing = find(key.name, where, key.parameter)
    known = config_fields(thing)
    if key.parameter in known:
        return
    near = suggest(key.parameter, known)
    if key.parameter in get_parameters(thing):
        near = " to set: its caller gives it"
    raise ConfigError(f"{where}: {key.name} has no parameter {key.parameter!r}{near}")


def _parse_statements(text: str, where: Location) -> Iterator[Any]:
    """What gin's parser makes of `text`, its complaints told like ours.

    `location` is an override, or any line of the file that the text is.
    """
    begun, parser = 1, None
    try:
        parser = _import_gin_parser().ConfigParser(text, _Delegate())
        while statement := parser.parse_statement():
            yield statement
            begun = _current_line(parser)
    except SyntaxError as error:
        line, message = error.lineno or begun, error.msg
    except tokenize.TokenError:
        line = _first_statement_line(text, begun)
        message = "a bracket or quote of this statement is never closed"
    except (TypeError, ValueError) as error:  # as of {[1]: 2}
        line, message = _current_line(parser), str(error)
    else:
        return
    word = re.search(r"Failed to parse token '(.*)'$", message, re.DOTALL)
    if word:
        message = f"{word[1]} is no value: text stands in quotes"
    at = where._replace(line=line) if where.line else where
    raise ConfigError(f"{at}: {message}")


def _current_line(parser: Any) -> int:
    """How far a parser has come."""
    token = parser.current_token if parser else None
    return token.start[0] if token else 1


def _first_statement_line(text: str, line: int) -> int:
    """The first line from `line` on that says something."""
    rest = text.splitlines()[line - 1 :]
    quiet = (not words or words[0] == "#" for words in map(str.strip, rest))
    return line + next((n for n, still in enumerate(quiet) if not still), 0)


def _add_quotes(override: str, where: Location) -> str:
    """`TextDataset.path=/data/x` with the quotes that the shell would have eaten."""
    words = override.removeprefix("--gin.")
    key, equals, value = map(str.strip, words.partition("="))
    if not equals or not value:
        raise ConfigError(f"{where}: write it as Name.parameter=value")
    try:
        (_,) = _parse_statements(f"x = {value}", where)
    except ValueError:  # no value of gin's, or more than one
        if not GIN.search(value):
            return f"{key} = {value!r}"
    return f"{key} = {value}"
