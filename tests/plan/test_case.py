"""Shapes and shares against those of real arrays on real meshes."""

import jax
import pytest

from lmx import load_experiment
from tests.plan.conftest import MOE, TINY

MESHES = [
    ("Mesh.fsdp=8",),
    ("Mesh.fsdp=4", "Mesh.tensor=2"),
    ("Mesh.data=2", "Mesh.fsdp=2", "Mesh.tensor=2"),
    ("Mesh.expert=4", *MOE),
    ("Mesh.fsdp=2", "Mesh.expert=2", "Mesh.tensor=2", *MOE),
    ("Experiment.optimizer=@adafactor", "Mesh.fsdp=8"),
]


@pytest.mark.parametrize("words", MESHES, ids=" ".join)
def test_a_device_is_planned_to_hold_what_it_holds_once_run(opened, words):
    """Every array of the state, on every one of 8 devices."""
    case = opened(*words)
    state = load_experiment(TINY, words).build().open().init()
    for part in ("params", "opt_state"):
        arrays = jax.tree.leaves(getattr(state, part))
        for tensor, array in zip(case.tensors(part), arrays, strict=True):
            held = [shard.data.nbytes for shard in array.addressable_shards]
            assert held == [tensor.local_bytes] * 8, tensor.name
            assert array.nbytes == tensor.bytes, tensor.name


@pytest.mark.parametrize("words", MESHES, ids=" ".join)
def test_shares_of_what_is_split_add_up_to_the_whole(opened, words):
    case = opened(*words)
    for tensor in case.tensors("params"):
        parts = 1
        for axis in tensor.mesh_axes:
            parts *= case.sizes[axis]
        assert parts * tensor.local_bytes == tensor.bytes, tensor.name


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("Mesh.fsdp=16",), "needs 16 devices and there are 8"),
        (("Mesh.tensor=8",), "cannot be split evenly"),
        (("RepeatTask.batch_size=12",), "'batch' of size 12 cannot be split"),
        (("Experiment.microbatches=3",), "must divide the batch"),
    ],
)
def test_what_training_would_refuse_is_refused(opened, words, said):
    with pytest.raises(ValueError, match=said):
        opened(*words).tensors("params")


@pytest.mark.parametrize(
    ("at", "rows", "length"), [((3, 5), 16, 32), ((3, 50), 8, 32), ((30, 50), 8, 16)]
)
def test_the_largest_step_that_a_run_comes_to_is_planned(opened, at, rows, length):
    """A mixture of paused text, of which nothing is read."""
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
    case = opened(*words)
    assert (case.sequences, case.sequence_length) == (rows, length)
