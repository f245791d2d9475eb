"""The frame of every command: arguments, help, errors, exit status and output."""

import argparse
import json
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from lmx.config.registry import ConfigError

OVERRIDES = "Name.parameter=value"
RAW = argparse.RawDescriptionHelpFormatter
_JSON = {"action": "store_true", "help": "print JSON"}
_IMPORT = {
    "dest": "imports",
    "metavar": "MODULE",
    "action": "append",
    "default": [],
    "help": "import a module of yours whose classes the config names (repeatable)",
}


class Output(NamedTuple):
    """The result of a command: text for a person, and the same as JSON data."""

    text: str
    data: Any
    status: int = 0


@dataclass(frozen=True)
class Command:
    """One command of `lmx`.

    Attributes:
        name: its words, as in "ckpt list"; all but the last name a group.
        arguments: its positional arguments, as in "RUN FILE ..."; dots repeat the last.
        summary: one line for the list of commands.
        description: what it does, and examples as lines that start with "  lmx ".
        run: does it. `args.names` are the positional arguments and `args.overrides`
            the overrides. Returns the exit status if it has printed its result itself.
        options: the keyword arguments of `ArgumentParser.add_argument` by flag.
        takes_overrides: whether it takes Name.parameter=value and --import.
        errors: exceptions that mean invalid input: exit status 2. Any other exception
            with an `exit_status` ends with that status.
        hint: printed when it was interrupted or a restart may help (exit status 75);
            `{n}` is positional argument n.
    """

    name: str
    arguments: str
    summary: str
    description: str
    run: Callable[[argparse.Namespace], Output | int]
    options: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    takes_overrides: bool = False
    errors: tuple[type[Exception], ...] = (ValueError, OSError)
    hint: str = ""

    @property
    def usage(self) -> str:
        """One line with everything that must be given."""
        words = [f"lmx {self.name} {self.arguments}"]
        words += [f"[{OVERRIDES} ...]"] if self.takes_overrides else []
        required = {flag: x for flag, x in self.options.items() if x.get("required")}
        words += [f"{flag} {options['metavar']}" for flag, options in required.items()]
        return " ".join((*words, "[options]"))

    def add_to(self, commands: Any) -> None:
        """Adds it to what `ArgumentParser.add_subparsers` returned."""
        parser = commands.add_parser(
            self.name.split()[-1],
            help=self.summary,
            description=self.description,
            formatter_class=RAW,
            usage=self.usage,
        )
        parser.set_defaults(command=self)
        first, *_ = self.arguments.split()
        count = "*" if first[0] == "[" else "+"
        parser.add_argument("words", nargs=count, metavar=first, help=argparse.SUPPRESS)
        options = {**self.options, "--json": _JSON}
        if self.takes_overrides:
            options["--import"] = _IMPORT
        for flag, keywords in options.items():
            parser.add_argument(flag, **keywords)

    def execute(self, args: argparse.Namespace) -> int:
        """Runs it and prints its result or its error. Returns the exit status."""
        try:
            self.split_words(args)
            result = self.run(args)
        except (Exception, KeyboardInterrupt) as error:
            status = self._exit_status(error)
            if status is None:
                raise
            lines = ["interrupted" if status == 130 else f"error: {error}"]
            if status in (75, 130) and self.hint:
                lines.append(self.hint.format(*args.names))
            print("\n".join(lines), file=sys.stderr)
            return status
        if isinstance(result, int):
            return result
        print(json.dumps(result.data) if args.json else result.text)
        return result.status

    def _exit_status(self, error: BaseException) -> int | None:
        """The status of an expected error; None for an error of the program."""
        if isinstance(error, KeyboardInterrupt):
            return 130
        known = 2 if isinstance(error, self.errors) else None
        return getattr(error, "exit_status", known)

    def split_words(self, args: argparse.Namespace) -> None:
        """Sets `args.names` and `args.overrides`. Refuses too few or too many names."""
        words = args.words[1:] if self.takes_overrides else ()
        args.overrides = [word for word in words if "=" in word]
        names = args.names = [word for word in args.words if word not in args.overrides]
        wanted = self.arguments.split()
        least = sum(word[0].isalpha() for word in wanted)
        if len(names) < least or (len(names) > len(wanted) and wanted[-1] != "..."):
            raise ConfigError(f"got {' '.join(names)!r}: write {self.usage}")


class Parser(argparse.ArgumentParser):
    """Takes positional arguments before, between and after options."""

    def parse_known_args(self, args=None, namespace=None):
        """As in argparse, which leaves positional arguments after an option unread."""
        args = [word.removeprefix("--gin.") for word in args or ()]
        space, rest = super().parse_known_args(args, namespace)
        space.words += [word for word in rest if not word.startswith("-")]
        return space, [word for word in rest if word.startswith("-")]


def format_table(
    header: Sequence[str], rows: Iterable[Sequence[object]], left: int = 1
) -> str:
    """Columns under a header, the first `left` aligned left, the others right."""
    lines = [list(header), *(list(map(str, row)) for row in rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    sides = ["<"] * left + [">"] * (len(widths) - left)
    return "\n".join(
        "  ".join(
            f"{c:{s}{w}}" for c, s, w in zip(x, sides, widths, strict=True)
        ).rstrip()
        for x in lines
    )
