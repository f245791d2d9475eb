"""Qwen3. Yang et al. 2025, arXiv:2505.09388."""

from lmx.models.families.qwen2 import WINDOWS
from lmx.models.hf.family import Family
from lmx.models.hf.rules.field import Field
from lmx.models.hf.rules.rope import Rotary
from lmx.models.hf.rules.rows import (
    ENDS,
    GATED,
    NORMS,
    PROJECTIONS,
    QK_NORMS,
    attention_bias,
    sizes,
    tied,
)

FAMILY = Family(
    model_type="qwen3",
    architecture="Qwen3ForCausalLM",
    page="""
        Pretrained.model = @Decoder
        Decoder.block = @PreNorm
        Decoder.mlp = @SwiGLU
        Decoder.norm = @RMSNorm
        Attention.qk_norm = @RMSNorm
    """,
    rules=(
        *sizes(151_936, 4096, 32, heads=32, kv_heads=32, head_width=128),
        Field("intermediate_size", "SwiGLU.hidden", 22_016),
        Field("rms_norm_eps", "RMSNorm.epsilon", 1e-6),
        *attention_bias(False),
        tied(False),
        WINDOWS,
        Rotary(),
    ),
    fixed={"hidden_act": "silu"},
    weights=(*ENDS, *PROJECTIONS, *GATED, *NORMS, *QK_NORMS),
    presets={
        "qwen3_06b": {
            "hidden_size": 1024,
            "intermediate_size": 3072,
            "num_hidden_layers": 28,
            "num_attention_heads": 16,
            "num_key_value_heads": 8,
            "rope_theta": 1_000_000.0,
            "tie_word_embeddings": True,
        },
        "qwen3_8b": {
            "intermediate_size": 12_288,
            "num_hidden_layers": 36,
            "num_key_value_heads": 8,
            "rope_theta": 1_000_000.0,
        },
    },
)
