"""Compares lmx with the results of transformers.

`python -m tests.parity.compare FOLDER`, after `peer.py write FOLDER`. Also exports each
model, for transformers to read.
"""

import multiprocessing
import os
import pathlib
import sys
import time
from collections.abc import Mapping
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from typing import Any

from tests.xla_flags import FLAGS

os.environ["JAX_PLATFORMS"] = "cpu"  # as transformers
os.environ["XLA_FLAGS"] = FLAGS

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, PyTree
from safetensors.numpy import load_file

import lmx
from lmx.infer.beam import BeamConfig, BeamSearch
from lmx.infer.generate import Generator
from lmx.infer.sample import Sampler
from lmx.models.trained_model import TrainedModel
from tests.parity.case import Case
from tests.parity.cases import BEAMS, CASES, GRADIENTS, NEW, SEARCHES

LIMIT = 1e-4  # of the largest number compared
Results = Mapping[str, Any]


def relative_error(got: np.ndarray, want: np.ndarray) -> float:
    """The largest difference, relative to the largest number."""
    return float(np.abs(got - want).max() / np.abs(want).max())


def compare_logits(
    trained: TrainedModel, tokens: np.ndarray, want: np.ndarray
) -> float:
    model = jax.jit(lambda params, x: nnx.merge(trained.graph, params)(x))
    return relative_error(np.asarray(model(trained.params, tokens)), want)


def list_prompts(results: Results) -> list[list[int]]:
    pairs = zip(results["prompts"], results["mask"], strict=True)
    return [row[mask].tolist() for row, mask in pairs]


def compare_greedy(trained: TrainedModel, results: Results) -> int:
    """The number of different tokens."""
    sampler = Sampler(temperature=0.0)
    generator = Generator(trained.graph, trained.params, sampler, seed=0)
    pieces = [piece.tokens for piece in generator(list_prompts(results), NEW)]
    return int((np.concatenate(pieces, axis=1) != results["greedy"]).sum())


def compare_beams(trained: TrainedModel, results: Results) -> float:
    """The relative error of the scores; infinite if the tokens differ."""
    worst, end = 0.0, int(results["end"])
    for i, options in enumerate(SEARCHES):
        beam = BeamConfig(
            beams=4,
            length_penalty=options["length_penalty"],
            early_stopping=options["early_stopping"],
        )
        search = BeamSearch(trained.graph, trained.params, beam)
        found = sum(search(list_prompts(results), NEW, {end}), [])
        for result, row in zip(found, results[f"beams/{i}"], strict=True):
            stops = np.flatnonzero(row == end)
            if result.tokens != row[: stops[0] + 1 if stops.size else None].tolist():
                return np.inf
        scores = np.array([result.score for result in found])
        worst = max(worst, relative_error(scores, results[f"scores/{i}"]))
    return worst


def loss(graph: nnx.GraphDef, tokens: np.ndarray, params: PyTree) -> Float[Array, ""]:
    """Nats per token, of all tokens but the first of each row."""
    logprobs_BTV = jax.nn.log_softmax(nnx.merge(graph, params)(tokens)[:, :-1])
    return -jnp.take_along_axis(logprobs_BTV, tokens[:, 1:, None], axis=-1).mean()


def compare_gradient(
    trained: TrainedModel, results: Results, folder: pathlib.Path
) -> float:
    """The largest relative error of a gradient; gradients are saved as weights."""
    gradient = jax.jit(
        jax.value_and_grad(partial(loss, trained.graph, results["tokens"]))
    )
    value, params = gradient(trained.params)
    lmx.save_hf(trained._replace(params=params), folder / "backward")
    got = load_file(folder / "backward" / "model.safetensors")
    want = load_file(folder / "gradient" / "model.safetensors")
    if got.keys() != want.keys():
        raise ValueError(
            f"the tensors with gradients differ: {got.keys() ^ want.keys()}"
        )
    each = [relative_error(got[name], want[name]) for name in want]
    return max(relative_error(np.asarray(value), results["loss"]), *each)


def compare_case(case: Case, folder: pathlib.Path) -> dict[str, float]:
    """The relative error of each comparison."""
    with np.load(folder / "answers.npz") as file:
        results = dict(file)
    trained = lmx.load_hf(folder)
    lmx.save_hf(trained, folder / "exported")
    found = {"logits": compare_logits(trained, results["tokens"], results["logits"])}
    found["greedy"] = compare_greedy(trained, results)
    if case.name in BEAMS:
        found["beams"] = compare_beams(trained, results)
    if case.name in GRADIENTS:
        found["gradient"] = compare_gradient(trained, results, folder)
    return found


def report_case(root: pathlib.Path, case: Case) -> bool:
    """Prints the errors of a case. Returns whether it differs."""
    try:
        found = compare_case(case, root / case.name)
        good = all(value <= LIMIT for value in found.values())
        text = "  ".join(f"{name} {value:.0e}" for name, value in found.items())
    except ValueError as error:
        good, text = False, str(error)
    print(f"{case.name:20} {'' if good else 'DIFFERS  '}{text}", flush=True)
    return not good


def main() -> None:
    root, start = pathlib.Path(sys.argv[1]), time.monotonic()
    with ProcessPoolExecutor(2, multiprocessing.get_context("spawn")) as pool:
        wrong = sum(pool.map(partial(report_case, root), CASES.values()))
    took = time.monotonic() - start
    print(f"{len(CASES) - wrong} of {len(CASES)} equal in lmx, {took:.0f} s")
    sys.exit(bool(wrong))


if __name__ == "__main__":
    main()
