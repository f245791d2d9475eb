"""Mixtral. Jiang et al. 2024, arXiv:2401.04088."""

from lmx.models.hf.family import Family
from lmx.models.hf.fields.decoder import (
    ATTENTION_TENSORS,
    BLOCK,
    EMBEDDING_AND_HEAD,
    NORMS,
    map_decoder,
    preset,
)
from lmx.models.hf.fields.experts import TRAINING_FIELDS, map_experts
from lmx.models.hf.fields.field import map_field
from lmx.models.hf.fields.rotary import map_rope
from lmx.models.hf.fields.sliding_window import map_window
from lmx.models.hf.layout import TensorMap

MLP = f"{BLOCK}.block_sparse_moe"

FAMILY = Family(
    model_type="mixtral",
    architecture="MixtralForCausalLM",
    template="""
        Pretrained.model = @Decoder
        Decoder.block = @PreNorm
        Decoder.mlp = @MoE
        Decoder.norm = @RMSNorm
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
    required={"hidden_act": "silu"},
    ignored_fields=TRAINING_FIELDS,
    tensor_maps=(
        *EMBEDDING_AND_HEAD,
        *ATTENTION_TENSORS,
        *NORMS,
        TensorMap(f"{MLP}.gate.weight", "mlp.router.score.w", "E D -> D E"),
        *map_experts(f"{MLP}.experts.{{expert}}", "w1", "w3", "w2"),
    ),
    presets={
        "mixtral_8x7b": {},
        "mixtral_8x22b": preset(6144, 16_384, 56, 48, 8, vocab_size=32_768),
    },
)
