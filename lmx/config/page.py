"""A configuration written back as one flat `.gin` page that loads to the same."""

import re
from collections.abc import Callable, Iterator

from lmx.config.node import Node, child_nodes, format_value


def to_gin(root: Node) -> str:
    """Every field of every reference, defaults too; no includes, macros or comments.

    A class that stands in two places with different fields gets a scope named after
    the place in each. Nothing is left to inherit: all fields are written.
    """
    scopes = _scopes(root)

    def reference(node: Node) -> str:
        return f"@{scopes[node]}{node.name}{'()' if node.called else ''}"

    pages = {}
    for _, node in _nodes(root, ""):
        key = f"{scopes[node]}{node.name}"
        if node.fields and key not in pages:
            pages[key] = "\n".join(_block(key, node, reference))
    return "\n\n".join(pages.values()) + "\n"


def _block(key: str, node: Node, reference: Callable[[Node], str]) -> Iterator[str]:
    yield f"{key}:"
    for name, value in node.fields.items():
        yield f"  {name} = {format_value(value, reference)}"


def _nodes(node: Node, path: str) -> Iterator[tuple[str, Node]]:
    """`resolve_ref` and all below it, with their paths, parents first."""
    yield path, node
    for name, value in node.fields.items():
        for inner_path, inner in child_nodes(value, f"{path}.{name}"):
            yield from _nodes(inner, inner_path)


def _scopes(root: Node) -> dict[Node, str]:
    """The scope (with its slash, or empty) under which each different node is set."""
    kinds: dict[str, dict[Node, str]] = {}
    for path, node in _nodes(root, ""):
        kinds.setdefault(node.name, {}).setdefault(node, path)
    scopes = {root: ""}
    taken: set[str] = set()
    for variants in kinds.values():
        for node, path in variants.items():
            if len(variants) > 1 and node not in scopes:
                scopes[node] = f"{_fresh(path, taken)}/"
            scopes.setdefault(node, "")
    return scopes


def _fresh(path: str, taken: set[str]) -> str:
    """A scope name made of a path, different from those taken."""
    stem = name = re.sub(r"\W", "_", path.removeprefix("."), flags=re.ASCII)
    while name in taken:
        stem = name = f"{stem}_"
    taken.add(name)
    return name
