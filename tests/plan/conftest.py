"""Cases of a tiny model, whose numbers a hand can follow."""

import dataclasses
from pathlib import Path

import pytest

from lmx import load_experiment
from lmx.plan import case, topology

TINY = Path(__file__).parents[1] / "train" / "tiny.gin"
MOE = [
    "Decoder.mlp=@MoE",
    "MoE.experts=4",
    "MoE.hidden=8",
    "MoE.router=@TopKRouter",
    "TopKRouter.top_k=2",
    "NextToken.aux={'balance': 0.01, 'router_z': 0.0}",
]


@pytest.fixture(scope="session")
def opened():
    """A case of the tiny page under words, on a machine."""

    def opened(*words, on="v5e-8", **changes):
        experiment = load_experiment(TINY, words).build()
        made = case.build_case(experiment, topology.parse_machine(on))
        return dataclasses.replace(made, **changes)

    return opened
