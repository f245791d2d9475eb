"""`lmx config show | why | diff | tree`: read a configuration and run nothing."""

import argparse
import importlib
import json
import os
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from lmx.config.node import format_value, to_jsonable
from lmx.config.registry import ConfigError
from lmx.config.resolve import from_json, load
from lmx.config.value import ABSENT, Config, diff, explain_errors

_ABOUT = """\
An experiment is a .gin page. It binds parameters of classes, and every class says in
its constructor what can be bound. These verbs show what a page comes to, with all its
includes, macros, scopes, defaults and overrides, and run nothing.

  lmx config show experiments/x.gin                          every value, and who set it
  lmx config show experiments/x.gin Attention.kv_heads=2     the same, with an override
  lmx config why  experiments/x.gin Attention.kv_heads       the story of one value
  lmx config diff experiments/x.gin experiments/y.gin        what differs between pages
  lmx config tree experiments/x.gin                          references and parameters
"""

_VERBS = {
    "show": (
        "every value, and who decided it",
        "One line per value: its path, what it is, and the line of the page or the\n"
        "override that set it. The last line names the run: it does not change with\n"
        "what is only execution (mesh, logging, paths).\n\n"
        "  lmx config show experiments/x.gin\n"
        "  lmx config show experiments/x.gin train/TextDataset.batch_size=16 STEPS=10\n"
        "  lmx config show runs/x            a run, from its experiment.json",
    ),
    "why": (
        "the story of a value",
        "Where a value was set, what that replaced, and which macros it came through.\n"
        "Name it by its path, or by its class: then every place of the class is told.\n"
        "\n"
        "  lmx config why experiments/x.gin model.attention.kv_heads\n"
        "  lmx config why experiments/x.gin Attention.kv_heads STEPS=10",
    ),
    "diff": (
        "what differs between two pages or runs",
        "The values that differ, old -> new. Overrides count for both.\n\n"
        "  lmx config diff experiments/x.gin experiments/y.gin\n"
        "  lmx config diff runs/x experiments/x.gin",
    ),
    "tree": (
        "the references as a tree, and the parameters",
        "Which class holds which, with the values that are not defaults; then every\n"
        "parameter, how many numbers it has and along which axes, and their sum.\n\n"
        "  lmx config tree experiments/x.gin Decoder.mlp=@MoE",
    ),
}


# What each verb takes, and the fewest and most words of it.
_TAKES = {
    "show": ("one page", 1, 1),
    "tree": ("one page", 1, 1),
    "diff": ("two pages", 2, 2),
    "why": ("one page and at least one path", 2, sys.maxsize),
}


class Words(argparse.ArgumentParser):
    """Takes words before, between and after its options, `--gin.X=Y` among them."""

    def parse_known_args(self, args=None, namespace=None):
        """As in argparse, which would leave the words after an option unread."""
        given = sys.argv[1:] if args is None else args
        given = [word.removeprefix("--gin.") for word in given]
        space, rest = super().parse_known_args(given, namespace)
        late = [word for word in rest if not word.startswith("-")]
        space.words = [*space.words, *late]
        return space, [word for word in rest if word.startswith("-")]


def add(parsers: Any) -> None:
    """Adds the verb `config` to what `ArgumentParser.add_subparsers` returned."""
    raw = argparse.RawDescriptionHelpFormatter
    parser = parsers.add_parser(
        "config",
        help="read an experiment and run nothing",
        description=_ABOUT,
        formatter_class=raw,
    )
    parser.set_defaults(run=run)
    verbs = parser.add_subparsers(
        dest="config_verb", required=True, metavar="VERB", parser_class=Words
    )
    for name, (short, long) in _VERBS.items():
        verb = verbs.add_parser(name, help=short, description=long, formatter_class=raw)
        verb.set_defaults(run=run)
        pair = "A B" if name == "diff" else "EXPERIMENT.gin"
        paths = "PATH ... " if name == "why" else ""
        verb.usage = f"lmx config {name} [--json] [--import MODULE] {pair} {paths}" + (
            "[Name.parameter=value ...]"
        )
        verb.add_argument("words", nargs="+", metavar="WORD", help=argparse.SUPPRESS)
        verb.add_argument("--json", action="store_true", help="print it for a machine")
        add_import(verb)


def add_import(parser: argparse.ArgumentParser) -> None:
    """Adds `--import MODULE`, for classes that do not ship with lmx."""
    parser.add_argument(
        "--import",
        dest="imports",
        metavar="MODULE",
        action="append",
        default=[],
        help="a module of your own whose classes the page names (may be repeated)",
    )


def run(args: argparse.Namespace) -> int:
    """Runs one verb. Returns the exit status: 2 if the words cannot be meant."""
    try:
        print(_answer(args.config_verb, args.words, args.imports, as_json=args.json))
    except ConfigError as error:
        print(f"config error: {error}", file=sys.stderr)
        return 2
    return 0


def load_config(
    file: str | Path, overrides: Sequence[str] = (), imports: Iterable[str] = ()
) -> Config[Any]:
    """The experiment of a page under overrides, or the one that a run recorded.

    A run is a folder with an `experiment.json`. `imports` are modules of the user.
    """
    import_modules(imports)
    recorded = Path(file) / "experiment.json"
    if not recorded.is_file():
        return load([file], overrides, root=_root())
    if overrides:
        page = Path(file) / "experiment.gin"
        raise ConfigError(
            f"override {overrides[0]!r}: {file} is a run, which is over: start from"
            f" its page, {page}"
        )
    try:
        _root()  # a record imports nothing itself
        return from_json(recorded.read_text(encoding="utf-8"))
    except (ConfigError, OSError) as error:
        raise ConfigError(f"{recorded}: {error}") from error


def _root() -> Callable[..., Any]:
    """What every page configures; imported late, since it brings jax."""
    from lmx.train.experiment import Experiment

    return Experiment


def import_modules(modules: Iterable[str]) -> None:
    """Imports modules of the user, who may keep them in the working folder."""
    for module in modules:
        if os.getcwd() not in sys.path:
            sys.path.append(os.getcwd())
        try:
            importlib.import_module(module)
        except ImportError as error:
            raise ConfigError(f"--import {module}: {error}") from error


def _answer(
    verb: str, words: Sequence[str], imports: Sequence[str], *, as_json: bool
) -> str:
    """What a verb says to its words."""
    overrides = [word for word in words[1:] if "=" in word]
    names = [words[0], *(word for word in words[1:] if "=" not in word)]
    wanted, fewest, most = _TAKES[verb]
    if not fewest <= len(names) <= most:
        raise ConfigError(
            f"config {verb} takes {wanted}, then overrides as Name.parameter=value; got"
            f" {' '.join(names)}"
        )
    files = names[:2] if verb == "diff" else names[:1]
    configs = [_load(file, overrides, imports) for file in files]
    match verb:
        case "show":
            _check(configs[0])
            return show(configs[0], as_json=as_json)
        case "tree":
            return tree(configs[0], as_json=as_json)
        case "diff":
            return difference(*configs, as_json=as_json)
    return why(configs[0], names[1:], as_json=as_json)


def _check(config: Config) -> None:
    """Refuses what only building and shaping the model can tell to be wrong."""
    from lmx.train.experiment import Experiment

    with explain_errors(config):
        experiment = config.build()
        if isinstance(experiment, Experiment):
            experiment.abstract_model()


def _load(file: str, overrides: Sequence[str], imports: Sequence[str]) -> Config:
    config = load_config(file, overrides, imports)
    for note in config.unused_bindings:
        print("note:", note, file=sys.stderr)
    return config


def show(config: Config, *, as_json: bool = False) -> str:
    """Every value and who decided it, then the names of the run and of all of it."""
    if not as_json:
        ends = f"run id {config.run_id()}, digest {config.digest()}"
        return f"{config.show()}\n{ends}"
    fields = {
        path: {"value": to_jsonable(value), "from": config.find_provenance(path)[0]}
        for path, value in config.flatten()
    }
    return _json({**_names(config), "fields": fields, "notes": config.unused_bindings})


def tree(config: Config, *, as_json: bool = False) -> str:
    """The references as a picture, and the parameters that they come to.

    For a machine, all of the configuration nested.
    """
    from lmx.models import params

    model = _model(config)
    if not as_json:
        drawn = config.draw_tree()
        return (
            drawn if model is None else f"{drawn}\n\n{params.format_parameters(model)}"
        )
    told = {**_names(config), "experiment": to_jsonable(config)}
    if model is not None:
        told["parameters"] = {
            row.name: row.sizes for row in params.list_parameters(model)
        }
    return _json(told)


def _model(config: Config) -> Any:
    """The model without its numbers, where there is one."""
    if "model" not in config.fields:
        return None
    from flax import nnx

    with explain_errors(config):
        make = config["model"].build()
        return nnx.eval_shape(lambda: make(nnx.Rngs(0)))


def why(config: Config, labels: Iterable[str], *, as_json: bool = False) -> str:
    """The story of each path, or of every place of a `Class.parameter`."""
    paths = dict.fromkeys(path for label in labels for path in config.find_paths(label))
    if not as_json:
        return "\n".join(map(config.explain, paths))
    return _json(
        {
            path: {
                "value": to_jsonable(config[path]),
                "trail": config.find_provenance(path),
            }
            for path in paths
        }
    )


def difference(old: Config, new: Config, *, as_json: bool = False) -> str:
    """The values that differ, old -> new."""
    changed = diff(old, new)
    if as_json:
        pairs = {path: {"old": a, "new": b} for path, (a, b) in changed.items()}
        return _json(
            {
                path: {
                    side: to_jsonable(v) for side, v in pair.items() if v is not ABSENT
                }
                for path, pair in pairs.items()
            }
        )
    lines = [f"{path}: {_side(a)} -> {_side(b)}" for path, (a, b) in changed.items()]
    if old.run_id() == new.run_id():
        lines.append(f"the same run, {old.run_id()}")
    else:
        lines.append(f"run {old.run_id()} -> {new.run_id()}")
    return "\n".join(lines)


def _side(value: Any) -> str:
    return value if isinstance(value, str) and value[:1] == "@" else format_value(value)


def _names(config: Config) -> dict[str, str]:
    return {"run_id": config.run_id(), "digest": config.digest()}


def _json(value: Any) -> str:
    return json.dumps(value, indent=2, allow_nan=False)
