"""OLMo 2. OLMo Team 2024, arXiv:2501.00656."""

from lmx.models.hf.attention_fields import map_rope
from lmx.models.hf.family import Family
from lmx.models.hf.fields import (
    ATTENTION_TENSORS,
    BLOCK,
    EMBEDDING_AND_HEAD,
    GATED_MLP,
    QK_NORMS,
    TensorMap,
    map_attention_bias,
    map_decoder,
    map_field,
)

FAMILY = Family(
    model_type="olmo2",
    architecture="Olmo2ForCausalLM",
    template="""
        Decoder.attention = @Attention
        Decoder.block = @ReorderedNorm
        Decoder.mlp = @SwiGLU
        Attention.qk_norm = @RMSNorm
        Attention.qk_norm_over = 'heads'
    """,
    field_maps=(
        *map_decoder(50_304, 4096, 32, heads=32, epsilon=1e-5),
        map_field("intermediate_size", "SwiGLU.hidden", 11_008),
        *map_attention_bias(False),
        map_rope(),
    ),
    tensor_maps=(
        *EMBEDDING_AND_HEAD,
        *ATTENTION_TENSORS,
        *GATED_MLP,
        *QK_NORMS,
        TensorMap(
            f"{BLOCK}.post_attention_layernorm.weight", "attention_norm.scale", "D -> D"
        ),
        TensorMap(
            f"{BLOCK}.post_feedforward_layernorm.weight", "mlp_norm.scale", "D -> D"
        ),
        TensorMap("model.norm.weight", "norm.scale", "D -> D"),
    ),
    presets={"olmo2_7b": dict(rms_norm_eps=1e-6, vocab_size=100_352, rope_theta=5e5)},
)
