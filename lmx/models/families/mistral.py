"""Mistral 7B. Jiang et al. 2023, arXiv:2310.06825."""

from lmx.models.hf.family import Family
from lmx.models.hf.fields.decoder import LLAMA_TENSORS, ROPE_FREQUENCIES, map_decoder
from lmx.models.hf.fields.field import map_field
from lmx.models.hf.fields.rotary import map_rope
from lmx.models.hf.fields.sliding_window import map_window

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
        *map_decoder(32_000, 4096, 32, heads=32, kv_heads=8),
        map_field("intermediate_size", "SwiGLU.hidden", 14_336),
        map_window(4096),
        map_rope(),
    ),
    required={"hidden_act": "silu"},
    tensor_maps=LLAMA_TENSORS,
    ignored_tensors=(ROPE_FREQUENCIES,),
    presets={"mistral_7b": {"rms_norm_eps": 1e-5}},
)
