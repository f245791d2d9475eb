"""The same run on one device and on many: rounding is all that may differ.

In float64, where rounding cannot hide a fault, and in float32 as one trains. Rows are
packed and padded, and a run in parts or without a loop is held against a plain one.
Cases are chosen by pairs: any two axes, and any two of axis, kind and override that are
in one case of `make nightly`, are in one case of `make meshes` in float64.
Expert choice is left out: which of two equal tokens an expert takes, rounding decides.
"""

import functools
import itertools
from dataclasses import asdict

import jax
import numpy as np
import pytest

from lmx.core.sharding import Mesh
from lmx.train.loop import train

STEPS = 20
PARTS = "Experiment.microbatches=2"
UNROLLED = "Decoder.unroll=4"
CHUNKS = "NextToken.chunk=4"
ROUNDS = (
    "Decoder.pipeline=@PipelineSchedule() PipelineSchedule.microbatches=4"
    " PipelineSchedule.virtual_stages=2"
)
RING = "Attention.backend=@RingAttention() RingAttention.block=2"
# Other models than those of `conftest.py`: what sees a few tokens, what shifts a row.
MODELS = {
    "window": ["Attention.window=5"],
    "shifted": [
        "Decoder.block=@PreNorm",
        "PreNorm.conv=@ShortConv",
        "Decoder.mtp=@MultiTokenPrediction",
        "Experiment.loss=@MultiToken()",
    ],
}
BY_DAY = [("data=2 x fsdp=2 x tensor=2", "dense", PARTS)]
IN_BOTH = [  # in float32, every axis, kind and override once
    ("replica=2 x context=2 x stage=2", "dense", RING, ROUNDS),
    ("replica=2 x data=2 x fsdp=2", "sigmoid", PARTS, UNROLLED),
    ("fsdp=2 x context=2 x stage=2", "window", RING, PARTS),
    ("fsdp=2 x expert=2 x stage=2", "moe", ROUNDS, UNROLLED),
    ("fsdp=4 x tensor=2", "dense", PARTS, CHUNKS),
    ("data=4 x context=2", "shifted", RING),
    ("fsdp=2 x expert=4", "capacity"),
]
IN_FLOAT64 = [
    ("replica=2 x expert=2 x tensor=2", "moe", PARTS, CHUNKS),
    ("data=2 x expert=2 x context=2", "moe", RING),
    ("data=2 x tensor=2 x stage=2", "dense", ROUNDS),
    ("expert=2 x tensor=2 x stage=2", "sigmoid"),
    ("context=4 x tensor=2", "dense", RING, UNROLLED),
    ("data=2 x stage=4", "dense", CHUNKS),
    ("replica=4 x stage=2", "window"),
]
NIGHTLY = [
    ("data=2 x fsdp=2 x tensor=2", "dense", PARTS, UNROLLED),
    ("fsdp=8", "dense", CHUNKS),
    ("data=2 x fsdp=4", "moe"),
    ("context=4", "dense", RING, UNROLLED),
    ("replica=2 x data=2 x expert=2", "sigmoid", PARTS),
    ("fsdp=2 x stage=2 x tensor=2", "moe", ROUNDS),
    ("data=8", "dense"),
    ("replica=8", "dense", UNROLLED),
    ("tensor=2", "dense", PARTS, CHUNKS),
    ("expert=4", "moe", PARTS),
    ("context=4", "dense", UNROLLED),
    ("data=2 x context=2 x tensor=2", "moe", PARTS),
    ("data=2 x context=2 x tensor=2", "moe", RING, PARTS),
    ("context=8", "dense", RING),
    ("context=2", "window", RING, PARTS),
    ("fsdp=2 x context=4", "window", RING),
    ("expert=2 x context=4", "moe", RING),
    ("data=2 x context=4", "shifted", RING),
    ("fsdp=2 x context=2 x tensor=2", "dense", RING, PARTS, UNROLLED),
    ("data=2 x fsdp=4", "dense", UNROLLED),
    ("data=4 x tensor=2", "dense", PARTS),
    ("fsdp=4 x tensor=2", "moe", PARTS, UNROLLED),
    ("replica=2 x data=4", "dense", CHUNKS),
    ("replica=2 x fsdp=4", "moe"),
    ("replica=2 x data=2 x fsdp=2", "sigmoid", UNROLLED),
    ("replica=2 x fsdp=2 x tensor=2", "dense", PARTS),
    ("data=4 x expert=2", "moe", UNROLLED),
    ("fsdp=4 x expert=2", "moe", PARTS),
    ("fsdp=4 x expert=2", "sigmoid"),
    ("fsdp=4 x expert=2", "capacity"),
    ("expert=4 x tensor=2", "moe", CHUNKS),
    ("fsdp=2 x expert=2 x tensor=2", "sigmoid", PARTS, UNROLLED),
    ("replica=2 x expert=4", "moe", PARTS),
    ("stage=4", "dense"),
    ("stage=2", "moe", PARTS, UNROLLED),
    ("data=2 x stage=4", "sigmoid"),
    ("replica=2 x data=2 x stage=2", "dense", ROUNDS),
    ("stage=2 x tensor=2", "moe", CHUNKS),
    ("context=2 x stage=2", "dense", ROUNDS, UNROLLED),
    ("context=2 x stage=2", "dense", RING, ROUNDS),
    ("replica=2 x context=2 x tensor=2", "dense", RING, PARTS, UNROLLED),
    ("replica=2 x context=2 x stage=2", "window", RING),
    ("expert=2 x stage=2", "moe", CHUNKS),
    ("expert=2 x context=2 x stage=2", "moe", RING, ROUNDS),
    ("replica=2 x expert=2 x stage=2", "sigmoid", PARTS),
]


def listed(**cases):
    """Mesh, kind and overrides of each case, by its mark."""
    return [
        pytest.param(
            mesh,
            kind,
            tuple(" ".join(overrides).split()),
            marks=getattr(pytest.mark, mark) if mark != "test" else (),
            id=f"{mesh} {kind}",
        )
        for mark in cases
        for mesh, kind, *overrides in cases[mark]
    ]


def packed(batch):
    """Adds a document before the sequence of every row, and padding after some."""
    B, T = batch.tokens.shape
    at_BT = np.tile(np.arange(T), (B, 1))
    begin_B1, end_B1 = 2 + np.arange(B)[:, None] % 3, T - np.arange(B)[:, None] % 4
    second_BT, live_BT = at_BT >= begin_B1, at_BT < end_B1
    return batch._replace(
        weights=batch.weights * live_BT,
        positions=(at_BT - begin_B1 * second_BT).astype("int32"),
        segments=((1 + second_BT) * live_BT).astype("int32"),
    )


@pytest.fixture(scope="module")
def numbers_of(tiny):
    """The losses and gradient norms of a variant on a mesh, cached."""

    @functools.cache
    def numbers_of(mesh, kind, overrides, wide):
        sizes = dict(data="1") | dict(part.split("=") for part in mesh.split(" x "))
        overrides = [
            *overrides,
            *(f"Mesh.{axis}={size}" for axis, size in sizes.items()),
        ]
        overrides += [f"Precision.{of}={wide}" for of in ("params", "compute")]
        overrides += ["Decoder.precision=@Precision()", f"Experiment.steps={STEPS}"]
        overrides += ["RepeatTask.batch_size=16", "Decoder.depth=4"]
        kind, overrides = (
            ("dense", MODELS[kind] + overrides) if kind in MODELS else (kind, overrides)
        )
        run = tiny(*overrides, kind=kind).build().open()
        found = []
        batches = (
            run.put_batch(packed(run.data.batch_at(run.seed, step)))
            for step in range(STEPS)
        )
        state = train(
            run.step,
            run.init(),
            batches,
            steps=STEPS,
            hooks=[lambda done, state, m: found.append((m["loss"], m["grad_norm"]))],
        )
        weight = jax.tree.leaves(state.params)[0]
        wanted = np.prod([int(size) for size in sizes.values()])
        assert (len(weight.sharding.device_set), weight.dtype) == (wanted, wide)
        return np.array(found)

    return numbers_of


@pytest.mark.parametrize(
    ("mesh", "kind", "overrides"),
    listed(test=BY_DAY, meshes=IN_BOTH + IN_FLOAT64, nightly=NIGHTLY),
)
def test_many_devices_agree_with_one_to_1e_9_in_float64(
    numbers_of, mesh, kind, overrides
):
    with jax.enable_x64(True):
        alone = numbers_of("data=1", kind, (), "float64")
        found = numbers_of(mesh, kind, overrides, "float64")
    np.testing.assert_allclose(found, alone, rtol=1e-9)
    assert found[-1, 0] < 0.95 * found[0, 0]  # and it was no idle run


@pytest.mark.parametrize(
    ("mesh", "kind", "overrides"),
    listed(meshes=IN_BOTH, nightly=BY_DAY + IN_FLOAT64 + NIGHTLY),
)
def test_many_devices_agree_with_one_to_1e_4_in_float32(
    numbers_of, mesh, kind, overrides
):
    alone = numbers_of("data=1", kind, (), "float32")
    found = numbers_of(mesh, kind, overrides, "float32")
    np.testing.assert_allclose(found, alone, rtol=1e-4)


def test_two_factors_that_are_together_by_night_are_together_by_day():
    def list_factors(cases):
        return [
            sorted([*(part.split("=")[0] for part in mesh.split(" x ")), *others])
            for mesh, *others in cases
        ]

    def list_pairs(cases):
        each = (itertools.combinations(found, 2) for found in list_factors(cases))
        return set(itertools.chain.from_iterable(each))

    by_day = list_pairs(BY_DAY + IN_BOTH + IN_FLOAT64)
    assert list_pairs(NIGHTLY) <= by_day
    assert {*itertools.combinations(sorted(asdict(Mesh())), 2)} <= by_day
    assert set(sum(by_day, ())) == set(sum(list_factors(IN_BOTH), []))


@pytest.mark.parametrize(
    ("choice", "message", "instead"),
    [
        (
            "all_to_all=@RaggedAllToAll()",
            "RaggedAllToAll runs on gpu or tpu, and this program is for cpu",
            "@PaddedAllToAll()",
        ),
        (
            "grouped_matmul=@Megablox()",
            "Megablox runs on tpu, and this program is for cpu",
            "@RaggedDot()",
        ),
    ],
)
def test_a_layer_of_another_platform_is_refused_by_name_at_start(
    tiny, choice, message, instead
):
    other = tiny(
        "Mesh.expert=2",
        "MoE.dispatch=@DroplessDispatch()",
        f"DroplessDispatch.{choice}",
        kind="moe",
    )
    with pytest.raises(ValueError, match=message) as caught:
        other.build().open()
    assert instead in str(caught.value)
    assert (
        other.run_id() == tiny("MoE.dispatch=@DroplessDispatch()", kind="moe").run_id()
    )
