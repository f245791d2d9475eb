"""DeepSeek-V3. DeepSeek-AI 2024, arXiv:2412.19437."""

import math
from dataclasses import dataclass
from typing import Any

from lmx.config.tree import Config
from lmx.models.hf.family import Family
from lmx.models.hf.rules.experts import EXPERTS, IDLE, Routed, feeding
from lmx.models.hf.rules.field import Field, Rule, Values, at, filled, places
from lmx.models.hf.rules.rope import Rotary, mscale
from lmx.models.hf.rules.rows import ATTENTION, ENDS, GATED, MLP, NORMS, tied
from lmx.models.hf.table import Weight

PAIRS = {True: "neighbours", False: "halves"}
WIDTHS = ("qk_nope_head_dim", "qk_rope_head_dim")
LATENT = tuple(
    Weight(f"{ATTENTION}.{file}.weight", f"attention.{into}", layout)
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
SHARED = tuple(
    Weight(f"{MLP}.shared_experts.{part}_proj.weight", f"mlp.shared.{part}.w", layout)
    for part, layout in (
        ("gate", "F D -> D F"),
        ("up", "F D -> D F"),
        ("down", "D F -> F D"),
    )
)


@dataclass(frozen=True)
class Widths(Rule):
    """How wide the first layers are, each expert, and the one that all tokens meet."""

    @property
    def names(self) -> tuple[str, ...]:
        return (
            "first_k_dense_replace",
            "intermediate_size",
            "moe_intermediate_size",
            "n_shared_experts",
        )

    def settle(self, given: Values) -> dict[str, Any]:
        usual = zip(self.names, (3, 18_432, 2048, 1), strict=True)
        return filled(given, dict(usual))

    def bind(self, settled: Values) -> dict[str, Any]:
        lead, hidden, each, shared = (settled[name] for name in self.names)
        first = [at("SwiGLU")] * min(lead, settled["num_hidden_layers"])
        bound = {
            "Decoder.lead": first,
            "MoE.hidden": each,
            "shared/SwiGLU.hidden": each * shared,
        }
        return bound | ({"SwiGLU.hidden": hidden} if first else {})

    def read(self, config: Config) -> dict[str, Any]:
        lead, last = config["model.lead"], feeding(config)[-1]
        told: dict[str, Any] = {"first_k_dense_replace": len(lead)}
        if lead:
            told["intermediate_size"] = lead[0].fields.get("hidden")
        if last.name == "MoE" and (shared := last.fields["shared"]):
            each = told["moe_intermediate_size"] = last.fields["hidden"]
            told["n_shared_experts"] = shared.fields["hidden"] // each
        return told


@dataclass(frozen=True)
class TurningPart(Rotary):
    """`Rotary`, which pairs turn together, and what `mscale_all_dim` makes of logits.

    That is YaRN's temperature, in the scale of the logits and not in the rotation.
    """

    binding: str = "LatentAttention.position"

    @property
    def names(self) -> tuple[str, ...]:
        return (*super().names, "rope_interleave")

    def settle(self, given: Values) -> dict[str, Any]:
        return {**super().settle(given), **filled(given, {"rope_interleave": True})}

    def bind(self, settled: Values) -> dict[str, Any]:
        bound = super().bind(settled)
        pairs = f"{bound[self.binding].name}.pairs"
        bound[pairs] = PAIRS[settled["rope_interleave"]]
        scaling = settled["rope_scaling"] or {}
        if share := scaling.get("mscale_all_dim"):
            usual = sum(settled[name] for name in WIDTHS) ** -0.5
            scale = usual * mscale(scaling["factor"], share) ** 2
            bound["LatentAttention.scale"] = scale
        return bound

    def read(self, config: Config) -> dict[str, Any]:
        told, found = super().read(config), places(config, self.binding)
        if not told:
            return {}
        attention = config[found[0].rpartition(".")[0]].fields
        told["rope_interleave"] = attention["position"].fields["pairs"] == PAIRS[True]
        factor = (told["rope_scaling"] or {}).get("factor", 1.0)
        if attention["scale"] and factor > 1.0:
            width = attention["head_width"] + attention["rope_width"]
            over = math.sqrt(attention["scale"] * math.sqrt(width)) - 1.0
            share = round(over / (mscale(factor, 1.0) - 1.0), 9)
            told["rope_scaling"]["mscale_all_dim"] = share
        return told


FAMILY = Family(
    model_type="deepseek_v3",
    architecture="DeepseekV3ForCausalLM",
    page="""
        Pretrained.model = @Decoder
        Decoder.attention = @LatentAttention
        Decoder.block = @PreNorm
        Decoder.mlp = @MoE
        Decoder.norm = @RMSNorm
        LatentAttention.norm = @latent/RMSNorm
        latent/RMSNorm.epsilon = 1e-6
        MoE.shared = @shared/SwiGLU
    """,
    rules=(
        Field("vocab_size", "Decoder.vocab", 129_280),
        Field("hidden_size", "Decoder.width", 7168),
        Field("num_hidden_layers", "Decoder.depth", 61),
        Field("num_attention_heads", "LatentAttention.heads", 128),
        Field("num_key_value_heads", "LatentAttention.heads", 128),  # as many
        Field("kv_lora_rank", "LatentAttention.kv_rank", 512),
        Field("q_lora_rank", "LatentAttention.q_rank", 1536, null=True),
        Field("qk_nope_head_dim", "LatentAttention.head_width", 128),
        Field("qk_rope_head_dim", "LatentAttention.rope_width", 64),
        Field("v_head_dim", "LatentAttention.value_width", 128),
        Field("n_routed_experts", "MoE.experts", 256),
        Routed(
            ("Sigmoid", "PlainSigmoid"),
            {
                "num_experts_per_tok": ("choices", 8),
                "n_group": ("groups", 8),
                "topk_group": ("group_choices", 4),
                "routed_scaling_factor": ("scale", 2.5),
            },
            default=True,
        ),
        Widths(),
        Field("rms_norm_eps", "RMSNorm.epsilon", 1e-6, path="model.norm.epsilon"),
        tied(False),
        TurningPart(),
    ),
    fixed={
        "hidden_act": "silu",
        "attention_bias": False,
        "moe_layer_freq": 1,
        "scoring_func": "sigmoid",
        "topk_method": "noaux_tc",
    },
    idle=IDLE
    | frozenset(
        "aux_loss_alpha ep_size head_dim num_nextn_predict_layers pretraining_tp"
        " qk_head_dim seq_aux".split()
    ),
    weights=(
        *ENDS,
        *LATENT,
        *GATED,
        *EXPERTS,
        Weight(f"{MLP}.gate.e_score_correction_bias", "mlp.router.bias", "E -> E"),
        *SHARED,
        *NORMS,
    ),
    # The layers that predict further tokens.
    ignored=(r"model\.layers\.{depth}\..*",),
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
