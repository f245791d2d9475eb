"""Predictions for a tiny model by hand, and the direction of changes."""

import dataclasses
import json

import numpy as np
import pytest

from lmx import load_experiment
from lmx.plan import memory, search
from lmx.plan.forecast import make_forecast
from lmx.plan.report import format_verdict
from lmx.plan.roofline import count_flops, list_collectives
from tests.plan.conftest import MOE, TINY

D, L, V, T, F = 16, 2, 8, 16, 32
LAYER = D * 16 + 2 * D * 8 + 16 * D + 3 * D * F  # q; k and v; out; gate, up and down
WEIGHTS = L * LAYER + V * D  # of matmuls
NUMBERS = WEIGHTS + V * D + (2 * L + 1) * D  # with the embedding and norms
BF16 = 2


def mean_keys(window):
    """The mean number of keys of a query, by a loop."""
    return np.mean([min(i + 1, window) for i in range(T)])


@pytest.mark.parametrize("backend", ["Reference", "Splash"])
@pytest.mark.parametrize("window", [None, 5, 64])
def test_attention_flops_equal_a_count_of_pairs(make_case, window, backend):
    case = make_case(
        f"Attention.window={window}", f"Attention.backend=@{backend}Attention()"
    )
    got = count_flops(case.model, T, "keep_none")
    pairs = 12 * L * 16  # forward and backward, of 4 heads of width 4
    assert got.weights == 6 * WEIGHTS
    assert got.attention == 6 * WEIGHTS + pairs * min(window or T, T)
    assert got.causal == pytest.approx(6 * WEIGHTS + pairs * mean_keys(window or T))
    product = pairs * mean_keys(window or T) / 6  # of queries and keys, or the like
    if backend == "Reference":  # it computes hidden pairs too
        product = pairs * T / 6
    assert got.executed_attention == pytest.approx((2 + 2 + 5) * product)
    assert got.executed == pytest.approx(
        6 * WEIGHTS + 2 * L * LAYER + got.executed_attention
    )


def test_a_single_device_has_four_numbers_per_parameter(make_case):
    """Parameter, gradient, and the two moments of Adam; 4 bytes each."""
    parts = memory.estimate_memory(make_case("Mesh.data=1", on="v5e-1")).persistent
    assert parts["parameters"] == parts["gradients"] == 4 * NUMBERS
    counts = 2 * 4  # of steps, by the optimizer and its schedule
    assert parts["optimizer state"] == 8 * NUMBERS + counts


@pytest.mark.parametrize("fsdp", [2, 4, 8])
def test_fsdp_divides_memory(make_case, fsdp):
    alone = memory.estimate_memory(make_case("Mesh.data=1", on="v5e-1")).persistent
    split = memory.estimate_memory(
        make_case("Mesh.data=1", f"Mesh.fsdp={fsdp}")
    ).persistent
    for part in ("parameters", "gradients", "activations"):
        assert fsdp * split[part] == alone[part], part


def test_keep_none_saves_the_input_of_every_layer(make_case):
    case = make_case("Mesh.data=1", on="v5e-1", remat="keep_none")
    [(block, layers)] = case.model.stack.kinds()
    replicated, *_ = memory.measure_saved(block, D, case.compute_dtype, "keep_none")
    assert layers == L and replicated == BF16 * D


def test_remat_policies_save_less_and_less(make_case):
    case = make_case("Mesh.data=1", on="v5e-1")
    kept = [
        sum(each.tokens + each.pairs for each in memory.measure_layers(case, remat))
        for remat in ("keep_all", "keep_dots", "keep_weight_dots", "keep_none")
    ]
    assert kept == sorted(kept, reverse=True) and kept[0] > kept[-1] > 0


def test_gathers_of_weights_equal_a_count_by_hand(make_case):
    gather, sums = list_collectives(make_case("Mesh.fsdp=8"))
    assert (gather.kind, sums.kind) == ("all-gather", "all-reduce")
    assert gather.bytes == sums.bytes == 2 * BF16 * NUMBERS * 7 / 8
    assert gather.overlapped and not sums.overlapped
    gather, scatter = list_collectives(make_case("Mesh.fsdp=8", on="h100-8"))
    assert (gather.kind, scatter.kind) == ("all-gather", "reduce-scatter")
    assert gather.bytes == 2 * scatter.bytes and scatter.overlapped


def test_gradients_of_replicas_are_reduced_once(make_case):
    [one] = list_collectives(make_case("Mesh.data=8"))
    assert one.kind == "all-reduce" and one.bytes == 2 * BF16 * NUMBERS * 7 / 8


def test_tensor_parallel_layers_reduce_twice_forward_and_twice_backward(make_case):
    *_, last = list_collectives(make_case("Mesh.tensor=2", "Mesh.data=4"))
    stream = 2 * T * D * BF16  # of the 2 rows of a device
    assert (last.kind, last.axis, last.overlapped) == ("all-reduce", "tensor", False)
    assert last.bytes == 4 * L * 2 * stream / 2


def test_tokens_are_sent_to_experts_and_back_for_each_choice(make_case):
    rules = "Experiment.rules={'batch': ['replica', 'data', 'fsdp', 'expert']}"
    *_, last = list_collectives(make_case("Mesh.expert=4", rules, *MOE))
    stream = T * D * BF16  # of the one row of a device
    assert (last.kind, last.axis) == ("all-to-all", "expert")
    assert last.bytes == 2 * 2 * L * 2 * stream * 3 / 4


@pytest.mark.parametrize("words", [("Mesh.fsdp=8",), ("Mesh.fsdp=4", "Mesh.tensor=2")])
def test_more_microbatches_need_less_memory_and_more_communication(make_case, words):
    one, two = (
        make_forecast(
            make_case(*words, "RepeatTask.batch_size=64", microbatches=n), 1.0
        )
        for n in (2, 4)
    )
    assert two.memory.total < one.memory.total
    assert two.seconds.overlapped > one.seconds.overlapped


def test_recomputation_costs_time_and_saves_memory(make_case):
    keep, none = (
        make_forecast(make_case("Mesh.fsdp=8", remat=remat), 1.0)
        for remat in ("keep_all", "keep_none")
    )
    assert none.memory.total < keep.memory.total
    assert none.seconds.compute > keep.seconds.compute


def test_cost_is_steps_times_time_times_price(make_case):
    forecast = make_forecast(make_case(), price=3.0)
    assert forecast.hours * 3600 == pytest.approx(10 * forecast.seconds.step)
    assert forecast.dollars == pytest.approx(forecast.hours * 8 * 3.0)
    assert forecast.checkpoint_bytes == 12 * NUMBERS + 8
    ideal = forecast.flops.attention * 8 * T / (8 * 197e12)
    assert forecast.mfu == pytest.approx(ideal / forecast.seconds.step)


@pytest.mark.parametrize(
    ("on", "words", "backend"),
    [
        ("v5e-8", (), "SplashAttention"),
        ("h100-8", ("Attention.head_dim=8",), "CuDNNAttention"),
        ("h100-8", ("Attention.logit_cap=20.0",), "RingAttention"),  # not by cuDNN
        ("cpu", ("Mesh.data=1",), "RingAttention"),
    ],
)
def test_a_backend_that_holds_no_logits_is_suggested(make_case, on, words, backend):
    words = (*words, "RepeatTask.batch_size=8", "RepeatTask.sequence_length=65536")
    forecast = make_forecast(make_case(*words, on=on), 1.0)
    better = search.suggest(load_experiment(TINY, words), forecast)
    assert better and not forecast.fits
    for each in better.values():
        text = search.format_overrides(forecast, each)
        assert f"'Attention.backend=@{backend}()'" in text
    first, cause, *_ = format_verdict(forecast, better).splitlines()
    assert f"does not fit {on}" in first and "the largest part is" in first
    assert "attention" in cause and backend in cause


def test_suggestions_fit_and_name_the_settings(make_case):
    words = ("Decoder.width=8192", "SwiGLU.hidden=16384", "Decoder.depth=16")
    forecast = make_forecast(make_case(*words), 1.0)
    better = search.suggest(load_experiment(TINY, words), forecast)
    assert not forecast.fits and better
    for each in better.values():
        assert each.fits and search.format_overrides(forecast, each)


def test_kernels_of_tpus_are_planned_on_any_machine(make_case):
    """A fused attention kernel saves what flash attention saves, and no logits."""
    grouped = "DroplessDispatch.grouped_matmul=@Megablox()"
    flash, fused, reference = (
        make_forecast(
            make_case(*MOE, f"Attention.backend=@{name}Attention()", *more), 1.0
        )
        for name, *more in [("Ring",), ("Splash", grouped), ("Reference",)]
    )
    assert fused.memory.persistent == flash.memory.persistent
    assert fused.memory.phases["layer"]["attention logits"] == 0
    assert fused.memory.total < flash.memory.total < reference.memory.total


@pytest.mark.parametrize(("on", "rate"), [("h100-8", 0.5), ("v5e-8", 1), ("cpu-1", 1)])
def test_float32_products_have_a_peak_of_their_own(make_case, on, rate):
    words = ("Mesh.data=1", "Attention.backend=@RingAttention()")
    narrow, wide = (
        make_forecast(make_case(*words, f"Precision.compute={dtype}", on=on), 1.0)
        for dtype in ("bfloat16", "float32")
    )
    assert narrow.seconds.compute == pytest.approx(rate * wide.seconds.compute)
    assert wide.seconds.memory >= narrow.seconds.memory


def test_a_teacher_runs_forward(make_case):
    words = ("Experiment.data=@Tempered()", "Tempered.source=@RepeatTask()")
    teacher = ("Experiment.loss=@Distill()", "Distill.teacher=@Decoder")
    alone, taught = (
        make_forecast(make_case(*words, *more), 1.0) for more in ((), teacher)
    )
    assert taught.flops.executed - alone.flops.executed == 2 * NUMBERS
    assert taught.flops.weights == alone.flops.weights
    assert taught.seconds.compute > alone.seconds.compute


def test_a_forecast_is_json(make_case):
    found = json.loads(json.dumps(make_forecast(make_case(), 1.0).to_json()))
    assert found["method"] == "Analytic" and found["mesh"]["data"] == 8


def test_suggestions_scale_with_the_memory_that_a_compiler_needs(make_case):
    words = ("Mesh.fsdp=2", "Mesh.data=4", "RepeatTask.batch_size=64")
    config = load_experiment(TINY, words)
    forecast = make_forecast(make_case(*words), 1.0)
    has = forecast.case.machine.chip.memory
    compiled = dataclasses.replace(
        forecast, memory=memory.MemoryUse({"compiled": 1.2 * has}, {"": {}})
    )
    more = 1.2 * has / forecast.memory.total
    better = search.suggest(config, compiled)
    for each in better.values():
        assert each.memory.total * more <= has
    assert better


def test_experts_are_not_gathered_and_all_other_weights_are(make_case):
    case = make_case("Mesh.fsdp=2", "Mesh.expert=4", "Mesh.data=1", *MOE, on="h100-8")
    experts = 4 * 3 * D * 8 * L
    model = case.tensors("params")
    others = sum(tensor.bytes for tensor in model) / 4 - experts
    fsdp, expert = (
        each.bytes for each in list_collectives(case) if each.kind == "all-gather"
    )
    assert fsdp == 2 * BF16 * (others + experts / 4) / 2
    assert expert == 2 * BF16 * others / 2 * 3 / 4
