"""What a tiny model needs, by hand, and which way it must move."""

import dataclasses
import json

import numpy as np
import pytest

from lmx.plan import search
from lmx.plan.analytic import memory, traffic
from lmx.plan.analytic.flops import count_flops
from lmx.plan.forecast import make_forecast
from tests.plan.conftest import MOE

D, L, V, T, F = 16, 2, 8, 16, 32
LAYER = D * 16 + 2 * D * 8 + 16 * D + 3 * D * F  # q; k and v; out; gate, up and down
WEIGHTS = L * LAYER + V * D  # that multiply
NUMBERS = WEIGHTS + V * D + (2 * L + 1) * D  # and the table, and gains
BF16 = 2


def seen(window):
    """By a loop over queries and keys."""
    return np.mean([min(i + 1, window) for i in range(T)])


@pytest.mark.parametrize("window", [None, 5, 64])
def test_attention_is_counted_by_the_pairs_that_a_loop_counts(opened, window):
    case = opened(f"Attention.window={window}")
    got = count_flops(case.model, T, "keep_none")
    pairs = 12 * L * 16  # forward and backward, of 4 heads of width 4
    assert got.weights == 6 * WEIGHTS
    assert got.attention == 6 * WEIGHTS + pairs * min(window or T, T)
    assert got.causal == pytest.approx(6 * WEIGHTS + pairs * seen(window or T))
    product = pairs * seen(window or T) / 6  # of queries and keys, or the like
    assert got.executed_attention == pytest.approx((2 + 2 + 5) * product)
    assert got.executed == pytest.approx(
        6 * WEIGHTS + 2 * L * LAYER + got.executed_attention
    )


def test_a_device_alone_holds_four_numbers_for_each_parameter(opened):
    """Parameter, gradient, and the two moments of Adam; 4 bytes each."""
    parts = memory.estimate_memory(opened("Mesh.data=1", on="v5e-1")).persistent
    assert parts["parameters"] == parts["gradients"] == 4 * NUMBERS
    counts = 2 * 4  # of steps, by the optimizer and its schedule
    assert parts["optimizer state"] == 8 * NUMBERS + counts


@pytest.mark.parametrize("fsdp", [2, 4, 8])
def test_fsdp_divides_what_is_held_and_the_rows(opened, fsdp):
    alone = memory.estimate_memory(opened("Mesh.data=1", on="v5e-1")).persistent
    split = memory.estimate_memory(
        opened("Mesh.data=1", f"Mesh.fsdp={fsdp}")
    ).persistent
    for part in ("parameters", "gradients", "activations"):
        assert fsdp * split[part] == alone[part], part


def test_keeping_nothing_keeps_the_input_of_every_layer(opened):
    case = opened("Mesh.data=1", on="v5e-1", remat="keep_none")
    [(kept, layers)] = memory.list_saved(case, "keep_none")
    assert layers == L and kept.replicated == BF16 * D


def test_policies_keep_less_and_less(opened):
    case = opened("Mesh.data=1", on="v5e-1")
    kept = [
        sum(part.count_local_bytes(case) for part, _ in memory.list_saved(case, remat))
        for remat in ("keep_all", "keep_dots", "keep_weight_dots", "keep_none")
    ]
    assert kept == sorted(kept, reverse=True) and kept[0] > kept[-1] > 0


def test_gathers_of_weights_are_counted_by_hand(opened):
    gather, sums = traffic.list_collectives(opened("Mesh.fsdp=8"))
    assert (gather.kind, sums.kind) == ("all-gather", "all-reduce")
    assert gather.bytes == sums.bytes == 2 * BF16 * NUMBERS * 7 / 8
    assert gather.overlapped and not sums.overlapped
    gather, scatter = traffic.list_collectives(opened("Mesh.fsdp=8", on="h100-8"))
    assert (gather.kind, scatter.kind) == ("all-gather", "reduce-scatter")
    assert gather.bytes == 2 * scatter.bytes and scatter.overlapped


def test_gradients_of_copies_are_added_up_once(opened):
    [one] = traffic.list_collectives(opened("Mesh.data=8"))
    assert one.kind == "all-reduce" and one.bytes == 2 * BF16 * NUMBERS * 7 / 8


def test_tensor_parallel_layers_add_up_twice_forward_and_twice_backward(opened):
    *_, last = traffic.list_collectives(opened("Mesh.tensor=2", "Mesh.data=4"))
    stream = 2 * T * D * BF16  # of the 2 rows of a device
    assert (last.kind, last.axis, last.overlapped) == ("all-reduce", "tensor", False)
    assert last.bytes == 4 * L * 2 * stream / 2


def test_tokens_go_to_experts_and_back_for_each_choice(opened):
    rules = "Experiment.rules={'batch': ['replica', 'data', 'fsdp', 'expert']}"
    *_, last = traffic.list_collectives(opened("Mesh.expert=4", rules, *MOE))
    stream = T * D * BF16  # of the one row of a device
    assert (last.kind, last.axis) == ("all-to-all", "expert")
    assert last.bytes == 2 * 2 * L * 2 * stream * 3 / 4


@pytest.mark.parametrize("words", [("Mesh.fsdp=8",), ("Mesh.fsdp=4", "Mesh.tensor=2")])
def test_more_microbatches_hold_less_and_talk_more(opened, words):
    one, two = (
        make_forecast(opened(*words, "RepeatTask.batch_size=64", microbatches=n), 1.0)
        for n in (2, 4)
    )
    assert two.memory.total < one.memory.total
    assert two.seconds.overlapped > one.seconds.overlapped


def test_recomputing_costs_time_and_saves_memory(opened):
    keep, none = (
        make_forecast(opened("Mesh.fsdp=8", remat=remat), 1.0)
        for remat in ("keep_all", "keep_none")
    )
    assert none.memory.total < keep.memory.total
    assert none.seconds.compute > keep.seconds.compute


def test_a_run_takes_its_steps_and_is_paid_by_the_hour(opened):
    said = make_forecast(opened(), price=3.0)
    assert said.hours * 3600 == pytest.approx(10 * said.seconds.step)
    assert said.dollars == pytest.approx(said.hours * 8 * 3.0)
    assert said.checkpoint_bytes == 12 * NUMBERS + 8
    ideal = said.flops.attention * 8 * T / (8 * 197e12)
    assert said.mfu == pytest.approx(ideal / said.seconds.step)


def test_remedies_fit_and_say_how(opened):
    words = ("Decoder.width=8192", "SwiGLU.hidden=16384", "Decoder.depth=16")
    said = make_forecast(opened(*words), 1.0)
    better = search.suggest(said)
    assert not said.fits and better
    for each in better.values():
        assert each.fits and search.format_overrides(said, each)


def test_programs_that_only_tpus_run_are_planned_anywhere_and_alike(opened):
    """Next to those that run anywhere."""
    tpu = [
        "Attention.backend=@SplashAttention()",
        "DroplessDispatch.grouped_matmul=@Megablox()",
    ]
    here, there = (make_forecast(opened(*MOE, *more), 1.0) for more in ([], tpu))
    assert here.memory == there.memory and here.seconds == there.seconds


def test_a_forecast_is_plain_json(opened):
    told = json.loads(json.dumps(make_forecast(opened(), 1.0).to_json()))
    assert told["how"] == "Analytic" and told["mesh"]["data"] == 8


def test_what_a_compiler_asks_for_beyond_the_arithmetic_remedies_leave_room_for(opened):
    said = make_forecast(
        opened("Mesh.fsdp=2", "Mesh.data=4", "RepeatTask.batch_size=64"), 1.0
    )
    has = said.case.machine.chip.memory
    asked = dataclasses.replace(
        said, memory=memory.MemoryUse({"asked": 1.2 * has}, {"": {}})
    )
    more = 1.2 * has / said.memory.total
    for each in search.suggest(asked).values():
        assert each.memory.total * more <= has
    assert search.suggest(asked)


def test_experts_stay_where_they_are_and_all_else_comes_together(opened):
    case = opened("Mesh.fsdp=2", "Mesh.expert=4", "Mesh.data=1", *MOE, on="h100-8")
    experts = 4 * 3 * D * 8 * L
    model = case.tensors("params")
    others = sum(tensor.bytes for tensor in model) / 4 - experts
    fsdp, expert = (
        each.bytes
        for each in traffic.list_collectives(case)
        if each.kind == "all-gather"
    )
    assert fsdp == 2 * BF16 * (others + experts / 4) / 2
    assert expert == 2 * BF16 * others / 2 * 3 / 4
