"""Cases of a tiny model, small enough to compute by hand."""

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
def make_case():
    """A case of the tiny experiment with overrides, on a machine."""

    def make_case(*words, on="v5e-8", **changes):
        experiment = load_experiment(TINY, words).build()
        planned = case.build_case(experiment, topology.parse_machine(on))
        return dataclasses.replace(planned, **changes)

    return make_case
