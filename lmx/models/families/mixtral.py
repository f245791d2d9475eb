"""Mixtral. Jiang et al. 2024, arXiv:2401.04088."""

from lmx.models.hf.family import Family
from lmx.models.hf.fields.decoder import (
    ATTENTION_TENSORS,
    BLOCK,
    EMBEDDING_AND_HEAD,
    NORMS,
    map_sizes,
    map_tied_head,
)
from lmx.models.hf.fields.experts import TRAINING_FIELDS, map_experts
from lmx.models.hf.fields.field import DirectField
from lmx.models.hf.fields.rotary import RopeFields
from lmx.models.hf.fields.sliding_window import WindowFields
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
        *map_sizes(32_000, 4096, 32, heads=32, kv_heads=8),
        DirectField("intermediate_size", "MoE.hidden", 14_336),
        DirectField("num_local_experts", "MoE.experts", 8),
        DirectField("num_experts_per_tok", "TopKRouter.top_k", 2),
        DirectField("rms_norm_eps", "RMSNorm.epsilon", 1e-5),
        map_tied_head(False),
        WindowFields(),
        RopeFields(theta=1_000_000.0),
    ),
    required={"hidden_act": "silu"},
    ignored_fields=TRAINING_FIELDS,
    tensor_maps=(
        *EMBEDDING_AND_HEAD,
        *ATTENTION_TENSORS,
        *NORMS,
        TensorMap(f"{MLP}.gate.weight", "mlp.router.score.w", "E D -> D E"),
        *map_experts(
            *(f"{MLP}.experts.{{expert}}.{part}" for part in ("w1", "w3", "w2"))
        ),
    ),
    presets={
        "mixtral_8x7b": {},
        "mixtral_8x22b": {
            "vocab_size": 32_768,
            "hidden_size": 6144,
            "intermediate_size": 16_384,
            "num_hidden_layers": 56,
            "num_attention_heads": 48,
        },
    },
)
