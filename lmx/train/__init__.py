"""The package of training. It is callable: `lmx.train(...)` is `lmx.train_run(...)`."""

import sys
from types import ModuleType
from typing import Any


class _CallablePackage(ModuleType):  # as an import sets `lmx.train` to this package
    def __call__(self, *args: Any, **options: Any) -> Any:
        return sys.modules["lmx"].train_run(*args, **options)


sys.modules[__name__].__class__ = _CallablePackage
