"""Mistral (Jiang et al. 2023, arXiv:2310.06825), Mixtral (2024, arXiv:2401.04088)."""

from lmx.models.hf.attention_fields import map_rope, map_window
from lmx.models.hf.family import Family
from lmx.models.hf.fields import (
    ATTENTION_TENSORS,
    BLOCK,
    EMBEDDING_AND_HEAD,
    NORMS,
    ROPE_FREQUENCIES,
    TensorMap,
    map_decoder,
    map_experts,
    map_field,
    preset,
)

EXPERTS = f"{BLOCK}.block_sparse_moe"

MISTRAL = Family(
    model_type="mistral",
    architecture="MistralForCausalLM",
    template="Decoder.mlp = @SwiGLU",
    field_maps=(
        *map_decoder(32_000, 4096, 32, heads=32, kv_heads=8),
        map_field("intermediate_size", "SwiGLU.hidden", 14_336),
        map_window(4096),
        map_rope(),
    ),
    ignored_tensors=(ROPE_FREQUENCIES,),
    presets={"mistral_7b": {"rms_norm_eps": 1e-5}},
)

MIXTRAL = Family(
    model_type="mixtral",
    architecture="MixtralForCausalLM",
    template="""
        Decoder.mlp = @MoE
        MoE.router = @TopKRouter
    """,
    field_maps=(
        *map_decoder(32_000, 4096, 32, heads=32, kv_heads=8, epsilon=1e-5),
        map_field("intermediate_size", "MoE.hidden", 14_336),
        map_field("num_local_experts", "MoE.experts", 8),
        map_field("num_experts_per_tok", "TopKRouter.top_k", 2),
        map_window(),
        map_rope(theta=1e6),
    ),
    tensor_maps=(
        *EMBEDDING_AND_HEAD,
        *ATTENTION_TENSORS,
        *NORMS,
        TensorMap(f"{EXPERTS}.gate.weight", "mlp.router.score.w", "E D -> D E"),
        *map_experts(f"{EXPERTS}.experts.{{expert}}", "w1", "w3", "w2"),
    ),
    presets={
        "mixtral_8x7b": {},
        "mixtral_8x22b": preset(6144, 16_384, 56, 48, 8, vocab_size=32_768),
    },
)
