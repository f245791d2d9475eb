"""Mistral 7B. Jiang et al. 2023, arXiv:2310.06825."""

from lmx.models.hf.family import Family
from lmx.models.hf.fields.decoder import (
    ATTENTION_TENSORS,
    EMBEDDING_AND_HEAD,
    GATED_MLP,
    NORMS,
    ROPE_FREQUENCIES,
    map_sizes,
    map_tied_head,
)
from lmx.models.hf.fields.field import DirectField
from lmx.models.hf.fields.rotary import RopeFields
from lmx.models.hf.fields.sliding_window import WindowFields

FAMILY = Family(
    model_type="mistral",
    architecture="MistralForCausalLM",
    template="""
        Pretrained.model = @Decoder
        Decoder.block = @PreNorm
        Decoder.mlp = @SwiGLU
        Decoder.norm = @RMSNorm
    """,
    field_maps=(
        *map_sizes(32_000, 4096, 32, heads=32, kv_heads=8),
        DirectField("intermediate_size", "SwiGLU.hidden", 14_336),
        DirectField("rms_norm_eps", "RMSNorm.epsilon", 1e-6),
        map_tied_head(False),
        WindowFields(default=4096),
        RopeFields(),
    ),
    required={"hidden_act": "silu"},
    tensor_maps=(*EMBEDDING_AND_HEAD, *ATTENTION_TENSORS, *GATED_MLP, *NORMS),
    ignored_tensors=(ROPE_FREQUENCIES,),
    presets={"mistral_7b": {"rms_norm_eps": 1e-5}},
)
