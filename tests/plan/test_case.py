"""Planned shapes and shards against real arrays on meshes."""

import jax
import pytest

from lmx import load_experiment
from lmx.plan.case import PARTS, WEIGHTS
from tests.plan.conftest import MOE, TINY

FROZEN = "Experiment.trainable=['*norm*', '*mlp*']"
MESHES = [
    ("Mesh.data=2", "Mesh.fsdp=2", "Mesh.tensor=2", FROZEN),
    ("Mesh.fsdp=2", "Mesh.expert=2", "Mesh.tensor=2", *MOE),
    (
        "Experiment.optimizer=@adafactor",
        "Mesh.fsdp=8",
        "Experiment.guard=@SkipSpikes()",
    ),
]


@pytest.mark.parametrize("words", MESHES, ids=" ".join)
def test_planned_bytes_of_a_device_equal_those_of_a_run(make_case, words):
    """Every array of the state, on every one of 8 devices."""
    case = make_case(*words)
    state = load_experiment(TINY, words).build().build_program(jax.devices()).init()
    arrays = jax.tree.leaves(state._replace(step=None))
    for tensor, array in zip(case.tensors(*PARTS), arrays, strict=True):
        held = [shard.data.nbytes for shard in array.addressable_shards]
        assert held == [tensor.local_bytes] * 8, tensor.name
        assert array.nbytes == tensor.bytes, tensor.name


@pytest.mark.parametrize("words", MESHES, ids=" ".join)
def test_shards_of_a_tensor_add_up_to_it(make_case, words):
    case = make_case(*words)
    for tensor in case.tensors(*WEIGHTS):
        parts = 1
        for axis in tensor.mesh_axes:
            parts *= case.sizes[axis]
        assert parts * tensor.local_bytes == tensor.bytes, tensor.name


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("Mesh.fsdp=16",), "needs 16 devices and there are 8"),
        (("Mesh.tensor=8",), "cannot be split evenly"),
        (("RepeatTask.batch_size=12",), "'batch' of size 12 cannot be split"),
        (("Experiment.microbatches=3",), "must divide the batch"),
    ],
)
def test_settings_that_training_refuses_are_refused(make_case, words, message):
    with pytest.raises(ValueError, match=message):
        make_case(*words).tensors("params")


@pytest.mark.parametrize(
    ("at", "rows", "length"), [((3, 5), 16, 32), ((3, 50), 8, 32), ((30, 50), 8, 16)]
)
def test_the_largest_batch_of_the_schedule_is_planned(make_case, at, rows, length):
    """Of a mixture of text with pause tokens, without reading data."""
    words = [
        "Experiment.data=@Mixture()",
        "Mixture.components={'all': @MixtureComponent()}",
        "MixtureComponent.source=@PauseTokens()",
        "PauseTokens.source=@TokenStoreDataset()",
        "TokenStoreDataset.path=nowhere",
        "TokenStoreDataset.batch_size=@rows/PiecewiseConstant()",
        "TokenStoreDataset.sequence_length=@tokens/PiecewiseConstant()",
        "rows/PiecewiseConstant.values=(8, 16)",
        f"rows/PiecewiseConstant.boundaries=({at[1]},)",
        "tokens/PiecewiseConstant.values=(16, 32)",
        f"tokens/PiecewiseConstant.boundaries=({at[0]},)",
    ]
    case = make_case(*words)
    assert (case.sequences, case.sequence_length) == (rows, length)
