"""Llama 2, 3 and 3.1 to 3.3.

Touvron et al. 2023, arXiv:2307.09288; Grattafiori et al. 2024, arXiv:2407.21783.
"""

from lmx.models.hf.family import Family
from lmx.models.hf.field import Field, at, quotient, same
from lmx.models.hf.rope import Rotary
from lmx.models.hf.table import Weight

BLOCK = "model.layers.{layer}"

FAMILY = Family(
    model_type="llama",
    architecture="LlamaForCausalLM",
    page="""
        Pretrained.model = @Decoder
        Decoder.attention = @Attention
        Decoder.block = @PreNorm
        Decoder.mlp = @SwiGLU
        Decoder.norm = @RMSNorm
    """,
    rules=(
        Field("vocab_size", "Decoder.vocab", 32_000),
        Field("hidden_size", "Decoder.width", 4096),
        Field("num_hidden_layers", "Decoder.depth", 32),
        Field("intermediate_size", "SwiGLU.hidden", 11_008),
        Field("num_attention_heads", "Attention.heads", 32),
        Field("num_key_value_heads", "Attention.kv_heads", same("num_attention_heads")),
        Field(
            "head_dim",
            "Attention.head_width",
            quotient("hidden_size", "num_attention_heads"),
        ),
        Field("rms_norm_eps", "RMSNorm.epsilon", 1e-6),
        Field(
            "tie_word_embeddings",
            "Decoder.head",
            False,
            {False: at("Untied"), True: at("Tied")},
        ),
        Rotary(),
    ),
    fixed={"hidden_act": "silu", "attention_bias": False, "mlp_bias": False},
    idle=frozenset({"pretraining_tp"}),
    weights=(
        Weight("model.embed_tokens.weight", "table", "V D -> V D"),
        Weight(f"{BLOCK}.input_layernorm.weight", "attention_norm.scale", "D -> D"),
        Weight(f"{BLOCK}.self_attn.q_proj.weight", "attention.q.w", "(N H) D -> D N H"),
        Weight(f"{BLOCK}.self_attn.k_proj.weight", "attention.k.w", "(K H) D -> D K H"),
        Weight(f"{BLOCK}.self_attn.v_proj.weight", "attention.v.w", "(K H) D -> D K H"),
        Weight(
            f"{BLOCK}.self_attn.o_proj.weight", "attention.out.w", "D (N H) -> N H D"
        ),
        Weight(f"{BLOCK}.post_attention_layernorm.weight", "mlp_norm.scale", "D -> D"),
        Weight(f"{BLOCK}.mlp.gate_proj.weight", "mlp.gate.w", "F D -> D F"),
        Weight(f"{BLOCK}.mlp.up_proj.weight", "mlp.up.w", "F D -> D F"),
        Weight(f"{BLOCK}.mlp.down_proj.weight", "mlp.down.w", "D F -> F D"),
        Weight("model.norm.weight", "norm.scale", "D -> D"),
        Weight("lm_head.weight", "head.out.w", "V D -> D V"),
    ),
    ignored=(r".*\.rotary_emb\.inv_freq",),
    presets={
        "llama-2-7b": {"rms_norm_eps": 1e-5},
        "llama-2-13b": {
            "hidden_size": 5120,
            "intermediate_size": 13_824,
            "num_hidden_layers": 40,
            "num_attention_heads": 40,
            "rms_norm_eps": 1e-5,
        },
        "llama-2-70b": {
            "hidden_size": 8192,
            "intermediate_size": 28_672,
            "num_hidden_layers": 80,
            "num_attention_heads": 64,
            "num_key_value_heads": 8,
            "rms_norm_eps": 1e-5,
        },
        "llama-3-8b": {
            "vocab_size": 128_256,
            "intermediate_size": 14_336,
            "num_key_value_heads": 8,
            "rms_norm_eps": 1e-5,
            "rope_theta": 500_000.0,
        },
        "llama-3.2-1b": {
            "vocab_size": 128_256,
            "hidden_size": 2048,
            "intermediate_size": 8192,
            "num_hidden_layers": 16,
            "num_key_value_heads": 8,
            "head_dim": 64,
            "rms_norm_eps": 1e-5,
            "tie_word_embeddings": True,
            "rope_theta": 500_000.0,
            "rope_scaling": {
                "rope_type": "llama3",
                "factor": 32.0,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
                "original_max_position_embeddings": 8192,
            },
        },
    },
)
