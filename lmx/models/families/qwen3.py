"""Qwen3. Yang et al. 2025, arXiv:2505.09388."""

from lmx.models.families.qwen2 import WINDOWS
from lmx.models.hf.family import Family
from lmx.models.hf.fields.decoder import (
    ATTENTION_TENSORS,
    EMBEDDING_AND_HEAD,
    GATED_MLP,
    NORMS,
    QK_NORMS,
    map_attention_bias,
    map_sizes,
    map_tied_head,
)
from lmx.models.hf.fields.field import DirectField
from lmx.models.hf.fields.rotary import RopeFields

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
        *map_sizes(151_936, 4096, 32, heads=32, kv_heads=32, head_dim=128),
        DirectField("intermediate_size", "SwiGLU.hidden", 22_016),
        DirectField("rms_norm_eps", "RMSNorm.epsilon", 1e-6),
        *map_attention_bias(False),
        map_tied_head(False),
        WINDOWS,
        RopeFields(),
    ),
    required={"hidden_act": "silu"},
    tensor_maps=(
        *EMBEDDING_AND_HEAD,
        *ATTENTION_TENSORS,
        *GATED_MLP,
        *NORMS,
        *QK_NORMS,
    ),
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
