"""The golden text of each experiment: `python tests/golden/pages.py` writes it anew."""

import math
import pathlib

import jax
from flax import nnx

import lmx
from lmx.core.sharding import is_variable

ROOT = pathlib.Path(__file__).parents[2]
PAGES = sorted((ROOT / "experiments").rglob("*.gin"))


def golden(page: pathlib.Path) -> str:
    """The resolved configuration, then a table of the parameters."""
    config = lmx.load_experiment(page)
    make = config["model"].build()
    _, params = nnx.split(nnx.eval_shape(lambda: make(nnx.Rngs(0))))
    leaves, _ = jax.tree.flatten_with_path(params, is_leaf=is_variable)
    rows = [f"# run id {config.run_id()}", config.text().rstrip(), ""]
    total = 0
    for path, leaf in leaves:
        name = jax.tree_util.keystr(path, simple=True, separator=".")
        rows.append(f"# {name:44} {str(leaf.shape):22} {' '.join(leaf.axes)}")
        total += math.prod(leaf.shape)
    return "\n".join([*rows, f"# {total:,} parameters", ""])


def text_of(page: pathlib.Path) -> pathlib.Path:
    """Where the golden text of the page stands."""
    return pathlib.Path(__file__).with_name(f"{page.stem}.txt")


if __name__ == "__main__":
    for each in PAGES:
        text_of(each).write_text(golden(each))
