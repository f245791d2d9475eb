"""The golden text of each experiment: `python tests/golden/pages.py` writes it anew."""

import pathlib

from flax import nnx

import lmx
from lmx.models import params

ROOT = pathlib.Path(__file__).parents[2]
PAGES = sorted((ROOT / "experiments").rglob("*.gin"))


def golden(page: pathlib.Path) -> str:
    """The resolved configuration, then a table of the parameters."""
    config = lmx.load_experiment(page)
    make = config["model"].build()
    model = nnx.eval_shape(lambda: make(nnx.Rngs(0)))
    rows = [f"# run id {config.run_id()}", config.to_gin().rstrip(), ""]
    rows += [f"# {line}" for line in params.format_parameters(model).splitlines()]
    return "\n".join([*rows, ""])


def text_of(page: pathlib.Path) -> pathlib.Path:
    """Where the golden text of the page stands."""
    within = page.relative_to(ROOT / "experiments").with_suffix(".txt")
    return pathlib.Path(__file__).parent / within


if __name__ == "__main__":
    for each in PAGES:
        text_of(each).parent.mkdir(exist_ok=True)
        text_of(each).write_text(golden(each))
