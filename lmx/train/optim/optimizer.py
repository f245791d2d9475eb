"""Optimizers, as chains of gradient transformations of a learning rate.

`decay` is of weights, per unit of learning rate, and acts on matrices only (embeddings
among them): gains and offsets keep theirs. `clip` is the largest global gradient norm.
"""

import math
import operator
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
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
    embed_rate: float = 1.0,
    head_rate: float = 1.0,
    gain_rate: float = 1.0,
    adam_b1: float = 0.9,
    adam_b2: float = 0.95,
    adam_eps: float = 1e-8,
    clip: float | None = None,
) -> optax.GradientTransformation:
    """Orthogonalised momentum for hidden matrices, Adam for all else.

    Embeddings, the head, and gains and offsets take Adam, each at its own multiple of
    the rate. An orthogonal update has root-mean-square sqrt(max(1, out / in)) /
    sqrt(max(in, out)). Jordan 2024, "Muon: an optimizer for hidden layers in neural
    networks".
    """

    def relative(p: Any) -> float:
        if not p.into:
            return gain_rate
        return head_rate if "vocab" in p.out_of else embed_rate

    orthogonal = optax.chain(
        optax.contrib.scale_by_muon(beta=beta, weight_dimension_numbers=_dimensions),
        _scaled(_by_shape),
        optax.add_decayed_weights(decay),
        optax.scale_by_learning_rate(rate),
    )
    adam = optax.chain(
        optax.scale_by_adam(adam_b1, adam_b2, adam_eps),
        optax.add_decayed_weights(decay, mask=matrices),
        _scaled(relative),
        optax.scale_by_learning_rate(rate),
    )
    return _clipped(
        clip, optax.masked(orthogonal, hidden), optax.masked(adam, _not_hidden)
    )


def hidden(params: PyTree) -> PyTree:
    """True at matrices between layers: not embeddings, the head, gains or offsets."""

    def between(p: Any) -> bool:
        return bool(p.into) and "vocab" not in p.axes and "length" not in p.axes

    return jax.tree.map(between, params, is_leaf=is_variable)


def _not_hidden(params: PyTree) -> PyTree:
    return jax.tree.map(operator.not_, hidden(params))


def _dimensions(params: PyTree) -> PyTree:
    """How each weight is a matrix from what it sums over to what it makes."""

    def matrix(p: Any) -> Any:
        numbers = optax.contrib.MuonDimensionNumbers(
            tuple(p.axes.index(a) for a in p.into),
            tuple(p.axes.index(a) for a in p.out_of),
        )
        return jax.tree.map(lambda _: numbers, p)

    return jax.tree.map(matrix, params, is_leaf=is_variable)


def _by_shape(p: Any) -> float:
    """sqrt(max(1, out / in)): larger where more is made than summed over."""
    made, summed = (
        math.prod(p.shape[p.axes.index(a)] for a in axes) for axes in (p.out_of, p.into)
    )
    return max(1.0, made / summed) ** 0.5


def _scaled(factor: Callable[[Any], float]) -> optax.GradientTransformation:
    """Every update times the factor of its parameter."""

    def scale(updates: PyTree, params: PyTree = None) -> PyTree:
        del params
        return jax.tree.map(
            lambda p: p.replace(p[...] * factor(p)), updates, is_leaf=is_variable
        )

    return optax.stateless(scale)


def _decay(rate: optax.Schedule, decay: float) -> optax.GradientTransformation:
    """Takes rate * decay of each weight off, whatever the gradient did."""

    def update(updates, state, params=None):
        share = decay * rate(state.count)
        updates = jax.tree.map(lambda u, p: u - share * p, updates, params)
        return updates, optax.ScaleByScheduleState(state.count + 1)

    return optax.GradientTransformation(
        lambda params: optax.ScaleByScheduleState(jnp.zeros([], "int32")), update
    )


def quieted(grads: PyTree) -> PyTree:
    """Gradients, with 0 for what steps by their sign, which so clips nothing."""

    def quiet(g: Any) -> Any:
        return g if _sign_rate(g) is None else g.replace(jnp.zeros_like(g[...]))

    return jax.tree.map(quiet, grads, is_leaf=is_variable)


def steered(updates: PyTree, grads: PyTree) -> PyTree:
    """Updates, where what has a `sign_rate` steps by that against its gradient's sign.

    So biases balance a router (`layers.moe.router.Sigmoid`), whatever the optimizer.
    """

    def steer(update: Any, g: Any) -> Any:
        rate = _sign_rate(g)
        return update if rate is None else g.replace(-rate * jnp.sign(g[...]))

    return jax.tree.map(steer, updates, grads, is_leaf=is_variable)


def _sign_rate(variable: Any) -> float | None:
    return variable.get_metadata("sign_rate", None)
