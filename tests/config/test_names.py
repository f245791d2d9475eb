"""The names and choices that an error offers."""

from collections.abc import Callable

import pytest

from lmx.config.coerce import coerce_field
from lmx.config.names import SYNONYMS, find_nearest
from lmx.config.registry import ConfigError, config_fields, find, import_all
from lmx.config.resolve import load
from lmx.layers.mlp import FeedForward


@pytest.mark.parametrize(
    ("name", "names", "nearest"),
    [
        ("swiglu", ["MoE", "SwiGLU"], "SwiGLU"),
        ("layer_norm", ["LayerNorm", "Norm"], "LayerNorm"),
        ("lr", ["peak_lr", "warmup_steps"], "peak_lr"),
        ("n_layers", ["depth", "width"], "depth"),
        ("dim", ["depth", "width"], "width"),
        ("model.n_layers", ["data.depth", "model.depth"], "model.depth"),
        ("wide", ["depth"], None),
    ],
)
def test_case_and_synonyms_of_other_frameworks_are_understood(name, names, nearest):
    assert find_nearest(name, names) == nearest


def test_what_synonyms_stand_for_exists():
    things = {name: find(name, "here") for name in import_all()}
    parameters = {name for thing in things.values() for name in config_fields(thing)}
    assert SYNONYMS.keys() <= things.keys() | parameters
    words = [word for text in SYNONYMS.values() for word in text.split()]
    assert len(words) == len({*words})


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("Decoder.mlp=swiglu", "got 'swiglu': write @SwiGLU"),
        ("Decoder.mlp=@swiglu", "did you mean 'SwiGLU'?"),
        ("Decoder.mlp=@Zzzz", "own: --import MODULE); one of @ClampedMoE"),
        ("Decoder.mlp=@RoPE", "@SwiGLU (`lmx config list FeedForward`)"),
        ("Experiment.optimizer=adam", "write @adamw"),
        ("Experiment.schedule=cosine", "write @Cosine()"),
        ("Experiment.hooks=[@Zzzz()]", "(`lmx config list HookConfig`)"),
        ("Decoder.n_layers=2", "did you mean 'depth'?"),
        ("lr=1", "there is WSD.peak_lr"),
    ],
)
def test_an_error_lists_what_can_stand_in_the_place(override, message):
    root = find("Experiment", "here")
    with pytest.raises(ConfigError) as error:
        load(["quickstart"], [override], root=root)
    assert message in f"{error.value}"


def test_a_place_of_numbers_lists_no_choices():
    with pytest.raises(ConfigError) as error:
        coerce_field("x", int | None, "a.b", "here")
    assert f"{error.value}".endswith("got 'x'")
    with pytest.raises(ConfigError, match="one of @"):
        coerce_field(3, Callable[..., FeedForward], "a.b", "here")
