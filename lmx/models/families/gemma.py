"""Gemma 2 (arXiv:2408.00118) and the text decoder of Gemma 3 (arXiv:2503.19786)."""

import math
from typing import Any

from lmx.config.value import Config
from lmx.models.hf.attention_fields import (
    DEFAULT_ROPE,
    FULL,
    SCOPES,
    WINDOW,
    alternate_windows,
    complete_rope,
    describe_rope,
    map_rope,
    map_window,
)
from lmx.models.hf.family import Family
from lmx.models.hf.fields import (
    ATTENTION,
    ATTENTION_TENSORS,
    BLOCK,
    EMBEDDING_AND_HEAD,
    GATED_MLP,
    FieldMap,
    TensorMap,
    Values,
    derive,
    find_values,
    list_layers,
    map_attention_bias,
    map_decoder,
    map_field,
    map_fields,
    preset,
)

SCALAR = "query_pre_attn_scalar"  # the scale of logits is one over its root
TEMPLATE = """
    Decoder.block = @SandwichNorm
    Decoder.mlp = @GeGLU
    Decoder.norm = @OffsetRMSNorm
"""
REQUIRED = {
    "hidden_activation": "gelu_pytorch_tanh",
    "use_bidirectional_attention": False,
}
# Old files have `hidden_act`, which transformers does not read.
IGNORED_FIELDS = frozenset({"hidden_act", "cache_implementation"})
OFFSETS = {
    f"{BLOCK}.input_layernorm": "attention_norm",
    f"{BLOCK}.post_attention_layernorm": "attention_out_norm",
    f"{BLOCK}.pre_feedforward_layernorm": "mlp_norm",
    f"{BLOCK}.post_feedforward_layernorm": "mlp_out_norm",
    "model.norm": "norm",
    f"{ATTENTION}.q_norm": "attention.q_norm",  # Gemma 3
    f"{ATTENTION}.k_norm": "attention.k_norm",
}
TENSOR_MAPS = (
    *EMBEDDING_AND_HEAD,
    *ATTENTION_TENSORS,
    *GATED_MLP,
    *(
        TensorMap(f"{theirs}.weight", f"{ours}.offset", "D -> D")
        for theirs, ours in OFFSETS.items()
    ),
)


def describe_scale(config: Config) -> dict[str, Any]:
    """The scalar of a scale; transformers wants a whole number where it is one."""
    scales = [scale for scale in find_values(config, "Attention.scale") if scale]
    if not scales:
        return {}
    scalar = round(scales[0] ** -2, 6)
    return {SCALAR: int(scalar) if scalar == int(scalar) else scalar}


def map_gemma(vocab: int, cap: float | None) -> list[FieldMap]:
    """The field maps that Gemma 2 and 3 share."""
    sizes = dict(heads=8, kv_heads=4, head_dim=256)
    return [
        *map_decoder(vocab, 2304, 26, **sizes, norm="OffsetRMSNorm", tied=True),
        derive("Decoder.embed_scale", lambda fields: math.sqrt(fields["hidden_size"])),
        map_field("intermediate_size", "GeGLU.hidden", 9216),
        map_fields(
            {SCALAR: 256},
            lambda fields: {"Attention.scale": fields[SCALAR] ** -0.5},
            describe_scale,
        ),
        map_field("final_logit_softcapping", "Decoder.logit_cap", cap, nullable=True),
        *map_attention_bias(False),
    ]


GEMMA2 = Family(
    model_type="gemma2",
    architecture="Gemma2ForCausalLM",
    template=TEMPLATE,
    field_maps=(
        *map_gemma(256_000, 30.0),
        map_field("attn_logit_softcapping", "Attention.logit_cap", 50.0, nullable=True),
        map_window(4096, alternate_windows),
        map_rope(),
    ),
    required=REQUIRED,
    ignored_fields=IGNORED_FIELDS,
    tensor_maps=TENSOR_MAPS,
    presets={"gemma2_2b": {}, "gemma2_9b": preset(3584, 14_336, 42, 16, 8)},
)


LOCAL_THETA = "rope_local_base_freq"
THETAS = {FULL: 1_000_000.0, WINDOW: 10_000.0}
PERIODS = ("sliding_window_pattern", "_sliding_window_pattern")


def complete_ropes(fields: Values) -> dict[str, Any]:
    """The positions of each kind of layer.

    Until transformers 5, `rope_scaling` was that of layers without a window.
    """
    parameters = fields.get("rope_parameters") or {}
    old = {FULL: fields, WINDOW: {"rope_theta": fields.get(LOCAL_THETA)}}
    ropes = old | {kind: {"rope_parameters": parameters[kind]} for kind in parameters}
    complete = {
        kind: complete_rope(ropes[kind], theta, DEFAULT_ROPE)
        for kind, theta in THETAS.items()
    }
    return {"rope_parameters": complete}


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


GEMMA3 = Family(
    model_type="gemma3_text",
    architecture="Gemma3ForCausalLM",
    template=TEMPLATE + "    Attention.qk_norm = @OffsetRMSNorm\n",
    field_maps=(
        *map_gemma(262_208, None),
        map_window(4096, interleave_windows, PERIODS),
        FieldMap(
            ("rope_theta", "rope_scaling", "rope_parameters", LOCAL_THETA),
            complete_ropes,
            bind_ropes,
            describe_ropes,
        ),
    ),
    required=REQUIRED,
    # transformers does not read attn_logit_softcapping either.
    ignored_fields=IGNORED_FIELDS | {"attn_logit_softcapping"},
    tensor_maps=TENSOR_MAPS,
    presets={
        "gemma3_1b": preset(
            1152, 6912, 26, 4, 1, vocab_size=262_144, sliding_window=512
        )
    },
)
