"""Qwen3. Yang et al. 2025, arXiv:2505.09388."""

from lmx.models.families.qwen2 import WINDOWS
from lmx.models.hf.family import Family
from lmx.models.hf.fields.decoder import (
    LLAMA_TENSORS,
    QK_NORMS,
    map_attention_bias,
    map_decoder,
    preset,
)
from lmx.models.hf.fields.field import map_field
from lmx.models.hf.fields.rotary import map_rope

FAMILY = Family(
    model_type="qwen3",
    architecture="Qwen3ForCausalLM",
    template="""
        Pretrained.model = @Decoder
        Decoder.block = @PreNorm
        Decoder.mlp = @SwiGLU
        Decoder.norm = @RMSNorm
        Attention.qk_norm = @RMSNorm
    """,
    field_maps=(
        *map_decoder(151_936, 4096, 32, heads=32, kv_heads=32, head_dim=128),
        map_field("intermediate_size", "SwiGLU.hidden", 22_016),
        *map_attention_bias(False),
        WINDOWS,
        map_rope(),
    ),
    required={"hidden_act": "silu"},
    tensor_maps=(*LLAMA_TENSORS, *QK_NORMS),
    presets={
        "qwen3_06b": preset(
            1024, 3072, 28, 16, 8, rope_theta=1e6, tie_word_embeddings=True
        ),
        "qwen3_8b": preset(4096, 12_288, 36, 32, 8, rope_theta=1e6),
    },
)
