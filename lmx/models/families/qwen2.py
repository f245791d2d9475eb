"""Qwen2 and Qwen2.5. Yang et al. 2024, arXiv:2407.10671 and arXiv:2412.15115."""

from typing import Any

from lmx.models.hf.family import Family
from lmx.models.hf.fields.decoder import LLAMA_TENSORS, map_decoder, preset
from lmx.models.hf.fields.field import Values, map_field
from lmx.models.hf.fields.rotary import map_rope
from lmx.models.hf.fields.sliding_window import FULL, WINDOW, map_window


def window_upper_layers(fields: Values) -> list[str]:
    """A window from layer `max_window_layers` on, if `use_sliding_window`."""
    used = fields.get("use_sliding_window", False) and fields["sliding_window"]
    first = fields.get("max_window_layers", 28)
    depth = fields["num_hidden_layers"]
    return [WINDOW if used and i >= first else FULL for i in range(depth)]


def mark_window_use(windowed: bool) -> dict[str, Any]:
    """The field without which transformers uses no window."""
    return {"use_sliding_window": windowed}


WINDOWS = map_window(
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
        *map_decoder(151_936, 4096, 32, heads=32, kv_heads=32),
        map_field("intermediate_size", "SwiGLU.hidden", 22_016),
        WINDOWS,
        map_rope(),
    ),
    required={"hidden_act": "silu", "use_mrope": False},
    tensor_maps=LLAMA_TENSORS,
    presets={
        "qwen2_05b": preset(
            896, 4864, 24, 14, 2, rope_theta=1e6, tie_word_embeddings=True
        ),
        "qwen2_7b": preset(3584, 18_944, 28, 28, 4, rope_theta=1e6, vocab_size=152_064),
    },
)
