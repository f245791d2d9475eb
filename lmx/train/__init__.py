"""The package of training; called, as in `lmx.train(experiment, run)`, it trains."""

import sys
from pathlib import Path
from types import ModuleType
from typing import Any


class _TrainPackage(ModuleType):
    def __call__(self, *args: Any, **options: Any) -> Path:
        """`lmx.train_run`: this package has the name that a user expects of it."""
        return sys.modules["lmx"].train_run(*args, **options)


sys.modules[__name__].__class__ = _TrainPackage
