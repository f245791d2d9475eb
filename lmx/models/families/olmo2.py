"""OLMo 2. OLMo Team 2024, arXiv:2501.00656."""

from lmx.models.hf.family import Family
from lmx.models.hf.rules.field import Field
from lmx.models.hf.rules.rope import Rotary
from lmx.models.hf.rules.rows import (
    BLOCK,
    ENDS,
    GATED,
    PROJECTIONS,
    QK_NORMS,
    attention_bias,
    sizes,
    tied,
)
from lmx.models.hf.table import Weight

FAMILY = Family(
    model_type="olmo2",
    architecture="Olmo2ForCausalLM",
    page="""
        Pretrained.model = @Decoder
        Decoder.attention = @Attention
        Decoder.block = @ReorderedNorm
        Decoder.mlp = @SwiGLU
        Decoder.norm = @RMSNorm
        Attention.qk_norm = @RMSNorm
        Attention.qk_norm_of = 'heads'
    """,
    rules=(
        *sizes(50_304, 4096, 32, heads=32),
        Field("intermediate_size", "SwiGLU.hidden", 11_008),
        Field("rms_norm_eps", "RMSNorm.epsilon", 1e-5),
        *attention_bias(False),
        tied(False),
        Rotary(),
    ),
    fixed={"hidden_act": "silu"},
    weights=(
        *ENDS,
        *PROJECTIONS,
        *GATED,
        *QK_NORMS,
        Weight(
            f"{BLOCK}.post_attention_layernorm.weight", "attention_norm.scale", "D -> D"
        ),
        Weight(
            f"{BLOCK}.post_feedforward_layernorm.weight", "mlp_norm.scale", "D -> D"
        ),
        Weight("model.norm.weight", "norm.scale", "D -> D"),
    ),
    presets={
        "olmo2_7b": {
            "vocab_size": 100_352,
            "rms_norm_eps": 1e-6,
            "rope_theta": 500_000.0,
        },
    },
)
