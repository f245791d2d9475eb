"""DeepSeek-V3. DeepSeek-AI 2024, arXiv:2412.19437."""

import math
from typing import Any

from lmx.config.value import Config
from lmx.models.hf.attention_fields import map_rope, yarn_mscale
from lmx.models.hf.family import Family
from lmx.models.hf.fields import (
    ATTENTION,
    LLAMA_TENSORS,
    MLP,
    FieldMap,
    TensorMap,
    Values,
    list_layers,
    map_field,
    map_fields,
    map_head,
    map_router,
    ref,
)

LAYOUTS = {True: "interleaved", False: "split"}
MLA_TENSORS = tuple(
    TensorMap(f"{ATTENTION}.{theirs}.weight", f"attention.{ours}", layout)
    for theirs, ours, layout in (
        ("q_proj", "query.w", "(N H) D -> D N H"),
        ("q_a_proj", "query.down.w", "R D -> D R"),
        ("q_a_layernorm", "query.norm.scale", "R -> R"),
        ("q_b_proj", "query.up.w", "(N H) R -> R N H"),
        ("kv_a_proj_with_mqa", "down.w", "R D -> D R"),
        ("kv_a_layernorm", "norm.scale", "R -> R"),
        ("kv_b_proj", "up.w", "(N H) R -> R N H"),
        ("o_proj", "out.w", "D (N J) -> N J D"),
    )
)
SHARED_EXPERT = tuple(
    TensorMap(
        f"{MLP}.shared_experts.{part}_proj.weight", f"mlp.shared.{part}.w", layout
    )
    for part, layout in (
        ("gate", "F D -> D F"),
        ("up", "F D -> D F"),
        ("down", "D F -> F D"),
    )
)
MLP_SIZES = {
    "first_k_dense_replace": 3,
    "intermediate_size": 18_432,
    "moe_intermediate_size": 2048,
    "n_shared_experts": 1,
}
ROPE = map_rope("MLA.position")


def bind_mlps(fields: Values) -> dict[str, Any]:
    """The width of the first layers, of each expert, and of the shared expert."""
    dense, hidden, each, shared = (fields[name] for name in MLP_SIZES)
    first = [ref("SwiGLU")] * min(dense, fields["num_hidden_layers"])
    return {
        "Decoder.first_mlps": first,
        "MoE.hidden": each,
        "shared/SwiGLU.hidden": each * shared,
        **({"SwiGLU.hidden": hidden} if first else {}),
    }


def describe_mlps(config: Config) -> dict[str, Any]:
    """The fields of `MLP_SIZES`."""
    first, last = config["model.first_mlps"], list_layers(config, "mlp")[-1]
    fields: dict[str, Any] = {"first_k_dense_replace": len(first)}
    if first:
        fields["intermediate_size"] = first[0].fields.get("hidden")
    if last.name == "MoE" and (shared := last.fields["shared"]):
        each = fields["moe_intermediate_size"] = last.fields["hidden"]
        fields["n_shared_experts"] = shared.fields["hidden"] // each
    return fields


def complete_rope(fields: Values) -> dict[str, Any]:
    """The fields of RoPE, and whether neighbouring channels rotate together."""
    interleave = fields.get("rope_interleave")
    own = {"rope_interleave": True if interleave is None else interleave}
    return ROPE.with_defaults(fields) | own


def bind_rope(fields: Values) -> dict[str, Any]:
    """The position; YaRN's attention factor is in the scale of the logits."""
    bindings, scaling = ROPE.to_bindings(fields), fields["rope_scaling"] or {}
    position = bindings["MLA.position"].name
    bindings[f"{position}.layout"] = LAYOUTS[fields["rope_interleave"]]
    if mscale := scaling.get("mscale_all_dim"):
        width = fields["qk_nope_head_dim"] + fields["qk_rope_head_dim"]
        bindings["MLA.scale"] = (
            width**-0.5 * yarn_mscale(scaling["factor"], mscale) ** 2
        )
    return bindings


def describe_rope(config: Config) -> dict[str, Any]:
    """The fields of RoPE, with the `mscale_all_dim` of the scale."""
    fields = ROPE.to_hf(config)
    if not fields:
        return {}
    layers = list_layers(config, "attention")
    attention = next(layer.fields for layer in layers if layer.name == "MLA")
    fields["rope_interleave"] = attention["position"].fields["layout"] == LAYOUTS[True]
    factor = (fields["rope_scaling"] or {}).get("factor", 1.0)
    if attention["scale"] and factor > 1.0:
        width = attention["head_dim"] + attention["rope_dim"]
        excess = math.sqrt(attention["scale"] * math.sqrt(width)) - 1.0
        mscale = round(excess / (yarn_mscale(factor, 1.0) - 1.0), 9)
        fields["rope_scaling"]["mscale_all_dim"] = mscale
    return fields


FAMILY = Family(
    model_type="deepseek_v3",
    architecture="DeepseekV3ForCausalLM",
    template="""
        Decoder.attention = @MLA
        Decoder.mlp = @MoE
        MLA.norm = @latent/RMSNorm
        latent/RMSNorm.epsilon = 1e-6
        MoE.shared = @shared/SwiGLU
    """,
    field_maps=(
        map_field("vocab_size", "Decoder.vocab", 129_280),
        map_field("hidden_size", "Decoder.width", 7168),
        map_field("num_hidden_layers", "Decoder.depth", 61),
        map_field("num_attention_heads", "MLA.heads", 128),
        map_field("num_key_value_heads", "MLA.heads", 128),  # MLA has one of each
        map_field("kv_lora_rank", "MLA.kv_rank", 512),
        map_field("q_lora_rank", "MLA.q_rank", 1536, nullable=True),
        map_field("qk_nope_head_dim", "MLA.head_dim", 128),
        map_field("qk_rope_head_dim", "MLA.rope_dim", 64),
        map_field("v_head_dim", "MLA.value_dim", 128),
        map_field("n_routed_experts", "MoE.experts", 256),
        map_router(
            ("SigmoidRouter", "UnnormalizedSigmoidRouter"),
            {
                "num_experts_per_tok": ("top_k", 8),
                "n_group": ("groups", 8),
                "topk_group": ("group_top_k", 4),
                "routed_scaling_factor": ("scale", 2.5),
            },
            default=True,
        ),
        map_fields(MLP_SIZES, bind_mlps, describe_mlps),
        map_field("rms_norm_eps", "RMSNorm.epsilon", 1e-6, path="model.norm.epsilon"),
        map_head(tied=False),
        FieldMap(
            (*ROPE.names, "rope_interleave"), complete_rope, bind_rope, describe_rope
        ),
    ),
    required={
        "hidden_act": "silu",
        "attention_bias": False,
        "moe_layer_freq": 1,
        "scoring_func": "sigmoid",
        "topk_method": "noaux_tc",
    },
    ignored_fields=frozenset(
        "aux_loss_alpha ep_size head_dim num_nextn_predict_layers pretraining_tp"
        " qk_head_dim seq_aux".split()
    ),
    tensor_maps=(
        *LLAMA_TENSORS,
        *MLA_TENSORS,
        TensorMap(f"{MLP}.gate.e_score_correction_bias", "mlp.router.bias", "E -> E"),
        *SHARED_EXPERT,
    ),
    # The layers of multi-token prediction.
    ignored_tensors=(r"model\.layers\.{depth}\..*",),
    presets={
        "deepseek_v3": {
            "max_position_embeddings": 163_840,
            "rope_scaling": {
                "type": "yarn",
                "factor": 40,
                "original_max_position_embeddings": 4096,
                "beta_fast": 32,
                "beta_slow": 1,
                "mscale": 1.0,
                "mscale_all_dim": 1.0,
            },
        },
    },
)
