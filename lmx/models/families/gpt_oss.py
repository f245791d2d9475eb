"""gpt-oss. OpenAI 2025, arXiv:2508.10925."""

from collections.abc import Sequence

from lmx.models.hf.family import Family
from lmx.models.hf.rules.experts import IDLE
from lmx.models.hf.rules.field import Field, Values
from lmx.models.hf.rules.rope import Rotary
from lmx.models.hf.rules.rows import (
    ATTENTION,
    ENDS,
    MLP,
    NORMS,
    PROJECTIONS,
    attention_bias,
    sizes,
    tied,
)
from lmx.models.hf.rules.windows import FULL, WINDOW, Windows
from lmx.models.hf.table import Weight

LONGER = {
    "rope_type": "yarn",
    "factor": 32.0,
    "beta_fast": 32.0,
    "beta_slow": 1.0,
    "truncate": False,
    "original_max_position_embeddings": 4096,
}
GATE_UP = f"{MLP}.experts.gate_up_proj"  # a column of each by turns


def types(given: Values) -> Sequence[str]:
    """A window in every other layer, the first among them."""
    return [FULL if i % 2 else WINDOW for i in range(given["num_hidden_layers"])]


FAMILY = Family(
    model_type="gpt_oss",
    architecture="GptOssForCausalLM",
    page="""
        Pretrained.model = @Decoder
        Decoder.block = @PreNorm
        Decoder.mlp = @ClampedMoE
        Decoder.norm = @RMSNorm
        Attention.sink = @Sink
        ClampedMoE.router = @TopK
        TopK.linear = @Affine
    """,
    rules=(
        *sizes(201_088, 2880, 36, heads=64, kv_heads=8, head_width=64),
        Field("intermediate_size", "ClampedMoE.hidden", 2880),
        Field("num_local_experts", "ClampedMoE.experts", 128),
        Field("num_experts_per_tok", "TopK.choices", 4),
        Field("swiglu_limit", "ClampedMoE.limit", 7.0),
        Field("swiglu_alpha", "ClampedMoE.slope", 1.702),
        Field("rms_norm_eps", "RMSNorm.epsilon", 1e-5),
        *attention_bias(True),
        tied(False),
        Windows(128, types),
        Rotary(theta=150_000.0, scaling=LONGER),
    ),
    fixed={"hidden_act": "silu"},
    idle=IDLE | {"experts_per_token", "initial_context_length"},
    weights=(
        *ENDS,
        *PROJECTIONS,
        Weight(f"{ATTENTION}.sinks", "attention.sink.logit", "N -> N"),
        Weight(f"{MLP}.router.weight", "mlp.router.score.w", "E D -> D E"),
        Weight(f"{MLP}.router.bias", "mlp.router.score.b", "E -> E"),
        Weight(GATE_UP, ("mlp.gate", "mlp.up"), "E D (F 2) -> 2 E D F"),
        Weight(f"{GATE_UP}_bias", ("mlp.gate_b", "mlp.up_b"), "E (F 2) -> 2 E F"),
        Weight(f"{MLP}.experts.down_proj", "mlp.down", "E F D -> E F D"),
        Weight(f"{MLP}.experts.down_proj_bias", "mlp.down_b", "E D -> E D"),
        *NORMS,
    ),
    presets={
        "gpt_oss_20b": {"num_hidden_layers": 24, "num_local_experts": 32},
        "gpt_oss_120b": {},
    },
)
