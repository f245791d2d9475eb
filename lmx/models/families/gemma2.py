"""Gemma 2. Gemma Team 2024, arXiv:2408.00118."""

import math
from collections.abc import Sequence

from lmx.models.hf.family import Family
from lmx.models.hf.fields.decoder import (
    ATTENTION_TENSORS,
    BLOCK,
    EMBEDDING_AND_HEAD,
    GATED_MLP,
    map_attention_bias,
    map_sizes,
    map_tied_head,
)
from lmx.models.hf.fields.field import (
    ConvertedField,
    DerivedParameter,
    DirectField,
    FieldMap,
    Values,
)
from lmx.models.hf.fields.rotary import RopeFields
from lmx.models.hf.fields.sliding_window import FULL, WINDOW, WindowFields
from lmx.models.hf.layout import TensorMap

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
# `hidden_act` is what old files call it, and transformers does not look at it.
IGNORED_FIELDS = frozenset({"hidden_act", "cache_implementation"})
TENSOR_MAPS = (
    *EMBEDDING_AND_HEAD,
    *ATTENTION_TENSORS,
    *GATED_MLP,
    TensorMap(f"{BLOCK}.input_layernorm.weight", "attention_norm.offset", "D -> D"),
    TensorMap(
        f"{BLOCK}.post_attention_layernorm.weight",
        "attention_out_norm.offset",
        "D -> D",
    ),
    TensorMap(f"{BLOCK}.pre_feedforward_layernorm.weight", "mlp_norm.offset", "D -> D"),
    TensorMap(
        f"{BLOCK}.post_feedforward_layernorm.weight", "mlp_out_norm.offset", "D -> D"
    ),
    TensorMap("model.norm.weight", "norm.offset", "D -> D"),
)


def to_query_scalar(scale: float) -> float | int:
    """What the scale is one over the root of; transformers takes whole numbers."""
    found = round(scale**-2, 6)
    return int(found) if found == int(found) else found


def map_gemma_sizes(vocab: int, cap: float | None) -> tuple[FieldMap, ...]:
    """What the families of Gemma have in common."""
    return (
        *map_sizes(vocab, 2304, 26, heads=8, kv_heads=4, head_dim=256),
        DerivedParameter(
            "Decoder.embed_scale", lambda given: math.sqrt(given["hidden_size"])
        ),
        DirectField("intermediate_size", "GeGLU.hidden", 9216),
        DirectField("rms_norm_eps", "OffsetRMSNorm.epsilon", 1e-6),
        ConvertedField(
            "query_pre_attn_scalar",
            "Attention.scale",
            256,
            to_lmx=lambda scalar: scalar**-0.5,
            from_lmx=to_query_scalar,
        ),
        DirectField("final_logit_softcapping", "Decoder.logit_cap", cap, nullable=True),
        *map_attention_bias(False),
        map_tied_head(True),
    )


def alternate_windows(given: Values) -> Sequence[str]:
    """A window in every other layer, the first among them."""
    return [FULL if i % 2 else WINDOW for i in range(given["num_hidden_layers"])]


FAMILY = Family(
    model_type="gemma2",
    architecture="Gemma2ForCausalLM",
    template=TEMPLATE,
    field_maps=(
        *map_gemma_sizes(256_000, 30.0),
        DirectField(
            "attn_logit_softcapping", "Attention.logit_cap", 50.0, nullable=True
        ),
        WindowFields(4096, alternate_windows),
        RopeFields(),
    ),
    required=REQUIRED,
    ignored_fields=IGNORED_FIELDS,
    tensor_maps=TENSOR_MAPS,
    presets={
        "gemma2_2b": {},
        "gemma2_9b": {
            "hidden_size": 3584,
            "intermediate_size": 14_336,
            "num_hidden_layers": 42,
            "num_attention_heads": 16,
            "num_key_value_heads": 8,
        },
    },
)
