"""Gemma 3, the part that reads text. Gemma Team 2025, arXiv:2503.19786."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from lmx.config.tree import Config
from lmx.models.families import gemma2
from lmx.models.hf.family import Family
from lmx.models.hf.rules.field import Rule, Values
from lmx.models.hf.rules.rope import Rotary, described
from lmx.models.hf.rules.rows import ATTENTION
from lmx.models.hf.rules.windows import FULL, SCOPES, WINDOW, Windows, layers
from lmx.models.hf.table import Weight

OF_WINDOWS = "rope_local_base_freq"
THETAS = {FULL: 1_000_000.0, WINDOW: 10_000.0}


@dataclass(frozen=True)
class TwoRotaries(Rule):
    """Positions of layers with a window, and of those without.

    Scaling is of the latter, in files before transformers 5; since then each kind has
    fields of its own within `rope_parameters`.
    """

    @property
    def names(self) -> tuple[str, ...]:
        return ("rope_theta", "rope_scaling", "rope_parameters", OF_WINDOWS)

    def settle(self, given: Values) -> dict[str, Any]:
        told = given.get("rope_parameters") or {}
        old = {FULL: given, WINDOW: {"rope_theta": given.get(OF_WINDOWS)}}
        settled = {
            kind: Rotary(theta=theta).settle(
                {"rope_parameters": told[kind]} if kind in told else old[kind]
            )
            for kind, theta in THETAS.items()
        }
        return {"rope_parameters": settled}

    def bind(self, settled: Values) -> dict[str, Any]:
        kinds = set(settled["layer_types"])
        bound = {}
        for kind in kinds:
            scope = SCOPES[kind] if len(kinds) > 1 else ""
            bound |= Rotary(scope=scope).bind(settled["rope_parameters"][kind])
        return bound

    def read(self, config: Config) -> dict[str, Any]:
        told: dict[str, Any] = {}
        for layer in layers(config):
            position = layer.fields["position"]
            kind = WINDOW if layer.fields["window"] else FULL
            if position is not None and kind not in told:
                fields = described(position)
                scaling = fields.get("rope_scaling") or {"rope_type": "default"}
                told[kind] = {"rope_theta": fields.get("rope_theta"), **scaling}
        return {"rope_parameters": told}


def types(given: Values) -> Sequence[str]:
    """A window in all layers but every sixth."""
    names = ("sliding_window_pattern", "_sliding_window_pattern")
    period = next((given[name] for name in names if given.get(name)), 6)
    depth = given["num_hidden_layers"]
    return [WINDOW if (i + 1) % period else FULL for i in range(depth)]


FAMILY = Family(
    model_type="gemma3_text",
    architecture="Gemma3ForCausalLM",
    page=gemma2.PAGE + "    Attention.qk_norm = @OffsetRMSNorm\n",
    rules=(
        *gemma2.sizes(262_208, None),
        Windows(4096, types, ("sliding_window_pattern", "_sliding_window_pattern")),
        TwoRotaries(),
    ),
    fixed=gemma2.FIXED,
    idle=gemma2.IDLE | {"attn_logit_softcapping"},  # unused in transformers too
    weights=(
        *gemma2.WEIGHTS,
        Weight(f"{ATTENTION}.q_norm.weight", "attention.q_norm.offset", "H -> H"),
        Weight(f"{ATTENTION}.k_norm.weight", "attention.k_norm.offset", "H -> H"),
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
