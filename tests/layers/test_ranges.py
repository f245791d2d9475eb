"""Numbers out of the ranges of layers are refused before anything is built."""

import pytest

from lmx.config.gin import parse_text
from lmx.config.registry import ConfigError
from lmx.config.resolve import resolve

HEADS = "Attention.heads = 4; Attention.kv_heads = 2; Attention.head_dim = 4; "


@pytest.mark.parametrize(
    ("text", "rule"),
    [
        (HEADS + "Attention.window = 0", "above 0"),
        (HEADS + "Attention.dropout = 1.5", "0 or more, and below 1"),
        (HEADS + "Attention.logit_cap = 0.0", "above 0"),
        ("ALiBi.bias_max = -1.0", "0 or more"),
        ("CapacityDispatch.capacity_factor = 0.0", "above 0"),
        ("CoPE.limit = 1", "2 or more"),
        ("FanIn.embed = -1.0", "0 or more"),
        ("LearnedPosition.max_length = 0", "above 0"),
        ("Megablox.tile = 100", "a multiple of 128"),
        ("MultiTokenPrediction.modules = 0", "above 0"),
        ("PipelineSchedule.microbatches = 0", "above 0"),
        ("PipelineSchedule.virtual_stages = 0", "above 0"),
        ("PositionInterpolation.factor = 0.0", "above 0"),
        ("RingAttention.block = 0", "above 0"),
        ("RoPE.rotary_fraction = 1.5", "above 0, and at most 1"),
        ("SigmoidRouter.top_k = 0", "above 0"),
        ("ShortConv.reach = 0", "above 0"),
        ("SplashAttention.block = 200", "a multiple of 128"),
    ],
)
def test_a_number_out_of_range_is_refused(text, rule):
    """The ranges stand beside the types, so that `lmx config show` knows them."""
    lines = text.split("; ")
    field, _, value = lines[-1].partition(" = ")
    message = f"x.gin:{len(lines)}: {field} is {value}: it must be {rule}"
    with pytest.raises(ConfigError, match=message):
        resolve(parse_text("\n".join(lines), "x.gin"), field.partition(".")[0])
