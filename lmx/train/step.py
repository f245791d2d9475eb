"""The training step: gradient of a loss, optimizer update and metrics."""

from collections.abc import Callable, Mapping, Sequence
from fnmatch import fnmatchcase
from functools import partial
from types import MappingProxyType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jaxtyping import Array, Float, Int, Key, PyTree

from lmx.core import partitioning, rng
from lmx.core.batch import AnyBatch, count_rows
from lmx.core.mean import Mean
from lmx.core.sharding import is_variable
from lmx.models.params import flatten_params
from lmx.train.loss import Loss, Means
from lmx.train.optim.optimizer import apply_sign_updates, zero_sign_grads

Metrics = dict[str, Float[Array, "..."]]  # scalars, or one number per layer
LossFn = Callable[..., tuple[Mean, Means]]  # of model, batch and keys, as a `Loss`


class Frozen(NamedTuple):
    """Arrays that a step reads and does not change."""

    params: PyTree = ()  # of the model
    loss: PyTree = ()  # that the loss owns


class TrainState(NamedTuple):
    """What a run has after a step: the data is a function of `step`."""

    step: Int[Array, ""]
    params: PyTree  # that are trained
    opt_state: PyTree
    frozen: Frozen = Frozen()  # made again whenever the run starts; not in checkpoints

    @property
    def trained(self) -> "TrainState":
        """The state without its frozen part."""
        return self._replace(frozen=Frozen())

    @property
    def all_params(self) -> PyTree:
        """The parameters of the model, trained and frozen."""
        return merge_params(self.params, self.frozen.params)


class StepConfig(NamedTuple):
    """The parts of a step that stay the same during a run."""

    graph: nnx.GraphDef
    loss: LossFn
    optimizer: optax.GradientTransformation
    schedule: optax.Schedule
    seed: int
    microbatches: int
    loss_graph: nnx.GraphDef | None = None  # of what the loss owns
    frozen: Frozen = Frozen()  # arguments of the program that is traced

    def build_model(self, params: PyTree) -> Any:
        """The model with these parameters, and those that are frozen."""
        return nnx.merge(self.graph, merge_params(params, self.frozen.params))

    def bind_loss(self) -> LossFn:
        """The loss with the arrays that it owns."""
        if self.loss_graph is None:
            return self.loss
        return partial(self.loss, **nnx.merge(self.loss_graph, self.frozen.loss))


TrainStepFn = Callable[..., tuple[TrainState, Metrics]]  # like `train_step`


def init_state(
    build_model: Callable[[nnx.Rngs], nnx.Module],
    optimizer: optax.GradientTransformation,
    seed: int,
    weights: Mapping[str, Array] = MappingProxyType({}),
    *,
    trainable: Sequence[str] = ("*",),
    loss: Loss | None = None,
) -> TrainState:
    """The state of step 0. Jit it with `core.sharding.shardings` to shard it.

    `weights` by path replace the random parameters, as far as they reach where sizes
    differ. Parameters that no pattern of `trainable` matches are frozen.
    """
    graph, params = nnx.split(build_model(nnx.Rngs(params=rng.key(seed, "params"))))
    leaves = [
        overlay(leaf, weights[path]) if path in weights else leaf
        for path, leaf in flatten_params(params).items()
    ]
    params = jax.tree.unflatten(jax.tree.structure(params), leaves)
    owned = loss.frozen(nnx.merge(graph, params)) if loss else {}
    trained, fixed = split_params(params, trainable)
    frozen = Frozen(fixed, nnx.split(owned)[1] if owned else ())
    return TrainState(jnp.zeros((), "int32"), trained, optimizer.init(trained), frozen)


def split_params(params: PyTree, trainable: Sequence[str]) -> tuple[PyTree, PyTree]:
    """Parameters whose path matches a pattern, as in `*.norm.*`, and the others.

    The others are () if there are none.
    """

    def is_trained(path: tuple[Any, ...], value: Any) -> bool:
        del value
        name = ".".join(map(str, path))
        return any(fnmatchcase(name, pattern) for pattern in trainable)

    trained, frozen = nnx.split_state(params, is_trained, ...)
    return (trained, frozen) if jax.tree.leaves(frozen) else (params, ())


def merge_params(trained: PyTree, frozen: PyTree) -> PyTree:
    """The parameters that `split_params` split."""
    return nnx.merge_state(trained, frozen) if jax.tree.leaves(frozen) else trained


def overlay(array: Array, value: Array) -> Array:
    """The array with the value in its place, as far as both reach."""
    common = value[tuple(map(slice, array.shape))]
    return jax.lax.dynamic_update_slice(array, common, (0,) * array.ndim)


def compute_gradients(
    build_model: Callable[[PyTree], Any],
    loss_fn: LossFn,
    params: PyTree,
    batch: AnyBatch,
    keys: Key[Array, "B"] | None = None,
) -> tuple[PyTree, Mean, Means]:
    """The gradient of the summed (not mean) loss, the loss, and its means.

    Totals of microbatches add up to those of the batch, however unevenly weighted: sum
    both, then divide once.
    """

    def total(params: PyTree) -> tuple[Float[Array, ""], tuple[Mean, Means]]:
        loss, means = loss_fn(build_model(params), batch, keys)
        return loss.total, (loss, means)

    grads, (loss, means) = jax.grad(total, has_aux=True)(params)
    return grads, loss, means


def accumulate_gradients(
    config: StepConfig, params: PyTree, batch: AnyBatch, keys: Key[Array, "B"]
) -> tuple[PyTree, Mean, Means]:
    """The sum of `compute_gradients` over microbatches, in at least float32."""
    grad = partial(compute_gradients, config.build_model, config.bind_loss(), params)
    if config.microbatches == 1:
        return grad(batch, keys)
    split = split_rows((batch, keys), config.microbatches)
    shapes = jax.eval_shape(grad, *jax.tree.map(lambda x: x[0], split))
    zeros = jax.tree.map(
        lambda x: jnp.zeros(x.shape, jnp.promote_types(x.dtype, jnp.float32)), shapes
    )

    def add(total, microbatch):
        return jax.tree.map(jnp.add, total, grad(*microbatch)), None

    return jax.lax.scan(add, zeros, split)[0]


def split_rows(tree: PyTree, count: int) -> PyTree:
    """Arrays of rows as `count` microbatches, along a new leading dimension.

    Microbatch i of n has rows i, i + n, ..., so that each device keeps the rows it has.
    """
    return jax.tree.map(
        lambda x: x.reshape(-1, count, *x.shape[1:]).swapaxes(0, 1), tree
    )


def step_on_mesh(
    step_fn: TrainStepFn,
    context: partitioning.PartitionContext,
    config: StepConfig,
    state: TrainState,
    batch: AnyBatch,
    frozen: Frozen = Frozen(),
) -> tuple[TrainState, Metrics]:
    """A step, traced with the mesh and sharding rules of the context."""
    with partitioning.use(context):
        return step_fn(config._replace(frozen=frozen), state, batch)


def train_step(
    config: StepConfig,
    state: TrainState,
    batch: AnyBatch,
    keys: Key[Array, "B"] | None = None,
) -> tuple[TrainState, Metrics]:
    """Forward pass, backward pass and update. The caller jits, shards and donates.

    `keys` has one per row; None: those of rows 0, 1, ... at the step of the state.
    """
    if keys is None:
        keys = rng.fold(config.seed, state.step, "dropout", count_rows(batch))
    grad = partial(accumulate_gradients, config, state.params)
    grads, loss, means = partitioning.sum_over_slices(grad)(batch, keys)
    all_grads = optax.tree.scale(1.0 / jnp.maximum(loss.weight, 1.0), grads)
    all_grads = jax.tree.map(lambda g, p: g.astype(p.dtype), all_grads, state.params)
    grads = zero_sign_grads(all_grads)
    updates, opt_state = config.optimizer.update(grads, state.opt_state, state.params)
    signed = apply_sign_updates(updates, all_grads)
    params = optax.apply_updates(state.params, signed)
    metrics = {name: mean.value for name, mean in means.items()}
    metrics |= {"loss": loss.value, "tokens": loss.weight}
    metrics["learning_rate"] = jnp.asarray(config.schedule(state.step))
    for name, tree in (("grad", grads), ("update", updates), ("param", params)):
        metrics |= compute_norms(name, tree)
    return TrainState(state.step + 1, params, opt_state), metrics


def compute_norms(name: str, tree: PyTree) -> Metrics:
    """The Euclidean norm of a tree, and by layer: `NAME_norm` and `NAME_norm/layer`."""
    leaves = jax.tree.leaves(tree, is_leaf=is_variable)
    numbers = [leaf.get_metadata().get("layers", ()) for leaf in leaves]
    depth = max((max(n) + 1 for n in numbers if n), default=0)
    whole, layers = jnp.zeros(()), jnp.zeros(depth)
    for leaf, number in zip(leaves, numbers, strict=True):
        square = jnp.square(leaf[...]).sum(axis=tuple(range(bool(number), leaf.ndim)))
        whole += square.sum()
        if number:
            layers = layers.at[jnp.array(number)].add(square)
    return {f"{name}_norm": jnp.sqrt(whole), f"{name}_norm/layer": jnp.sqrt(layers)}
