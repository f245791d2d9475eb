"""Gemma 2. Gemma Team 2024, arXiv:2408.00118."""

import math
from collections.abc import Sequence

from lmx.models.hf.family import Family
from lmx.models.hf.rules.field import Derived, Field, Formula, Rule, Values
from lmx.models.hf.rules.rope import Rotary
from lmx.models.hf.rules.rows import (
    BLOCK,
    ENDS,
    GATED,
    PROJECTIONS,
    attention_bias,
    tied,
)
from lmx.models.hf.rules.rows import sizes as common
from lmx.models.hf.rules.windows import FULL, WINDOW, Windows
from lmx.models.hf.table import Weight

PAGE = """
    Pretrained.model = @Decoder
    Decoder.block = @SandwichNorm
    Decoder.mlp = @GeGLU
    Decoder.norm = @OffsetRMSNorm
"""
FIXED = {
    "hidden_activation": "gelu_pytorch_tanh",
    "use_bidirectional_attention": False,
}
# `hidden_act` is what old files call it, and transformers does not look at it.
IDLE = frozenset({"hidden_act", "cache_implementation"})
WEIGHTS = (
    *ENDS,
    *PROJECTIONS,
    *GATED,
    Weight(f"{BLOCK}.input_layernorm.weight", "attention_norm.offset", "D -> D"),
    Weight(
        f"{BLOCK}.post_attention_layernorm.weight",
        "attention_out_norm.offset",
        "D -> D",
    ),
    Weight(f"{BLOCK}.pre_feedforward_layernorm.weight", "mlp_norm.offset", "D -> D"),
    Weight(
        f"{BLOCK}.post_feedforward_layernorm.weight", "mlp_out_norm.offset", "D -> D"
    ),
    Weight("model.norm.weight", "norm.offset", "D -> D"),
)


def scalar(scale: float) -> float | int:
    """What the scale is one over the root of; transformers takes whole numbers."""
    found = round(scale**-2, 6)
    return int(found) if found == int(found) else found


def sizes(vocab: int, cap: float | None) -> tuple[Rule, ...]:
    """What the families of Gemma have in common."""
    return (
        *common(vocab, 2304, 26, heads=8, kv_heads=4, head_width=256),
        Derived("Decoder.embed_scale", lambda given: math.sqrt(given["hidden_size"])),
        Field("intermediate_size", "GeGLU.hidden", 9216),
        Field("rms_norm_eps", "OffsetRMSNorm.epsilon", 1e-6),
        Formula(
            "query_pre_attn_scalar",
            "Attention.scale",
            256,
            there=lambda scalar: scalar**-0.5,
            back=scalar,
        ),
        Field("final_logit_softcapping", "Decoder.logit_cap", cap, null=True),
        *attention_bias(False),
        tied(True),
    )


def types(given: Values) -> Sequence[str]:
    """A window in every other layer, the first among them."""
    return [FULL if i % 2 else WINDOW for i in range(given["num_hidden_layers"])]


FAMILY = Family(
    model_type="gemma2",
    architecture="Gemma2ForCausalLM",
    page=PAGE,
    rules=(
        *sizes(256_000, 30.0),
        Field("attn_logit_softcapping", "Attention.logit_cap", 50.0, null=True),
        Windows(4096, types),
        Rotary(),
    ),
    fixed=FIXED,
    idle=IDLE,
    weights=WEIGHTS,
    presets={
        "gemma2_2b": {},
        "gemma2_9b": {
            "hidden_size": 3584,
            "intermediate_size": 14_336,
            "num_hidden_layers": 42,
            "num_attention_heads": 16,
            "num_key_value_heads": 8,
        },
    },
)
