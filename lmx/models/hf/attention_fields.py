"""Field maps of rotary positions and sliding windows, in every form of config.json."""

import math
from collections.abc import Callable, Mapping
from typing import Any

from lmx.config.registry import ConfigError, require, suggest
from lmx.config.value import Config
from lmx.models.hf.fields import (
    FieldMap,
    Values,
    find_cycle,
    find_values,
    list_layers,
    ref,
)

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
WINDOW, FULL = "sliding_attention", "full_attention"
SCOPES = {WINDOW: "local", FULL: "global"}
MSCALES = ("mscale", "mscale_all_dim")  # of "yarn"; the second also scales logits


def map_rope(
    binding: str = "Attention.position",
    theta: float = 10_000.0,
    scope: str = "",
    scaling: Values = DEFAULT_ROPE,
) -> FieldMap:
    """Maps `rope_theta` and `rope_scaling`, or both in `rope_parameters` (since v5).

    An export has the first two. `theta` and `scaling` are the defaults of a family;
    `scope` is that of the bindings, if layers differ.
    """

    def to_bindings(fields: Values) -> dict[str, Any]:
        rope = fields["rope_scaling"] or DEFAULT_ROPE
        name, parameters = ROPE_TYPES[rope["rope_type"]]
        values = {ours: rope[theirs] for theirs, ours in parameters.items()}
        values["theta"] = float(fields["rope_theta"])
        prefix = f"{scope}/" if scope else ""
        bindings = {f"{prefix}{name}.{ours}": value for ours, value in values.items()}
        return {f"{prefix}{binding}": ref(name, True, scope), **bindings}

    def to_hf(config: Config) -> dict[str, Any]:
        positions = [value for value in find_values(config, binding) if value]
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
    value = fields.get("rope_scaling") or fields.get("rope_parameters") or scaling
    require(
        isinstance(value, Mapping),
        f"rope_scaling = {value!r} must be an object, as in {{'rope_type': 'linear',"
        " 'factor': 2.0}.",
    )
    rope = dict(value)
    kind = rope.pop("type", "default")
    kind = rope.pop("rope_type", kind)
    own_theta = rope.pop("rope_theta", fields.get("rope_theta"))
    if kind not in ROPE_TYPES:
        known = ", ".join(map(repr, ROPE_TYPES))
        raise ConfigError(f"rope_type = {kind!r}: lmx supports only {known}.")
    parameters = ROPE_TYPES[kind][1]
    longest = fields.get(MAX_LENGTH)
    if TRAINED_LENGTH in parameters:
        # transformers ignores the field of "dynamic".
        own_length = rope.get(TRAINED_LENGTH) if kind != "dynamic" else None
        rope[TRAINED_LENGTH] = own_length or longest
    if kind == "yarn":
        rope = _complete_yarn(rope, longest)
    known = {*parameters, *(MSCALES if kind == "yarn" else ())}
    for name in rope.keys() - known:
        raise ConfigError(
            f"{name} = {rope[name]!r} is an unknown field of rope_type"
            f" {kind!r}{suggest(name, parameters)}: remove it if it changes no logit."
        )
    for name in parameters.keys() - rope.keys():
        raise ConfigError(f"rope_type {kind!r} needs {name}.")
    return {
        "rope_theta": theta if own_theta is None else own_theta,
        "rope_scaling": None if kind == "default" else {"rope_type": kind, **rope},
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
    rope = {name: value for name, value in scaling.items() if value is not None}
    length = rope.get(TRAINED_LENGTH)
    if not rope.get("factor") and length and longest:
        rope["factor"] = longest / length
    mscale, all_dim = (rope.get(name) or 0.0 for name in MSCALES)
    if "attention_factor" not in rope and mscale and all_dim and "factor" in rope:
        ratio = yarn_mscale(rope["factor"], mscale)
        rope["attention_factor"] = ratio / yarn_mscale(rope["factor"], all_dim)
    rope.pop("mscale", None)
    rope["beta_slow"] = rope.get("beta_slow") or 1.0
    rope["beta_fast"] = rope.get("beta_fast") or 32.0
    return {"truncate": True, "attention_factor": None, **rope}


def yarn_mscale(factor: float | int, mscale: float | int) -> float:
    """YaRN's factor of queries and of keys; the paper has `mscale` 1."""
    return 1.0 if factor <= 1.0 else 0.1 * mscale * math.log(factor) + 1.0


def map_window(
    default: int | None = None,
    layer_types: Callable[[Values], list[str]] | None = None,
    extra_names: tuple[str, ...] = (),
    extra_fields: Callable[[bool], dict[str, Any]] = lambda windowed: {},
) -> FieldMap:
    """Maps `sliding_window` and `layer_types` to one attention or to a cycle of them.

    `default` is the window if the file has none; null is full attention. `layer_types`
    gives the default of that field; without it every layer has the window. An export
    has `extra_fields`, given whether any layer has a window.
    """

    def with_defaults(fields: Values) -> dict[str, Any]:
        window = fields.get("sliding_window", default)
        depth = fields["num_hidden_layers"]
        if layer_types is None:
            kinds = [WINDOW if window else FULL] * depth
        else:
            kinds = fields.get("layer_types")
            kinds = kinds or layer_types({**fields, "sliding_window": window})
        require(
            len(kinds) == depth and set(kinds) <= SCOPES.keys(),
            f"layer_types has {len(kinds)} layers of types {sorted(set(kinds))}:"
            f" it must have {depth}, each {WINDOW!r} or {FULL!r}.",
        )
        require(
            WINDOW not in kinds or window,
            f"layer_types has {WINDOW!r} and sliding_window is null: set it.",
        )
        return {"sliding_window": window, "layer_types": list(kinds)}

    def to_hf(config: Config) -> dict[str, Any]:
        layers = list_layers(config, "attention")
        windows = [layer.fields.get("window") for layer in layers]
        sizes = sorted({window for window in windows if window})
        require(
            len(sizes) <= 1,
            f"the layers have windows of {sizes} tokens: one is allowed.",
        )
        unused = layer_types and default  # transformers wants a number
        fields: dict[str, Any] = {"sliding_window": sizes[0] if sizes else unused}
        if layer_types is not None:
            fields["layer_types"] = [WINDOW if window else FULL for window in windows]
        return fields | extra_fields(bool(sizes))

    names = ("sliding_window", *(("layer_types",) if layer_types else ()), *extra_names)
    return FieldMap(names, with_defaults, _bind_windows, to_hf)


def _bind_windows(fields: Values) -> dict[str, Any]:
    kinds, window = fields["layer_types"], fields["sliding_window"]
    if len(set(kinds)) > 1:
        cycle = [ref("Attention", scope=SCOPES[kind]) for kind in find_cycle(kinds)]
        return {"Decoder.attention": cycle, "local/Attention.window": window}
    windowed = {"Attention.window": window} if kinds[0] == WINDOW else {}
    return {"Decoder.attention": ref("Attention"), **windowed}


def alternate_windows(fields: Values) -> list[str]:
    """A window in every other layer, starting with the first."""
    return [FULL if i % 2 else WINDOW for i in range(fields["num_hidden_layers"])]
