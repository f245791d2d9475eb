"""Qwen3 with experts. Yang et al. 2025, arXiv:2505.09388."""

from typing import Any

from lmx.config.registry import ConfigError
from lmx.config.value import Config, to_jsonable
from lmx.models.families.qwen2 import mark_window_use
from lmx.models.hf.family import Family
from lmx.models.hf.fields.decoder import (
    LLAMA_TENSORS,
    QK_NORMS,
    map_attention_bias,
    map_decoder,
)
from lmx.models.hf.fields.experts import EXPERTS, TRAINING_FIELDS, map_router
from lmx.models.hf.fields.field import (
    Values,
    find_cycle,
    list_layers,
    map_field,
    map_fields,
    ref,
)
from lmx.models.hf.fields.rotary import map_rope
from lmx.models.hf.fields.sliding_window import map_window

DENSE = {"mlp_only_layers": (), "decoder_sparse_step": 1, "intermediate_size": 6144}
WINDOW = map_window(
    4096, extra_names=("use_sliding_window",), extra_fields=mark_window_use
)


def select_window(fields: Values) -> dict[str, Any]:
    """The window of every layer, if `use_sliding_window`."""
    unused = {} if fields.get("use_sliding_window") else {"sliding_window": None}
    return WINDOW.with_defaults({**fields, **unused})


def bind_mlps(fields: Values) -> dict[str, Any]:
    """Experts in every `decoder_sparse_step`-th layer outside `mlp_only_layers`."""
    dense, step, hidden = (fields[name] for name in DENSE)
    kinds = [
        "SwiGLU" if i in dense or (i + 1) % step else "MoE"
        for i in range(fields["num_hidden_layers"])
    ]
    if "MoE" not in kinds:
        raise ConfigError(
            f"mlp_only_layers = {dense} and decoder_sparse_step = {step} leave no"
            " layer with experts: such a model is a Qwen3ForCausalLM."
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


FAMILY = Family(
    model_type="qwen3_moe",
    architecture="Qwen3MoeForCausalLM",
    template="""
        Pretrained.model = @Decoder
        Decoder.block = @PreNorm
        Decoder.norm = @RMSNorm
        Attention.qk_norm = @RMSNorm
    """,
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
        WINDOW._replace(with_defaults=select_window),
        map_rope(),
    ),
    required={"hidden_act": "silu"},
    ignored_fields=TRAINING_FIELDS | {"max_window_layers"},
    tensor_maps=(*LLAMA_TENSORS, *QK_NORMS, *EXPERTS),
    presets={
        "qwen3_30b_a3b": dict(
            num_hidden_layers=48, head_dim=128, norm_topk_prob=True, rope_theta=1e6
        ),
        "qwen3_235b_a22b": {
            "hidden_size": 4096,
            "moe_intermediate_size": 1536,
            "num_hidden_layers": 94,
            "num_attention_heads": 64,
            "head_dim": 128,
            "norm_topk_prob": True,
            "rope_theta": 1e6,
        },
    },
)
