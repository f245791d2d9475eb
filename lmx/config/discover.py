"""Which module of lmx makes a name configurable, found by reading and not importing.

So a page needs no imports for what ships with lmx, and no room has to import another
only to have its names known.
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
    """The modules of each name that something in lmx declares configurable."""
    found: dict[str, tuple[str, ...]] = {}
    for file in sorted(_LMX.rglob("*.py")):
        if "configurable" not in (text := file.read_text(encoding="utf-8")):
            continue
        module = ".".join(("lmx", *file.relative_to(_LMX).with_suffix("").parts))
        for names in _DECLARATION.findall(text):
            name = "".join(names)
            found[name] = (*found.get(name, ()), module)
    return found


def import_declaring(name: str) -> None:
    """Imports the modules that declare `name`; nothing if none does."""
    for module in find_declarations().get(name, ()):
        importlib.import_module(module)
