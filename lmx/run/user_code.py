"""User code: modules outside lmx that a config names classes of, and their digests.

Nothing is imported but what the user names with --import. A module that was named once
is remembered in the cache, by the digests of it and of what it imports beside it: runs
and configs of it can be opened without the flag until these change.
"""

import ast
import hashlib
import importlib.machinery
import importlib.util
import os
import sys
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from lmx.config import registry
from lmx.config.registry import ConfigError, find, is_known
from lmx.config.resolve import from_json
from lmx.config.value import Config, walk
from lmx.core.console import print_once, warn_on_error
from lmx.core.files import create_dir_once, get_cache_dir, get_cache_path

CODE = "code"  # the folder of a run that keeps the source of user modules
NO_FILE = "not in a file"  # in place of the digest, as of a class in a notebook


def import_modules(modules: Iterable[str]) -> None:
    """Imports modules that the user names, and remembers them by digest."""
    for module in modules:
        _add_working_folder()
        try:
            importlib.import_module(module)
        except ImportError as error:
            raise ConfigError(f"--import {module}: {error}") from error
        with warn_on_error(f"remember --import {module}"):
            for name in find_sources([module]):
                _memory_path(name).write_text(name)


def import_remembered(name: str) -> None:
    """Imports the module of that class, if the user has named its code before."""
    _add_working_folder()
    for file in get_cache_dir("imports").iterdir():
        with warn_on_error("search a module that was named by --import"):
            module = file.read_text()
            path = None if is_known(name) else _locate(module)
            is_named = path and name.encode() in path.read_bytes()
            if is_named and _memory_path(module) == file:
                importlib.import_module(module)


registry.FINDERS.append(import_remembered)


def load_recorded_config(
    text: str, modules: Mapping[str, str], source: object
) -> Config:
    """The config of a run as JSON. `modules` have the digests of its user modules."""
    try:
        config = from_json(text, source)
    except ConfigError as error:
        missing = [f"--import {name}" for name in modules if name not in sys.modules]
        hint = f" (it has classes of other modules: give {' '.join(missing)})"
        raise ConfigError(f"{error}{hint if missing else ''}") from error
    for name in diff_digests(modules, digest_modules(config)):
        if name in modules:
            print_once(
                f"note: {name} has changed since the run of {source} was trained"
            )
    return config


def diff_digests(old: Mapping[str, str], new: Mapping[str, str]) -> list[str]:
    """The names whose digests differ, sorted."""
    return sorted(n for n in {**old, **new} if old.get(n) != new.get(n))


def digest_modules(config: Config) -> dict[str, str]:
    """The user modules behind a config, with the SHA-256 of each source."""
    nodes = [node for _, node, *_ in walk(config) if isinstance(node, Config)]
    names = sorted({find(node.name, "user code").__module__ for node in nodes})
    modules = [name for name in names if name.partition(".")[0] != "lmx"]
    return dict.fromkeys(modules, NO_FILE) | _digest(find_sources(modules))


def save_sources(config: Config, folder: Path) -> None:
    """Keeps the sources of the user modules, in a folder named by their digest."""
    digests = digest_modules(config)
    sources = find_sources(digests)
    version = hashlib.sha256(repr(sorted(digests.items())).encode()).hexdigest()[:12]
    target = folder / CODE / version
    if not sources or target.is_dir():
        return
    target.parent.mkdir(exist_ok=True)

    def fill(new: Path) -> None:
        for name, path in sources.items():
            parts = name.split(".") + ["__init__"] * (path.name == "__init__.py")
            file = new.joinpath(*parts).with_suffix(".py")
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(path.read_bytes())

    create_dir_once(target, fill)


def find_sources(modules: Iterable[str]) -> dict[str, Path]:
    """The files of modules, and of what they import beside them. Runs none of them.

    Beside a module is what lies in its package, or in its folder if it has none.
    """
    sources: dict[str, Path] = {}
    queue = [*modules]
    for name in queue:
        top = name.partition(".")[0]
        path = _locate(name) if top != "lmx" and name not in sources else None
        if path is None:
            continue
        sources[name] = path
        for other in _list_imports(name, path):
            found = _locate(other)
            if found and _find_root(other, found) == _find_root(name, path):
                same = other.partition(".")[0] == top
                queue += [other] * (same or "site-packages" not in found.parts)
    return sources


def _digest(sources: Mapping[str, Path]) -> dict[str, str]:
    return {
        name: hashlib.sha256(path.read_bytes()).hexdigest()
        for name, path in sources.items()
    }


def _memory_path(module: str) -> Path:
    """The file in the cache that exists if the user has named this code before."""
    return get_cache_path("imports", *sorted(_digest(find_sources([module])).items()))


def _add_working_folder() -> None:
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())


def _locate(module: str) -> Path | None:
    """The source of a module; does not import its package, as `find_spec` would."""
    names, finder = module.split("."), importlib.machinery.PathFinder
    try:
        spec = importlib.util.find_spec(names[0])
        for count in range(2, len(names) + 1):
            path = spec and spec.submodule_search_locations
            spec = finder.find_spec(".".join(names[:count]), [*(path or ())])
    except (ImportError, KeyError, ValueError):  # or inside a namespace package
        spec = None
    origin = spec.origin if spec else getattr(sys.modules.get(module), "__file__", None)
    return Path(origin) if origin and origin.endswith(".py") else None


def _find_root(module: str, path: Path) -> Path:
    """The folder that the first name of a module is in."""
    depth = module.count(".") + (path.name == "__init__.py")
    return path.resolve().parents[depth]


def _list_imports(module: str, path: Path) -> Iterator[str]:
    """The modules that a source may import, and the packages that hold them."""
    package = module if path.name == "__init__.py" else module.rpartition(".")[0]
    names = [package]
    try:
        tree = ast.parse(path.read_bytes())
    except (SyntaxError, ValueError):  # not importable either
        tree = ast.Module([], [])
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            parent = package.rsplit(".", node.level - 1)[0] if node.level else ""
            base = ".".join(filter(None, (parent, node.module)))
            names += [base, *(f"{base}.{alias.name}" for alias in node.names)]
    for name in filter(None, names):
        yield name
        yield from (name.rsplit(".", n)[0] for n in range(1, name.count(".") + 1))
