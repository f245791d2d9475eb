"""A configuration for the eye: one line per field, the story of one, or a tree."""

from collections.abc import Iterator

from lmx.config.node import (
    Node,
    Provenance,
    child_nodes,
    format_value,
    iter_fields,
    to_jsonable,
)
from lmx.config.registry import REQUIRED, config_fields, find

RECORDED: Provenance = ("recorded",)  # read back from JSON, which keeps no trails


def field_provenance(node: Node, name: str) -> Provenance:
    """What gave a field of `resolve_ref` its value, the deciding line first."""
    return node.provenance.get(name) or RECORDED


def show(node: Node) -> str:
    """One line per field: what it is, and who decided."""
    rows = [
        (
            f"{path} = {format_value(owner.fields[name])}",
            field_provenance(owner, name)[0],
        )
        for path, owner, name in iter_fields(node)
    ]
    width = min(max((len(text) for text, _ in rows), default=0), 60)
    return "\n".join(f"{text:{width}}  {decided}" for text, decided in rows)


def draw_tree(node: Node) -> str:
    """The references as a picture, with the values that are not defaults."""
    return "\n".join((str(node), *_branches(node)))


def _branches(node: Node) -> Iterator[str]:
    entries = list(_entries(node))
    for index, (text, child) in enumerate(entries):
        last = index == len(entries) - 1
        yield f"{'└─' if last else '├─'} {text}"
        if child is not None:
            stem = "   " if last else "│  "
            yield from (stem + line for line in _branches(child))


def _entries(node: Node) -> Iterator[tuple[str, Node | None]]:
    for name, value in node.fields.items():
        below = list(child_nodes(value, name))
        for path, inner in below:
            yield f"{path}: {inner}", inner
        if not below and not _is_default(node, name):
            yield f"{name} = {format_value(value)}", None


def _is_default(node: Node, name: str) -> bool:
    """Whether a field without references has the value of its signature."""
    default = config_fields(find(node.name, "tree"))[name].default
    return default is not REQUIRED and to_jsonable(node.fields[name]) == to_jsonable(
        default
    )
