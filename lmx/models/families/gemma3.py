"""Gemma 3, the part that reads text. Gemma Team 2025, arXiv:2503.19786."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from lmx.config.value import Config
from lmx.models.families import gemma2
from lmx.models.hf.family import Family
from lmx.models.hf.fields.decoder import ATTENTION
from lmx.models.hf.fields.field import FieldMap, Values
from lmx.models.hf.fields.rotary import RopeFields, describe_rope
from lmx.models.hf.fields.sliding_window import (
    FULL,
    SCOPES,
    WINDOW,
    WindowFields,
    list_attention,
)
from lmx.models.hf.layout import TensorMap

LOCAL_THETA = "rope_local_base_freq"
THETAS = {FULL: 1_000_000.0, WINDOW: 10_000.0}


@dataclass(frozen=True)
class DualRopeFields(FieldMap):
    """Positions of layers with a window, and of those without.

    Scaling is of the latter, in files before transformers 5; since then each kind has
    fields of its own within `rope_parameters`.
    """

    @property
    def names(self) -> tuple[str, ...]:
        return ("rope_theta", "rope_scaling", "rope_parameters", LOCAL_THETA)

    def with_defaults(self, given: Values) -> dict[str, Any]:
        told = given.get("rope_parameters") or {}
        old = {FULL: given, WINDOW: {"rope_theta": given.get(LOCAL_THETA)}}
        settled = {
            kind: RopeFields(theta=theta).with_defaults(
                {"rope_parameters": told[kind]} if kind in told else old[kind]
            )
            for kind, theta in THETAS.items()
        }
        return {"rope_parameters": settled}

    def to_bindings(self, settled: Values) -> dict[str, Any]:
        kinds = set(settled["layer_types"])
        bound = {}
        for kind in kinds:
            scope = SCOPES[kind] if len(kinds) > 1 else ""
            bound |= RopeFields(scope=scope).to_bindings(
                settled["rope_parameters"][kind]
            )
        return bound

    def to_hf(self, config: Config) -> dict[str, Any]:
        told: dict[str, Any] = {}
        for layer in list_attention(config):
            position = layer.fields["position"]
            kind = WINDOW if layer.fields["window"] else FULL
            if position is not None and kind not in told:
                fields = describe_rope(position)
                scaling = fields.get("rope_scaling") or {"rope_type": "default"}
                told[kind] = {"rope_theta": fields.get("rope_theta"), **scaling}
        return {"rope_parameters": told}


def interleave_windows(given: Values) -> Sequence[str]:
    """A window in all layers but every sixth."""
    names = ("sliding_window_pattern", "_sliding_window_pattern")
    period = next((given[name] for name in names if given.get(name)), 6)
    depth = given["num_hidden_layers"]
    return [WINDOW if (i + 1) % period else FULL for i in range(depth)]


FAMILY = Family(
    model_type="gemma3_text",
    architecture="Gemma3ForCausalLM",
    template=gemma2.TEMPLATE + "    Attention.qk_norm = @OffsetRMSNorm\n",
    field_maps=(
        *gemma2.map_gemma_sizes(262_208, None),
        WindowFields(
            4096,
            interleave_windows,
            ("sliding_window_pattern", "_sliding_window_pattern"),
        ),
        DualRopeFields(),
    ),
    required=gemma2.REQUIRED,
    ignored_fields=gemma2.IGNORED_FIELDS
    | {"attn_logit_softcapping"},  # unused in transformers too
    tensor_maps=(
        *gemma2.TENSOR_MAPS,
        TensorMap(f"{ATTENTION}.q_norm.weight", "attention.q_norm.offset", "H -> H"),
        TensorMap(f"{ATTENTION}.k_norm.weight", "attention.k_norm.offset", "H -> H"),
    ),
    presets={
        "gemma3_1b": {
            "vocab_size": 262_144,
            "hidden_size": 1152,
            "intermediate_size": 6912,
            "num_attention_heads": 4,
            "num_key_value_heads": 1,
            "sliding_window": 512,
        },
    },
)
