"""Optimizers, as chains of gradient transformations of a learning rate.

`weight_decay` is per unit of learning rate, and applies to matrices, embeddings among
them, but not to scales and offsets. `clip` is the largest global gradient norm.
"""

import math
import operator
from collections.abc import Callable
from functools import partial
from typing import Any, Literal

import jax
import jax.numpy as jnp
import optax
from jaxtyping import PyTree

from lmx.config.registry import NonNegative, Positive, Rate, configurable
from lmx.core.sharding import is_variable
from lmx.train.optim.parametrization import NO_TRANSFER, Transfer, is_hidden_matrix


def matrix_mask(params: PyTree) -> PyTree:
    """True for weights that contract a dimension: all but scales and offsets."""
    return jax.tree.map(lambda p: bool(p.in_dims), params, is_leaf=is_variable)


def _with_clipping(
    clip: float | None, *parts: Any, transfer: Transfer = NO_TRANSFER
) -> optax.GradientTransformation:
    norm = [optax.clip_by_global_norm(clip)] if clip else []
    return transfer.fold(optax.chain(*norm, *parts))


@configurable
def adamw(
    learning_rate: optax.Schedule,
    transfer: Transfer = NO_TRANSFER,
    *,
    b1: Rate[float] = 0.9,
    b2: Rate[float] = 0.95,
    eps: NonNegative[float] = 1e-8,
    weight_decay: NonNegative[float] = 0.1,
    clip: Positive[float | None] = 1.0,
) -> optax.GradientTransformation:
    """Adam with decoupled weight decay. Loshchilov, Hutter 2017, arXiv:1711.05101."""
    b1, b2 = map(transfer.beta, (b1, b2))
    adam = optax.adamw(
        learning_rate, b1, b2, eps, weight_decay=weight_decay, mask=matrix_mask
    )
    return _with_clipping(clip, transfer.adam(adam), transfer=transfer)


@configurable
def lion(
    learning_rate: optax.Schedule,
    *,
    b1: Rate[float] = 0.9,
    b2: Rate[float] = 0.99,
    weight_decay: NonNegative[float] = 0.1,
    clip: Positive[float | None] = 1.0,
) -> optax.GradientTransformation:
    """Lion: the sign of a momentum. Chen et al. 2023, arXiv:2302.06675."""
    sign = optax.lion(
        learning_rate, b1, b2, weight_decay=weight_decay, mask=matrix_mask
    )
    return _with_clipping(clip, sign)


@configurable
def adafactor(
    learning_rate: optax.Schedule,
    *,
    weight_decay: NonNegative[float] = 0.0,
    clip: Positive[float | None] = 1.0,
    min_dim_size_to_factor: Positive[int] = 128,
) -> optax.GradientTransformation:
    """Adafactor: factored second moments. Shazeer, Stern 2018, arXiv:1804.04235.

    Dimensions below `min_dim_size_to_factor` keep a full second moment.
    """
    factored = optax.adafactor(
        learning_rate, min_dim_size_to_factor, multiply_by_parameter_scale=False
    )
    return _with_clipping(clip, factored, _add_decay(learning_rate, weight_decay))


@configurable
def sgd(
    learning_rate: optax.Schedule,
    *,
    momentum: Rate[float] = 0.9,
    weight_decay: NonNegative[float] = 0.0,
    clip: Positive[float | None] = 1.0,
) -> optax.GradientTransformation:
    """Gradient descent with Nesterov momentum. Sutskever et al. 2013, ICML."""
    gradient = optax.sgd(learning_rate, momentum, nesterov=True)
    return _with_clipping(clip, gradient, _add_decay(learning_rate, weight_decay))


@configurable
def muon(
    learning_rate: optax.Schedule,
    transfer: Transfer = NO_TRANSFER,
    *,
    scaling: Literal["max", "spectral", "rms"] = "max",
    beta: Rate[float] = 0.95,
    weight_decay: NonNegative[float] = 0.0,
    embed_lr_scale: NonNegative[float] = 1.0,
    head_lr_scale: NonNegative[float] = 1.0,
    norm_lr_scale: NonNegative[float] = 1.0,
    adam_b1: Rate[float] = 0.9,
    adam_b2: Rate[float] = 0.95,
    adam_eps: NonNegative[float] = 1e-8,
    clip: Positive[float | None] = None,
) -> optax.GradientTransformation:
    """Muon for hidden matrices, Adam for all other parameters.

    Each kind of the others has its own multiple of the learning rate. The root mean
    square of an orthogonalized update is 1 / sqrt(max(in, out)), and `scaling` its
    factor: `max` sqrt(max(1, out / in)) (Jordan 2024, "Muon: an optimizer for hidden
    layers in neural networks"), `spectral` sqrt(out / in), with which one rate serves
    all widths (Qiu et al. 2025, arXiv:2512.05620), or `rms` 0.2 sqrt(max(in, out)) as
    of Adam (Liu et al. 2025, arXiv:2502.16982).
    """

    def lr_scale(p: Any) -> float:
        if not p.in_dims:
            return norm_lr_scale
        return head_lr_scale if "vocab" in p.out_dims else embed_lr_scale

    shape_scale = partial(_shape_scale, scaling)
    orthogonal = optax.chain(
        optax.contrib.scale_by_muon(beta=beta, weight_dimension_numbers=_dimensions),
        _scale_params(shape_scale),
        optax.add_decayed_weights(weight_decay),
        optax.scale_by_learning_rate(learning_rate),
    )
    adam = optax.chain(
        optax.scale_by_adam(adam_b1, adam_b2, adam_eps),
        optax.add_decayed_weights(weight_decay, mask=matrix_mask),
        _scale_params(lr_scale),
        optax.scale_by_learning_rate(learning_rate),
    )
    return _with_clipping(
        clip,
        optax.masked(transfer.muon(orthogonal, shape_scale), hidden_matrix_mask),
        optax.masked(transfer.adam(adam), _other_mask),
        transfer=transfer,
    )


def hidden_matrix_mask(params: PyTree) -> PyTree:
    """True for matrices but embeddings and the head."""

    return jax.tree.map(is_hidden_matrix, params, is_leaf=is_variable)


def _other_mask(params: PyTree) -> PyTree:
    return jax.tree.map(operator.not_, hidden_matrix_mask(params))


def _dimensions(params: PyTree) -> PyTree:
    """The contracted dimensions of each weight, and the others."""

    def matrix(p: Any) -> Any:
        numbers = optax.contrib.MuonDimensionNumbers(
            tuple(p.axes.index(a) for a in p.in_dims),
            tuple(p.axes.index(a) for a in p.out_dims),
        )
        return jax.tree.map(lambda _: numbers, p)

    return jax.tree.map(matrix, params, is_leaf=is_variable)


def _shape_scale(scaling: str, p: Any) -> float:
    """The factor of Muon's update of a matrix."""
    into, out = (
        math.prod(p.shape[p.axes.index(a)] for a in axes)
        for axes in (p.in_dims, p.out_dims)
    )
    ratio = out / into
    scales = {"max": max(1.0, ratio) ** 0.5, "spectral": ratio**0.5}
    return scales.get(scaling, 0.2 * max(into, out) ** 0.5)


def _scale_params(factor: Callable[[Any], float]) -> optax.GradientTransformation:
    """Multiplies each update by the factor of its parameter."""

    def scale(updates: PyTree, params: PyTree = None) -> PyTree:
        del params
        return jax.tree.map(
            lambda p: p.replace(p[...] * factor(p)), updates, is_leaf=is_variable
        )

    return optax.stateless(scale)


def _add_decay(rate: optax.Schedule, decay: float) -> optax.GradientTransformation:
    """Subtracts learning rate * decay * weight of matrices: decoupled weight decay."""

    def update(updates, state, params=None):
        share = decay * rate(state.count)
        updates = jax.tree.map(lambda u, p: u - share * p, updates, params)
        return updates, optax.ScaleByScheduleState(state.count + 1)

    def init(params):
        return optax.ScaleByScheduleState(jnp.zeros([], "int32"))

    return optax.masked(optax.GradientTransformation(init, update), matrix_mask)


def zero_sign_grads(grads: PyTree) -> PyTree:
    """Zeroes gradients of parameters with a `sign_rate`: clipping ignores them."""

    def zero(g: Any) -> Any:
        return g if _sign_rate(g) is None else g.replace(jnp.zeros_like(g[...]))

    return jax.tree.map(zero, grads, is_leaf=is_variable)


def apply_sign_updates(updates: PyTree, grads: PyTree) -> PyTree:
    """Replaces updates of parameters with a `sign_rate` by -rate * sign(gradient)."""

    def replace(update: Any, g: Any) -> Any:
        rate = _sign_rate(g)
        return update if rate is None else g.replace(-rate * jnp.sign(g[...]))

    return jax.tree.map(replace, updates, grads, is_leaf=is_variable)


def _sign_rate(variable: Any) -> float | None:
    return variable.get_metadata("sign_rate", None)
