"""Mixtral. Jiang et al. 2024, arXiv:2401.04088."""

from lmx.models.hf.family import Family
from lmx.models.hf.rules.experts import IDLE, experts
from lmx.models.hf.rules.field import Field
from lmx.models.hf.rules.rope import Rotary
from lmx.models.hf.rules.rows import BLOCK, ENDS, NORMS, PROJECTIONS, sizes, tied
from lmx.models.hf.rules.windows import Windows
from lmx.models.hf.table import Weight

MLP = f"{BLOCK}.block_sparse_moe"

FAMILY = Family(
    model_type="mixtral",
    architecture="MixtralForCausalLM",
    page="""
        Pretrained.model = @Decoder
        Decoder.block = @PreNorm
        Decoder.mlp = @MoE
        Decoder.norm = @RMSNorm
        MoE.router = @TopK
    """,
    rules=(
        *sizes(32_000, 4096, 32, heads=32, kv_heads=8),
        Field("intermediate_size", "MoE.hidden", 14_336),
        Field("num_local_experts", "MoE.experts", 8),
        Field("num_experts_per_tok", "TopK.choices", 2),
        Field("rms_norm_eps", "RMSNorm.epsilon", 1e-5),
        tied(False),
        Windows(),
        Rotary(theta=1_000_000.0),
    ),
    fixed={"hidden_act": "silu"},
    idle=IDLE,
    weights=(
        *ENDS,
        *PROJECTIONS,
        *NORMS,
        Weight(f"{MLP}.gate.weight", "mlp.router.score.w", "E D -> D E"),
        *experts(*(f"{MLP}.experts.{{expert}}.{part}" for part in ("w1", "w3", "w2"))),
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
