"""Collectives of a step, and the assignment of slices to a mesh."""

from types import SimpleNamespace

import jax
import numpy as np
import pytest
from flax import nnx
from jax.sharding import NamedSharding

from lmx.core import partitioning
from lmx.core.dims import logical
from lmx.core.sharding import (
    RULES,
    Mesh,
    arrange_hybrid_devices,
    shardings,
    spec,
    with_shardings,
)
from lmx.layers.attention.kv_cache import make_inputs
from tests.collectives import collectives


@pytest.mark.parametrize("parts", [1, 2])
def test_gradients_cross_slow_links_once_and_in_shards(tiny, parts):
    """They are reduce-scattered within a slice before."""
    overrides = [f"Mesh.{axis}" for axis in ("replica=2", "data=1", "fsdp=4")]
    run = (
        tiny(*overrides, f"Experiment.microbatches={parts}", "RepeatTask.batch_size=16")
        .build()
        .open()
    )
    text = (
        run.step.lower(run.abstract_state(), run.data.batch_at(0, 0))
        .compile()
        .as_text()
    )
    crossing = [each for each in collectives(text) if each.crosses(2)]
    assert {each.kind for each in crossing} == {"all-reduce"}
    shards = [
        np.prod(x.sharding.shard_shape(x.shape))
        for x in jax.tree.leaves(run.abstract_state().params)
    ]
    sizes = [size for each in crossing for size in each.sizes]
    assert sum(shards) <= sum(sizes) < sum(shards) + 8  # and a few numbers
    assert 4 * sum(shards) == sum(
        x.size for x in jax.tree.leaves(run.abstract_state().params)
    )


@pytest.mark.parametrize("sizes", [(2, 4, 1, 1), (1, 2, 2, 2)], ids=str)
def test_embeddings_of_rows_are_not_gathered_on_other_devices(tiny, sizes):
    """Nor are gradients, although the table is sharded along its width."""
    axes = zip(("data", "fsdp", "context", "tensor"), sizes, strict=True)
    mesh = Mesh(**dict(axes)).build(jax.devices(), RULES)
    born = tiny("Decoder.vocab=4096", "Decoder.width=32").build().model
    graph, params = nnx.split(jax.eval_shape(lambda: born(nnx.Rngs(0))))
    params = with_shardings(params, shardings(params, mesh, RULES))
    rows = NamedSharding(mesh, spec(logical("BT"), (16, 8), mesh, RULES))
    tokens = jax.ShapeDtypeStruct((16, 8), "int32", sharding=rows)

    def cost(params, tokens):
        model = nnx.merge(graph, params)
        return (model.embed(tokens, make_inputs(tokens, None, None, None)) ** 2).sum()

    made = jax.jit(partitioning.with_partitioning(mesh, RULES, jax.grad(cost)))
    most = {"all-gather": 0, "all-to-all": 0}
    for each in collectives(made.lower(params, tokens).compile().as_text()):
        most[each.kind] = max(most.get(each.kind, 0), sum(each.sizes))
    assert most["all-gather"] <= tokens.size
    assert most["all-to-all"] == tokens.size * 32 // np.prod(sizes[:3])


def made_devices(platform):
    """Eight devices of two slices, interleaved."""
    fields = dict(process_index=0, platform=platform, device_kind="x")
    return [SimpleNamespace(id=i, slice_index=i % 2, **fields) for i in range(8)]


@pytest.mark.parametrize("replica", [2, 4])
def test_a_slice_of_a_mesh_is_a_slice_of_devices(replica):
    sizes = Mesh(replica=replica, fsdp=2).resolve_sizes(8, RULES)
    found = arrange_hybrid_devices(sizes, made_devices("gpu"))
    assert found.shape == tuple(sizes.values())
    for group in found:
        assert len({device.slice_index for device in group.flat}) == 1
    assert {device.id for device in found.flat} == set(range(8))


def test_slices_without_replicas_are_refused_on_tpus_alone():
    sizes = Mesh(fsdp=8).resolve_sizes(8, RULES)
    with pytest.raises(ValueError, match="Mesh.replica must be a multiple of 2, not 1"):
        arrange_hybrid_devices(sizes, made_devices("tpu"))
    assert arrange_hybrid_devices(sizes, made_devices("gpu")).shape == tuple(
        sizes.values()
    )


@pytest.mark.meshes
@pytest.mark.parametrize("rounds", [1, 2])
def test_stages_send_hidden_states_and_keep_their_weights(tiny, rounds):
    """In one round. In more, weights move to the stage that uses them, and back."""
    overrides = [
        "Decoder.pipeline=@PipelineSchedule()",
        f"PipelineSchedule.virtual_stages={rounds}",
    ]
    overrides += [
        "Mesh.data=1",
        "Mesh.stage=4",
        "Decoder.depth=8",
        "PipelineSchedule.microbatches=8",
    ]
    run = tiny(*overrides).build().open()
    text = (
        run.step.lower(run.abstract_state(), run.data.batch_at(0, 0))
        .compile()
        .as_text()
    )
    sizes = {"all-gather": [0], "all-to-all": [0], "collective-permute": [0]}
    for each in collectives(text):
        sizes.setdefault(each.kind, []).append(sum(each.sizes))
    assert max(sizes["all-gather"]) <= 8  # a number a layer
    stream = 16 * 16
    assert stream in sizes["collective-permute"]
    if rounds == 1:
        assert max(sizes["collective-permute"]) == stream
        assert max(sizes["all-to-all"]) == 0
    else:
        blocks = run.abstract_state().params["stack"]
        mine = sum(x.size for x in jax.tree.leaves(blocks)) // 4
        assert 0 < sum(sizes["all-to-all"]) <= 3 * mine
