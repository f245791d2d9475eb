"""Which layers have experts and how tokens choose them, as a config.json tells it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lmx.config.node import Node, plain
from lmx.config.tree import Config
from lmx.models.hf.rules.field import Rule, Values, at, filled, places
from lmx.models.hf.rules.rows import MLP
from lmx.models.hf.table import Weight

# Fields that only training looks at.
IDLE = frozenset({"router_aux_loss_coef", "router_jitter_noise"})


def experts(gate: str, up: str, down: str) -> tuple[Weight, ...]:
    """Experts whose three matrices are a tensor each, by these names."""
    return (
        Weight(f"{gate}.weight", "mlp.gate", "F D -> D F"),
        Weight(f"{up}.weight", "mlp.up", "F D -> D F"),
        Weight(f"{down}.weight", "mlp.down", "D F -> F D"),
    )


EACH = f"{MLP}.experts.{{expert}}"
EXPERTS = (
    Weight(f"{MLP}.gate.weight", "mlp.router.score.w", "E D -> D E"),
    *experts(f"{EACH}.gate_proj", f"{EACH}.up_proj", f"{EACH}.down_proj"),
)


@dataclass(frozen=True)
class Routed(Rule):
    """`norm_topk_prob`, which decides between two routers, and the fields of both.

    Attributes:
        kinds: the router if the weights are normalised, and if they are not.
        parameters: of the router, by field, each with its default.
        default: of `norm_topk_prob`.
    """

    kinds: tuple[str, str]
    parameters: Mapping[str, tuple[str, Any]]
    default: bool

    @property
    def names(self) -> tuple[str, ...]:
        return ("norm_topk_prob", *self.parameters)

    def settle(self, given: Values) -> dict[str, Any]:
        usual = {name: default for name, (_, default) in self.parameters.items()}
        return filled(given, usual | {"norm_topk_prob": self.default})

    def bind(self, settled: Values) -> dict[str, Any]:
        kind = self.kinds[not settled["norm_topk_prob"]]
        bound = {
            f"{kind}.{ours}": settled[theirs]
            for theirs, (ours, _) in self.parameters.items()
        }
        return {"MoE.router": at(kind), **bound}

    def read(self, config: Config) -> dict[str, Any]:
        for path in places(config, "MoE.router"):
            router = config[path]
            if router.name in self.kinds:
                told = {
                    theirs: plain(router.fields[ours])
                    for theirs, (ours, _) in self.parameters.items()
                }
                return {"norm_topk_prob": router.name == self.kinds[0], **told}
        return {}


def feeding(config: Config) -> Sequence[Node]:
    """What follows attention in every layer."""
    lead, cycle = config["model.lead"], config["model.mlp"]
    cycle = cycle if isinstance(cycle, tuple) else (cycle,)
    rest = range(len(lead), config["model.depth"])
    return [*lead, *(cycle[i % len(cycle)] for i in rest)]
