"""Gemma 3, its text decoder. Gemma Team 2025, arXiv:2503.19786."""

from typing import Any

from lmx.config.value import Config
from lmx.models.families import gemma2
from lmx.models.hf.family import Family
from lmx.models.hf.fields.decoder import ATTENTION, preset
from lmx.models.hf.fields.field import FieldMap, Values, list_layers
from lmx.models.hf.fields.rotary import (
    DEFAULT_ROPE,
    complete_rope,
    describe_rope,
    map_rope,
)
from lmx.models.hf.fields.sliding_window import FULL, SCOPES, WINDOW, map_window
from lmx.models.hf.layout import TensorMap

LOCAL_THETA = "rope_local_base_freq"
THETAS = {FULL: 1_000_000.0, WINDOW: 10_000.0}
PERIODS = ("sliding_window_pattern", "_sliding_window_pattern")


def complete_ropes(fields: Values) -> dict[str, Any]:
    """The positions of each kind of layer.

    Files before transformers 5 have `rope_scaling` for layers without a window; since
    then `rope_parameters` has an entry for each kind.
    """
    given = fields.get("rope_parameters") or {}
    old = {FULL: fields, WINDOW: {"rope_theta": fields.get(LOCAL_THETA)}}
    own = {kind: {"rope_parameters": given[kind]} for kind in given}
    ropes = old | own
    return {
        "rope_parameters": {
            kind: complete_rope(ropes[kind], theta, DEFAULT_ROPE)
            for kind, theta in THETAS.items()
        }
    }


def bind_ropes(fields: Values) -> dict[str, Any]:
    """The bindings of each kind of layer, scoped if there are two kinds."""
    kinds, bindings = set(fields["layer_types"]), {}
    for kind in kinds:
        rope = map_rope(scope=SCOPES[kind] if len(kinds) > 1 else "")
        bindings |= rope.to_bindings(fields["rope_parameters"][kind])
    return bindings


def describe_ropes(config: Config) -> dict[str, Any]:
    """The `rope_parameters` of the first layer of each kind."""
    ropes: dict[str, Any] = {}
    for layer in list_layers(config, "attention"):
        kind = WINDOW if layer.fields["window"] else FULL
        if layer.fields["position"] is not None and kind not in ropes:
            fields = describe_rope(layer.fields["position"])
            scaling = fields.get("rope_scaling") or DEFAULT_ROPE
            ropes[kind] = {"rope_theta": fields.get("rope_theta"), **scaling}
    return {"rope_parameters": ropes}


def interleave_windows(fields: Values) -> list[str]:
    """A window in all layers but every sixth, or every period of the file."""
    period = next((fields[name] for name in PERIODS if fields.get(name)), 6)
    layers = range(1, fields["num_hidden_layers"] + 1)
    return [WINDOW if layer % period else FULL for layer in layers]


FAMILY = Family(
    model_type="gemma3_text",
    architecture="Gemma3ForCausalLM",
    template=gemma2.TEMPLATE + "    Attention.qk_norm = @OffsetRMSNorm\n",
    field_maps=(
        *gemma2.map_gemma(262_208, None),
        map_window(4096, interleave_windows, PERIODS),
        FieldMap(
            ("rope_theta", "rope_scaling", "rope_parameters", LOCAL_THETA),
            complete_ropes,
            bind_ropes,
            describe_ropes,
        ),
    ),
    required=gemma2.REQUIRED,
    # transformers does not read attn_logit_softcapping either.
    ignored_fields=gemma2.IGNORED_FIELDS | {"attn_logit_softcapping"},
    tensor_maps=(
        *gemma2.TENSOR_MAPS,
        TensorMap(f"{ATTENTION}.q_norm.weight", "attention.q_norm.offset", "H -> H"),
        TensorMap(f"{ATTENTION}.k_norm.weight", "attention.k_norm.offset", "H -> H"),
    ),
    presets={
        "gemma3_1b": preset(
            1152, 6912, 26, 4, 1, vocab_size=262_144, sliding_window=512
        )
    },
)
