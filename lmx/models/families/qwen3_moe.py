"""Qwen3 with experts. Yang et al. 2025, arXiv:2505.09388."""

from dataclasses import dataclass
from typing import Any

from lmx.config.names import ConfigError
from lmx.config.node import plain
from lmx.config.tree import Config
from lmx.models.families.qwen2 import tells
from lmx.models.hf.family import Family
from lmx.models.hf.rules.experts import EXPERTS, IDLE, Routed, feeding
from lmx.models.hf.rules.field import Field, Rule, Values, at, filled
from lmx.models.hf.rules.rope import Rotary
from lmx.models.hf.rules.rows import (
    ENDS,
    GATED,
    NORMS,
    PROJECTIONS,
    QK_NORMS,
    attention_bias,
    sizes,
    tied,
)
from lmx.models.hf.rules.windows import Windows, cycle


@dataclass(frozen=True)
class Sparse(Rule):
    """Which layers have experts; the others are as wide as `intermediate_size`."""

    @property
    def names(self) -> tuple[str, ...]:
        return ("mlp_only_layers", "decoder_sparse_step", "intermediate_size")

    def settle(self, given: Values) -> dict[str, Any]:
        return filled(given, dict(zip(self.names, ((), 1, 6144), strict=True)))

    def bind(self, settled: Values) -> dict[str, Any]:
        dense, step, hidden = (settled[name] for name in self.names)
        kinds = [
            "SwiGLU" if i in dense or (i + 1) % step else "MoE"
            for i in range(settled["num_hidden_layers"])
        ]
        if "MoE" not in kinds:
            raise ConfigError(
                f"mlp_only_layers = {dense} and decoder_sparse_step = {step} leave no"
                " layer with experts: such a model is a Qwen3ForCausalLM."
            )
        if "SwiGLU" not in kinds:
            return {"Decoder.mlp": at("MoE")}
        turn = [at(kind) for kind in cycle(kinds)]
        return {"Decoder.mlp": turn, "SwiGLU.hidden": hidden}

    def read(self, config: Config) -> dict[str, Any]:
        dense = {i: m for i, m in enumerate(feeding(config)) if m.name != "MoE"}
        widths = [plain(mlp.fields["hidden"]) for mlp in dense.values()]
        told = {"mlp_only_layers": list(dense), "decoder_sparse_step": 1}
        return told | ({"intermediate_size": widths[0]} if widths else {})


@dataclass(frozen=True)
class Used(Windows):
    """The window of every layer, if `use_sliding_window`."""

    def settle(self, given: Values) -> dict[str, Any]:
        window = given.get("sliding_window", self.default)
        used = window if given.get("use_sliding_window") else None
        return super().settle({**given, "sliding_window": used})


FAMILY = Family(
    model_type="qwen3_moe",
    architecture="Qwen3MoeForCausalLM",
    page="""
        Pretrained.model = @Decoder
        Decoder.block = @PreNorm
        Decoder.norm = @RMSNorm
        Attention.qk_norm = @RMSNorm
    """,
    rules=(
        *sizes(151_936, 2048, 24, heads=32, kv_heads=4),
        Field("moe_intermediate_size", "MoE.hidden", 768),
        Field("num_experts", "MoE.experts", 128, aliases=("num_local_experts",)),
        Routed(
            ("TopK", "Softmax"), {"num_experts_per_tok": ("choices", 8)}, default=False
        ),
        Sparse(),
        Field("rms_norm_eps", "RMSNorm.epsilon", 1e-6),
        *attention_bias(False),
        tied(False),
        Used(4096, asks=("use_sliding_window",), tells=tells),
        Rotary(),
    ),
    fixed={"hidden_act": "silu"},
    idle=IDLE | {"max_window_layers"},
    weights=(*ENDS, *PROJECTIONS, *QK_NORMS, *EXPERTS, *GATED, *NORMS),
    presets={
        "qwen3_30b_a3b": {
            "num_hidden_layers": 48,
            "head_dim": 128,
            "norm_topk_prob": True,
            "rope_theta": 1_000_000.0,
        },
        "qwen3_235b_a22b": {
            "hidden_size": 4096,
            "moe_intermediate_size": 1536,
            "num_hidden_layers": 94,
            "num_attention_heads": 64,
            "head_dim": 128,
            "norm_topk_prob": True,
            "rope_theta": 1_000_000.0,
        },
    },
)
