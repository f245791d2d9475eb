"""How much of a GPU a training step uses: `python benchmarks/gpu.py [--tiny]`.

Needs jax, flax, optax, jaxtyping and einops. A 124M and a 1B decoder in bfloat16 on one
device, rows of one document each, in turn with a large product of matrices, which shows
what the device reaches at that hour; several rounds. `--tiny` tries the code on any
machine, and says nothing about its speed.
"""

import argparse
import platform
import statistics
import time
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from lmx.core.batch import Batch
from lmx.core.hardware import peak_flops
from lmx.core.mean import Mean
from lmx.core.precision import Precision
from lmx.layers.attention.attention import Attention
from lmx.layers.attention.backend import (
    AttentionBackend,
    CuDNNAttention,
    ReferenceAttention,
    XLAAttention,
)
from lmx.layers.head import TiedLMHead
from lmx.layers.mlp import GELU, SwiGLU
from lmx.layers.norm import LayerNorm
from lmx.layers.position.absolute import LearnedPosition
from lmx.models import flops
from lmx.models.decoder import Decoder
from lmx.train.loss.next_token import Means, NextToken
from lmx.train.optim.optimizer import adamw
from lmx.train.step import StepConfig, init_state, train_step

SEED = 0
STEPS = 5  # of one round, between two looks at the clock
PRODUCTS = 20
BFLOAT16 = Precision(compute="bfloat16")


class Case(NamedTuple):
    """What is trained, on rows of how many tokens."""

    model: Callable[..., Decoder]
    rows: int
    length: int


class Timed(NamedTuple):
    """A program, and how much arithmetic one call of it is."""

    run: Callable[[], Any]
    flops: float
    tokens: int = 0


def gpt2(
    kernel: AttentionBackend, width: int = 768, depth: int = 12, vocab: int = 50304
):
    """GPT-2 small, 124M parameters. Radford et al. 2019."""
    return partial(
        Decoder,
        vocab=vocab,
        width=width,
        depth=depth,
        attention=partial(
            Attention,
            heads=width // 64,
            kv_heads=width // 64,
            head_dim=64,
            position=None,
            backend=kernel,
        ),
        mlp=partial(GELU, hidden=4 * width),
        norm=LayerNorm,
        position=partial(LearnedPosition, max_length=1024),
        head=TiedLMHead,
        precision=BFLOAT16,
    )


def llama(kernel: AttentionBackend):
    """Widths of Llama 3.2 1B with heads of 128 and 32,768 tokens: 1.1B parameters."""
    return partial(
        Decoder,
        vocab=32768,
        width=2048,
        depth=16,
        attention=partial(
            Attention, heads=16, kv_heads=8, head_dim=128, backend=kernel
        ),
        mlp=partial(SwiGLU, hidden=8192),
        remat="keep_weight_dots",
        precision=BFLOAT16,
    )


def cases(tiny: bool) -> dict[str, Case]:
    """What is trained, by name."""
    if tiny:
        small = partial(gpt2, width=64, depth=2, vocab=256)
        return {
            "tiny, reference": Case(small(ReferenceAttention()), 2, 32),
            "tiny, XLA": Case(small(XLAAttention()), 2, 32),
        }
    return {
        "124M, cuDNN": Case(gpt2(CuDNNAttention()), 16, 1024),
        "124M, reference": Case(gpt2(ReferenceAttention()), 16, 1024),
        "1B, cuDNN": Case(llama(CuDNNAttention()), 8, 2048),
    }


def loss(model: Any, batch: Batch, keys: Any = None) -> tuple[Mean, Means]:
    """Of rows that are known to be one document each."""
    return NextToken()(model, batch._replace(segments=None), keys)


def training(case: Case) -> Timed:
    """`STEPS` steps of `lmx.train.step`, one after the other."""
    rate = optax.constant_schedule(1e-4)
    optimizer = adamw(rate)
    shaped = nnx.eval_shape(lambda: case.model(nnx.Rngs(SEED)))
    recipe = StepConfig(nnx.split(shaped)[0], loss, optimizer, rate, SEED, 1)
    step = jax.jit(partial(train_step, recipe), donate_argnums=0)
    state = jax.jit(partial(init_state, case.model, optimizer, SEED))()
    batch = jax.device_put(random_batch(shaped.vocab, case.rows, case.length))

    def run() -> Any:
        nonlocal state
        for _ in range(STEPS):
            state, metrics = step(state, batch)
        return metrics["loss"]

    tokens = STEPS * case.rows * case.length
    return Timed(run, tokens * flops.train_flops_per_token(shaped, case.length), tokens)


def random_batch(vocab: int, rows: int, length: int) -> Batch:
    """Tokens that mean nothing."""
    token = np.random.default_rng(SEED).integers(0, vocab, (rows, length + 1), "int32")
    return Batch(
        tokens=token[:, :-1],
        targets=token[:, 1:],
        weights=np.ones((rows, length), np.float32),
        positions=np.tile(np.arange(length, dtype=np.int32), (rows, 1)),
        segments=np.ones((rows, length), np.int32),
    )


def product(size: int) -> Timed:
    """`PRODUCTS` products of square matrices of bfloat16 normal numbers."""
    keys = jax.random.split(jax.random.key(SEED))
    x, w = (jax.random.normal(key, (size, size), jnp.bfloat16) for key in keys)
    w *= size**-0.5  # so that x keeps its size

    @jax.jit
    def run(x: jax.Array, w: jax.Array) -> jax.Array:
        return jax.lax.fori_loop(0, PRODUCTS, lambda _, x: x @ w, x)

    return Timed(lambda: run(x, w), PRODUCTS * 2.0 * size**3)


def measured(programs: dict[str, Timed], rounds: int) -> dict[str, list[float]]:
    """Seconds of each program in each round; a round before the first compiles."""
    taken: dict[str, list[float]] = {name: [] for name in programs}
    for round_ in range(rounds + 1):
        for name, program in programs.items():
            began = time.perf_counter()
            jax.block_until_ready(program.run())
            if round_:
                taken[name].append(time.perf_counter() - began)
    return taken


def report(programs: dict[str, Timed], taken: dict[str, list[float]]) -> None:
    """Prints the table; shares are of the medians."""
    nominal = peak_flops(1)
    middle = {name: statistics.median(times) for name, times in taken.items()}
    reached = programs["product"].flops / middle["product"]
    print(f"{'':16} {'min':>9} {'median':>9} {'max':>9}  ms; TFLOP/s, of the product's,"
          " of the data sheet's; tokens/s")  # fmt: skip
    for name, program in programs.items():
        calls = STEPS if program.tokens else PRODUCTS
        times = (min(taken[name]), middle[name], max(taken[name]))
        spread = " ".join(f"{1e3 * t / calls:9.3f}" for t in times)
        rate = program.flops / middle[name]
        of_nominal = f"{rate / nominal:5.1%}" if nominal else "unknown"
        speed = f"{program.tokens / middle[name]:10,.0f}" if program.tokens else ""
        shares = f"{rate / 1e12:7.2f} {rate / reached:6.1%} {of_nominal}"
        print(f"{name:16} {spread}  {shares} {speed}".rstrip())


def main() -> None:
    """Prints the machine and a table: times of a step, and what share of the peak.

    FLOPs are those of `lmx.models.flops`: 6 per weight, and attention as if every token
    saw all; what remat computes again is not counted.
    """
    parser = argparse.ArgumentParser(description="what a GPU reaches")
    parser.add_argument("--tiny", action="store_true", help="try the code anywhere")
    parser.add_argument("--rounds", type=int, default=10)
    words = parser.parse_args()
    device, backend = jax.devices()[0].device_kind, jax.default_backend()
    if backend != "gpu" and not words.tiny:
        print(f"this process is on {backend}: nothing is measured (see --tiny)")
        return
    print(
        f"{device}, {platform.machine()}, jax {jax.__version__}, {words.rounds} rounds"
    )
    programs = {"product": product(256 if words.tiny else 8192)}
    programs |= {name: training(case) for name, case in cases(words.tiny).items()}
    report(programs, measured(programs, words.rounds))


if __name__ == "__main__":
    main()
