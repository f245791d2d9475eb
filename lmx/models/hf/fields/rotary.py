"""Field maps of rotary positions, in every form that config.json files have used."""

import math
from collections.abc import Mapping
from typing import Any

from lmx.config.registry import ConfigError, suggest
from lmx.config.value import Config
from lmx.models.hf.fields.field import FieldMap, Values, find_values, ref

TRAINED_LENGTH = "original_max_position_embeddings"
MAX_LENGTH = "max_position_embeddings"
# Of each rope_type: the class of lmx, and the parameter for each of the type's fields.
FACTOR = {"factor": "factor"}
EXTENDED = FACTOR | {TRAINED_LENGTH: "trained_length"}
YARN = ("beta_slow", "beta_fast", "truncate", "attention_factor")  # named alike
LLAMA3 = {"low_freq_factor": "beta_slow", "high_freq_factor": "beta_fast"}
ROPE_TYPES: Mapping[str, tuple[str, Mapping[str, str]]] = {
    "default": ("RoPE", {}),
    "linear": ("PositionInterpolation", FACTOR),
    "dynamic": ("DynamicNTK", EXTENDED),
    "yarn": ("YaRN", EXTENDED | {name: name for name in YARN}),
    "llama3": ("Llama3RoPE", EXTENDED | LLAMA3),
}
DEFAULT_ROPE = {"rope_type": "default"}
MSCALES = ("mscale", "mscale_all_dim")  # of "yarn"; the second also scales logits


def map_rope(
    binding: str = "Attention.position",
    theta: float = 10_000.0,
    scope: str = "",
    scaling: Values = DEFAULT_ROPE,
) -> FieldMap:
    """Maps `rope_theta` and `rope_scaling`, or both in `rope_parameters` (since v5).

    An export has the first two, which every version reads. `theta` and `scaling` are
    the defaults of a family; `scope` is that of the bindings, if layers differ.
    """

    def to_bindings(fields: Values) -> dict[str, Any]:
        given = fields["rope_scaling"] or DEFAULT_ROPE
        name, parameters = ROPE_TYPES[given["rope_type"]]
        values = {ours: given[theirs] for theirs, ours in parameters.items()}
        values["theta"] = float(fields["rope_theta"])
        prefix = f"{scope}/" if scope else ""
        bindings = {f"{prefix}{name}.{ours}": value for ours, value in values.items()}
        return {f"{prefix}{binding}": ref(name, True, scope), **bindings}

    def to_hf(config: Config) -> dict[str, Any]:
        positions = [found for found in find_values(config, binding) if found]
        fields = describe_rope(positions[0]) if positions else {}
        if fields and scaling != DEFAULT_ROPE and not fields["rope_scaling"]:
            fields["rope_scaling"] = DEFAULT_ROPE
        return fields

    return FieldMap(
        ("rope_theta", "rope_scaling", "rope_parameters"),
        lambda fields: complete_rope(fields, theta, scaling),
        to_bindings,
        to_hf,
    )


def complete_rope(fields: Values, theta: float, scaling: Values) -> dict[str, Any]:
    """`rope_theta` and `rope_scaling` (None for plain RoPE) with all their defaults."""
    given = dict(fields.get("rope_scaling") or fields.get("rope_parameters") or scaling)
    kind = given.pop("type", "default")
    kind = given.pop("rope_type", kind)
    own_theta = given.pop("rope_theta", fields.get("rope_theta"))
    if kind not in ROPE_TYPES:
        known = ", ".join(map(repr, ROPE_TYPES))
        raise ConfigError(f"rope_type = {kind!r}: lmx supports only {known}.")
    parameters = ROPE_TYPES[kind][1]
    longest = fields.get(MAX_LENGTH)
    if TRAINED_LENGTH in parameters:
        # transformers ignores the field of "dynamic".
        own_length = given.get(TRAINED_LENGTH) if kind != "dynamic" else None
        given[TRAINED_LENGTH] = own_length or longest
    if kind == "yarn":
        given = _complete_yarn(given, longest)
    known = {*parameters, *(MSCALES if kind == "yarn" else ())}
    for name in given.keys() - known:
        raise ConfigError(
            f"{name} = {given[name]!r} is an unknown field of rope_type"
            f" {kind!r}{suggest(name, parameters)}: remove it if it changes no logit."
        )
    for name in parameters.keys() - given.keys():
        raise ConfigError(f"rope_type {kind!r} needs {name}.")
    return {
        "rope_theta": theta if own_theta is None else own_theta,
        "rope_scaling": None if kind == "default" else {"rope_type": kind, **given},
    }


def describe_rope(position: Config) -> dict[str, Any]:
    """The fields of a position scheme; none if config.json has no type for it."""
    for kind, (name, parameters) in ROPE_TYPES.items():
        if position.name == name:
            scaling = {t: position.fields[ours] for t, ours in parameters.items()}
            fields = {"rope_theta": position.fields["theta"], "rope_scaling": None}
            if kind == "dynamic":
                fields[MAX_LENGTH] = scaling.pop(TRAINED_LENGTH)
            if parameters:
                fields["rope_scaling"] = {"rope_type": kind, **scaling}
            return fields
    return {}


def _complete_yarn(scaling: Values, longest: int | None) -> dict[str, Any]:
    """All fields of "yarn", `mscale` merged into `attention_factor`."""
    given = {name: value for name, value in scaling.items() if value is not None}
    length = given.get(TRAINED_LENGTH)
    if not given.get("factor") and length and longest:
        given["factor"] = longest / length
    mscale, all_dim = (given.get(name) or 0.0 for name in MSCALES)
    if "attention_factor" not in given and mscale and all_dim and "factor" in given:
        ratio = yarn_mscale(given["factor"], mscale)
        given["attention_factor"] = ratio / yarn_mscale(given["factor"], all_dim)
    given.pop("mscale", None)
    given["beta_slow"] = given.get("beta_slow") or 1.0
    given["beta_fast"] = given.get("beta_fast") or 32.0
    return {"truncate": True, "attention_factor": None, **given}


def yarn_mscale(factor: float | int, mscale: float | int) -> float:
    """YaRN's factor of queries and of keys; the paper has `mscale` 1."""
    return 1.0 if factor <= 1.0 else 0.1 * mscale * math.log(factor) + 1.0
