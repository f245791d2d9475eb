"""Qwen2 and Qwen2.5 (Yang et al. 2024, arXiv:2407.10671 and arXiv:2412.15115), Qwen3.

Qwen3, dense and with experts: Yang et al. 2025, arXiv:2505.09388.
"""

from typing import Any

from lmx.config.registry import require
from lmx.config.value import Config, to_jsonable
from lmx.models.hf.attention_fields import FULL, WINDOW, map_rope, map_window
from lmx.models.hf.family import Family
from lmx.models.hf.fields import (
    Values,
    find_cycle,
    list_layers,
    map_attention_bias,
    map_decoder,
    map_field,
    map_fields,
    map_router,
    preset,
    ref,
)


def window_upper_layers(fields: Values) -> list[str]:
    """A window from layer `max_window_layers` on, if `use_sliding_window`."""
    used = fields.get("use_sliding_window", False) and fields["sliding_window"]
    first = fields.get("max_window_layers", 28)
    depth = fields["num_hidden_layers"]
    return [WINDOW if used and i >= first else FULL for i in range(depth)]


def mark_window_use(windowed: bool) -> dict[str, Any]:
    """The field without which transformers uses no window."""
    return {"use_sliding_window": windowed}


UPPER_WINDOWS = map_window(
    layer_types=window_upper_layers,
    extra_names=("use_sliding_window", "max_window_layers"),
    extra_fields=mark_window_use,
)

QWEN2 = Family(
    model_type="qwen2",
    architecture="Qwen2ForCausalLM",
    template="""
        Decoder.mlp = @SwiGLU
        Attention.qkv = @EinsumBias
    """,
    field_maps=(
        *map_decoder(151_936, 4096, 32, heads=32, kv_heads=32),
        map_field("intermediate_size", "SwiGLU.hidden", 22_016),
        UPPER_WINDOWS,
        map_rope(),
    ),
    required={"hidden_act": "silu", "use_mrope": False},
    presets={
        "qwen2_05b": preset(
            896, 4864, 24, 14, 2, rope_theta=1e6, tie_word_embeddings=True
        ),
        "qwen2_7b": preset(3584, 18_944, 28, 28, 4, rope_theta=1e6, vocab_size=152_064),
    },
)

QWEN3 = Family(
    model_type="qwen3",
    architecture="Qwen3ForCausalLM",
    template="""
        Decoder.mlp = @SwiGLU
        Attention.qk_norm = @RMSNorm
    """,
    field_maps=(
        *map_decoder(151_936, 4096, 32, heads=32, kv_heads=32, head_dim=128),
        map_field("intermediate_size", "SwiGLU.hidden", 22_016),
        *map_attention_bias(False),
        UPPER_WINDOWS,
        map_rope(),
    ),
    presets={
        "qwen3_06b": preset(
            1024, 3072, 28, 16, 8, rope_theta=1e6, tie_word_embeddings=True
        ),
        "qwen3_8b": preset(4096, 12_288, 36, 32, 8, rope_theta=1e6),
    },
)


DENSE = {"mlp_only_layers": (), "decoder_sparse_step": 1, "intermediate_size": 6144}
EVERY_WINDOW = map_window(
    4096, extra_names=("use_sliding_window",), extra_fields=mark_window_use
)


def select_window(fields: Values) -> dict[str, Any]:
    """The window of every layer, if `use_sliding_window`."""
    unused = {} if fields.get("use_sliding_window") else {"sliding_window": None}
    return EVERY_WINDOW.with_defaults({**fields, **unused})


def bind_mlps(fields: Values) -> dict[str, Any]:
    """Experts in every `decoder_sparse_step`-th layer outside `mlp_only_layers`."""
    dense, step, hidden = (fields[name] for name in DENSE)
    kinds = [
        "SwiGLU" if i in dense or (i + 1) % step else "MoE"
        for i in range(fields["num_hidden_layers"])
    ]
    require(
        "MoE" in kinds,
        f"mlp_only_layers = {dense} and decoder_sparse_step = {step} leave no"
        " layer with experts: such a model is a Qwen3ForCausalLM.",
    )
    if "SwiGLU" not in kinds:
        return {"Decoder.mlp": ref("MoE")}
    cycle = [ref(kind) for kind in find_cycle(kinds)]
    return {"Decoder.mlp": cycle, "SwiGLU.hidden": hidden}


def describe_mlps(config: Config) -> dict[str, Any]:
    """The layers without experts, and their width."""
    mlps = enumerate(list_layers(config, "mlp"))
    dense = {layer: mlp for layer, mlp in mlps if mlp.name != "MoE"}
    widths = [to_jsonable(mlp.fields["hidden"]) for mlp in dense.values()]
    width = {"intermediate_size": widths[0]} if widths else {}
    return {"mlp_only_layers": list(dense), "decoder_sparse_step": 1, **width}


QWEN3_MOE = Family(
    model_type="qwen3_moe",
    architecture="Qwen3MoeForCausalLM",
    template="Attention.qk_norm = @RMSNorm",
    field_maps=(
        *map_decoder(151_936, 2048, 24, heads=32, kv_heads=4),
        map_field("moe_intermediate_size", "MoE.hidden", 768),
        map_field("num_experts", "MoE.experts", 128, aliases=("num_local_experts",)),
        map_router(
            ("TopKRouter", "SoftmaxRouter"),
            {"num_experts_per_tok": ("top_k", 8)},
            default=False,
        ),
        map_fields(DENSE, bind_mlps, describe_mlps),
        *map_attention_bias(False),
        EVERY_WINDOW._replace(with_defaults=select_window),
        map_rope(),
    ),
    ignored_fields=frozenset({"max_window_layers"}),
    presets={
        "qwen3_30b_a3b": dict(
            num_hidden_layers=48, head_dim=128, norm_topk_prob=True, rope_theta=1e6
        ),
        "qwen3_235b_a22b": dict(
            hidden_size=4096,
            moe_intermediate_size=1536,
            num_hidden_layers=94,
            num_attention_heads=64,
            head_dim=128,
            norm_topk_prob=True,
            rope_theta=1e6,
        ),
    },
)
