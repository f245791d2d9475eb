"""Planned memory against that of the compiled step."""

import itertools

import jax
import pytest

from lmx import load_experiment
from lmx.plan.case import build_case
from lmx.plan.memory import estimate_memory
from lmx.plan.topology import parse_machine
from tests.plan.conftest import TINY
from tests.train import own_loss

assert own_loss.Distill  # which a config names

NEAR = 0.15  # relative
# Backend, remat policy and dtype; those of every day, and all others by night.
DAILY = [("Reference", "keep_all", "float32"), ("Reference", "keep_none", "float32")]
BACKENDS = ("Reference", "XLA", "Ring")
REMATS = ("keep_all", "keep_dots", "keep_none")
ALL = itertools.product(BACKENDS, REMATS, ("float32", "bfloat16"))
SETTINGS = [(*each, 512) for each in DAILY] + [
    pytest.param(*each, length, marks=pytest.mark.nightly)
    for each, length in itertools.product(ALL, (512, 1024, 2048))
    if each not in DAILY or length != 512
]


def plan_and_compile(*words):
    """The planned bytes of a step on one CPU, and the compiler's."""
    experiment = load_experiment(TINY, ["Mesh.data=1", *words]).build()
    case = build_case(experiment, parse_machine("cpu"))
    program = experiment.build_program(jax.devices()[:1])
    compiled = program.lower(case.sequences, case.sequence_length).compile()
    found = compiled.memory_analysis()
    assert found
    return estimate_memory(case), found


@pytest.mark.parametrize(("backend", "remat", "dtype", "length"), SETTINGS)
def test_planned_memory_is_near_that_of_the_compiled_step(
    backend, remat, dtype, length
):
    """At lengths where logits dominate; flash attention, of blocks, is never below."""
    planned, found = plan_and_compile(
        "Decoder.depth=4",
        f"Decoder.remat={remat}",
        f"Precision.compute={dtype}",
        f"Attention.backend=@{backend}Attention()",
        f"RepeatTask.sequence_length={length}",
        "RepeatTask.batch_size=2",
    )
    compiled = found.argument_size_in_bytes + found.temp_size_in_bytes
    below, above = (NEAR, 0.6) if backend == "Ring" else (NEAR, NEAR)
    assert 1 - below < planned.total / compiled < 1 + above


def test_frozen_parts_are_arguments_of_the_compiled_step():
    """They have no gradients and no optimizer state."""
    planned, found = plan_and_compile(
        "Experiment.trainable=['*norm*', 'head*']",
        "Experiment.loss=@Distill()",
        "Distill.teacher=@Decoder",
        "Experiment.data=@Tempered()",
        "Tempered.source=@RepeatTask()",
    )
    state = planned.persistent.copy()
    gradients = state.pop("gradients")
    assert gradients == state["parameters"] < state["frozen"]
    del state["activations"]
    step, rows, tokens = 4, 8, 8 * 16
    batch = 4 * (rows + 5 * tokens)  # temperatures, and the fields of `Batch`
    assert found.argument_size_in_bytes == sum(state.values()) + step + batch
