"""User code: modules outside lmx that a config names classes of, and their digests.

Nothing is imported but what the user names with --import. A module that was named once
is remembered in the cache by the digest of its source and of the modules beside it that
it imports: so a run that names it can be opened without the flag while nothing of that
changes.
"""

import ast
import functools
import hashlib
import importlib
import os
import sys
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from lmx.config.registry import ConfigError, find
from lmx.config.resolve import from_json
from lmx.config.value import Config, map_nodes
from lmx.core.console import print_line, warn_on_error
from lmx.core.files import create_dir_once, get_cache_path

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
                _memory_path(name).touch()


def load_recorded_config(
    text: str, modules: Mapping[str, str], source: object
) -> Config:
    """The config of a run as JSON, whose classes are also of these modules (digests).

    Imports those that the user has named before, and no others.
    """
    _add_working_folder()
    for module in modules:
        known = module in sys.modules or _locate(module) is None
        if not known and _memory_path(module).is_file():
            importlib.import_module(module)
    try:
        config = from_json(text, source)
    except ConfigError as error:
        missing = [f"--import {name}" for name in modules if name not in sys.modules]
        hint = f" (it has classes of other modules: give {' '.join(missing)})"
        raise ConfigError(f"{error}{hint if missing else ''}") from error
    changes = diff_modules(modules, digest_modules(config))
    for change in (name for name in changes if name in modules):
        _note(f"note: {change} has changed since the run of {source} was trained")
    return config


@functools.cache
def _note(text: str) -> None:
    print_line(text)


def diff_modules(old: Mapping[str, str], new: Mapping[str, str]) -> list[str]:
    """The modules whose digests differ, sorted."""
    return sorted(n for n in {**old, **new} if old.get(n) != new.get(n))


def digest_modules(config: Config) -> dict[str, str]:
    """The user modules behind a config, with the SHA-256 of each source."""
    modules: set[str] = set()

    def visit(node: Config) -> None:
        name = find(node.name, "user code").__module__
        if name.partition(".")[0] != "lmx":
            modules.add(name)
        for value in node.fields.values():
            map_nodes(value, visit)

    visit(config)
    unknown = dict.fromkeys(sorted(modules), NO_FILE)
    return unknown | _digest(find_sources(sorted(modules)))


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
    queue = list(modules)
    while queue:
        name = queue.pop(0)
        path = None if name.partition(".")[0] == "lmx" else _locate(name)
        if path is None or name in sources:
            continue
        sources[name] = path
        root = _find_root(name, path)
        for other in _list_imports(name, path):
            found = _locate(other)
            installed = "site-packages" in f"{found}"
            same = other.partition(".")[0] == name.partition(".")[0]
            if found and _find_root(other, found) == root and (same or not installed):
                queue.append(other)
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
    path, origin = None, getattr(sys.modules.get(module), "__file__", None)
    names = module.split(".") if module != "__main__" else []
    for count in range(1, len(names) + 1):
        name = ".".join(names[:count])
        finders = (getattr(finder, "find_spec", None) for finder in sys.meta_path)
        specs = (find_spec(name, path) for find_spec in finders if find_spec)
        try:
            spec = next(filter(None, specs), None)
        except (ImportError, KeyError, ValueError):  # inside a namespace package
            return None
        if spec is None or not name:
            return None
        path, origin = spec.submodule_search_locations, spec.origin
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
