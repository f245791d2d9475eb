"""DiLoCo: the algorithm, the mesh and the communication."""

import re

import jax
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from lmx.train.checkpoint.manager import CheckpointManager
from tests.collectives import collectives

pytestmark = pytest.mark.meshes

PAIR = [
    "Experiment.local_sgd=@DiLoCo()",
    "DiLoCo.replicas=2",
    "DiLoCo.sync_every=2",
    "Experiment.steps=4",
]
ALONE = ["Mesh.data=1", "Experiment.steps=4"]


def after(run, state, steps, part=lambda batch: batch):
    """The state after some steps of the run, and their losses."""
    losses, begin = [], int(state.step)
    for step in range(begin, begin + steps):
        batch = jax.tree.map(part, run.data.batch_at(run.seed, step))
        state, metrics = run.step(state, run.put_batch(batch))
        losses.append(metrics["loss"])
    return state, np.array(losses)


def copied(tree):
    """A copy that no step donates."""
    return jax.tree.map(np.array, tree)


def close(one, other, rtol=1e-9):
    for a, b in zip(*map(jax.tree.leaves, (one, other)), strict=True):
        np.testing.assert_allclose(a, b, rtol=rtol, atol=1e-12)


def test_one_replica_that_synchronizes_each_step_is_plain_training(tiny, x64):
    trivial = [
        f"DiLoCo.{binding}"
        for binding in ("replicas=1", "sync_every=1", "outer_lr=1.0")
    ]
    overrides = [
        "Experiment.local_sgd=@DiLoCo()",
        *trivial,
        "DiLoCo.outer_momentum=0.0",
    ]
    plain, outer = (
        tiny(*x64, *ALONE, *more, kind="dropout").build().open()
        for more in ([], overrides)
    )
    (wanted, losses), (found, same) = (after(r, r.init(), 4) for r in (plain, outer))
    np.testing.assert_allclose(losses, same, rtol=1e-9)
    close(found.params, wanted.params)


def test_a_synchronization_is_a_nesterov_step_along_the_mean_change(tiny, x64):
    """By hand: two plain runs on half the rows each, between synchronizations."""
    run = tiny(*x64, "Mesh.data=1", *PAIR).build().open()
    found, losses = after(run, run.init(), 4)
    plain = tiny(*x64, *ALONE).build().open()
    common = copied(plain.init().params)
    momentum = jax.tree.map(np.zeros_like, common)
    states, wanted = [copied(plain.init()) for _ in range(2)], []
    for _ in range(2):
        halves = []
        for half, state in enumerate(states):
            rows = slice(4 * half, 4 * half + 4)
            state = state._replace(params=common)
            state, nats = after(plain, state, 2, lambda x, rows=rows: x[rows])
            states[half] = copied(state)
            halves.append(nats)
        wanted += list(np.mean(halves, axis=0))
        change = jax.tree.map(
            lambda old, a, b: old - (a + b) / 2, common, *(s.params for s in states)
        )
        momentum = jax.tree.map(lambda m, g: 0.9 * m + g, momentum, change)
        common = jax.tree.map(
            lambda old, m, g: old - 0.7 * (0.9 * m + g), common, momentum, change
        )
    np.testing.assert_allclose(losses, wanted, rtol=1e-9)
    close(found.params, common)


@pytest.fixture(scope="module")
def on_a_mesh(tiny):
    """Opens the same run of two replicas on two slices of two devices."""
    return lambda *overrides: (
        tiny(
            *overrides, *PAIR, *(f"Mesh.{s}" for s in ("replica=2", "data=1", "fsdp=2"))
        )
        .build()
        .open()
    )


def test_replicas_on_slices_train_as_on_one_device(tiny, x64, on_a_mesh):
    alone = tiny(*x64, "Mesh.data=1", *PAIR).build().open()
    spread = on_a_mesh(*x64)
    (wanted, losses), (found, same) = (after(r, r.init(), 3) for r in (alone, spread))
    np.testing.assert_allclose(losses, same, rtol=1e-9)
    close(found, wanted)
    table = found.opt_state.params.embedding[...]
    assert table.sharding.spec == PartitionSpec("replica", None, "fsdp")


def test_between_synchronizations_only_scalars_cross_slices(on_a_mesh):
    """In the compiled step, larger collectives are in the branch that synchronizes."""
    run = on_a_mesh()
    text = (
        run.step.lower(run.abstract_state(), run.data.batch_at(0, 0))
        .compile()
        .as_text()
    )
    conditionals = " ".join(x for x in text.splitlines() if " conditional(" in x)
    names = re.findall(r"computations?=\{?([%\w., -]+)", conditionals)
    branches = set(re.findall(r"%([\w.-]+)", " ".join(names)))
    sizes = {True: [0], False: [0]}
    for each in collectives(text):
        if each.crosses(2, devices=4):
            sizes[each.body in branches] += each.sizes
    depth, parameters = (
        2,
        sum(x.size for x in jax.tree.leaves(run.abstract_state().params)),
    )
    half = parameters // 2  # fsdp's
    assert max(sizes[False]) <= depth
    assert half <= sum(sizes[True]) < half + 8


def test_a_run_resumes_between_two_synchronizations(tiny, on_a_mesh, tmp_path):
    run = on_a_mesh()
    whole, _ = after(run, run.init(), 4)
    whole = copied(whole)
    some, _ = after(run, run.init(), 1)
    checkpoints = CheckpointManager(tmp_path, keep=1)
    checkpoints.save(1, some)
    checkpoints.wait()
    rest, _ = after(run, checkpoints.restore(1, run.abstract_state()), 3)
    for a, b in zip(*map(jax.tree.leaves, (rest, whole)), strict=True):
        np.testing.assert_array_equal(a, b)
    plain = tiny(*ALONE).build().open()  # reads what they agreed on as any other's
    like = {"params": plain.abstract_state().params}
    close(checkpoints.restore(1, like)["params"], copied(run.init().params))


def test_impossible_settings_are_refused(tiny):
    for overrides, message in [
        (["Experiment.steps=5"], "5 steps do not end with a synchronization"),
        (["DiLoCo.replicas=3"], "8 rows cannot be split evenly over 3 replicas"),
        (["Mesh.replica=4"], "'replicas' of size 2 cannot be split evenly"),
    ]:
        with pytest.raises(ValueError, match=message):
            tiny("Mesh.data=1", *PAIR, *overrides).build().open()
