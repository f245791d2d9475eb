"""A JAX and Flax research framework for language models."""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lmx.analysis.capture import capture
    from lmx.analysis.nonfinite import train_run
    from lmx.evals.perplexity import evaluate
    from lmx.infer.text import generate
    from lmx.models.hf.api import load_hf, save_hf
    from lmx.run.overview import read_runs
    from lmx.train.checkpoint.restore import restore
    from lmx.train.experiment import load_experiment

__all__ = [
    "capture",
    "evaluate",
    "generate",
    "load_experiment",
    "load_hf",
    "read_runs",
    "restore",
    "save_hf",
    "train_run",
]
_MODULES = {  # imported when they are used, so that `import lmx` imports no jax
    "capture": "lmx.analysis.capture",
    "evaluate": "lmx.evals.perplexity",
    "generate": "lmx.infer.text",
    "load_experiment": "lmx.train.experiment",
    "load_hf": "lmx.models.hf.api",
    "read_runs": "lmx.run.overview",
    "restore": "lmx.train.checkpoint.restore",
    "save_hf": "lmx.models.hf.api",
    "train_run": "lmx.analysis.nonfinite",
}


def __getattr__(name: str) -> Any:
    if name == "train":
        return importlib.import_module("lmx.train")
    if name not in _MODULES:
        raise AttributeError(f"module 'lmx' has no attribute {name!r}")
    return getattr(importlib.import_module(_MODULES[name]), name)
