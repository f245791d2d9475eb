"""Llama 2, 3 and 3.1 to 3.3.

Touvron et al. 2023, arXiv:2307.09288; Grattafiori et al. 2024, arXiv:2407.21783.
"""

from lmx.models.hf.family import Family
from lmx.models.hf.fields.decoder import (
    ATTENTION_TENSORS,
    BIAS_LAYERS,
    EMBEDDING_AND_HEAD,
    GATED_MLP,
    NORMS,
    ROPE_FREQUENCIES,
    map_attention_bias,
    map_sizes,
    map_tied_head,
)
from lmx.models.hf.fields.field import DirectField
from lmx.models.hf.fields.rotary import RopeFields

LLAMA2 = {"rms_norm_eps": 1e-5}
LLAMA3 = LLAMA2 | {
    "vocab_size": 128_256,
    "num_key_value_heads": 8,
    "rope_theta": 500_000.0,
}
ROPE_SCALING = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}
LLAMA_70B = {
    "hidden_size": 8192,
    "intermediate_size": 28_672,
    "num_hidden_layers": 80,
    "num_attention_heads": 64,
    "num_key_value_heads": 8,
}

FAMILY = Family(
    model_type="llama",
    architecture="LlamaForCausalLM",
    template="""
        Pretrained.model = @Decoder
        Decoder.attention = @Attention
        Decoder.block = @PreNorm
        Decoder.mlp = @SwiGLU
        Decoder.norm = @RMSNorm
    """,
    field_maps=(
        *map_sizes(32_000, 4096, 32, heads=32),
        DirectField("intermediate_size", "SwiGLU.hidden", 11_008),
        DirectField("rms_norm_eps", "RMSNorm.epsilon", 1e-6),
        *map_attention_bias(False),
        DirectField("mlp_bias", "SwiGLU.linear", False, BIAS_LAYERS),
        map_tied_head(False),
        RopeFields(),
    ),
    required={"hidden_act": "silu"},
    ignored_fields=frozenset({"pretraining_tp"}),
    tensor_maps=(*EMBEDDING_AND_HEAD, *ATTENTION_TENSORS, *GATED_MLP, *NORMS),
    ignored_tensors=(ROPE_FREQUENCIES,),
    presets={
        "llama2_7b": LLAMA2,
        "llama2_13b": LLAMA2
        | {
            "hidden_size": 5120,
            "intermediate_size": 13_824,
            "num_hidden_layers": 40,
            "num_attention_heads": 40,
        },
        "llama2_70b": LLAMA2 | LLAMA_70B,
        "llama3_8b": LLAMA3 | {"intermediate_size": 14_336},
        "llama3_70b": LLAMA3 | LLAMA_70B,
        "llama3_405b": LLAMA3
        | {
            "hidden_size": 16_384,
            "intermediate_size": 53_248,
            "num_hidden_layers": 126,
            "num_attention_heads": 128,
        },
        "llama31_8b": LLAMA3
        | {"intermediate_size": 14_336, "rope_scaling": ROPE_SCALING},
        "llama32_1b": LLAMA3
        | {
            "hidden_size": 2048,
            "intermediate_size": 8192,
            "num_hidden_layers": 16,
            "head_dim": 64,
            "tie_word_embeddings": True,
            "rope_scaling": ROPE_SCALING | {"factor": 32.0},
        },
        "llama33_70b": LLAMA3 | LLAMA_70B | {"rope_scaling": ROPE_SCALING},
    },
)
