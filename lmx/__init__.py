"""Language models in JAX, for research that can be read, checked and resumed."""

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lmx.config.tree import Config
    from lmx.core.precision import Dtype
    from lmx.core.sharding import Mesh, Rules
    from lmx.train.experiment import Experiment
    from lmx.train.record.restore import Trained


def load_experiment(
    path: str | Path, overrides: Iterable[str] = ()
) -> "Config[Experiment]":
    """The experiment of a `.gin` page under overrides, as in `"Attention.heads=8"`."""
    from lmx.config.resolve import load  # here, so that `import lmx` imports no jax
    from lmx.train.experiment import Experiment

    return load([path], overrides, root=Experiment)


def restore(run: str | Path) -> "Trained":
    """What the run in that folder has learned: `restore(run).model(tokens)`."""
    from lmx.train.record import restore as trained

    return trained.restore(run)


def load_hf(
    folder: str | Path,
    mesh: "Mesh | None" = None,
    rules: "Rules | None" = None,
    dtype: "Dtype | None" = None,
) -> "Trained":
    """The model in a folder of Hugging Face transformers.

    On one device, or on a mesh split by `rules`: each process reads the bytes of its
    own devices' shares. `dtype` is that of the parameters; None: the files' own.
    """
    from lmx.train.record import exchange

    return exchange.load_hf(folder, mesh, rules, dtype)


def save_hf(trained: "Trained", folder: str | Path) -> None:
    """Writes a model in a new folder as transformers would have saved it."""
    from lmx.train.record import exchange

    exchange.save_hf(trained, folder)
