"""Optimizers, as chains of gradient transformations of a learning rate.

`decay` is of weights, per unit of learning rate, and acts on matrices only (embeddings
among them): gains and offsets keep theirs. `clip` is the largest global gradient norm.
"""

from typing import Any

import jax
import optax
from jaxtyping import PyTree

from lmx.config.names import configurable
from lmx.core.sharding import is_variable


def matrices(params: PyTree) -> PyTree:
    """True at what sums over a dimension: every weight but gains and offsets."""
    return jax.tree.map(lambda p: bool(p.into), params, is_leaf=is_variable)


def _clipped(clip: float | None, *parts: Any) -> optax.GradientTransformation:
    return optax.chain(*([optax.clip_by_global_norm(clip)] if clip else []), *parts)


@configurable
def adamw(
    rate: optax.Schedule,
    *,
    b1: float = 0.9,
    b2: float = 0.95,
    eps: float = 1e-8,
    decay: float = 0.1,
    clip: float | None = 1.0,
) -> optax.GradientTransformation:
    """Adam with decoupled decay. Loshchilov and Hutter 2017, arXiv:1711.05101."""
    return _clipped(
        clip, optax.adamw(rate, b1, b2, eps, weight_decay=decay, mask=matrices)
    )


@configurable
def lion(
    rate: optax.Schedule,
    *,
    b1: float = 0.9,
    b2: float = 0.99,
    decay: float = 0.1,
    clip: float | None = 1.0,
) -> optax.GradientTransformation:
    """The sign of a momentum. Chen et al. 2023, arXiv:2302.06675."""
    return _clipped(clip, optax.lion(rate, b1, b2, weight_decay=decay, mask=matrices))


@configurable
def adafactor(
    rate: optax.Schedule,
    *,
    decay: float = 0.0,
    clip: float | None = 1.0,
    factored_from: int = 128,
) -> optax.GradientTransformation:
    """Second moments as products of rows and columns. Shazeer, Stern, arXiv:1804.04235.

    Dimensions below `factored_from` keep a full second moment.
    """
    return _clipped(
        clip,
        optax.adafactor(
            rate,
            min_dim_size_to_factor=factored_from,
            multiply_by_parameter_scale=False,
        ),
        optax.masked(_decay(rate, decay), matrices),
    )


@configurable
def sgd(
    rate: optax.Schedule,
    *,
    momentum: float = 0.9,
    decay: float = 0.0,
    clip: float | None = 1.0,
) -> optax.GradientTransformation:
    """Gradient descent with Nesterov momentum. Sutskever et al. 2013, ICML."""
    return _clipped(
        clip,
        optax.sgd(rate, momentum, nesterov=True),
        optax.masked(_decay(rate, decay), matrices),
    )


@configurable
def muon(
    rate: optax.Schedule,
    *,
    beta: float = 0.95,
    decay: float = 0.0,
    adam_rate: float = 1.0,
    adam_b1: float = 0.9,
    adam_b2: float = 0.95,
    adam_eps: float = 1e-8,
    clip: float | None = None,
) -> optax.GradientTransformation:
    """Orthogonalised momentum for hidden matrices, Adam for all else.

    Embeddings, the head, gains and offsets take Adam at `adam_rate` times the rate. An
    update has root-mean-square sqrt(max(1, out / in)) / sqrt(max(in, out)). Jordan
    2024, "Muon: an optimizer for hidden layers in neural networks".
    """
    return _clipped(
        clip,
        optax.contrib.muon(
            rate,
            beta=beta,
            weight_decay=decay,
            adam_b1=adam_b1,
            adam_b2=adam_b2,
            adam_learning_rate=lambda count: adam_rate * rate(count),
            muon_weight_dimension_numbers=_hidden,
        ),
    )


def _hidden(params: PyTree) -> PyTree:
    """How each hidden weight is a matrix from what it sums over to what it makes."""

    def matrix(p: Any) -> Any:
        if not p.into or "vocab" in p.axes or "length" in p.axes:
            return None
        return optax.contrib.MuonDimensionNumbers(
            tuple(p.axes.index(a) for a in p.into),
            tuple(p.axes.index(a) for a in p.out_of),
        )

    return jax.tree.map(matrix, params, is_leaf=is_variable)


def _decay(rate: optax.Schedule, decay: float) -> optax.GradientTransformation:
    """Takes rate * decay of each weight off, whatever the gradient did."""

    def update(updates, state, params=None):
        share = decay * rate(state.count)
        updates = jax.tree.map(lambda u, p: u - share * p, updates, params)
        return updates, optax.ScaleByScheduleState(state.count + 1)

    return optax.GradientTransformation(
        lambda params: optax.ScaleByScheduleState(jax.numpy.zeros([], "int32")), update
    )
