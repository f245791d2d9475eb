"""Learning rates against values computed by hand."""

import math

import pytest

from lmx.config.registry import ConfigError
from lmx.train.optim.schedule import WSD, Constant, Cosine, Linear

STEPS, WARMUP = 110, 10


def half(progress):
    """Half a cosine from 1 to 0.1."""
    return 0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi * progress))


SHAPES = {
    "constant": (Constant(peak_lr=2.0, warmup_steps=WARMUP), lambda progress: 1.0),
    "cosine": (Cosine(peak_lr=2.0, warmup_steps=WARMUP), half),
    "linear": (
        Linear(peak_lr=2.0, warmup_steps=WARMUP, final_fraction=0.2),
        lambda progress: 1 - 0.8 * progress,
    ),
    "wsd": (
        WSD(peak_lr=2.0, warmup_steps=WARMUP, decay_fraction=0.25, final_fraction=0.1),
        lambda progress: 0.1 + 0.9 * min(1.0, (1 - progress) / 0.25),
    ),
}
CONTRACT = pytest.mark.parametrize(("schedule", "shape"), SHAPES.values(), ids=SHAPES)


@CONTRACT
def test_the_learning_rate_is_a_linear_warmup_and_then_its_decay(schedule, shape):
    rate = schedule.build(STEPS)
    for count in range(STEPS):
        wanted = 2.0 * (count + 1) / (WARMUP + 1)
        if count >= WARMUP:
            wanted = 2.0 * shape((count - WARMUP) / (STEPS - WARMUP))
        assert rate(count) == pytest.approx(wanted, rel=1e-5)


@CONTRACT
def test_the_first_step_is_above_zero_and_the_peak_follows_the_warmup(schedule, shape):
    rate = schedule.build(STEPS)
    assert rate(0) == pytest.approx(2.0 / (WARMUP + 1))
    assert rate(WARMUP) == pytest.approx(2.0)
    last = (STEPS - 1 - WARMUP) / (STEPS - WARMUP)
    assert rate(STEPS - 1) == pytest.approx(2.0 * shape(last), rel=1e-5)
    assert max(float(rate(count)) for count in range(STEPS)) <= 2.0 * (1 + 1e-6)


@pytest.mark.parametrize("warmup", [10, 11])
def test_a_warmup_of_all_steps_is_refused(warmup):
    with pytest.raises(
        ConfigError, match="Cosine.warmup_steps must be below Experiment"
    ):
        Cosine(peak_lr=1.0, warmup_steps=warmup).build(10)


DATA = "Evaluate.data=@RepeatTask()"


@pytest.mark.parametrize(
    "overrides",
    [
        ["Constant.warmup_steps=-5"],
        ["Constant.peak_lr=-1.0"],
        ["adamw.b2=2.0"],
        ["adamw.clip=0.0"],
        ["Decoder.dropout=1.5"],
        ["Attention.dropout=1.0"],
        ["WSD.decay_fraction=0.0", "Experiment.schedule=@WSD()", "WSD.peak_lr=1.0"],
        ["Experiment.microbatches=-2"],
        ["Experiment.steps=0"],
        ["Experiment.log_every=0"],
        ["Experiment.hang_timeout=0.0"],
        ["NextToken.chunk=0"],
        ["DiLoCo.replicas=0", "Experiment.local_sgd=@DiLoCo()"],
        ["DiLoCo.sync_every=0", "Experiment.local_sgd=@DiLoCo()", "DiLoCo.replicas=2"],
        ["Evaluate.every=0", "Experiment.hooks=(@Evaluate(),)", DATA],
    ],
    ids=lambda overrides: overrides[0],
)
def test_a_number_outside_its_range_is_refused_when_a_config_is_read(tiny, overrides):
    name = overrides[0].partition("=")[0]
    with pytest.raises(ConfigError, match=f": {name} is .*: it must be "):
        tiny(*overrides)
