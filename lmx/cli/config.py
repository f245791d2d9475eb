"""`lmx config show | explain | diff | tree | list`: read a config and run nothing."""

import argparse
import contextlib
import inspect
import re
from typing import Any

from lmx.cli.command import Command, Output
from lmx.cli.load import load_config
from lmx.config.coerce import find_choices, name_kind, split_kind
from lmx.config.format import draw_tree, show
from lmx.config.names import find_synonyms
from lmx.config.registry import (
    REQUIRED,
    ConfigError,
    config_fields,
    find,
    find_declarations,
    find_experiments,
    find_owners,
    format_type,
    import_all,
    is_known,
    require,
    suggest,
)
from lmx.config.resolve import Resolver
from lmx.config.value import (
    ABSENT,
    Config,
    diff,
    explain_errors,
    format_value,
    to_jsonable,
)
from lmx.core.console import format_table, print_once


def _resolve(name: str, args: argparse.Namespace) -> Config:
    config = load_config(name, args.overrides)
    for note in config.unused_bindings:
        print_once(f"note: {note}")
    return config


@Command(
    "config show", "CONFIG.gin", "every value, and what set it", takes_overrides=True
)
def show_config(args: argparse.Namespace) -> Output:
    """One line per value: its path, the value, and the line or override that set it.

    A config is a .gin file, the name of a shipped experiment, or the folder of a run.
    The last line identifies the run; the run id ignores execution settings (mesh,
    logging, paths).

      lmx config show quickstart
      lmx config show experiments/quickstart.gin Attention.kv_heads=2 Experiment.seed=1
      lmx config show runs/quickstart-...
    """
    config = _resolve(args.names[0], args)
    with explain_errors(config):
        experiment = config.build()
        if config.name == "Experiment":
            experiment.abstract_model()  # some errors need the shapes of the model
    fields = {
        path: {"value": to_jsonable(value), "from": config.find_provenance(path)[0]}
        for path, value in config.flatten()
    }
    ids = {"run_id": config.run_id(), "digest": config.digest()}
    text = f"{show(config)}\nrun id {ids['run_id']}, digest {ids['digest']}"
    return Output(text, {**ids, "fields": fields, "notes": config.unused_bindings})


@Command(
    "config explain", "CONFIG.gin PATH ...", "what set a value", takes_overrides=True
)
def explain(args: argparse.Namespace) -> Output:
    """Where a value was set, which values it replaced, and the macros it came through.

    Name the value by its path, or by Class.parameter for every use of the class.

      lmx config explain quickstart model.attention.heads
      lmx config explain quickstart Attention.heads Attention.heads=2
    """
    config, labels = _resolve(args.names[0], args), args.names[1:]
    paths = dict.fromkeys(path for label in labels for path in config.find_paths(label))
    data = {
        path: {
            "value": to_jsonable(config[path]),
            "lines": config.find_provenance(path),
        }
        for path in paths
    }
    return Output("\n".join(map(config.explain, paths)), data)


@Command("config diff", "A B", "the values that differ", takes_overrides=True)
def show_diff(args: argparse.Namespace) -> Output:
    """The values that differ between two configs or runs, as old -> new.

    Overrides apply to both.

      lmx config diff quickstart gqa
      lmx config diff runs/quickstart-... experiments/quickstart.gin
    """
    old, new = (_resolve(name, args) for name in args.names)
    changes = diff(old, new)
    lines = [f"{path}: {_side(a)} -> {_side(b)}" for path, (a, b) in changes.items()]
    ids = dict.fromkeys((old.run_id(), new.run_id()))
    same = "the same run id," if len(ids) == 1 else "run id"
    data = {
        path: {
            side: to_jsonable(value)
            for side, value in zip(("old", "new"), pair, strict=True)
            if value is not ABSENT
        }
        for path, pair in changes.items()
    }
    return Output("\n".join([*lines, f"{same} {' -> '.join(ids)}"]), data)


def _side(value: Any) -> str:
    return value if isinstance(value, str) and value[:1] == "@" else format_value(value)


@Command("config tree", "CONFIG.gin", "classes and parameters", takes_overrides=True)
def show_tree(args: argparse.Namespace) -> Output:
    """The classes and the values that are not defaults, as a tree.

    Then every model parameter with its size and axes, and their total.

      lmx config tree quickstart
      lmx config tree quickstart Decoder.mlp=@GeGLU GeGLU.hidden=256
    """
    from lmx.models import params

    config = _resolve(args.names[0], args)
    text, model = draw_tree(config), _abstract_model(config)
    data: dict[str, Any] = {"run_id": config.run_id(), "digest": config.digest()}
    data["experiment"] = to_jsonable(config)
    if model is not None:
        text = f"{text}\n\n{params.format_parameters(model)}"
        data["parameters"] = params.list_parameters(model)
    return Output(text, data)


def _abstract_model(config: Config) -> Any:
    """The model without values, if the config has one."""
    if "model" not in config.fields:
        return None
    from flax import nnx

    with explain_errors(config):
        make = config["model"].build()
        return nnx.eval_shape(lambda: make(nnx.Rngs(0)))


@Command("config list", "[NAME|KIND]", "what a config can name", takes_overrides=True)
def list_names(args: argparse.Namespace) -> Output:
    """The classes and functions that a config can name, by module.

    With a name, its parameters with types, ranges, defaults and documentation. With a
    parameter or a type, what can stand there; with the bare name of a parameter, here
    or in other frameworks, whose it is. `experiments` lists the experiments that
    ship with lmx and the question that each one answers.

      lmx config list
      lmx config list Attention
      lmx config list Decoder.mlp
      lmx config list FeedForward
      lmx config list learning_rate
      lmx config list experiments
    """
    name, *_ = (*args.names, "")
    if name == "experiments":
        files = find_experiments().items()
        rows = {x: file.read_text().split("\n")[0].strip("# ") for x, file in files}
        return Output(format_table(("experiment", "question"), rows.items(), 2), rows)
    if not name:
        modules = {name: found[0] for name, found in find_declarations().items()}
        rows = sorted(modules.items(), key=lambda row: row[::-1])
        return Output(format_table(("name", "module"), rows, 2), modules)
    with contextlib.suppress(ConfigError):
        find(name, "config list")  # may import it
    if is_known(name):
        return _list_parameters(name)
    kinds = _find_kinds(name)
    rows = {
        choice: (inspect.getdoc(thing) or "").split("\n")[0]
        for choice, thing in find_choices(*kinds).items()
    }
    if not rows:
        return _list_owners(name)
    return Output(format_table(("choice", "what it is"), rows.items(), 2), rows)


def _find_kinds(name: str) -> list[Any]:
    """The type of the place `Class.parameter`, or every type of that name."""
    owner, _, parameter = name.partition(".")
    fields = {
        f"{holder}.{known}": field.annotation
        for holder in ([owner] if parameter else import_all())
        for known, field in config_fields(find(holder, "config list")).items()
    }
    if not parameter:
        parts = [part for kind in fields.values() for part in split_kind(kind)]
        return [part for part in parts if name_kind(part) == name]
    message = f"config list: there is no {name}{suggest(name, fields)}"
    require(name in fields, message)
    return [fields[name]]


def _list_owners(name: str) -> Output:
    """The parameters of that name, or of the one that it means elsewhere."""
    owners = [x for own in (name, *find_synonyms(name)) for x in find_owners(own)]
    if not owners:
        find(name, "config list")  # raises
    kinds = {owner.partition(".")[0] for owner in owners}
    rows = [x for kind in sorted(kinds) for x in _read_parameters(kind)]
    return _format_parameters([row for row in rows if row[0] in owners])


def _list_parameters(name: str) -> Output:
    about = f"{inspect.getdoc(find(name, 'config list'))}".split("\n\nAttributes:")[0]
    text, rows, _ = _format_parameters(_read_parameters(name))
    return Output(f"{about}\n\n{text}", rows)


def _format_parameters(rows: list[tuple[str, ...]]) -> Output:
    table = format_table(("parameter", "type", "default"), [x[:3] for x in rows], 3)
    lines = [table, "", *(f"{row[0]}: {row[3]}" for row in rows if row[3])]
    return Output("\n".join(lines).rstrip(), rows)


def _read_parameters(name: str) -> list[tuple[str, ...]]:
    """Label, type with ranges, default and documentation of each parameter."""
    thing, rows = find(name, "config list"), []
    docs = _read_docs(thing)
    for parameter, field in config_fields(thing).items():
        kind = "; ".join(
            (format_type(field.annotation), *(x.text for x in field.ranges))
        )
        default = "required"
        if field.default is not REQUIRED:
            value = Resolver({}).resolve_default(field.default, (), "default")
            default = format_value(value)
        rows.append((f"{name}.{parameter}", kind, default, docs.get(parameter, "")))
    return rows


def _read_docs(thing: Any) -> dict[str, str]:
    """What the docstrings of a class and its bases say on each attribute."""
    docs: dict[str, str] = {}
    for kind in reversed(inspect.getmro(thing) if inspect.isclass(thing) else (thing,)):
        text = inspect.cleandoc(kind.__doc__ or "").partition("Attributes:\n")[2]
        for names, doc in re.findall(r"^    (\w[\w, ]*): ((?:.|\n {8})+)", text, re.M):
            docs |= dict.fromkeys(names.split(", "), " ".join(doc.split()))
    return docs
