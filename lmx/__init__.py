"""A JAX and Flax research framework for language models."""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lmx.analysis.capture import capture
    from lmx.models.hf.api import load_hf, save_hf
    from lmx.train.checkpoint.restore import restore
    from lmx.train.experiment import load_experiment

__all__ = ["capture", "load_experiment", "load_hf", "restore", "save_hf"]
_MODULES = {  # imported when they are used, so that `import lmx` imports no jax
    "capture": "lmx.analysis.capture",
    "load_experiment": "lmx.train.experiment",
    "load_hf": "lmx.models.hf.api",
    "restore": "lmx.train.checkpoint.restore",
    "save_hf": "lmx.models.hf.api",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module 'lmx' has no attribute {name!r}")
    return getattr(importlib.import_module(_MODULES[name]), name)
