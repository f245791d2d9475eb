"""Formats a configuration: as a table, as a tree, or as one flat `.gin` file."""

import re
from collections.abc import Iterator

from lmx.config.registry import REQUIRED, config_fields, find
from lmx.config.value import Config, format_value, iter_fields, to_jsonable, walk


def show(config: Config) -> str:
    """One line per field: path, value, and the line that set it."""
    rows = [
        (
            f"{path} = {format_value(owner.fields[name])}",
            owner.field_provenance(name)[0],
        )
        for path, owner, name in iter_fields(config)
    ]
    width = min(max((len(text) for text, _ in rows), default=0), 60)
    return "\n".join(f"{text:{width}}  {location}" for text, location in rows)


def draw_tree(config: Config) -> str:
    """The references as a tree, with the values that are not defaults."""
    return "\n".join((str(config), *_draw_branches(config)))


def _draw_branches(config: Config) -> Iterator[str]:
    entries = list(_list_entries(config))
    for index, (text, child) in enumerate(entries):
        last = index == len(entries) - 1
        yield f"{'└─' if last else '├─'} {text}"
        if child is not None:
            stem = "   " if last else "│  "
            yield from (stem + line for line in _draw_branches(child))


def _list_entries(config: Config) -> Iterator[tuple[str, Config | None]]:
    known = config_fields(find(config.name, "tree"))
    for name, value in config.fields.items():
        inner = ((path, x) for path, x, owner, _ in walk(value, name) if owner is None)
        nodes = [(path, x) for path, x in inner if isinstance(x, Config)]
        default = known[name].default
        yield from ((f"{path}: {node}", node) for path, node in nodes)
        is_set = default is REQUIRED or to_jsonable(value) != to_jsonable(default)
        if not nodes and is_set:
            yield f"{name} = {format_value(value)}", None


def to_gin(root: Config) -> str:
    """One flat `.gin` file with every field, which loads to an equal value.

    A class that is used with different fields gets a scope, named after its path.
    """
    scopes = _assign_scopes(root)

    def format_ref(config: Config) -> str:
        return f"@{scopes[config]}{config.name}{'()' if config.called else ''}"

    blocks: dict[str, str] = {}
    for _, config in _iter_nodes(root):
        key = f"{scopes[config]}{config.name}"
        if config.fields and key not in blocks:
            fields = config.fields.items()
            lines = (f"  {k} = {format_value(v, format_ref)}" for k, v in fields)
            blocks[key] = "\n".join((f"{key}:", *lines))
    return "\n\n".join(blocks.values()) + "\n"


def _iter_nodes(root: Config) -> Iterator[tuple[str, Config]]:
    """`root` and every config inside it, with their paths, parents first."""
    return ((path, node) for path, node, *_ in walk(root) if isinstance(node, Config))


def _assign_scopes(root: Config) -> dict[Config, str]:
    """The scope of each distinct config: empty, or with its trailing slash."""
    variants: dict[str, dict[Config, str]] = {}
    for path, config in _iter_nodes(root):
        variants.setdefault(config.name, {}).setdefault(config, path)
    scopes = {root: ""}
    for paths in variants.values():
        for config, path in paths.items():
            scope = re.sub(r"\W", "_", path, flags=re.ASCII)
            while f"{scope}/" in scopes.values():
                scope = f"{scope}_"
            scopes.setdefault(config, f"{scope}/" if len(paths) > 1 else "")
    return scopes
