"""Import of libraries that are not part of the core installation."""

import importlib
from typing import Any

from lmx.config.registry import ConfigError


def import_optional(module: str, extra: str, purpose: str) -> Any:
    """Returns the module; if it is missing, refuses with how to install the extra."""
    try:
        return importlib.import_module(module)
    except ImportError:
        name = module.split(".")[0]
        raise ConfigError(
            f"{name} is needed {purpose}: pip install 'lmx[{extra}]'"
        ) from None
