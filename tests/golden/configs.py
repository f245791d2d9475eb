"""Golden text of experiments; `python -m tests.golden.configs` rewrites it.

One file per experiment has the settings that are not defaults, and the parameters of
the model. `defaults.txt` has the defaults of every configurable class and function.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from flax import nnx

import lmx
from lmx.config.format import to_gin
from lmx.config.registry import REQUIRED, config_fields, find, find_declarations
from lmx.config.resolve import Resolver
from lmx.config.value import Config, format_value, iter_fields, map_nodes, to_jsonable
from lmx.models import params

ROOT, GOLDEN = Path(__file__).parents[2], Path(__file__).parent
CONFIGS = sorted((ROOT / "experiments").rglob("*.gin"))
SWEEPS = [path for path in CONFIGS if path.parent.name == "sweeps"]
EXPERIMENTS = [path for path in CONFIGS if path not in SWEEPS]
DEFAULTS = GOLDEN / "defaults.txt"


def resolve_default(name: str, field: str) -> Any:
    """Returns the default of a parameter as a config value, or REQUIRED."""
    default = config_fields(find(name, "golden"))[field].default
    if default is REQUIRED:
        return REQUIRED
    return Resolver({}).resolve_default(default, (), f"{name}.{field}")


def remove_defaults(node: Config) -> Config:
    """Returns the node with the settings that are not defaults."""
    fields = {}
    for name, value in node.fields.items():
        default = resolve_default(node.name, name)
        if default is REQUIRED or to_jsonable(value) != to_jsonable(default):
            fields[name] = map_nodes(value, remove_defaults)
    return Config(node.name, node.called, fields)


def format_experiment(path: Path) -> str:
    """Returns the settings of an experiment without defaults, and its parameters."""
    config = lmx.load_experiment(path)
    build = config["model"].build()
    model = nnx.eval_shape(lambda: build(nnx.Rngs(0)))
    lines = [f"# run id {config.run_id()}", to_gin(remove_defaults(config)).rstrip()]
    lines += ["", *(f"# {row}" for row in params.format_parameters(model).splitlines())]
    return "\n".join([*lines, ""])


def format_defaults() -> str:
    """Returns the defaults of everything configurable, without those nested in them."""
    return "\n".join(
        line for name in sorted(find_declarations()) for line in _format(name)
    )


def _format(name: str) -> Iterator[str]:
    yield f"{name}:"
    for field in config_fields(find(name, "golden")):
        default = resolve_default(name, field)
        if default is REQUIRED:
            yield f"  {field} = %gin.REQUIRED"
            continue
        value = map_nodes(default, remove_defaults)
        nested = Config(name, True, {field: value})
        for path, owner, key in iter_fields(nested):
            yield f"  {path} = {format_value(owner.fields[key])}"
    yield ""


def get_golden_path(path: Path) -> Path:
    """Returns the path of the golden text of an experiment."""
    return GOLDEN / path.relative_to(ROOT / "experiments").with_suffix(".txt")


if __name__ == "__main__":
    DEFAULTS.write_text(format_defaults())
    for experiment in EXPERIMENTS:
        get_golden_path(experiment).parent.mkdir(exist_ok=True)
        get_golden_path(experiment).write_text(format_experiment(experiment))
