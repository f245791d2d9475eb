"""Qwen2 and Qwen2.5. Yang et al. 2024, arXiv:2407.10671 and arXiv:2412.15115."""

from collections.abc import Sequence
from typing import Any

from lmx.models.hf.family import Family
from lmx.models.hf.rules.field import Field, Values
from lmx.models.hf.rules.rope import Rotary
from lmx.models.hf.rules.rows import ENDS, GATED, NORMS, PROJECTIONS, sizes, tied
from lmx.models.hf.rules.windows import FULL, WINDOW, Windows


def types(given: Values) -> Sequence[str]:
    """A window from layer `max_window_layers` on, if one is used at all."""
    used = given.get("use_sliding_window", False) and given["sliding_window"]
    first = given.get("max_window_layers", 28)
    depth = given["num_hidden_layers"]
    return [WINDOW if used and i >= first else FULL for i in range(depth)]


def tells(windowed: bool) -> dict[str, Any]:
    """What else must be written for a window to be used."""
    return {"use_sliding_window": windowed}


WINDOWS = Windows(
    types=types, asks=("use_sliding_window", "max_window_layers"), tells=tells
)

FAMILY = Family(
    model_type="qwen2",
    architecture="Qwen2ForCausalLM",
    page="""
        Pretrained.model = @Decoder
        Decoder.block = @PreNorm
        Decoder.mlp = @SwiGLU
        Decoder.norm = @RMSNorm
        Attention.qkv = @Affine
    """,
    rules=(
        *sizes(151_936, 4096, 32, heads=32, kv_heads=32),
        Field("intermediate_size", "SwiGLU.hidden", 22_016),
        Field("rms_norm_eps", "RMSNorm.epsilon", 1e-6),
        tied(False),
        WINDOWS,
        Rotary(),
    ),
    fixed={"hidden_act": "silu", "use_mrope": False},
    weights=(*ENDS, *PROJECTIONS, *GATED, *NORMS),
    presets={
        "qwen2_05b": {
            "hidden_size": 896,
            "intermediate_size": 4864,
            "num_hidden_layers": 24,
            "num_attention_heads": 14,
            "num_key_value_heads": 2,
            "rope_theta": 1_000_000.0,
            "tie_word_embeddings": True,
        },
        "qwen2_7b": {
            "vocab_size": 152_064,
            "hidden_size": 3584,
            "intermediate_size": 18_944,
            "num_hidden_layers": 28,
            "num_attention_heads": 28,
            "num_key_value_heads": 4,
            "rope_theta": 1_000_000.0,
        },
    },
)
