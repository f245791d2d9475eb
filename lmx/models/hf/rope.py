"""Rotary positions as a config.json tells them, in each of the ways it has had."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from lmx.config.names import ConfigError, hint
from lmx.config.tree import Config
from lmx.models.hf.field import Rule, Values, at, places

LENGTH = "original_max_position_embeddings"
# rope_type: the class here, and its parameter for each of the type's own fields.
KINDS: Mapping[str, tuple[str, Mapping[str, str]]] = {
    "default": ("RoPE", {}),
    "linear": ("Interpolated", {"factor": "factor"}),
    "llama3": (
        "Llama3",
        {
            "factor": "factor",
            "low_freq_factor": "slow",
            "high_freq_factor": "fast",
            LENGTH: "trained_length",
        },
    ),
}


@dataclass(frozen=True)
class Rotary(Rule):
    """`rope_theta` and `rope_scaling`, or both within `rope_parameters` (since v5).

    It writes the first two, which every version reads.
    """

    binding: str = "Attention.position"
    theta: float = 10_000.0

    @property
    def names(self) -> tuple[str, ...]:
        return ("rope_theta", "rope_scaling", "rope_parameters")

    def settle(self, given: Values) -> dict[str, Any]:
        scaling = dict(given.get("rope_scaling") or given.get("rope_parameters") or {})
        old = scaling.pop("type", "default")
        kind = scaling.pop("rope_type", old)
        theta = scaling.pop("rope_theta", given.get("rope_theta"))
        if kind not in KINDS:
            raise ConfigError(
                f"rope_type = {kind!r}: only {', '.join(map(repr, KINDS))} can be had"
                " here."
            )
        wanted = KINDS[kind][1]
        if LENGTH in wanted:
            scaling.setdefault(LENGTH, given.get("max_position_embeddings"))
        for name in scaling.keys() - wanted.keys():
            raise ConfigError(
                f"{name} = {scaling[name]!r} of rope_type {kind!r} is not known"
                f" here{hint(name, wanted)}: it may change the numbers."
            )
        for name in wanted.keys() - scaling.keys():
            raise ConfigError(f"rope_type {kind!r} needs {name}.")
        theta = self.theta if theta is None else theta
        described = {"rope_type": kind, **scaling} if kind != "default" else None
        return {"rope_theta": theta, "rope_scaling": described}

    def bind(self, settled: Values) -> dict[str, Any]:
        scaling = settled["rope_scaling"] or {"rope_type": "default"}
        name, wanted = KINDS[scaling["rope_type"]]
        bound = {f"{name}.{ours}": scaling[theirs] for theirs, ours in wanted.items()}
        base = {f"{name}.base": settled["rope_theta"]}
        return {self.binding: at(name, called=True), **base, **bound}

    def read(self, config: Config) -> dict[str, Any]:
        for kind, (name, wanted) in KINDS.items():
            found = [config[path] for path in places(config, self.binding)]
            for position in found:
                if position is None or position.name != name:
                    continue
                fields = position.fields
                scaling = {theirs: fields[ours] for theirs, ours in wanted.items()}
                described = {"rope_type": kind, **scaling} if wanted else None
                return {"rope_theta": fields["base"], "rope_scaling": described}
        return {}
