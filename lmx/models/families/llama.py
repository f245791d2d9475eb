"""Llama 2, 3 and 3.1 to 3.3.

Touvron et al. 2023, arXiv:2307.09288; Grattafiori et al. 2024, arXiv:2407.21783.
"""

from lmx.models.hf.attention_fields import map_rope
from lmx.models.hf.family import Family
from lmx.models.hf.fields import (
    BIAS_LAYERS,
    ROPE_FREQUENCIES,
    map_attention_bias,
    map_decoder,
    map_field,
    preset,
)

LLAMA2 = {"rms_norm_eps": 1e-5}
LLAMA3 = LLAMA2 | {"vocab_size": 128_256, "rope_theta": 5e5}
LLAMA_8B = LLAMA3 | preset(4096, 14_336, 32, 32, 8)
LLAMA_70B = preset(8192, 28_672, 80, 64, 8)
ROPE_SCALING = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}

FAMILY = Family(
    model_type="llama",
    architecture="LlamaForCausalLM",
    template="""
        Decoder.attention = @Attention
        Decoder.mlp = @SwiGLU
    """,
    field_maps=(
        *map_decoder(32_000, 4096, 32, heads=32),
        map_field("intermediate_size", "SwiGLU.hidden", 11_008),
        *map_attention_bias(False),
        map_field("mlp_bias", "SwiGLU.linear", False, values=BIAS_LAYERS),
        map_rope(),
    ),
    ignored_fields=frozenset({"pretraining_tp"}),
    ignored_tensors=(ROPE_FREQUENCIES,),
    presets={
        "llama2_7b": LLAMA2,
        "llama2_13b": LLAMA2 | preset(5120, 13_824, 40, 40, 40),
        "llama2_70b": LLAMA2 | LLAMA_70B,
        "llama3_8b": LLAMA_8B,
        "llama3_70b": LLAMA3 | LLAMA_70B,
        "llama3_405b": LLAMA3 | preset(16_384, 53_248, 126, 128, 8),
        "llama31_8b": LLAMA_8B | {"rope_scaling": ROPE_SCALING},
        "llama32_1b": LLAMA3
        | preset(2048, 8192, 16, 32, 8, head_dim=64, tie_word_embeddings=True)
        | {"rope_scaling": ROPE_SCALING | {"factor": 32.0}},
        "llama33_70b": LLAMA3 | LLAMA_70B | {"rope_scaling": ROPE_SCALING},
    },
)
