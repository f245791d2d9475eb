"""Which layers have experts and how tokens choose them, as a config.json tells it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lmx.config.value import Config, to_jsonable
from lmx.models.hf.fields.decoder import MLP
from lmx.models.hf.fields.field import FieldMap, Values, fill_defaults, find_paths, ref
from lmx.models.hf.layout import TensorMap

# Fields that only training looks at.
TRAINING_FIELDS = frozenset({"router_aux_loss_coef", "router_jitter_noise"})


def map_experts(gate: str, up: str, down: str) -> tuple[TensorMap, ...]:
    """Experts whose three matrices are a tensor each, by these names."""
    return (
        TensorMap(f"{gate}.weight", "mlp.gate", "F D -> D F"),
        TensorMap(f"{up}.weight", "mlp.up", "F D -> D F"),
        TensorMap(f"{down}.weight", "mlp.down", "D F -> F D"),
    )


EXPERT_PREFIX = f"{MLP}.experts.{{expert}}"
EXPERTS = (
    TensorMap(f"{MLP}.gate.weight", "mlp.router.score.w", "E D -> D E"),
    *map_experts(
        f"{EXPERT_PREFIX}.gate_proj",
        f"{EXPERT_PREFIX}.up_proj",
        f"{EXPERT_PREFIX}.down_proj",
    ),
)


@dataclass(frozen=True)
class RouterFields(FieldMap):
    """`norm_topk_prob`, which decides between two routers, and the fields of both.

    Attributes:
        kinds: the router if the weights are normalised, and if they are not.
        parameters: of the router, by field, each with its default.
        default: of `norm_topk_prob`.
    """

    routers: tuple[str, str]
    parameters: Mapping[str, tuple[str, Any]]
    default: bool

    @property
    def names(self) -> tuple[str, ...]:
        return ("norm_topk_prob", *self.parameters)

    def with_defaults(self, given: Values) -> dict[str, Any]:
        usual = {name: default for name, (_, default) in self.parameters.items()}
        return fill_defaults(given, usual | {"norm_topk_prob": self.default})

    def to_bindings(self, settled: Values) -> dict[str, Any]:
        kind = self.routers[not settled["norm_topk_prob"]]
        bound = {
            f"{kind}.{ours}": settled[theirs]
            for theirs, (ours, _) in self.parameters.items()
        }
        return {"MoE.router": ref(kind), **bound}

    def to_hf(self, config: Config) -> dict[str, Any]:
        for path in find_paths(config, "MoE.router"):
            router = config[path]
            if router.name in self.routers:
                told = {
                    theirs: to_jsonable(router.fields[ours])
                    for theirs, (ours, _) in self.parameters.items()
                }
                return {"norm_topk_prob": router.name == self.routers[0], **told}
        return {}


def list_mlps(config: Config) -> Sequence[Config]:
    """What follows attention in every layer."""
    lead, cycle = config["model.first_mlps"], config["model.mlp"]
    cycle = cycle if isinstance(cycle, tuple) else (cycle,)
    rest = range(len(lead), config["model.depth"])
    return [*lead, *(cycle[i % len(cycle)] for i in rest)]
