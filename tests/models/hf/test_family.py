"""Configurations from config.json and back, without guesses and without loss."""

import json

import pytest

import lmx
from lmx.config.registry import ConfigError
from lmx.models.hf.api import HFCheckpoint, init_abstract
from lmx.models.hf.family import find_family, load_families, match_family

LLAMA = load_families()["llama"]
SMALL = dict(vocab_size=37, hidden_size=16, intermediate_size=24, num_hidden_layers=2)
SMALL |= dict(num_attention_heads=4)
LLAMA3 = dict(factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0)
LLAMA3 |= dict(original_max_position_embeddings=32)


def make_config(**fields):
    return LLAMA.to_config(SMALL | fields, "config.json")


def position(config):
    return config["model.attention.position"]


@pytest.mark.parametrize("family", load_families().values(), ids=load_families())
def test_every_preset_builds_and_round_trips(family):
    for name, preset in family.presets.items():
        config = family.to_config(preset, name)
        init_abstract(config)
        found, fields = match_family(config)
        assert found is family
        assert family.to_config(fields, name)["model"] == config["model"]


def test_missing_fields_have_the_defaults_of_transformers():
    config = LLAMA.to_config({}, "config.json")
    model = config["model"].fields
    assert (model["vocab"], model["width"], model["depth"]) == (32_000, 4096, 32)
    assert config["model.attention.kv_heads"] == 32
    assert config["model.attention.head_dim"] == 128
    assert config["model.norm.epsilon"] == 1e-6
    assert make_config()["model.attention.head_dim"] == 4
    assert make_config(num_key_value_heads=None)["model.attention.kv_heads"] == 4


@pytest.mark.parametrize(
    "rope",
    [
        dict(rope_theta=5e5, rope_scaling={"rope_type": "llama3", **LLAMA3}),
        dict(rope_theta=5e5, rope_scaling={"type": "llama3", **LLAMA3}),
        dict(rope_parameters={"rope_type": "llama3", "rope_theta": 5e5, **LLAMA3}),
    ],
    ids=["rope_type", "type", "rope_parameters"],
)
def test_rope_scaling_is_read_in_every_form(rope):
    found = position(make_config(**rope))
    assert found.name == "Llama3RoPE"
    want = dict(theta=5e5, factor=8.0, trained_length=32, beta_slow=1.0, beta_fast=4.0)
    assert {name: found.fields[name] for name in want} == want


def test_plain_and_linear_rope_round_trip():
    for rope in (
        dict(rope_theta=7.0, rope_scaling=None),
        dict(rope_theta=7.0, rope_scaling={"rope_type": "linear", "factor": 2.0}),
    ):
        _, fields = match_family(make_config(**rope))
        assert {name: fields[name] for name in rope} == rope


@pytest.mark.parametrize(
    "fields, message",
    [
        (dict(hidden_act="relu"), "hidden_act = 'relu' is not supported"),
        (
            dict(quantization_config={"bits": 4}),
            "quantization_config = .* must be None",
        ),
        (
            dict(attention_bias="yes"),
            "attention_bias = 'yes': lmx supports only False, True",
        ),
        (dict(atention_bias=False), "did you mean 'attention_bias'"),
        (
            dict(logit_scale=2.0),
            "logit_scale = 2.0 is an unknown field of LlamaForCausalLM",
        ),
        (
            dict(tie_word_embeddings="yes"),
            "tie_word_embeddings = 'yes': lmx supports only False",
        ),
        (
            dict(rope_scaling={"type": "longrope"}),
            "rope_type = 'longrope': lmx supports only",
        ),
        (dict(rope_scaling={"type": "linear"}), "'linear' needs factor"),
        (
            dict(rope_scaling={"type": "linear", "factor": 2.0, "mscale": 1.0}),
            "mscale = 1.0 is an unknown field of rope_type 'linear'",
        ),
        (dict(rope_scaling="linear"), "rope_scaling = 'linear' must be an object"),
        (dict(rope_parameters=[7]), r"= \[7\] must be an object"),
        (dict(rope_scaling={"type": [1]}), "{'rope_scaling': {.* of a wrong kind"),
        (dict(rope_theta="x"), "{'rope_theta': 'x'}, a value is of a wrong kind"),
        (dict(tie_word_embeddings=[]), "{'tie_word.* of a wrong kind"),
        (dict(hidden_size="wide"), "hidden_size = 'wide' and num_attention_heads"),
        (dict(num_hidden_layers=2.5), "num_hidden_layers: Decoder.depth must be int"),
    ],
)
def test_unsupported_and_unknown_fields_are_refused_by_name(fields, message):
    with pytest.raises(ConfigError, match=message):
        make_config(**fields)


def test_an_invalid_size_is_refused_with_its_field():
    with pytest.raises(ConfigError, match="num_key_value_heads"):
        init_abstract(make_config(num_key_value_heads=3))


def test_a_model_of_an_unknown_family_is_refused():
    with pytest.raises(ConfigError, match="model_type = 'lama' .* mean 'llama'"):
        find_family({"model_type": "lama"}, "config.json")
    for wrong in (1e9, {"LlamaForCausalLM": 1}, "LlamaForCausalLM", [1e9]):
        with pytest.raises(
            ConfigError, match="architectures = .*only LlamaForCausalLM"
        ):
            find_family({"model_type": "llama", "architectures": wrong}, "config.json")
    stated = {"model_type": "llama", "architectures": ["LlamaForQuestionAnswering"]}
    with pytest.raises(ConfigError, match="only LlamaForCausalLM"):
        find_family(stated, "config.json")


def test_a_broken_config_json_is_refused(llama):
    folder = llama()
    for text, message in [("{", "is not JSON: Exp"), ("[]", "a JSON object, {")]:
        (folder / "config.json").write_text(text)
        with pytest.raises(ConfigError, match=message):
            HFCheckpoint(folder)
    (folder / "config.json").unlink()
    with pytest.raises(ConfigError, match=".*config.json does not exist"):
        HFCheckpoint(folder)


def test_an_experiment_with_the_layers_of_a_family_matches_it():
    family, fields = match_family(
        lmx.load_experiment("experiments/families/llama3_8b.gin")
    )
    assert family is LLAMA
    preset = LLAMA.to_config(LLAMA.presets["llama3_8b"], "preset")
    assert fields == match_family(preset)[1]
    assert json.loads(json.dumps(fields)) == fields


def test_a_model_outside_all_families_is_refused_by_its_difference():
    config = lmx.load_experiment(
        "experiments/families/llama3_8b.gin", ["Attention.logit_cap=30.0"]
    )
    with pytest.raises(ConfigError, match=r"attention\.logit_cap = 30\.0, not None"):
        match_family(config)
