"""Bindings -> a configuration, once, before anything is built.

Five rules. What the root does not reference cannot be set. A reference `@s/X` looks
first at `s/X.p`, then at `X.p`, and hands its scope on to what X references. The later
of two bindings wins. Every value has the type of its annotation. A binding or macro
that reaches nothing is an error, unless an include brought it, or an override put
another class in the place of the one it was for.

Where a page means something else than under gin's own runtime, it does so on purpose:

| In a page | gin | lmx |
|---|---|---|
| a list | a list | a tuple |
| a value of the wrong type | is handed on | an error |
| bytes, complex numbers; keys that are no scalars | are handed on | an error |
| a binding or macro that nothing uses | is ignored | an error |
| `%gin.REQUIRED` that nobody replaced | is handed on | an error |
| `@X`, uncalled and without scope | scope of the call | scope of its place |
| `@X()` in a macro `M` | scope `M` | scope of the place of `%M` |
| `%s/M` | `s/M`, else `s` | `s/M` |
| a default that is configurable | cannot be bound | is bound like a reference |
| what the caller gives (left of the star) | can be bound | an error |
| `module.X`, constants, singletons | work | an error: `X` is unique, pages whole |
| `include` | beside the working folder | beside the page |
| `import` | any module | modules of lmx |
| a circle of macros or references | no end | an error |
| `X()` called by other code | hears the page | does not |
"""

import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, TypeVar

from lmx.config.coerce import coerce_field
from lmx.config.parse import BindingKey, Bindings, Ref, parse
from lmx.config.reader import Resolver, find_refs, is_override
from lmx.config.registry import (
    REQUIRED,
    ConfigError,
    config_fields,
    find,
    find_owners,
    is_registered,
    suggest,
)
from lmx.config.value import Config

T = TypeVar("T")


def load(
    files: Iterable[str | Path],
    overrides: Iterable[str] = (),
    *,
    root: Callable[..., T],
) -> Config[T]:
    """The configuration of `root()` under these files and overrides, in that order."""
    return resolve(parse(files, overrides), root.__name__)


def resolve(bindings: Bindings, root: str, *, strict: bool = True) -> Config[Any]:
    """`load`, from bindings already parsed. Not strict lets the unused pass."""
    reader = Resolver(bindings)
    config = reader.resolve_ref(Ref((), root, called=True), (), "command line")
    given = [b.value for b in bindings.values() if is_override(b.location)]
    swapped = any(find_refs(value, Ref) for value in given)
    alive = reader.reached | reader.mentioned_macros()
    notes = []
    for key, binding in bindings.items():
        where, given = binding.location, is_override(binding.location)
        if key in alive and (not given or not _is_hidden(key, reader)):
            continue
        if strict and not binding.included and (given or not swapped):
            raise ConfigError(f"{where}: {_explain_unused(key, root, reader)}")
        notes.append(f"{where}: {key} reaches nothing")
    return Config(config.name, True, config.fields, config.provenance, tuple(notes))


def _is_hidden(key: BindingKey, reader: Resolver) -> bool:
    return bool(key.parameter) and key not in reader.deciding


def _explain_unused(key: BindingKey, root: str, reader: Resolver) -> str:
    """Why a binding reaches nothing, and what may have been meant."""
    if key in reader.reached:
        hiding = [k for k in reader.deciding if k[1:] == key[1:]]
        told = ", ".join(f"{k} ({reader.bindings[k].location})" for k in sorted(hiding))
        return f"{key} is hidden everywhere, by {told}"
    what = f"nothing under @{root}() uses {key}"
    if key.parameter:
        seen = ["/".join((*scope, name)) for scope, name in reader.seen]
        alike = sorted({x for x in seen if x.rpartition("/")[2] == key.name})
        there = f"; there is {', '.join(f'@{x}' for x in alike)}" if alike else ""
        return what + (there or _suggest_near("/".join((*key.scope, key.name)), seen))
    if is_registered(key.name):
        return f"{what}: write {key.name}.parameter=value"
    macros = [f"{k}" for k in reader.mentioned_macros() if k != key]
    known = find_owners(key.name)
    there = f"; there is {', '.join(known)}" if known else ""
    return what + (_suggest_near(key.name, macros) or there)


def _suggest_near(word: str, words: Iterable[str]) -> str:
    """The hint, if there is a near word."""
    near = suggest(word, words)
    return near if "did you mean" in near else ""


def from_json(text: str) -> Config[Any]:
    """The inverse of `Config.to_json`, against the signatures of today."""
    try:
        value = json.loads(text)
    except json.JSONDecodeError as error:
        raise ConfigError(f"JSON: {error}") from error
    config = _from_jsonable(value)
    if not isinstance(config, Config):
        raise ConfigError('JSON: a configuration begins with {"@Name()": {...}}')
    return config


def _from_jsonable(value: Any) -> Any:
    if isinstance(value, list):
        return tuple(map(_from_jsonable, value))
    if not isinstance(value, dict):
        return value
    name, *_ = (*value, "")
    if name == "=float":
        return float(value[name])
    if name == "=map":
        return {_from_jsonable(key): _from_jsonable(item) for key, item in value[name]}
    if not name.startswith("@"):
        return {key: _from_jsonable(item) for key, item in value.items()}
    return _node_from_json(name.strip("@()"), name.endswith("()"), value[name])


def _node_from_json(name: str, called: bool, old: dict[str, Any]) -> Config[Any]:
    known = config_fields(find(name, "JSON"))
    for field in old:
        if field not in known:
            near = suggest(field, known)
            raise ConfigError(f"JSON: @{name} no longer has {field!r}{near}")
    fields = {}
    for field, choice in known.items():
        label = f"{name}.{field}"
        if field in old:
            item = _from_jsonable(old[field])
        elif choice.default is REQUIRED:
            raise ConfigError(f"JSON: @{name} now needs {field!r}")
        else:
            item = Resolver({}).resolve_default(choice.default, (), label)
        fields[field] = coerce_field(item, choice.annotation, label, "JSON")
    return Config(name, called, fields)
