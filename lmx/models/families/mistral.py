"""Mistral 7B. Jiang et al. 2023, arXiv:2310.06825."""

from lmx.models.hf.family import Family
from lmx.models.hf.rules.field import Field
from lmx.models.hf.rules.rope import Rotary
from lmx.models.hf.rules.rows import ENDS, GATED, NORMS, PROJECTIONS, TURNS, sizes, tied
from lmx.models.hf.rules.windows import Windows

FAMILY = Family(
    model_type="mistral",
    architecture="MistralForCausalLM",
    page="""
        Pretrained.model = @Decoder
        Decoder.block = @PreNorm
        Decoder.mlp = @SwiGLU
        Decoder.norm = @RMSNorm
    """,
    rules=(
        *sizes(32_000, 4096, 32, heads=32, kv_heads=8),
        Field("intermediate_size", "SwiGLU.hidden", 14_336),
        Field("rms_norm_eps", "RMSNorm.epsilon", 1e-6),
        tied(False),
        Windows(default=4096),
        Rotary(),
    ),
    fixed={"hidden_act": "silu"},
    weights=(*ENDS, *PROJECTIONS, *GATED, *NORMS),
    ignored=(TURNS,),
    presets={"mistral_7b": {"rms_norm_eps": 1e-5}},
)
