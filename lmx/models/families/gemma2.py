"""Gemma 2. Gemma Team 2024, arXiv:2408.00118."""

import math
from typing import Any

from lmx.config.value import Config
from lmx.models.hf.family import Family
from lmx.models.hf.fields.decoder import (
    ATTENTION_TENSORS,
    BLOCK,
    EMBEDDING_AND_HEAD,
    GATED_MLP,
    map_attention_bias,
    map_decoder,
    preset,
)
from lmx.models.hf.fields.field import (
    FieldMap,
    Values,
    derive,
    find_values,
    map_field,
    map_fields,
)
from lmx.models.hf.fields.rotary import map_rope
from lmx.models.hf.fields.sliding_window import alternate_windows, map_window
from lmx.models.hf.layout import TensorMap

SCALAR = "query_pre_attn_scalar"  # the scale of logits is one over its root
TEMPLATE = """
    Pretrained.model = @Decoder
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


def bind_scale(fields: Values) -> dict[str, Any]:
    """The scale of the logits of attention."""
    return {"Attention.scale": fields[SCALAR] ** -0.5}


def describe_scale(config: Config) -> dict[str, Any]:
    """The scalar of a scale; transformers wants a whole number where it is one."""
    scales = [scale for scale in find_values(config, "Attention.scale") if scale]
    if not scales:
        return {}
    scalar = round(scales[0] ** -2, 6)
    return {SCALAR: int(scalar) if scalar == int(scalar) else scalar}


def map_gemma(vocab: int, cap: float | None) -> list[FieldMap]:
    """The field maps that Gemma 2 and 3 share."""
    gemma = map_decoder(
        vocab,
        2304,
        26,
        heads=8,
        kv_heads=4,
        head_dim=256,
        norm="OffsetRMSNorm",
        tied=True,
    )
    return [
        *gemma,
        derive("Decoder.embed_scale", lambda fields: math.sqrt(fields["hidden_size"])),
        map_field("intermediate_size", "GeGLU.hidden", 9216),
        map_fields({SCALAR: 256}, bind_scale, describe_scale),
        map_field("final_logit_softcapping", "Decoder.logit_cap", cap, nullable=True),
        *map_attention_bias(False),
    ]


FAMILY = Family(
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
