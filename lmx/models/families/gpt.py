"""GPT-2 (Radford et al. 2019) and gpt-oss (OpenAI 2025, arXiv:2508.10925)."""

from lmx.models.hf.attention_fields import alternate_windows, map_rope, map_window
from lmx.models.hf.family import Family
from lmx.models.hf.fields import (
    ATTENTION,
    ATTENTION_TENSORS,
    EMBEDDING_AND_HEAD,
    MLP,
    NORMS,
    TensorMap,
    derive,
    map_attention_bias,
    map_decoder,
    map_field,
    map_head,
)

LAYER = "transformer.h.{layer}"
QKV = ("attention.q", "attention.k", "attention.v")
QKV_W, QKV_B = (tuple(f"{part}.{name}" for part in QKV) for name in "wb")

GPT2 = Family(
    model_type="gpt2",
    architecture="GPT2LMHeadModel",
    template="""
        Decoder.attention = @Attention
        Decoder.mlp = @GELU
        Decoder.norm = @AffineLayerNorm
        Decoder.position = @LearnedPosition
        Attention.position = None
        Attention.qkv = @EinsumBias
        Attention.out = @EinsumBias
        GELU.linear = @EinsumBias
    """,
    field_maps=(
        map_field("vocab_size", "Decoder.vocab", 50_257),
        map_field("n_positions", "LearnedPosition.max_length", 1024),
        map_field("n_embd", "Decoder.width", 768),
        map_field("n_layer", "Decoder.depth", 12),
        map_field("n_head", "Attention.heads", 12),
        map_field("n_inner", "GELU.hidden", lambda fields: 4 * fields["n_embd"]),
        map_field("layer_norm_epsilon", "AffineLayerNorm.epsilon", 1e-5),
        derive("Attention.kv_heads", lambda fields: fields["n_head"]),
        derive(
            "Attention.head_dim", lambda fields: fields["n_embd"] // fields["n_head"]
        ),
        map_head(tied=True),
    ),
    required={
        "activation_function": "gelu_new",
        "scale_attn_weights": True,
        "scale_attn_by_inverse_layer_idx": False,
        "add_cross_attention": False,
    },
    ignored_fields=frozenset(
        "attn_pdrop embd_pdrop resid_pdrop n_ctx reorder_and_upcast_attn"
        " summary_activation summary_first_dropout summary_proj_to_labels summary_type"
        " summary_use_proj task_specific_params".split()
    ),
    tensor_maps=(
        TensorMap("transformer.wte.weight", "embedding", "V D -> V D"),
        TensorMap("transformer.wpe.weight", "position.table", "T D -> T D"),
        TensorMap(f"{LAYER}.ln_1.weight", "attention_norm.scale", "D -> D"),
        TensorMap(f"{LAYER}.ln_1.bias", "attention_norm.offset", "D -> D"),
        TensorMap(f"{LAYER}.attn.c_attn.weight", QKV_W, "D (3 N H) -> 3 D N H"),
        TensorMap(f"{LAYER}.attn.c_attn.bias", QKV_B, "(3 N H) -> 3 N H"),
        TensorMap(f"{LAYER}.attn.c_proj.weight", "attention.out.w", "(N H) D -> N H D"),
        TensorMap(f"{LAYER}.attn.c_proj.bias", "attention.out.b", "D -> D"),
        TensorMap(f"{LAYER}.ln_2.weight", "mlp_norm.scale", "D -> D"),
        TensorMap(f"{LAYER}.ln_2.bias", "mlp_norm.offset", "D -> D"),
        TensorMap(f"{LAYER}.mlp.c_fc.weight", "mlp.up.w", "D F -> D F"),
        TensorMap(f"{LAYER}.mlp.c_fc.bias", "mlp.up.b", "F -> F"),
        TensorMap(f"{LAYER}.mlp.c_proj.weight", "mlp.down.w", "F D -> F D"),
        TensorMap(f"{LAYER}.mlp.c_proj.bias", "mlp.down.b", "D -> D"),
        TensorMap("transformer.ln_f.weight", "norm.scale", "D -> D"),
        TensorMap("transformer.ln_f.bias", "norm.offset", "D -> D"),
        TensorMap("lm_head.weight", "head.out.w", "V D -> D V"),
    ),
    ignored_tensors=(r"(transformer\.)?h\.\d+\.attn\.(masked_)?bias",),
    prefix="transformer.",
    presets={
        "gpt2": {},
        "gpt2_medium": {"n_embd": 1024, "n_layer": 24, "n_head": 16},
        "gpt2_large": {"n_embd": 1280, "n_layer": 36, "n_head": 20},
        "gpt2_xl": {"n_embd": 1600, "n_layer": 48, "n_head": 25},
    },
)


ROPE_SCALING = {
    "rope_type": "yarn",
    "factor": 32.0,
    "beta_fast": 32.0,
    "beta_slow": 1.0,
    "truncate": False,
    "original_max_position_embeddings": 4096,
}
GATE_UP = f"{MLP}.experts.gate_up_proj"  # columns of gate and up alternate

GPT_OSS = Family(
    model_type="gpt_oss",
    architecture="GptOssForCausalLM",
    template="""
        Decoder.mlp = @ClampedMoE
        Attention.sink = @AttentionSink
        ClampedMoE.router = @TopKRouter
        TopKRouter.linear = @EinsumBias
    """,
    field_maps=(
        *map_decoder(
            201_088, 2880, 36, heads=64, kv_heads=8, head_dim=64, epsilon=1e-5
        ),
        map_field("intermediate_size", "ClampedMoE.hidden", 2880),
        map_field("num_local_experts", "ClampedMoE.experts", 128),
        map_field("num_experts_per_tok", "TopKRouter.top_k", 4),
        map_field("swiglu_limit", "ClampedMoE.limit", 7.0),
        map_field("swiglu_alpha", "ClampedMoE.alpha", 1.702),
        *map_attention_bias(True),
        map_window(128, alternate_windows),
        map_rope(theta=150_000.0, scaling=ROPE_SCALING),
    ),
    ignored_fields=frozenset({"experts_per_token", "initial_context_length"}),
    tensor_maps=(
        *EMBEDDING_AND_HEAD,
        *ATTENTION_TENSORS,
        TensorMap(f"{ATTENTION}.sinks", "attention.sink.logit", "N -> N"),
        TensorMap(f"{MLP}.router.weight", "mlp.router.score.w", "E D -> D E"),
        TensorMap(f"{MLP}.router.bias", "mlp.router.score.b", "E -> E"),
        TensorMap(GATE_UP, ("mlp.gate", "mlp.up"), "E D (F 2) -> 2 E D F"),
        TensorMap(f"{GATE_UP}_bias", ("mlp.gate_b", "mlp.up_b"), "E (F 2) -> 2 E F"),
        TensorMap(f"{MLP}.experts.down_proj", "mlp.down", "E F D -> E F D"),
        TensorMap(f"{MLP}.experts.down_proj_bias", "mlp.down_b", "E D -> E D"),
        *NORMS,
    ),
    presets={
        "gpt_oss_20b": {"num_hidden_layers": 24, "num_local_experts": 32},
        "gpt_oss_120b": {},
    },
)
