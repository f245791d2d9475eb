"""Qwen2 and Qwen2.5. Yang et al. 2024, arXiv:2407.10671 and arXiv:2412.15115."""

from collections.abc import Sequence
from typing import Any

from lmx.models.hf.family import Family
from lmx.models.hf.fields.decoder import (
    ATTENTION_TENSORS,
    EMBEDDING_AND_HEAD,
    GATED_MLP,
    NORMS,
    map_sizes,
    map_tied_head,
)
from lmx.models.hf.fields.field import DirectField, Values
from lmx.models.hf.fields.rotary import RopeFields
from lmx.models.hf.fields.sliding_window import FULL, WINDOW, WindowFields


def window_upper_layers(given: Values) -> Sequence[str]:
    """A window from layer `max_window_layers` on, if one is used at all."""
    used = given.get("use_sliding_window", False) and given["sliding_window"]
    first = given.get("max_window_layers", 28)
    depth = given["num_hidden_layers"]
    return [WINDOW if used and i >= first else FULL for i in range(depth)]


def mark_window_use(windowed: bool) -> dict[str, Any]:
    """What else must be written for a window to be used."""
    return {"use_sliding_window": windowed}


WINDOWS = WindowFields(
    layer_types=window_upper_layers,
    extra_names=("use_sliding_window", "max_window_layers"),
    extra_fields=mark_window_use,
)

FAMILY = Family(
    model_type="qwen2",
    architecture="Qwen2ForCausalLM",
    template="""
        Pretrained.model = @Decoder
        Decoder.block = @PreNorm
        Decoder.mlp = @SwiGLU
        Decoder.norm = @RMSNorm
        Attention.qkv = @EinsumBias
    """,
    field_maps=(
        *map_sizes(151_936, 4096, 32, heads=32, kv_heads=32),
        DirectField("intermediate_size", "SwiGLU.hidden", 22_016),
        DirectField("rms_norm_eps", "RMSNorm.epsilon", 1e-6),
        map_tied_head(False),
        WINDOWS,
        RopeFields(),
    ),
    required={"hidden_act": "silu", "use_mrope": False},
    tensor_maps=(*EMBEDDING_AND_HEAD, *ATTENTION_TENSORS, *GATED_MLP, *NORMS),
    presets={
        "qwen2_05b": {
            "hidden_size": 896,
            "intermediate_size": 4864,
            "num_hidden_layers": 24,
            "num_attention_heads": 14,
            "num_key_value_heads": 2,
            "rope_theta": 1_000_000.0,
            "tie_word_embeddings": True,
        },
        "qwen2_7b": {
            "vocab_size": 152_064,
            "hidden_size": 3584,
            "intermediate_size": 18_944,
            "num_hidden_layers": 28,
            "num_attention_heads": 28,
            "num_key_value_heads": 4,
            "rope_theta": 1_000_000.0,
        },
    },
)
