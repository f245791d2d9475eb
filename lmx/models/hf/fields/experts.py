"""Field maps and tensor names of mixture-of-experts layers."""

from collections.abc import Mapping
from typing import Any

from lmx.config.value import Config, to_jsonable
from lmx.models.hf.fields.decoder import MLP
from lmx.models.hf.fields.field import FieldMap, Values, find_values, map_fields, ref
from lmx.models.hf.layout import TensorMap

# Fields that only training reads.
TRAINING_FIELDS = frozenset({"router_aux_loss_coef", "router_jitter_noise"})


def map_experts(prefix: str, gate: str, up: str, down: str) -> tuple[TensorMap, ...]:
    """Tensors of experts that have one for each of their three matrices."""
    return (
        TensorMap(f"{prefix}.{gate}.weight", "mlp.gate", "F D -> D F"),
        TensorMap(f"{prefix}.{up}.weight", "mlp.up", "F D -> D F"),
        TensorMap(f"{prefix}.{down}.weight", "mlp.down", "D F -> F D"),
    )


EXPERTS = (
    TensorMap(f"{MLP}.gate.weight", "mlp.router.score.w", "E D -> D E"),
    *map_experts(f"{MLP}.experts.{{expert}}", "gate_proj", "up_proj", "down_proj"),
)


def map_router(
    routers: tuple[str, str], parameters: Mapping[str, tuple[str, Any]], default: bool
) -> FieldMap:
    """Maps `norm_topk_prob`, which selects one of two routers, and their parameters.

    `routers` are the router with normalized weights and the one without, `parameters`
    the parameter and the default of each field, `default` that of `norm_topk_prob`.
    """

    def to_bindings(fields: Values) -> dict[str, Any]:
        router = routers[not fields["norm_topk_prob"]]
        bindings = {
            f"{router}.{p}": fields[name] for name, (p, _) in parameters.items()
        }
        return {"MoE.router": ref(router), **bindings}

    def to_hf(config: Config) -> dict[str, Any]:
        for router in find_values(config, "MoE.router"):
            if router.name in routers:
                values = {n: router.fields[p] for n, (p, _) in parameters.items()}
                fields = {n: to_jsonable(value) for n, value in values.items()}
                return {"norm_topk_prob": router.name == routers[0], **fields}
        return {}

    defaults = {name: value for name, (_, value) in parameters.items()}
    return map_fields({"norm_topk_prob": default, **defaults}, to_bindings, to_hf)
