"""Finds the modules that declare configurable names, and the shipped experiments.

Modules are read as text and not imported, so that a config needs no imports for what
ships with lmx, and no package imports another only to register its names.
"""

import functools
import importlib
import re
from collections.abc import Mapping
from pathlib import Path

_LMX = Path(__file__).parents[1]
_DECLARATION = re.compile(
    r"^@configurable\n(?:@.*\n)*(?:class|def) (\w+)|^configurable\((\w+)\)",
    re.MULTILINE,
)


@functools.cache
def find_declarations() -> Mapping[str, tuple[str, ...]]:
    """The modules that declare each configurable name of lmx."""
    modules: dict[str, tuple[str, ...]] = {}
    for file in sorted(_LMX.rglob("*.py")):
        module = ".".join(("lmx", *file.relative_to(_LMX).with_suffix("").parts))
        for names in _DECLARATION.findall(file.read_text(encoding="utf-8")):
            modules["".join(names)] = (*modules.get("".join(names), ()), module)
    return modules


def import_declaring(name: str) -> None:
    """Imports the modules of lmx that declare `name`, if any."""
    for module in find_declarations().get(name, ()):
        importlib.import_module(module)


def find_experiments() -> dict[str, Path]:
    """The files of the shipped experiments by name, such as `families/llama3_8b`.

    A wheel has them in the package, a checkout in the folder that holds the package.
    """
    folders = (_LMX / "experiments", _LMX.parent / "experiments")
    folder = next(filter(Path.is_dir, folders), folders[0])
    files = sorted(folder.rglob("*.gin"))
    return {file.relative_to(folder).with_suffix("").as_posix(): file for file in files}


def locate_config(name: str | Path) -> Path:
    """The path of a config: a shipped experiment if the name is not a file."""
    path = Path(name)
    return path if path.is_file() else find_experiments().get(str(name), path)
