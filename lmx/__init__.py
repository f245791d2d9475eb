"""Language models in JAX, for research that can be read, checked and resumed."""

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lmx.config.tree import Config
    from lmx.train.experiment import Experiment
    from lmx.train.restore import Trained


def load_experiment(
    path: str | Path, overrides: Iterable[str] = ()
) -> "Config[Experiment]":
    """The experiment of a `.gin` page under overrides, as in `"Attention.heads=8"`."""
    from lmx.config.resolve import load  # here, so that `import lmx` imports no jax
    from lmx.train.experiment import Experiment

    return load([path], overrides, root=Experiment)


def restore(run: str | Path) -> "Trained":
    """What the run in that folder has learned: `restore(run).model(tokens)`."""
    from lmx.train import restore as trained

    return trained.restore(run)
