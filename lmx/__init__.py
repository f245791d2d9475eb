"""A JAX and Flax research framework for language models."""

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lmx.config.value import Config
    from lmx.core.precision import Dtype
    from lmx.core.sharding import Mesh, Rules
    from lmx.models.trained_model import TrainedModel
    from lmx.train.experiment import Experiment


def load_experiment(
    path: str | Path, overrides: Iterable[str] = ()
) -> "Config[Experiment]":
    """The experiment of a `.gin` config with overrides, as in `"Attention.heads=8"`."""
    from lmx.config.resolve import load  # here, so that `import lmx` imports no jax
    from lmx.train.experiment import Experiment

    return load([path], overrides, root=Experiment)


def restore(run: str | Path) -> "TrainedModel":
    """The model in the newest checkpoint of a run: `restore(run).model(tokens)`."""
    from lmx.train.checkpoint import restore as trained

    return trained.restore(run)


def load_hf(
    folder: str | Path,
    mesh: "Mesh | None" = None,
    rules: "Rules | None" = None,
    dtype: "Dtype | None" = None,
) -> "TrainedModel":
    """The model in a folder of Hugging Face transformers.

    On one device, or on a mesh split by `rules`: each process reads the bytes of its
    own devices' shares. `dtype` is that of the parameters; None: the files' own.
    """
    from lmx.models.hf import api

    return api.load_hf(folder, mesh, rules, dtype)


def save_hf(trained: "TrainedModel", folder: str | Path) -> None:
    """Writes a model in a new folder as transformers would have saved it."""
    from lmx.models.hf import api

    api.save_hf(trained, folder)
