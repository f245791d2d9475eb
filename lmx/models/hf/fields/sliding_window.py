"""Field maps of sliding-window attention, in all layers or in some."""

from collections.abc import Callable
from typing import Any

from lmx.config.registry import ConfigError
from lmx.config.value import Config
from lmx.models.hf.fields.field import FieldMap, Values, find_cycle, list_layers, ref

WINDOW, FULL = "sliding_attention", "full_attention"
SCOPES = {WINDOW: "local", FULL: "global"}


def map_window(
    default: int | None = None,
    layer_types: Callable[[Values], list[str]] | None = None,
    extra_names: tuple[str, ...] = (),
    extra_fields: Callable[[bool], dict[str, Any]] = lambda windowed: {},
) -> FieldMap:
    """Maps `sliding_window` and `layer_types` to one attention or to a cycle of them.

    `default` is the window if the file has none; null means full attention.
    `layer_types` gives the default of that field from the fields and `extra_names`;
    without it every layer has the window, and files have no `layer_types`. An export
    also has `extra_fields`, given whether any layer has a window.
    """

    def with_defaults(fields: Values) -> dict[str, Any]:
        window = fields.get("sliding_window", default)
        depth = fields["num_hidden_layers"]
        if layer_types is None:
            kinds = [WINDOW if window else FULL] * depth
        else:
            kinds = fields.get("layer_types")
            kinds = kinds or layer_types({**fields, "sliding_window": window})
        if len(kinds) != depth or not set(kinds) <= SCOPES.keys():
            raise ConfigError(
                f"layer_types has {len(kinds)} layers of types {sorted(set(kinds))}:"
                f" it must have {depth}, each {WINDOW!r} or {FULL!r}."
            )
        if WINDOW in kinds and not window:
            raise ConfigError(
                f"layer_types has {WINDOW!r} and sliding_window is null: set it."
            )
        return {"sliding_window": window, "layer_types": list(kinds)}

    def to_hf(config: Config) -> dict[str, Any]:
        layers = list_layers(config, "attention")
        windows = [layer.fields.get("window") for layer in layers]
        sizes = sorted({window for window in windows if window})
        if len(sizes) > 1:
            raise ConfigError(
                f"the layers have windows of {sizes} tokens: one is allowed."
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
