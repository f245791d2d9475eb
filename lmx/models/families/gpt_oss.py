"""gpt-oss. OpenAI 2025, arXiv:2508.10925."""

from lmx.models.hf.attention_fields import alternate_windows, map_rope, map_window
from lmx.models.hf.family import Family
from lmx.models.hf.fields import (
    ATTENTION,
    ATTENTION_TENSORS,
    EMBEDDING_AND_HEAD,
    MLP,
    NORMS,
    map_attention_bias,
    map_decoder,
    map_field,
)
from lmx.models.hf.weights import TensorMap

ROPE_SCALING = {
    "rope_type": "yarn",
    "factor": 32.0,
    "beta_fast": 32.0,
    "beta_slow": 1.0,
    "truncate": False,
    "original_max_position_embeddings": 4096,
}
GATE_UP = f"{MLP}.experts.gate_up_proj"  # columns of gate and up alternate

FAMILY = Family(
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
