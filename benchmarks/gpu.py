"""GPU utilization of a training step: `python benchmarks/gpu.py [--tiny]`.

Requires jax, flax, optax, jaxtyping and einops. Trains a 124M and a 1B decoder in
bfloat16 on one device, with one document per sequence. A large matrix product, which
shows what the device can reach at that time, is interleaved; there are several rounds.
`--tiny` runs the code on any machine, without meaningful speeds.
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
from lmx.layers.attention.backend import AttentionBackend, CuDNNAttention, XLAAttention
from lmx.layers.attention.reference import ReferenceAttention
from lmx.layers.linear import TiedLMHead
from lmx.layers.mlp import GELU, SwiGLU
from lmx.layers.norm import LayerNorm
from lmx.layers.position import LearnedPosition
from lmx.models import params
from lmx.models.decoder import Decoder
from lmx.train.loss import Means, NextToken
from lmx.train.optim.optimizer import adamw
from lmx.train.step import StepConfig, init_state, train_step

SEED = 0
STEPS = 5  # per round, between two time measurements
PRODUCTS = 20
BFLOAT16 = Precision(compute="bfloat16")


class Case(NamedTuple):
    """A model, and the shape of its batch."""

    model: Callable[..., Decoder]
    batch_size: int
    length: int


class Program(NamedTuple):
    """A program, with the FLOPs and tokens of one call."""

    run: Callable[[], Any]
    flops: float
    tokens: int = 0


def build_gpt2(
    backend: AttentionBackend, width: int = 768, depth: int = 12, vocab: int = 50304
):
    """Returns GPT-2 small, 124M parameters. Radford et al. 2019."""
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
            backend=backend,
        ),
        mlp=partial(GELU, hidden=4 * width),
        norm=LayerNorm,
        position=partial(LearnedPosition, max_length=1024),
        head=TiedLMHead,
        precision=BFLOAT16,
    )


def build_llama(backend: AttentionBackend):
    """Returns Llama 3.2 1B with head dim 128 and 32,768 tokens: 1.1B parameters."""
    return partial(
        Decoder,
        vocab=32768,
        width=2048,
        depth=16,
        attention=partial(
            Attention, heads=16, kv_heads=8, head_dim=128, backend=backend
        ),
        mlp=partial(SwiGLU, hidden=8192),
        remat="keep_weight_dots",
        precision=BFLOAT16,
    )


def list_cases(tiny: bool) -> dict[str, Case]:
    """Returns the cases by name."""
    if tiny:
        small = partial(build_gpt2, width=64, depth=2, vocab=256)
        return {
            "tiny, reference": Case(small(ReferenceAttention()), 2, 32),
            "tiny, XLA": Case(small(XLAAttention()), 2, 32),
        }
    return {
        "124M, cuDNN": Case(build_gpt2(CuDNNAttention()), 16, 1024),
        "124M, reference": Case(build_gpt2(ReferenceAttention()), 16, 1024),
        "1B, cuDNN": Case(build_llama(CuDNNAttention()), 8, 2048),
    }


def compute_loss(model: Any, batch: Batch, keys: Any = None) -> tuple[Mean, Means]:
    """Returns the loss of sequences of one document each."""
    return NextToken()(model, batch._replace(segments=None), keys)


def build_training(case: Case) -> Program:
    """Returns a program of `STEPS` consecutive steps of `lmx.train.step`."""
    rate = optax.constant_schedule(1e-4)
    optimizer = adamw(rate)
    shaped = nnx.eval_shape(lambda: case.model(nnx.Rngs(SEED)))
    config = StepConfig(nnx.split(shaped)[0], compute_loss, optimizer, rate, SEED, 1)
    step = jax.jit(partial(train_step, config), donate_argnums=0)
    state = jax.jit(partial(init_state, case.model, optimizer, SEED))()
    batch = jax.device_put(make_batch(shaped.vocab, case.batch_size, case.length))

    def run() -> Any:
        nonlocal state
        for _ in range(STEPS):
            state, metrics = step(state, batch)
        return metrics["loss"]

    tokens = STEPS * case.batch_size * case.length
    return Program(
        run, tokens * params.train_flops_per_token(shaped, case.length), tokens
    )


def make_batch(vocab: int, batch_size: int, length: int) -> Batch:
    """Returns a batch of random tokens."""
    token = np.random.default_rng(SEED).integers(
        0, vocab, (batch_size, length + 1), "int32"
    )
    return Batch(
        tokens=token[:, :-1],
        targets=token[:, 1:],
        weights=np.ones((batch_size, length), np.float32),
        positions=np.tile(np.arange(length, dtype=np.int32), (batch_size, 1)),
        segments=np.ones((batch_size, length), np.int32),
    )


def build_product(size: int) -> Program:
    """Returns a program of `PRODUCTS` products of square random bfloat16 matrices."""
    keys = jax.random.split(jax.random.key(SEED))
    x, w = (jax.random.normal(key, (size, size), jnp.bfloat16) for key in keys)
    w *= size**-0.5  # keeps the scale of x

    @jax.jit
    def run(x: jax.Array, w: jax.Array) -> jax.Array:
        return jax.lax.fori_loop(0, PRODUCTS, lambda _, x: x @ w, x)

    return Program(lambda: run(x, w), PRODUCTS * 2.0 * size**3)


def measure(programs: dict[str, Program], rounds: int) -> dict[str, list[float]]:
    """Returns the seconds of each program per round, after a round that compiles."""
    times: dict[str, list[float]] = {name: [] for name in programs}
    for round_ in range(rounds + 1):
        for name, program in programs.items():
            start = time.perf_counter()
            jax.block_until_ready(program.run())
            if round_:
                times[name].append(time.perf_counter() - start)
    return times


def report(programs: dict[str, Program], times: dict[str, list[float]]) -> None:
    """Prints the table; fractions are those of the medians."""
    nominal = peak_flops(1)
    median = {name: statistics.median(times) for name, times in times.items()}
    achieved = programs["product"].flops / median["product"]
    print(f"{'':16} {'min':>9} {'median':>9} {'max':>9}  ms; TFLOP/s, fraction of the"
          " product's, of the data sheet's; tokens/s")  # fmt: skip
    for name, program in programs.items():
        calls = STEPS if program.tokens else PRODUCTS
        values = (min(times[name]), median[name], max(times[name]))
        spread = " ".join(f"{1e3 * t / calls:9.3f}" for t in values)
        rate = program.flops / median[name]
        of_nominal = f"{rate / nominal:5.1%}" if nominal else "unknown"
        speed = f"{program.tokens / median[name]:10,.0f}" if program.tokens else ""
        shares = f"{rate / 1e12:7.2f} {rate / achieved:6.1%} {of_nominal}"
        print(f"{name:16} {spread}  {shares} {speed}".rstrip())


def main() -> None:
    """Prints the machine and a table: times of a step, and the fraction of peak FLOPs.

    FLOPs are those of `lmx.models.params`: 6 per weight, and attention without a mask.
    Recomputation is not counted.
    """
    parser = argparse.ArgumentParser(description="GPU utilization of a training step")
    parser.add_argument(
        "--tiny", action="store_true", help="run the code on any machine"
    )
    parser.add_argument("--rounds", type=int, default=10)
    args = parser.parse_args()
    device, backend = jax.devices()[0].device_kind, jax.default_backend()
    if backend != "gpu" and not args.tiny:
        print(f"no GPU, the backend is {backend}: nothing is measured (see --tiny)")
        return
    print(
        f"{device}, {platform.machine()}, jax {jax.__version__}, {args.rounds} rounds"
    )
    programs = {"product": build_product(256 if args.tiny else 8192)}
    programs |= {
        name: build_training(case) for name, case in list_cases(args.tiny).items()
    }
    report(programs, measure(programs, args.rounds))


if __name__ == "__main__":
    main()
