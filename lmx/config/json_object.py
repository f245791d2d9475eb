"""Reads JSON objects that other programs wrote."""

import json
from collections.abc import Callable, Mapping
from typing import Any

from lmx.config.coerce import coerce_field
from lmx.config.registry import ConfigError, require

MAX_DEPTH = 64  # of nested objects and arrays; files of models have less than 10
LFS_POINTER = b"version https://git-lfs"  # what a clone without Git LFS has of a file
# What code raises for a value of an unexpected kind, if no check is made before.
WRONG_KIND = (
    ArithmeticError,
    AttributeError,
    LookupError,
    RecursionError,
    TypeError,
    ValueError,
)
Pairs = list[tuple[str, Any]]


def parse_object(
    content: bytes,
    where: object,
    kinds: Mapping[str, Any] | None = None,
    hook: Callable[[Pairs], Any] | None = None,
) -> dict[str, Any]:
    """The object in a JSON file, with fields of these types (see `coerce`).

    A type that allows None makes its field optional. Errors are ConfigErrors.
    """
    fix = "It is damaged or of another kind: restore it from its source."
    if content.startswith(LFS_POINTER):
        fix = "It is a pointer of Git LFS: fetch the file itself (git lfs pull)."
    try:
        value = json.loads(content, object_pairs_hook=hook)
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{where} is not JSON: {error}. {fix}") from None
    require(isinstance(value, dict), f"{where} must hold a JSON object, {{...}}. {fix}")
    check_depth(value, where, fix)
    check_kinds(value, kinds or {}, where)
    return value


def check_depth(value: Any, where: object, fix: str) -> None:
    """Raises a ConfigError for too deeply nested JSON."""
    level = [value]
    for _ in range(MAX_DEPTH):
        parts = (part.values() if isinstance(part, dict) else part for part in level)
        level = [x for items in parts for x in items if isinstance(x, dict | list)]
    require(not level, f"{where} has more than {MAX_DEPTH} levels of nesting. {fix}")


def check_kinds(
    value: Mapping[str, Any], kinds: Mapping[str, Any], where: object
) -> None:
    """Raises a ConfigError unless the fields of an object have these types."""
    for name, kind in kinds.items():
        coerce_field(value.get(name), kind, name, where)


def refuse_repeated_names(pairs: Pairs) -> dict[str, Any]:
    """A `hook` that refuses an object with two values of one name."""
    fields: dict[str, Any] = {}
    for name, value in pairs:
        require(name not in fields, f"{name!r} twice in one object")
        fields[name] = value
    return fields
