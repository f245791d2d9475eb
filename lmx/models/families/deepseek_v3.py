"""DeepSeek-V3. DeepSeek-AI 2024, arXiv:2412.19437."""

import math
from dataclasses import dataclass
from typing import Any

from lmx.config.value import Config
from lmx.models.hf.family import Family
from lmx.models.hf.fields.decoder import (
    ATTENTION,
    EMBEDDING_AND_HEAD,
    GATED_MLP,
    MLP,
    NORMS,
    map_tied_head,
)
from lmx.models.hf.fields.experts import (
    EXPERTS,
    TRAINING_FIELDS,
    RouterFields,
    list_mlps,
)
from lmx.models.hf.fields.field import (
    DirectField,
    FieldMap,
    Values,
    fill_defaults,
    find_paths,
    ref,
)
from lmx.models.hf.fields.rotary import RopeFields, yarn_mscale
from lmx.models.hf.layout import TensorMap

LAYOUTS = {True: "interleaved", False: "split"}
HEAD_DIMS = ("qk_nope_head_dim", "qk_rope_head_dim")
MLA_TENSORS = tuple(
    TensorMap(f"{ATTENTION}.{file}.weight", f"attention.{into}", layout)
    for file, into, layout in (
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


@dataclass(frozen=True)
class DeepseekMLPFields(FieldMap):
    """How wide the first layers are, each expert, and the one that all tokens meet."""

    @property
    def names(self) -> tuple[str, ...]:
        return (
            "first_k_dense_replace",
            "intermediate_size",
            "moe_intermediate_size",
            "n_shared_experts",
        )

    def with_defaults(self, given: Values) -> dict[str, Any]:
        usual = zip(self.names, (3, 18_432, 2048, 1), strict=True)
        return fill_defaults(given, dict(usual))

    def to_bindings(self, settled: Values) -> dict[str, Any]:
        lead, hidden, each, shared = (settled[name] for name in self.names)
        first = [ref("SwiGLU")] * min(lead, settled["num_hidden_layers"])
        bound = {
            "Decoder.first_mlps": first,
            "MoE.hidden": each,
            "shared/SwiGLU.hidden": each * shared,
        }
        return bound | ({"SwiGLU.hidden": hidden} if first else {})

    def to_hf(self, config: Config) -> dict[str, Any]:
        lead, last = config["model.first_mlps"], list_mlps(config)[-1]
        told: dict[str, Any] = {"first_k_dense_replace": len(lead)}
        if lead:
            told["intermediate_size"] = lead[0].fields.get("hidden")
        if last.name == "MoE" and (shared := last.fields["shared"]):
            each = told["moe_intermediate_size"] = last.fields["hidden"]
            told["n_shared_experts"] = shared.fields["hidden"] // each
        return told


@dataclass(frozen=True)
class DeepseekRopeFields(RopeFields):
    """`RopeFields`, which pairs turn together, and what `mscale_all_dim` makes of logits.

    That is YaRN's temperature, in the scale of the logits and not in the rotation.
    """

    binding: str = "MLA.position"

    @property
    def names(self) -> tuple[str, ...]:
        return (*super().names, "rope_interleave")

    def with_defaults(self, given: Values) -> dict[str, Any]:
        return {
            **super().with_defaults(given),
            **fill_defaults(given, {"rope_interleave": True}),
        }

    def to_bindings(self, settled: Values) -> dict[str, Any]:
        bound = super().to_bindings(settled)
        pairs = f"{bound[self.binding].name}.layout"
        bound[pairs] = LAYOUTS[settled["rope_interleave"]]
        scaling = settled["rope_scaling"] or {}
        if share := scaling.get("mscale_all_dim"):
            usual = sum(settled[name] for name in HEAD_DIMS) ** -0.5
            scale = usual * yarn_mscale(scaling["factor"], share) ** 2
            bound["MLA.scale"] = scale
        return bound

    def to_hf(self, config: Config) -> dict[str, Any]:
        told, found = super().to_hf(config), find_paths(config, self.binding)
        if not told:
            return {}
        attention = config[found[0].rpartition(".")[0]].fields
        told["rope_interleave"] = (
            attention["position"].fields["layout"] == LAYOUTS[True]
        )
        factor = (told["rope_scaling"] or {}).get("factor", 1.0)
        if attention["scale"] and factor > 1.0:
            width = attention["head_dim"] + attention["rope_dim"]
            over = math.sqrt(attention["scale"] * math.sqrt(width)) - 1.0
            share = round(over / (yarn_mscale(factor, 1.0) - 1.0), 9)
            told["rope_scaling"]["mscale_all_dim"] = share
        return told


FAMILY = Family(
    model_type="deepseek_v3",
    architecture="DeepseekV3ForCausalLM",
    template="""
        Pretrained.model = @Decoder
        Decoder.attention = @MLA
        Decoder.block = @PreNorm
        Decoder.mlp = @MoE
        Decoder.norm = @RMSNorm
        MLA.norm = @latent/RMSNorm
        latent/RMSNorm.epsilon = 1e-6
        MoE.shared = @shared/SwiGLU
    """,
    field_maps=(
        DirectField("vocab_size", "Decoder.vocab", 129_280),
        DirectField("hidden_size", "Decoder.width", 7168),
        DirectField("num_hidden_layers", "Decoder.depth", 61),
        DirectField("num_attention_heads", "MLA.heads", 128),
        DirectField("num_key_value_heads", "MLA.heads", 128),  # as many
        DirectField("kv_lora_rank", "MLA.kv_rank", 512),
        DirectField("q_lora_rank", "MLA.q_rank", 1536, nullable=True),
        DirectField("qk_nope_head_dim", "MLA.head_dim", 128),
        DirectField("qk_rope_head_dim", "MLA.rope_dim", 64),
        DirectField("v_head_dim", "MLA.value_dim", 128),
        DirectField("n_routed_experts", "MoE.experts", 256),
        RouterFields(
            ("SigmoidRouter", "UnnormalizedSigmoidRouter"),
            {
                "num_experts_per_tok": ("top_k", 8),
                "n_group": ("groups", 8),
                "topk_group": ("group_top_k", 4),
                "routed_scaling_factor": ("scale", 2.5),
            },
            default=True,
        ),
        DeepseekMLPFields(),
        DirectField("rms_norm_eps", "RMSNorm.epsilon", 1e-6, path="model.norm.epsilon"),
        map_tied_head(False),
        DeepseekRopeFields(),
    ),
    required={
        "hidden_act": "silu",
        "attention_bias": False,
        "moe_layer_freq": 1,
        "scoring_func": "sigmoid",
        "topk_method": "noaux_tc",
    },
    ignored_fields=TRAINING_FIELDS
    | frozenset(
        "aux_loss_alpha ep_size head_dim num_nextn_predict_layers pretraining_tp"
        " qk_head_dim seq_aux".split()
    ),
    tensor_maps=(
        *EMBEDDING_AND_HEAD,
        *MLA_TENSORS,
        *GATED_MLP,
        *EXPERTS,
        TensorMap(f"{MLP}.gate.e_score_correction_bias", "mlp.router.bias", "E -> E"),
        *SHARED_EXPERT,
        *NORMS,
    ),
    # The layers that predict further tokens.
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
