"""Pipelined layers equal a loop over layers; bubbles and remat policies."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lmx.core import partitioning
from lmx.core.precision import Precision
from lmx.core.sharding import RULES, Mesh
from lmx.layers.norm import RMSNorm
from lmx.models.pipeline import PipelineSchedule, Timeline
from lmx.models.remat import POLICIES

B, T, V, DEPTH = 8, 4, 12, 4
DOUBLE = Precision(params="float64", compute="float64")
TOKENS = jnp.asarray(np.random.default_rng(1).integers(0, V, (B, T)), "int32")
CYCLE = "lead window cope moe"  # two alternating kinds of attention
VIRTUAL = PipelineSchedule(microbatches=4, virtual_stages=2)
CASES = [("stage=2", VIRTUAL, "keep_all", "pre waves dense")]
MORE = [
    ("fsdp=2 stage=4", PipelineSchedule(), "keep_weight_dots", "pre rope dense conv"),
    ("stage=2", PipelineSchedule(microbatches=2), "keep_none", CYCLE),
    (
        "data=2 stage=2",
        PipelineSchedule(virtual_stages=2),
        "keep_dots",
        "post rope moe conv",
    ),
    (
        "stage=2 tensor=2",
        PipelineSchedule(virtual_stages=2),
        "offload_streams",
        "pre rope dense conv",
    ),
    (
        "stage=4",
        PipelineSchedule(microbatches=8),
        "offload_weight_dots",
        "post rope moe conv",
    ),
]


def on_mesh(sizes, fn):
    """`fn`, compiled for a mesh."""
    sizes = dict(data=1) | {k: int(v) for k, v in (s.split("=") for s in sizes.split())}
    return jax.jit(
        partitioning.with_partitioning(
            Mesh(**sizes).build(jax.devices(), RULES), RULES, fn
        )
    )


@pytest.fixture(scope="module")
def make_with_dropout(make, exact):
    """Makes a float64 model with all kinds of dropout."""
    del exact
    options = dict(vocab=V, depth=DEPTH, rate=0.2, precision=DOUBLE)

    def make_with_dropout(variant, **more):
        return make(
            variant,
            **(options | (dict(first_mlps=()) if variant == CYCLE else {}) | more),
        )

    return make_with_dropout


def compute_loss(model, keys):
    """A scalar of the logits and of all auxiliary means, and the logits."""
    logits, aux = model.forward(TOKENS, keys=keys)
    extra = sum((m.total * (1 + jnp.arange(DEPTH))).sum() for m in aux.values())
    return jax.nn.logsumexp(logits, axis=-1).sum() + extra, logits


def gradient(model, keys=None):
    return jax.grad(compute_loss, has_aux=True)(model, keys)


@pytest.mark.parametrize(
    ("sizes", "pipeline", "remat", "variant"),
    [*CASES, *(pytest.param(*case, marks=pytest.mark.meshes) for case in MORE)],
)
def test_pipeline_stages_equal_a_loop_over_layers(
    make_with_dropout, sizes, pipeline, remat, variant
):
    """Logits, gradients, and auxiliary means layer by layer, with dropout.

    Each policy of remat is in one case, and each number of stages, virtual stages and
    microbatches and each kind of layers in at least one.
    """
    keys = jax.random.split(jax.random.key(0), B)
    alone = jax.jit(gradient)(make_with_dropout(variant), keys)
    staged = make_with_dropout(variant, pipeline=pipeline, remat=remat)
    got = on_mesh(sizes, gradient)(staged, keys)
    for one, other in zip(*map(jax.tree.leaves, (got, alone)), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-9, atol=1e-11)


def test_an_idle_stage_gives_no_nan(make_with_dropout):
    """Even if a norm without epsilon divides by the norm of its input."""
    staged = make_with_dropout("pre waves dense", norm=partial(RMSNorm, epsilon=0.0))
    for leaf in jax.tree.leaves(on_mesh("stage=4", gradient)(staged)):
        assert np.isfinite(leaf).all()


@pytest.mark.parametrize(
    "plan", [Timeline(4, 8, 1), Timeline(4, 4, 3), Timeline(3, 5, 2)]
)
def test_the_idle_fraction_is_that_of_a_simulated_schedule(plan):
    """No stage has two microbatches at once, and no microbatch is at two stages."""
    stages, count, rounds = plan
    busy = np.zeros((plan.iterations, stages), int)
    for part in range(count):
        free = 0
        for r in range(rounds):
            for stage in range(stages):
                turn = r * count + part + stage
                assert turn >= free
                free = turn + 1
                busy[turn, stage] += 1
    assert busy.max() == 1
    idle = (stages - 1) / (count * rounds + stages - 1)
    np.testing.assert_allclose(1 - busy.mean(axis=0), idle)


@pytest.mark.parametrize(
    ("sizes", "pipeline", "message"),
    [
        (
            "stage=4",
            PipelineSchedule(virtual_stages=2),
            "4 layers.* into 4 stages with 2 virtual",
        ),
        (
            "stage=2",
            PipelineSchedule(microbatches=3),
            "8 rows .* into 3 microbatches on 1 dev",
        ),
        (
            "data=2 stage=2",
            PipelineSchedule(microbatches=8),
            "8 microbatches on 2 devices",
        ),
        (
            "stage=2",
            PipelineSchedule(microbatches=1, virtual_stages=2),
            "1 microbatches are too few",
        ),
    ],
)
def test_uneven_layers_or_rows_are_refused(make_with_dropout, sizes, pipeline, message):
    model = make_with_dropout("pre waves dense", pipeline=pipeline)
    with pytest.raises(ValueError, match=message):
        jax.eval_shape(on_mesh(sizes, gradient), model)


def test_without_stages_the_pipeline_compiles_to_the_plain_loop(make_with_dropout):
    model = make_with_dropout(
        "pre waves dense", pipeline=PipelineSchedule(microbatches=3, virtual_stages=7)
    )
    texts = [
        on_mesh("data=1", gradient).lower(m).as_text()
        for m in (model, make_with_dropout("pre waves dense"))
    ]
    assert texts[0] == texts[1]


def test_remat_policies_save_to_the_device_or_the_host_as_named(make_with_dropout):
    def loss(model):
        return compute_loss(model, None)[0]

    sizes, away = {}, {}
    for remat in ("keep_all", *POLICIES):
        model = make_with_dropout("pre waves dense", remat=remat)
        _, back = jax.eval_shape(lambda model: jax.vjp(loss, model), model)
        sizes[remat] = sum(x.size for x in jax.tree.leaves(back))
        away[remat] = "<host>" in str(jax.make_jaxpr(jax.grad(loss))(model))
    kept = [sizes[f"keep_{what}"] for what in ("none", "weight_dots", "dots", "all")]
    assert kept == sorted(set(kept))
    assert sizes["offload_weight_dots"] == sizes["keep_weight_dots"]
    assert sizes["offload_streams"] == sizes["keep_none"]
    assert {name for name in away if away[name]} == {
        "offload_weight_dots",
        "offload_streams",
    }
