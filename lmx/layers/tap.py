"""Taps: named activations, which a traced function records or replaces on request.

`tap(name, x)` returns `x`, except in a function that `record` calls. The request is
part of the key of JAX's caches: no program is shared with functions without it.
"""

import contextlib
import itertools
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from contextvars import ContextVar
from typing import Any, NamedTuple

import jax
import numpy as np
from flax.core import tracers
from jaxtyping import Array, Int

from lmx.config.registry import check_argument, require

# The numbers of layers, and the values of a tap in each of them, along the first axis.
# `()` is a tap outside of layers, and the value None one that was not asked for.
ByLayers = dict[tuple[int, ...], Any]
Records = OrderedDict[str, ByLayers]  # by name, in the order of execution


class TapRequest(NamedTuple):
    """What taps do.

    Attributes:
        names: the taps to record; None: all that are cheap.
        replacements: by name, functions of the value and of the number of its layer
            (None outside of layers), which return the value to continue with.
        reduce: what to record of a value.
    """

    names: frozenset[str] | None = frozenset()
    replacements: tuple[tuple[str, Callable[[Array, Array | None], Array]], ...] = ()
    reduce: Callable[[Array], Any] = lambda x: x

    @property
    def named(self) -> frozenset[str]:
        """The taps that are named, to be recorded or replaced."""
        return frozenset([*(self.names or ()), *dict(self.replacements)])


class _Frame(NamedTuple):
    """A function that is traced, or a block in it, and the records of its taps."""

    request: TapRequest
    layer: Int[Array, ""] | None
    trace: Any
    records: Records

    def store(self, name: str, parts: ByLayers) -> None:
        """Adds the record of a tap, with values if these are asked for."""
        is_local = self.trace == tracers.current_trace()
        check_argument(
            is_local or name not in self.request.named,
            f"tap {name!r} is in a function that JAX transforms (jit, scan, grad)"
            " within the recorded one: call `record` inside of that function.",
        )
        asked = self.request.names is None or name in self.request.names
        self.records[name] = parts if asked and is_local else dict.fromkeys(parts)

    def make_unique(self, name: str) -> str:
        """The name, or `name#2` and so on if there is a record of it."""
        names = itertools.chain([name], (f"{name}#{n}" for n in itertools.count(2)))
        return next(name for name in names if name not in self.records)


_FRAME: ContextVar[_Frame | None] = ContextVar("taps", default=None)
_CACHE_KEY = jax.make_user_context(None)


def tap(name: str, x: Array) -> Array:
    """`x`, or its replacement. The second tap of a name in a block is `name#2`."""
    frame = _FRAME.get()
    if frame is None:
        return x
    name = frame.make_unique(name)
    for replaced, function in frame.request.replacements:
        x = function(x, frame.layer) if replaced == name else x
    frame.store(name, {(): frame.request.reduce(x)})
    return x


def is_asked(name: str) -> bool:
    """Whether a tap is named, for values that are expensive to make."""
    frame = _FRAME.get()
    return frame is not None and name in frame.request.named


def refuse_taps(where: str, remedy: str) -> None:
    """Raises ConfigError if taps are recorded."""
    require(_FRAME.get() is None, f"taps cannot be recorded in {where}: {remedy}")


@contextlib.contextmanager
def recording(
    request: TapRequest, layer: Int[Array, ""] | None = None
) -> Iterator[Records]:
    """Lets taps do what the request says, and yields what they record."""
    frame = _Frame(request, layer, tracers.current_trace(), OrderedDict())
    token = _FRAME.set(frame)
    try:
        with _CACHE_KEY(request.named):
            yield frame.records
    finally:
        _FRAME.reset(token)


def record(
    fn: Callable[..., Any], request: TapRequest
) -> Callable[..., tuple[Any, Records]]:
    """`fn`, which does what the request says, and returns its result and the records.

    `jax.jit`, `jax.grad` and others may be applied to what this returns, but in `fn`
    not to a part with taps that are named.
    """

    def call(*args: Any) -> tuple[Any, Records]:
        with recording(request) as records:
            return fn(*args), records

    return call


def recording_layer(
    layers: Int[Array, "kinds"], kind: int
) -> contextlib.AbstractContextManager[Records]:
    """`recording` of a block in a recorded function, with the number `layers[kind]`.

    Without a request the records are empty, and `layers` is not used.
    """
    frame = _FRAME.get()
    if frame is None:
        return contextlib.nullcontext(OrderedDict())
    return recording(frame.request, layers[kind])


def add_layers(
    groups: Sequence[tuple[Int[np.ndarray, "_ _"], Sequence[Records]]],
) -> None:
    """Adds what the kinds of blocks of scans recorded, stacked over iterations."""
    frame, merged = _FRAME.get(), OrderedDict()
    for layers, kinds in groups:
        for numbers, records in zip(layers.T.tolist(), kinds, strict=True):
            for name, parts in records.items():
                merged.setdefault(name, {})[tuple(numbers)] = parts[()]
    if frame is not None:
        for name, parts in merged.items():
            frame.store(frame.make_unique(name), parts)
