"""Tiny models of all families answer as in Hugging Face transformers.

`families/` is made by `python -m tests.parity.peer golden tests/golden/families`, where
transformers is. `make parity` compares more, and with the library itself.
"""

import json
from pathlib import Path

import jax
import numpy as np
import pytest
from flax import nnx
from safetensors.numpy import load_file, save_file

import lmx
from lmx.infer.generate import Generator
from lmx.infer.sample import Sampler
from tests.parity.cases import NEW, PROMPTS
from tests.parity.weights import weights

PAGES = sorted((Path(__file__).parent / "families").glob("*.json"))


@pytest.fixture(scope="module", params=PAGES, ids=lambda page: page.stem)
def family(request, tmp_path_factory):
    page = json.loads(request.param.read_text())
    folder = tmp_path_factory.mktemp(request.param.stem)
    (folder / "config.json").write_text(json.dumps(page["config"]))
    save_file(weights(page["shapes"]), folder / "model.safetensors")
    return page, folder, lmx.load_hf(folder)


def test_logits_are_those_of_transformers(family):
    page, _, trained = family
    model = jax.jit(lambda params, x: nnx.merge(trained.graph, params)(x))
    got = model(trained.params, np.array(page["tokens"]))[:, 19::20]
    want = np.array(page["logits"])
    np.testing.assert_allclose(got, want, rtol=0, atol=1e-4 * np.abs(want).max())


def test_greedy_tokens_of_a_padded_batch_are_those_of_transformers(family):
    page, _, trained = family
    sampler = Sampler(temperature=0.0)
    generator = Generator(trained.graph, trained.params, sampler, seed=0)
    prompts = [row[-n:] for row, n in zip(page["prompts"], PROMPTS, strict=True)]
    pieces = [piece.tokens for piece in generator(prompts, NEW)]
    np.testing.assert_array_equal(np.concatenate(pieces, axis=1), page["greedy"])


def test_what_is_exported_is_what_was_imported(family):
    page, folder, trained = family
    lmx.save_hf(trained, folder / "exported")
    again = load_file(folder / "exported" / "model.safetensors")
    again = {name.removeprefix("transformer."): w for name, w in again.items()}
    given = weights(page["shapes"])
    assert again.keys() == {name for name in given if not name.endswith(".attn.bias")}
    for name, tensor in again.items():
        np.testing.assert_array_equal(tensor, given[name], err_msg=name)
