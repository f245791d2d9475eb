"""Out and back again: folders as models, as runs, and as the same folders."""

import json
import os

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from flax import nnx
from safetensors.numpy import load_file

import lmx
from lmx.config.registry import ConfigError
from lmx.core.sharding import Mesh
from lmx.models.hf.api import HFCheckpoint, load_model, save_hf
from lmx.models.trained_model import TrainedModel
from lmx.train.checkpoint.import_hf import import_hf
from tests.hash_init import HashInit


def tensors(folder):
    """Everything in the files of weights, as their own library reads it."""
    found = {}
    for file in folder.glob("*.safetensors"):
        found |= load_file(file)
    return found


NAME = "max_position_embeddings"


def read_json(folder, name="config.json"):
    return json.loads((folder / name).read_text())


@pytest.mark.parametrize("files", [1, 3])
@pytest.mark.parametrize("dtype", [np.float32, np.float16, ml_dtypes.bfloat16])
def test_a_run_gives_back_the_bytes_it_was_made_of(llama, tmp_path, dtype, files):
    folder, run, out = llama(dtype, files), tmp_path / "run", tmp_path / "out"
    import_hf(folder, run)
    lmx.save_hf(lmx.restore(run), out)
    before, after = HFCheckpoint(folder).weights, HFCheckpoint(out).weights
    assert before.tensors.keys() == after.tensors.keys()
    for name in before.tensors:
        old, new = before.view(name), after.view(name)
        assert (old.dtype, old.shape) == (new.dtype, new.shape)
        assert old.tobytes() == new.tobytes()


def test_config_json_comes_back_with_what_changes_no_logit(llama, tmp_path):
    folder = llama(dtype=np.float16, torch_dtype="float16", bos_token_id=7)
    (folder / "generation_config.json").write_text('{"eos_token_id": [1, 2]}')
    import_hf(folder, tmp_path / "run")
    lmx.save_hf(lmx.restore(tmp_path / "run"), tmp_path / "out")
    was, now = read_json(folder), read_json(tmp_path / "out")
    assert was.pop("torch_dtype") == now.pop("dtype")
    assert was.items() <= now.items()
    assert now["eos_token_id"] == [1, 2] and now["bos_token_id"] == 7
    name = "generation_config.json"
    assert read_json(tmp_path / "out", name) == read_json(folder, name)


def test_tied_weights_are_written_once(llama, tmp_path):
    lmx.save_hf(lmx.load_hf(llama(tie_word_embeddings=True)), tmp_path / "out")
    assert "lm_head.weight" not in tensors(tmp_path / "out")
    assert read_json(tmp_path / "out")["tie_word_embeddings"] is True


def test_an_export_in_shards_is_the_export_in_one(llama, tmp_path):
    trained = lmx.load_hf(llama())
    save_hf(trained, tmp_path / "one")
    save_hf(trained, tmp_path / "many", shard_bytes=5000)
    assert len([*(tmp_path / "many").glob("*.safetensors")]) > 3
    one, many = tensors(tmp_path / "one"), tensors(tmp_path / "many")
    assert one.keys() == many.keys()
    for name, tensor in one.items():
        np.testing.assert_array_equal(tensor, many[name])


def test_a_model_on_a_mesh_is_the_model_on_one_device(llama, tmp_path):
    folder = llama(vocab_size=40, num_attention_heads=8, num_key_value_heads=8)
    one = lmx.load_hf(folder)
    source = HFCheckpoint(folder)
    many = load_model(source, mesh=Mesh(fsdp=4, tensor=2))
    assert len(many.model.embedding[...].sharding.device_set) == 8
    assert source.weights.bytes_read == sum(
        t.nbytes for t in source.weights.tensors.values()
    )
    jax.tree.map(np.testing.assert_array_equal, one.params, many.params)
    save_hf(many, tmp_path / "out")
    for name, tensor in tensors(tmp_path / "out").items():
        np.testing.assert_array_equal(tensor, HFCheckpoint(folder).weights.view(name))


def test_another_dtype_rounds_each_number_once(llama, weights):
    model = lmx.load_hf(llama(), dtype="bfloat16").model
    want = weights["model.embed_tokens.weight"].astype(ml_dtypes.bfloat16)
    np.testing.assert_array_equal(model.embedding[...], want)


def test_float64_asks_for_64_bits(llama):
    folder = llama(np.float64)
    with pytest.raises(ConfigError, match="are float64 and jax is set to 32 bits"):
        lmx.load_hf(folder)
    with jax.enable_x64(True):
        assert lmx.load_hf(folder).model.embedding[...].dtype == "float64"
    assert lmx.load_hf(folder, dtype="float32").model.embedding[...].dtype == "float32"


def test_what_fails_leaves_nothing_behind(llama, tmp_path):
    before = sorted(os.listdir(tmp_path))
    folder = llama(drop=["model.norm.weight"])
    with pytest.raises(ConfigError, match="lack model.norm.weight"):
        import_hf(folder, tmp_path / "runs" / "here")
    assert sorted(os.listdir(tmp_path)) == sorted([*before, "llama"])


def test_a_folder_with_something_in_it_is_refused(llama, tmp_path):
    folder = llama()
    with pytest.raises(ConfigError, match="exists and is not empty"):
        import_hf(folder, folder)
    with pytest.raises(ConfigError, match="exists and is not empty"):
        lmx.save_hf(lmx.load_hf(folder), folder)


def test_the_run_is_named_by_what_is_in_the_files(llama, tmp_path):
    ids = set()
    for number, extra in enumerate([{}, {}, {"model.norm.weight": np.ones(16, "f4")}]):
        run = tmp_path / f"run{number}"
        import_hf(llama(extra=extra), run)
        ids.add(lmx.restore(run).config.run_id())
    assert len(ids) == 2


@pytest.mark.parametrize(
    "imported, exported", [({}, 16), ({NAME: 4}, 16), ({NAME: 64}, 64)]
)
def test_an_export_has_the_longest_context_of_import_and_training(
    tmp_path, tiny, imported, exported
):
    config = tiny()
    graph, params = nnx.split(config.build().model(nnx.Rngs(0), init=HashInit()))
    origin = {"family": "llama", "hf_fields": imported, "generation": {}}
    save_hf(TrainedModel(config, 5, graph, params, None, origin), tmp_path / "out")
    assert read_json(tmp_path / "out")[NAME] == exported


def test_a_run_trained_here_is_exported_and_loads_to_the_same_logits(tmp_path, tiny):
    config = tiny()
    graph, params = nnx.split(config.build().model(nnx.Rngs(0), init=HashInit()))
    save_hf(TrainedModel(config, 5, graph, params, None), tmp_path / "out")
    back = lmx.load_hf(tmp_path / "out")
    tokens = jnp.arange(8)[None]
    run = jax.jit(lambda model: model(tokens))
    want = run(nnx.merge(graph, params))
    np.testing.assert_array_equal(run(back.model), want)
