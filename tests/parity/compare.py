"""The side of lmx: answers what transformers did, and says how far apart they are.

`python -m tests.parity.compare FOLDER`, where `peer.py` has written. Each model is also
exported, for transformers to read.
"""

import os
import pathlib
import sys
import time
from collections.abc import Mapping
from functools import partial
from typing import Any

from tests.xla_flags import FLAGS

os.environ["JAX_PLATFORMS"] = "cpu"  # the arithmetic of the other side
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
Answers = Mapping[str, Any]


def apart(got: np.ndarray, want: np.ndarray) -> float:
    """The largest difference, relative to the largest number."""
    return float(np.abs(got - want).max() / np.abs(want).max())


def logits_apart(trained: TrainedModel, tokens: np.ndarray, want: np.ndarray) -> float:
    model = jax.jit(lambda params, x: nnx.merge(trained.graph, params)(x))
    return apart(np.asarray(model(trained.params, tokens)), want)


def prompts_of(made: Answers) -> list[list[int]]:
    pairs = zip(made["prompts"], made["mask"], strict=True)
    return [row[live].tolist() for row, live in pairs]


def greedy_apart(trained: TrainedModel, made: Answers) -> int:
    """How many of the tokens are others."""
    sampler = Sampler(temperature=0.0)
    generator = Generator(trained.graph, trained.params, sampler, seed=0)
    pieces = [piece.tokens for piece in generator(prompts_of(made), NEW)]
    return int((np.concatenate(pieces, axis=1) != made["greedy"]).sum())


def beams_apart(trained: TrainedModel, made: Answers) -> float:
    """How far the scores are apart; infinite where the tokens are others."""
    worst, end = 0.0, int(made["end"])
    for i, options in enumerate(SEARCHES):
        until = "full" if options["early_stopping"] else "likely"
        beam = BeamConfig(
            beams=4, length_penalty=options["length_penalty"], early_stopping=until
        )
        search = BeamSearch(trained.graph, trained.params, beam)
        found = sum(search(prompts_of(made), NEW, {end}), [])
        for result, row in zip(found, made[f"beams/{i}"], strict=True):
            stops = np.flatnonzero(row == end)
            if result.tokens != row[: stops[0] + 1 if stops.size else None].tolist():
                return np.inf
        scores = np.array([result.score for result in found])
        worst = max(worst, apart(scores, made[f"scores/{i}"]))
    return worst


def loss(graph: nnx.GraphDef, tokens: np.ndarray, params: PyTree) -> Float[Array, ""]:
    """Nats per token, of all tokens but the first of each row."""
    logprobs_BTV = jax.nn.log_softmax(nnx.merge(graph, params)(tokens)[:, :-1])
    return -jnp.take_along_axis(logprobs_BTV, tokens[:, 1:, None], axis=-1).mean()


def gradient_apart(trained: TrainedModel, made: Answers, folder: pathlib.Path) -> float:
    """Of the tensor whose gradient is furthest off; gradients are saved as weights."""
    gradient = jax.jit(jax.value_and_grad(partial(loss, trained.graph, made["tokens"])))
    value, params = gradient(trained.params)
    lmx.save_hf(trained._replace(params=params), folder / "backward")
    got = load_file(folder / "backward" / "model.safetensors")
    want = load_file(folder / "gradient" / "model.safetensors")
    if got.keys() != want.keys():
        raise ValueError(f"gradients of other tensors: {got.keys() ^ want.keys()}")
    each = [apart(got[name], want[name]) for name in want]
    return max(apart(np.asarray(value), made["loss"]), *each)


def compared(case: Case, folder: pathlib.Path) -> dict[str, float]:
    """What was compared, and how far it is apart."""
    with np.load(folder / "answers.npz") as file:
        made = dict(file)
    trained = lmx.load_hf(folder)
    lmx.save_hf(trained, folder / "exported")
    found = {"logits": logits_apart(trained, made["tokens"], made["logits"])}
    found["greedy"] = greedy_apart(trained, made)
    if case.name in BEAMS:
        found["beams"] = beams_apart(trained, made)
    if case.name in GRADIENTS:
        found["gradient"] = gradient_apart(trained, made, folder)
    return found


def main() -> None:
    root, began, wrong = pathlib.Path(sys.argv[1]), time.monotonic(), 0
    for case in CASES.values():
        try:
            found = compared(case, root / case.name)
            good = all(value <= LIMIT for value in found.values())
            said = "  ".join(f"{name} {value:.0e}" for name, value in found.items())
        except ValueError as error:
            good, said = False, str(error)
        wrong += not good
        print(f"{case.name:20} {'' if good else 'DIFFERS  '}{said}", flush=True)
    took = time.monotonic() - began
    print(f"{len(CASES) - wrong} of {len(CASES)} equal in lmx, {took:.0f} s")
    sys.exit(bool(wrong))


if __name__ == "__main__":
    main()
