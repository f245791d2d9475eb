"""Activation capture: records activations of a model, and replaces them (patching)."""

from collections.abc import Callable, Collection, Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Int, PyTree

from lmx.config.registry import require
from lmx.layers.tap import ByLayers, TapRequest, record
from lmx.models.decoder import Decoder


def capture(
    model: Decoder,
    tokens: Int[Array | np.ndarray, "B T"],
    names: Collection[str] = (),
    *,
    replace: Mapping[str, Any] | None = None,
    segments: Int[Array | np.ndarray, "B T"] | None = None,
) -> tuple[Float[Array, "B T V"], dict[str, Any]]:
    """Runs a model: its logits, and its taps of these names.

    A tap in layers is given by layer: `capture(...)[1]["block.out"][3]`. What `replace`
    has for a name is used in place of the value, and recorded: an array, or a function
    of the value, for all layers, or as `{layer: ...}` for some. Attention is computed
    by `ReferenceAttention` if `attention.logits` or `.probs` are asked for. Other
    layers and other arrays do not compile again; other functions do.
    """
    require(not isinstance(names, str), f"give a list of names: [{names!r}].")
    rules = [
        (name, layer, new)
        for name, value in (replace or {}).items()
        for layer, new in (
            value if isinstance(value, Mapping) else {None: value}
        ).items()
    ]
    functions = tuple((name, new if callable(new) else None) for name, _, new in rules)
    arguments = [(layer, None if callable(new) else new) for _, layer, new in rules]
    graph, params = nnx.split(model)
    inputs = (jnp.asarray(tokens), None, segments)
    request = (graph, frozenset(names), functions, params, inputs, arguments)
    _, shapes = _run.eval_shape(*request)
    for name, layer, _ in [*((name, None, None) for name in names), *rules]:
        _check(name, layer, shapes)
    logits, values = _run(*request)
    return logits, {name: values[name] for name in names}


@partial(jax.jit, static_argnums=(0, 1, 2))
def _run(
    graph: nnx.GraphDef,
    names: frozenset[str],
    functions: tuple[tuple[str, Callable[[Array], Any] | None], ...],
    params: PyTree,
    inputs: PyTree,
    arguments: PyTree,
) -> tuple[Array, dict[str, Any]]:
    replacements = tuple(
        (name, partial(_replace, function, *argument))
        for (name, function), argument in zip(functions, arguments, strict=True)
    )
    model = nnx.merge(graph, params)
    logits, records = record(model, TapRequest(names, replacements))(*inputs)
    return logits, {name: _split_layers(parts) for name, parts in records.items()}


def _replace(
    function: Callable[[Array], Any] | None,
    layer: Int[Array, ""] | None,
    new: Array | None,
    x: Array,
    current: Int[Array, ""] | None,
) -> Array:
    """The new value in that layer, or in all if it is None; elsewhere `x`."""
    new = jnp.asarray(new if function is None else function(x), x.dtype)
    new = jnp.broadcast_to(new, x.shape)
    return new if layer is None else jnp.where(current == layer, new, x)


def _check(name: str, layer: int | None, values: dict[str, Any]) -> None:
    require(name in values, f"the model has no tap {name!r}; it has {[*values]}.")
    layers = [*values[name]] if isinstance(values[name], dict) else []
    require(
        layer is None or layer in layers,
        f"{name} cannot be replaced in layer {layer}: its layers are {layers}.",
    )


def _split_layers(parts: ByLayers) -> Any:
    if () in parts:
        return parts[()]
    return {
        number: None if x is None else x[index]
        for numbers, x in parts.items()
        for index, number in enumerate(numbers)
    }
