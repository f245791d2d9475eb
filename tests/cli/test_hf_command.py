"""`lmx import hf` and `lmx export hf`."""

import json
import os

import numpy as np
from safetensors.numpy import load_file

from lmx import load_hf, save_hf
from tests.data.tokenizer.test_hf_folder import by_bytes


def tensors(folder):
    return load_file(folder / "model.safetensors")


def test_a_model_becomes_a_run_that_generates_and_a_model_again(lmx, work, llama):
    folder = llama(vocab_size=310, eos_token_id=1)
    by_bytes().save(str(folder / "tokenizer.json"))
    status, out, _ = lmx("import", "hf", str(folder), "run", "--json")
    assert status == 0
    out = json.loads(out)
    assert out["run"] == "run" and out["dtype"] == "float32"
    status, out, _ = lmx("generate", "run", "--prompt", "the", "--tokens", "4")
    assert status == 0 and out.startswith("the")
    status, out, _ = lmx("export", "hf", "run", "out")
    assert status == 0 and "step 0" in out
    old, new = tensors(folder), tensors(work / "out")
    assert old.keys() == new.keys()
    for name, tensor in old.items():
        np.testing.assert_array_equal(tensor, new[name])
    name = "tokenizer.json"
    assert (work / "out" / name).read_text() == (folder / name).read_text()


def test_an_imported_run_shows_its_model_and_cannot_be_trained(lmx, work, llama):
    assert lmx("import", "hf", str(llama()), "run")[0] == 0
    status, out, _ = lmx("config", "show", "run")
    assert status == 0 and "model.attention.head_dim = 6" in out
    status, _, error = lmx("train", "run")
    assert (
        status == 2 and "@Pretrained, which has a model but no training recipe" in error
    )
    status, _, error = lmx("generate", "run")
    assert status == 2 and "no tokenizer" in error


def test_wrong_arguments_are_refused_with_the_usage(lmx, work, llama):
    for words in (("import", "a", "b"), ("import", "hf", "a"), ("export", "hf")):
        status, _, error = lmx(*words)
        assert status == 2 and f"lmx {words[0]} " in error
    status, _, error = lmx("import", "hf", str(llama()), "run", "--dtype", "int8")
    assert status == 2 and "--dtype is int8: must be one of float64, float32" in error
    status, _, error = lmx("export", "hf", "gone", "out")
    assert status == 2 and "gone is not a run" in error
    assert not (work / "run").exists() and not (work / "out").exists()


def test_float64_stays_float64_from_folder_to_folder(lmx, work, llama):
    folder = llama(np.float64)
    assert lmx("import", "hf", str(folder), "run")[0] == 0
    assert lmx("export", "hf", "run", "out")[0] == 0
    old, new = tensors(folder), tensors(work / "out")
    for name, tensor in old.items():
        assert new[name].dtype == np.float64
        np.testing.assert_array_equal(tensor, new[name])


def test_a_mount_point_and_what_a_link_names_are_filled(work, llama, monkeypatch):
    for name in ("disk", "folder"):
        (work / name).mkdir()
    os.symlink("folder", "link")
    monkeypatch.setattr(os.path, "ismount", lambda path: path == work / "disk")
    inode = (work / "disk").stat().st_ino
    source = llama()
    trained = load_hf(source)
    for name in ("disk", "link"):
        save_hf(trained, name)
        assert tensors(work / name).keys() == tensors(source).keys()
    assert (work / "disk").stat().st_ino == inode and (work / "link").is_symlink()


def test_a_model_that_no_family_can_express_is_refused(lmx, work, trained):
    status, _, error = lmx("export", "hf", trained.run, "out")
    assert status == 2 and "attention.logit_cap = 20.0, not None" in error
    assert not (work / "out").exists()
