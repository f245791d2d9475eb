"""Tiny models of all families agree with Hugging Face transformers.

`python -m tests.parity.peer golden tests/golden/families` writes `families/`, with
transformers installed. `make parity` compares more, with the library itself.
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

CASES = sorted((Path(__file__).parent / "families").glob("*.json"))

# One family for each kind of cache and of positions in it.
CACHES = {"deepseek_v3", "gemma3", "gpt2", "gpt_oss", "qwen3"}


@pytest.fixture(scope="module", params=CASES, ids=lambda path: path.stem)
def family(request, tmp_path_factory):
    case = json.loads(request.param.read_text())
    folder = tmp_path_factory.mktemp(request.param.stem)
    (folder / "config.json").write_text(json.dumps(case["config"]))
    save_file(weights(case["shapes"]), folder / "model.safetensors")
    return case, folder, lmx.load_hf(folder)


def test_logits_equal_those_of_transformers(family):
    case, _, trained = family
    model = jax.jit(lambda params, x: nnx.merge(trained.graph, params)(x))
    logits = model(trained.params, np.array(case["tokens"]))[:, 19::20]
    expected = np.array(case["logits"])
    np.testing.assert_allclose(
        logits, expected, rtol=0, atol=1e-4 * np.abs(expected).max()
    )


@pytest.mark.parametrize(
    "family",
    [
        path if path.stem in CACHES else pytest.param(path, marks=pytest.mark.nightly)
        for path in CASES
    ],
    ids=lambda path: path.stem,
    indirect=True,
)
def test_greedy_tokens_of_a_padded_batch_equal_those_of_transformers(family):
    case, _, trained = family
    sampler = Sampler(temperature=0.0)
    generator = Generator(trained.graph, trained.params, sampler, seed=0)
    prompts = [row[-n:] for row, n in zip(case["prompts"], PROMPTS, strict=True)]
    pieces = [piece.tokens for piece in generator(prompts, NEW)]
    np.testing.assert_array_equal(np.concatenate(pieces, axis=1), case["greedy"])


def test_exported_weights_equal_imported_weights(family):
    case, folder, trained = family
    lmx.save_hf(trained, folder / "exported")
    exported = load_file(folder / "exported" / "model.safetensors")
    exported = {n.removeprefix("transformer."): w for n, w in exported.items()}
    imported = weights(case["shapes"])
    assert exported.keys() == {
        name for name in imported if not name.endswith(".attn.bias")
    }
    for name, tensor in exported.items():
        np.testing.assert_array_equal(tensor, imported[name], err_msg=name)
