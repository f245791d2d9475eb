"""One tiny experiment and its variants, for every test of training."""

from pathlib import Path

import jax
import pytest

import lmx

PAGE = Path(__file__).with_name("tiny.gin")
MOE = [
    "Decoder.mlp=@MoE",
    "MoE.experts=4",
    "MoE.hidden=16",
    "MoE.router=@TopKRouter",
    "TopKRouter.top_k=2",
    "NextToken.aux={'balance': 0.01, 'router_z': 0.001}",
]
SIGMOID = [
    *MOE[:3],
    "MoE.router=@SigmoidRouter",
    "MoE.shared=@SwiGLU",
    "SigmoidRouter.top_k=2",
    "SigmoidRouter.groups=2",
    "NextToken.aux={'balance': 0.01, 'load': 1.0}",
]
CAPACITY = [
    *MOE[:5],
    "MoE.dispatch=@CapacityDispatch()",
    "NextToken.aux={'balance': 0.01, 'router_z': 0.001, 'dropped': 0.0}",
]
CHOOSING = ["Decoder.mlp=@ExpertChoice"] + [
    f"ExpertChoice.{binding}"
    for binding in ("experts=4", "hidden=16", "capacity_factor=2")
]
DROPOUT = ["Decoder.dropout=0.2", "Decoder.block=@PreNorm", "PreNorm.dropout=0.3"]
VARIANTS = {
    "dense": [],
    "moe": MOE,
    "sigmoid": SIGMOID,
    "capacity": CAPACITY,
    "expert choice": CHOOSING,
    "dropout": DROPOUT,
    "moe with dropout": [*MOE, *DROPOUT],
}
FLOAT64 = ["Decoder.precision=@Precision()"]
FLOAT64 += [f"Precision.{kind}=float64" for kind in ("params", "compute")]


@pytest.fixture(scope="session")
def tiny():
    """The configuration of a variant of the tiny experiment under overrides."""

    def tiny(*overrides, kind="dense"):
        return lmx.load_experiment(PAGE, [*VARIANTS[kind], *overrides])

    return tiny


@pytest.fixture
def x64():
    """Enables 64 bits during a test; the overrides that use them."""
    with jax.enable_x64(True):
        yield FLOAT64
