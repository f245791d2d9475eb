"""Guards on the devices: skipped steps, spike detection, replica checks."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lmx.config.registry import ConfigError
from lmx.data.schedule import BatchSchedule, PiecewiseConstant
from lmx.train.checkpoint.policy import CheckpointPolicy
from lmx.train.guard.replica_check import compare_replicas, find_replicated, hash_array
from lmx.train.guard.spikes import Rewind, RunningStats, SpikeDetector

SKIP = ["Experiment.guard=@SkipNonFinite()", "Experiment.steps=4"]
WAYS = [
    pytest.param(["Mesh.data=1", "Experiment.microbatches=2"], id="microbatches"),
    pytest.param(["Mesh.fsdp=2", "Mesh.tensor=2"], id="mesh", marks=pytest.mark.meshes),
]
DILOCO = [
    "Mesh.replica=2",
    "Experiment.local_sgd=@DiLoCo()",
    "DiLoCo.replicas=2",
    "DiLoCo.sync_every=2",
]


def host(tree):
    """A copy that no step donates."""
    return jax.tree.map(np.array, tree)


def poisoned(batch, rows=slice(None)):
    """The batch with infinite weights in some rows."""
    weights = batch.weights.copy()
    weights[rows] = np.inf
    return batch._replace(weights=weights)


def same(one, other):
    return jax.tree.all(jax.tree.map(np.array_equal, host(one), host(other)))


@pytest.mark.parametrize("mesh", WAYS)
def test_a_skipped_step_changes_only_the_step_count(tiny, mesh):
    """A step on bad data between two good ones has no effect."""
    run = tiny(*SKIP, *mesh).build().open()
    batch = [run.data.batch_at(0, step) for step in range(2)]
    before, _ = run.step(run.init(), run.put_batch(batch[0]))
    kept = host(before)
    after, metrics = run.step(before, run.put_batch(poisoned(batch[1], slice(1))))
    assert not np.isfinite(metrics["loss"]) and metrics["skipped"] == 1
    assert after.step == 2
    assert same(after.params, kept.params)
    assert same(after.opt_state, kept.opt_state)
    after, metrics = run.step(after, run.put_batch(batch[1]))
    assert metrics["skipped"] == 0
    assert not same(after.params, kept.params)
    assert np.isfinite(metrics["loss"])


@pytest.mark.meshes
def test_without_faults_all_guards_train_the_same(tiny):
    ends = []
    for guard in ("AbortOnNonFinite", "SkipNonFinite", "Rewind"):
        more = ["CheckpointPolicy.keep=99"] if guard == "Rewind" else []
        words = [f"Experiment.guard=@{guard}()", "Mesh.data=1", *more]
        run = tiny(*words).build().open()
        state = run.init()
        for step in range(3):
            state, metrics = run.step(state, run.put_batch(run.data.batch_at(0, step)))
        ends.append((host(state.params), host(metrics["loss"])))
    for other in ends[1:]:
        for a, b in zip(*map(jax.tree.leaves, (ends[0], other)), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


@pytest.mark.meshes
def test_a_diloco_replica_skips_independently(tiny, x64):
    """By hand: one step of one replica while the other skips; then they synchronize."""
    run = tiny(*x64, *SKIP, *DILOCO).build().open()
    start = host(run.init())
    batch = run.data.batch_at(0, 0)
    rows = batch.tokens.shape[0] // 2
    after, metrics = run.step(run.init(), run.put_batch(poisoned(batch, slice(rows))))
    assert metrics["skipped"] == 0.5 and not np.isfinite(metrics["loss"])
    apart, before = host(after.opt_state), start.opt_state
    for found, was in zip(
        jax.tree.leaves((apart.params, apart.opt_state)),
        jax.tree.leaves((before.params, before.opt_state)),
        strict=True,
    ):
        np.testing.assert_array_equal(found[0], was[0])
    moved = jax.tree.leaves(apart.params)[0]
    assert not np.array_equal(moved[0], moved[1])
    after, metrics = run.step(after, run.put_batch(batch))
    assert np.isfinite(metrics["loss"])
    for each in jax.tree.leaves(host(after.opt_state.params)):
        np.testing.assert_array_equal(each[0], each[1])
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(host(after.params)))


def judged(spikes, losses, norm=1.0):
    """Which of consecutive losses are spikes, and their sigmas."""
    seen = RunningStats(jnp.zeros((), "int32"), jnp.zeros(()), jnp.zeros(()))
    found, judge = [], jax.jit(spikes.detect)
    for loss in losses:
        faulty, sigmas, seen = judge(seen, jnp.float32(loss), norm)
        found.append((bool(faulty), float(sigmas)))
    return found, seen


def test_a_spike_is_sigma_deviations_above_the_mean():
    losses = np.random.default_rng(0).normal(2.0, 0.1, 20)
    mean, deviation = losses.mean(), losses.std()
    for times, is_spike in [(3.1, True), (2.9, False), (-9.0, False)]:
        loss = mean + times * deviation
        found, seen = judged(SpikeDetector(sigma=3.0, window=20), [*losses, loss])
        assert not any(faulty for faulty, _ in found[:-1])
        assert found[-1][0] == is_spike
        np.testing.assert_allclose(found[-1][1], times, rtol=1e-3)
        if is_spike:  # of which nothing is learned
            np.testing.assert_allclose(seen.mean, mean, rtol=1e-5)
            np.testing.assert_allclose(seen.variance, deviation**2, rtol=1e-3)


def test_a_non_finite_loss_is_a_spike_from_the_first_step_on():
    found, seen = judged(SpikeDetector(), [2.0, np.nan, np.inf, 2.0])
    assert [faulty for faulty, _ in found] == [False, True, True, False]
    assert seen.count == 2 and seen.mean == 2.0
    assert judged(SpikeDetector(), [2.0], norm=np.nan)[0] == [(True, 0.0)]


def test_older_losses_decay():
    _, seen = judged(SpikeDetector(window=4, sigma=1e9), [9.0] * 4 + [1.0] * 60)
    np.testing.assert_allclose(seen.mean, 1.0, rtol=1e-5)


def flipped(x, device, bit=7):
    """The array with a bit flipped in the replica of one device."""
    blocks = []
    for shard in x.addressable_shards:
        block = np.array(shard.data).ravel()
        if shard.device == device:
            block.view("uint8")[-1] ^= 1 << bit
        blocks.append(jax.device_put(block.reshape(shard.data.shape), shard.device))
    return jax.make_array_from_single_device_arrays(x.shape, x.sharding, blocks)


def test_a_flipped_bit_is_found_with_its_tensor_and_device(tiny):
    run = tiny("Mesh.data=4", "Mesh.tensor=2").build().open()
    state = run.init()
    assert compare_replicas(state, run.mesh) == []
    arrays = find_replicated(state)
    assert {x.sharding.is_fully_replicated for x in arrays.values()} == {True, False}
    leaves, tree = jax.tree.flatten(state)
    device = run.mesh.devices.flat[5]
    for name in list(arrays)[:: len(arrays) // 4]:
        changed = [
            flipped(x, device, bit=3) if x is arrays[name] else x for x in leaves
        ]
        found = compare_replicas(jax.tree.unflatten(tree, changed), run.mesh)
        assert found == [f"{name} on {device}"]


def test_two_replicas_that_differ_are_both_named(tiny):
    run = tiny("Mesh.data=2").build().open()
    state = run.init()
    device = run.mesh.devices.flat[1]
    changed = state._replace(step=flipped(state.step, device))
    found = compare_replicas(changed, run.mesh)
    assert len(found) == 1
    assert "step differs between" in found[0] and f"{device}" in found[0]


@pytest.mark.parametrize("dtype", ["bool", "int8", "bfloat16", "float32", "float64"])
def test_a_hash_changes_with_any_bit_and_any_swap(dtype):
    with jax.enable_x64(dtype == "float64"):
        x = np.arange(24).reshape(4, 6).astype(dtype)
        digests = {int(hash_array(jnp.array(x)))}
        bits = 1 if dtype == "bool" else 8 * x.dtype.itemsize
        for bit in range(bits):
            other = x.copy()
            other.view("uint8").reshape(24, -1)[13, bit // 8] ^= 1 << bit % 8
            digests.add(int(hash_array(jnp.array(other))))
        other = x.copy()
        other[0, 0], other[0, 1] = x[0, 1], x[0, 0]
        digests.add(int(hash_array(jnp.array(other))))
        assert len(digests) == bits + 2


@pytest.mark.parametrize(
    ("words", "why"),
    [
        (
            ["SkipNonFinite.max_consecutive=0"],
            "SkipNonFinite.max_consecutive is 0: it must be above 0",
        ),
        (["Rewind.steps_back=0"], "Rewind.steps_back is 0: it must be above 0"),
        (
            ["Rewind.steps_back=9"],
            r"\(CheckpointPolicy.keep - 1\) \* CheckpointPolicy.every must be at",
        ),
    ],
)
def test_invalid_settings_of_guards_are_refused(tiny, words, why):
    guard = "Rewind" if "Rewind" in words[0] else "SkipNonFinite"
    with pytest.raises(ConfigError, match=why):
        tiny(f"Experiment.guard=@{guard}()", "Mesh.data=1", *words).build().open()


def test_rewind_refuses_shapes_that_change_with_the_step():
    course = BatchSchedule.build(
        "Tokens", PiecewiseConstant(values=(8, 16), boundaries=(5,)), 16
    )
    with pytest.raises(ConfigError, match="batch size or length change with the step"):
        Rewind().check(course, CheckpointPolicy(every=1000))
