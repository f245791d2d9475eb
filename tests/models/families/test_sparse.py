"""Fields and files of mixture-of-experts families, besides their logits."""

import json
import math
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import lmx
from lmx.config.registry import ConfigError
from lmx.config.value import diff
from lmx.models.hf.family import extract_math_config, load_families, match_family
from lmx.models.hf.fields import list_layers
from tests.parity.sparse import SPARSE
from tests.parity.weights import weights

CASES = {case.name: case.config for case in SPARSE}
GOLDEN = Path(__file__).parents[2] / "golden" / "families" / "deepseek_v3.json"


def make_config(case, **fields):
    given = CASES[case] | fields
    return load_families()[given["model_type"]].to_config(given, "config.json")


@pytest.fixture
def deepseek(tmp_path):
    """Writes a model in bfloat16, router biases in float32, with `more` tensors."""
    page = json.loads(GOLDEN.read_text())

    def write(*more):
        tensors = weights(page["shapes"] | dict.fromkeys(more, [3]))
        kept = {name for name in tensors if name.endswith("correction_bias")}
        for name in tensors.keys() - kept:
            tensors[name] = tensors[name].astype(ml_dtypes.bfloat16)
        save_file(tensors, tmp_path / "model.safetensors")
        (tmp_path / "config.json").write_text(json.dumps(page["config"]))
        return tmp_path, kept

    return write


@pytest.mark.parametrize("case", CASES)
def test_exported_fields_give_the_same_model(case):
    config = make_config(case)
    family, fields = match_family(config)
    assert family.model_type == CASES[case]["model_type"]
    again = family.to_config(json.loads(json.dumps(fields)), "again")
    assert not diff(
        extract_math_config(config["model"]), extract_math_config(again["model"])
    )


@pytest.mark.parametrize(
    "fields, dense",
    [
        (dict(), []),
        (dict(decoder_sparse_step=2), [0, 2, 4]),
        (dict(mlp_only_layers=[1, 4]), [1, 4]),
        (dict(decoder_sparse_step=3, mlp_only_layers=[2]), [0, 1, 2, 3, 4]),
    ],
)
def test_qwen3_moe_has_experts_in_every_step_th_layer_but_those_named(fields, dense):
    config = make_config("qwen3_moe", num_hidden_layers=6, **fields)
    kinds = [mlp.name for mlp in list_layers(config, "mlp")]
    assert kinds == ["SwiGLU" if i in dense else "MoE" for i in range(6)]


def test_qwen3_moe_has_a_window_only_if_use_sliding_window():
    given = {"sliding_window": 7}
    for used, window in ((True, 7), (False, None)):
        config = make_config("qwen3_moe", use_sliding_window=used, **given)
        assert config["model.attention.window"] == window


@pytest.mark.parametrize("dense, lead", [(0, 0), (2, 2), (9, 3)])
def test_the_first_layers_of_deepseek_are_dense(dense, lead):
    kinds = list_layers(make_config("deepseek_v3", first_k_dense_replace=dense), "mlp")
    assert [mlp.name for mlp in kinds] == ["SwiGLU"] * lead + ["MoE"] * (3 - lead)


def test_deepseek_latents_have_their_own_norm_epsilon():
    config = make_config("deepseek_v3", rms_norm_eps=0.25)
    assert config["model.norm.epsilon"] == 0.25
    assert config["model.attention.norm.epsilon"] == 1e-6


def test_the_attention_factor_of_deepseek_is_in_its_scale():
    """0.1 ln(40) + 1, squared: for queries and for keys."""
    config = make_config("deepseek_v3")
    assert config["model.attention.position.attention_factor"] == 1.0
    want = (0.1 * math.log(40) + 1) ** 2 / math.sqrt(12 + 8)
    assert config["model.attention.scale"] == pytest.approx(want, rel=1e-12)


def test_router_biases_of_deepseek_stay_in_float32(deepseek):
    folder, kept = deepseek()
    lmx.save_hf(lmx.load_hf(folder), folder / "exported")
    given = load_file(folder / "model.safetensors")
    exported = load_file(folder / "exported" / "model.safetensors")
    assert kept and exported.keys() == given.keys()
    for name, tensor in given.items():
        assert exported[name].dtype == ("float32" if name in kept else "bfloat16")
        np.testing.assert_array_equal(exported[name], tensor)


def test_multi_token_layers_of_deepseek_are_ignored(deepseek):
    lmx.load_hf(deepseek("model.layers.3.eh_proj.weight")[0])
    with pytest.raises(
        ConfigError, match=r"no parameter for model\.layers\.4\.eh_proj"
    ):
        lmx.load_hf(deepseek("model.layers.4.eh_proj.weight")[0])


def test_gpt_oss_has_yarn_by_default():
    config = make_config("gpt_oss", rope_scaling=None, rope_theta=7.0)
    position = config["model.attention.0.position"]
    assert position.name == "YaRN" and position.fields["theta"] == 7.0
    assert position.fields["factor"] == 32.0 and not position.fields["truncate"]
    plain = match_family(make_config("gpt_oss_full"))[1]
    assert plain["rope_scaling"] == {"rope_type": "default"}


@pytest.mark.parametrize(
    "case, fields, message",
    [
        (
            "gpt_oss",
            dict(quantization_config={"quant_method": "mxfp4"}),
            "quantization_config = .* must be None",
        ),
        (
            "deepseek_v3",
            dict(attention_bias=True),
            "attention_bias = True is not supported",
        ),
        (
            "deepseek_v3",
            dict(scoring_func="softmax"),
            "scoring_func = 'softmax' is not",
        ),
        ("qwen3_moe", dict(mlp_only_layers=[0, 1, 2]), "such a model is a Qwen3For"),
        ("mixtral", dict(num_local_expert=3), "did you mean 'num_local_experts'"),
    ],
)
def test_unsupported_fields_are_refused_by_name(case, fields, message):
    with pytest.raises(ConfigError, match=message):
        make_config(case, **fields)
