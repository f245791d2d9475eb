"""Rotary positions as a config.json tells them, in each of the ways it has had."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from lmx.config.parse import Ref
from lmx.config.registry import ConfigError, suggest
from lmx.config.value import Config
from lmx.models.hf.fields.field import FieldMap, Values, find_paths

TRAINED_LENGTH = "original_max_position_embeddings"
MAX_LENGTH = "max_position_embeddings"
# rope_type: the class here, and its parameter for each of the type's own fields.
ROPE_TYPES: Mapping[str, tuple[str, Mapping[str, str]]] = {
    "default": ("RoPE", {}),
    "linear": ("PositionInterpolation", {"factor": "factor"}),
    "dynamic": ("DynamicNTK", {"factor": "factor", TRAINED_LENGTH: "trained_length"}),
    "yarn": (
        "YaRN",
        {
            "factor": "factor",
            TRAINED_LENGTH: "trained_length",
            "beta_slow": "beta_slow",
            "beta_fast": "beta_fast",
            "truncate": "truncate",
            "attention_factor": "attention_factor",
        },
    ),
    "llama3": (
        "Llama3RoPE",
        {
            "factor": "factor",
            TRAINED_LENGTH: "trained_length",
            "low_freq_factor": "beta_slow",
            "high_freq_factor": "beta_fast",
        },
    ),
}
DEFAULT_ROPE = {"rope_type": "default"}
MSCALES = ("mscale", "mscale_all_dim")  # of "yarn"; the second also scales logits


@dataclass(frozen=True)
class RopeFields(FieldMap):
    """`rope_theta` and `rope_scaling`, or both within `rope_parameters` (since v5).

    It writes the first two, which every version reads.

    Attributes:
        scope: of what it binds, where layers differ.
        theta: what `rope_theta` is where the file has none.
        scaling: likewise what `rope_scaling` is.
    """

    binding: str = "Attention.position"
    theta: float = 10_000.0
    scope: str = ""
    scaling: Mapping[str, Any] = field(default_factory=dict)

    @property
    def names(self) -> tuple[str, ...]:
        return ("rope_theta", "rope_scaling", "rope_parameters")

    def with_defaults(self, given: Values) -> dict[str, Any]:
        told = given.get("rope_scaling") or given.get("rope_parameters")
        scaling = dict(told or self.scaling)
        old = scaling.pop("type", "default")
        kind = scaling.pop("rope_type", old)
        theta = scaling.pop("rope_theta", given.get("rope_theta"))
        theta = self.theta if theta is None else theta
        if kind not in ROPE_TYPES:
            raise ConfigError(
                f"rope_type = {kind!r}: only {', '.join(map(repr, ROPE_TYPES))} can be had"
                " here."
            )
        wanted = ROPE_TYPES[kind][1]
        if TRAINED_LENGTH in wanted and not scaling.get(TRAINED_LENGTH):
            scaling[TRAINED_LENGTH] = given.get(MAX_LENGTH)
        if kind == "dynamic":  # transformers asks for this one
            scaling[TRAINED_LENGTH] = given.get(MAX_LENGTH)
        if kind == "yarn":
            scaling = _complete_yarn(scaling, given.get(MAX_LENGTH))
        idle = set(MSCALES) if kind == "yarn" else set()
        for name in scaling.keys() - wanted.keys() - idle:
            raise ConfigError(
                f"{name} = {scaling[name]!r} of rope_type {kind!r} is not known"
                f" here{suggest(name, wanted)}: it may change the numbers."
            )
        for name in wanted.keys() - scaling.keys():
            raise ConfigError(f"rope_type {kind!r} needs {name}.")
        described = {"rope_type": kind, **scaling} if kind != "default" else None
        return {"rope_theta": theta, "rope_scaling": described}

    def to_bindings(self, settled: Values) -> dict[str, Any]:
        scaling = settled["rope_scaling"] or DEFAULT_ROPE
        name, wanted = ROPE_TYPES[scaling["rope_type"]]
        within = f"{self.scope}/" if self.scope else ""
        values = {ours: scaling[theirs] for theirs, ours in wanted.items()}
        values["theta"] = float(settled["rope_theta"])
        bound = {f"{within}{name}.{ours}": value for ours, value in values.items()}
        scope = (self.scope,) if self.scope else ()
        return {f"{within}{self.binding}": Ref(scope, name, True), **bound}

    def to_hf(self, config: Config) -> dict[str, Any]:
        for path in find_paths(config, self.binding):
            if position := config[path]:
                told = describe_rope(position)
                if self.scaling and "rope_scaling" in told:
                    told["rope_scaling"] = told["rope_scaling"] or DEFAULT_ROPE
                return told
        return {}


def describe_rope(position: Any) -> dict[str, Any]:
    """The fields that tell of a position scheme, if there are any."""
    for kind, (name, wanted) in ROPE_TYPES.items():
        if position.name == name:
            fields = position.fields
            scaling = {theirs: fields[ours] for theirs, ours in wanted.items()}
            told = {"rope_theta": fields["theta"], "rope_scaling": None}
            if kind == "dynamic":
                told[MAX_LENGTH] = scaling.pop(TRAINED_LENGTH)
            if wanted:
                told["rope_scaling"] = {"rope_type": kind, **scaling}
            return told
    return {}


def _complete_yarn(scaling: dict[str, Any], longest: int | None) -> dict[str, Any]:
    """The fields of "yarn", all of them, with one temperature."""
    given = {name: value for name, value in scaling.items() if value is not None}
    length = given.get(TRAINED_LENGTH)
    if not given.get("factor") and length and longest:
        given["factor"] = longest / length
    both = [given.get(name) or 0.0 for name in MSCALES]
    if "attention_factor" not in given and all(both) and "factor" in given:
        over, under = (yarn_mscale(given["factor"], share) for share in both)
        given["attention_factor"] = over / under
    given.pop("mscale", None)
    usual = {"truncate": True, "attention_factor": None}
    turns = {"beta_slow": given.get("beta_slow") or 1.0}
    turns["beta_fast"] = given.get("beta_fast") or 32.0
    return {**usual, **given, **turns}


def yarn_mscale(factor: float | int, share: float | int) -> float:
    """What YaRN's inverse temperature is the square of, as a `share` of 0.1."""
    return 1.0 if factor <= 1.0 else 0.1 * share * math.log(factor) + 1.0
