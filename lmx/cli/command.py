"""Base of every command: arguments, help, errors, exit status and output."""

import argparse
import errno
import inspect
import json
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from lmx.config.registry import require

Options = Mapping[str, Mapping[str, Any]]  # arguments of `add_argument` by flag

OVERRIDES = "Name.parameter=value"
RAW = argparse.RawDescriptionHelpFormatter
_JSON: Options = {"--json": {"action": "store_true", "help": "print JSON"}}
_IMPORT: Options = {
    "--import": {
        "dest": "imports",
        "metavar": "MODULE",
        "action": "append",
        "default": [],
        "help": "import a module of yours whose classes a config names (repeatable)",
    }
}


class Output(NamedTuple):
    """The result of a command: text for a person, and the same as JSON data."""

    text: str
    data: Any
    status: int = 0


def option(
    help: str, type: Any = str, default: Any = None, metavar: str | None = None
) -> dict[str, Any]:
    """An option with a value."""
    return {"help": help, "type": type, "default": default, "metavar": metavar}


@dataclass
class Command:
    """Makes a function a command of `lmx`, whose help is the docstring.

    It reads `args.names`, the positional arguments, and `args.overrides`. It returns
    the exit status if it has printed its result itself.

    Attributes:
        name: its words, as in "ckpt list"; all but the last name a group.
        arguments: its positional arguments, as in "RUN FILE ..."; dots repeat the last.
        summary: one line for the list of commands.
        takes_overrides: whether it takes Name.parameter=value.
        errors: exceptions that mean invalid input: exit status 2. So is a path that is
            too long or a loop. One with an `exit_status` ends with that status.
        hint: printed when it was interrupted or a restart may help (exit status 75);
            `{n}` is positional argument n.
    """

    name: str
    arguments: str
    summary: str
    options: Options = field(default_factory=dict)
    takes_overrides: bool = False
    errors: tuple[type[Exception], ...] = (ValueError, OSError)
    hint: str = ""
    run: Callable[[argparse.Namespace], Output | int] = field(init=False)

    def __call__(self, run: Callable[[argparse.Namespace], Output | int]) -> "Command":
        """Decorates the function that runs the command."""
        self.run = run
        return self

    @property
    def description(self) -> str:
        """What it does, and examples as lines that start with "  lmx "."""
        return inspect.getdoc(self.run) or self.summary

    @property
    def usage(self) -> str:
        """One line with everything that must be given."""
        words = [f"lmx {self.name} {self.arguments}"]
        words += [f"[{OVERRIDES} ...]"] * self.takes_overrides
        for flag, keywords in self.options.items():
            words += [f"{flag} {keywords.get('metavar')}"] * ("required" in keywords)
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
        for flag, keywords in {**self.options, **_JSON, **_IMPORT}.items():
            parser.add_argument(flag, **keywords)

    def execute(self, args: argparse.Namespace) -> int:
        """Runs it and prints its result or its error. Returns the exit status."""
        from lmx.run.user_code import import_modules  # `lmx --help` needs no hashes

        try:
            self.split_words(args)
            import_modules(args.imports)
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
        """The status of an expected error; None for a bug."""
        if isinstance(error, KeyboardInterrupt):
            return 130
        is_path = getattr(error, "errno", None) in (errno.ENAMETOOLONG, errno.ELOOP)
        known = 2 if is_path or isinstance(error, self.errors) else None
        return getattr(error, "exit_status", known)

    def split_words(self, args: argparse.Namespace) -> None:
        """Sets `args.names` and `args.overrides`. Refuses too few or too many names."""
        words = args.words[1:] if self.takes_overrides else ()
        args.overrides = [word for word in words if "=" in word]
        names = args.names = [word for word in args.words if word not in args.overrides]
        wanted = self.arguments.split()
        least = sum(word[0].isalpha() for word in wanted)
        most = sys.maxsize if wanted[-1] == "..." else len(wanted)
        message = f"got {' '.join(names)!r}: write {self.usage}"
        require(least <= len(names) <= most, message)


class Parser(argparse.ArgumentParser):
    """Takes positional arguments before, between and after options."""

    def parse_known_args(self, args=None, namespace=None):
        """As in argparse, which leaves positional arguments after an option unread."""
        args = [word.removeprefix("--gin.") for word in args or ()]
        space, rest = super().parse_known_args(args, namespace)
        space.words += [word for word in rest if not word.startswith("-")]
        return space, [word for word in rest if word.startswith("-")]
