"""Qwen3 with experts. Yang et al. 2025, arXiv:2505.09388."""

from dataclasses import dataclass
from typing import Any

from lmx.config.registry import ConfigError
from lmx.config.value import Config, to_jsonable
from lmx.models.families.qwen2 import mark_window_use
from lmx.models.hf.family import Family
from lmx.models.hf.fields.decoder import (
    ATTENTION_TENSORS,
    EMBEDDING_AND_HEAD,
    GATED_MLP,
    NORMS,
    QK_NORMS,
    map_attention_bias,
    map_sizes,
    map_tied_head,
)
from lmx.models.hf.fields.experts import (
    EXPERTS,
    TRAINING_FIELDS,
    RouterFields,
    list_mlps,
)
from lmx.models.hf.fields.field import DirectField, FieldMap, Values, fill_defaults, ref
from lmx.models.hf.fields.rotary import RopeFields
from lmx.models.hf.fields.sliding_window import WindowFields, find_cycle


@dataclass(frozen=True)
class SparseLayerFields(FieldMap):
    """Which layers have experts; the others are as wide as `intermediate_size`."""

    @property
    def names(self) -> tuple[str, ...]:
        return ("mlp_only_layers", "decoder_sparse_step", "intermediate_size")

    def with_defaults(self, given: Values) -> dict[str, Any]:
        return fill_defaults(given, dict(zip(self.names, ((), 1, 6144), strict=True)))

    def to_bindings(self, settled: Values) -> dict[str, Any]:
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
            return {"Decoder.mlp": ref("MoE")}
        turn = [ref(kind) for kind in find_cycle(kinds)]
        return {"Decoder.mlp": turn, "SwiGLU.hidden": hidden}

    def to_hf(self, config: Config) -> dict[str, Any]:
        dense = {i: m for i, m in enumerate(list_mlps(config)) if m.name != "MoE"}
        widths = [to_jsonable(mlp.fields["hidden"]) for mlp in dense.values()]
        told = {"mlp_only_layers": list(dense), "decoder_sparse_step": 1}
        return told | ({"intermediate_size": widths[0]} if widths else {})


@dataclass(frozen=True)
class SwitchedWindowFields(WindowFields):
    """The window of every layer, if `use_sliding_window`."""

    def with_defaults(self, given: Values) -> dict[str, Any]:
        window = given.get("sliding_window", self.default)
        used = window if given.get("use_sliding_window") else None
        return super().with_defaults({**given, "sliding_window": used})


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
        *map_sizes(151_936, 2048, 24, heads=32, kv_heads=4),
        DirectField("moe_intermediate_size", "MoE.hidden", 768),
        DirectField("num_experts", "MoE.experts", 128, aliases=("num_local_experts",)),
        RouterFields(
            ("TopKRouter", "SoftmaxRouter"),
            {"num_experts_per_tok": ("top_k", 8)},
            default=False,
        ),
        SparseLayerFields(),
        DirectField("rms_norm_eps", "RMSNorm.epsilon", 1e-6),
        *map_attention_bias(False),
        map_tied_head(False),
        SwitchedWindowFields(
            4096, extra_names=("use_sliding_window",), extra_fields=mark_window_use
        ),
        RopeFields(),
    ),
    required={"hidden_act": "silu"},
    ignored_fields=TRAINING_FIELDS | {"max_window_layers"},
    tensor_maps=(
        *EMBEDDING_AND_HEAD,
        *ATTENTION_TENSORS,
        *QK_NORMS,
        *EXPERTS,
        *GATED_MLP,
        *NORMS,
    ),
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
