"""Numbers of datasets are refused outside their ranges while a config is read."""

import pytest

from lmx.config.coerce import coerce_field
from lmx.config.registry import ConfigError, config_fields, find
from lmx.config.resolve import load
from lmx.data.sampling.mixture import Mixture

BAD = [
    ("MixtureComponent.weight", (-0.5, 0.0, float("inf"), float("nan"))),
    ("MixtureComponent.loss_weight", (-1.0, float("inf"))),
    ("PiecewiseConstant.values", ((1, -0.5), (1, float("inf")), (float("nan"),))),
    ("PiecewiseConstant.boundaries", ((0,), (-3, 5))),
    ("PauseTokens.rate", (-0.1, float("inf"), float("nan"))),
    ("FillInTheMiddle.rate", (1.5,)),
    ("FillInTheMiddle.reserved_tokens", (2,)),
    ("SpanCorruption.noise_density", (0.0, 1.0)),
    ("SpanCorruption.mean_span_length", (0.5, float("inf"))),
    ("BuildTokenStore.shard_bytes", (0,)),
    ("BuildTokenStore.max_invalid_fraction", (1.5,)),
    ("BuildTokenStore.max_empty_fraction", (-0.1,)),
    ("ProcessPool.workers", (0,)),
    ("MinHash.bands", (0,)),
    ("Dedup.threshold", (0.0, 1.5)),
    ("GopherRepetition.max_top_ngram_chars", ((0.2, 1.2),)),
    ("HoldoutTail.fraction", (1.0,)),
    ("HoldoutDocuments.fraction", (-0.1,)),
    ("Stdlib.holdout_fraction", (4.0,)),
    ("BPE.vocab", (257,)),
    ("RepeatTask.vocab", (0,)),
    ("Copy.noise", (1.5,)),
    ("Copy.sequence_length", (1,)),
    ("Arithmetic.modulus", (1,)),
    ("EntropyGap.batches", (0,)),
]
CASES = [(name, value) for name, values in BAD for value in values]


@pytest.mark.parametrize(("name", "value"), CASES, ids=str)
def test_a_number_outside_its_range_is_refused(name, value):
    owner, parameter = name.split(".")
    field = config_fields(find(owner, "test"))[parameter]
    with pytest.raises(ConfigError, match=f"config:1: {name} "):
        coerce_field(value, field.annotation, name, "config:1", field.ranges)


MIXTURE = """
MixtureComponent.source = @RepeatTask()
RepeatTask.vocab = 8
RepeatTask.batch_size = 4
RepeatTask.sequence_length = 8
Mixture.components = {"a": @a/MixtureComponent(), "b": @MixtureComponent()}
a/MixtureComponent.weight = """


@pytest.mark.parametrize(
    "weight", ["-1.0", "0", "1e999", "@PiecewiseConstant()"], ids=str
)
def test_weights_of_a_mixture_are_refused_before_anything_is_built(tmp_path, weight):
    config = tmp_path / "mixture.gin"
    schedule = (
        "\nPiecewiseConstant.values = [1, -1]\nPiecewiseConstant.boundaries = [9]"
    )
    config.write_text(f"{MIXTURE}{weight}{schedule if '@' in weight else ''}")
    name = "PiecewiseConstant.values" if "@" in weight else "MixtureComponent.weight"
    with pytest.raises(ConfigError, match=rf"mixture.gin:\d+: {name} is .*, and fini"):
        load([config], root=Mixture)
