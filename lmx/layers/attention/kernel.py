"""Which program computes attention: the choice of the experiment, never a fallback.

All are `dot.attend` but for rounding. What one cannot do it refuses by name.
"""

import logging
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cache
from typing import Any, ClassVar, Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from lmx.config.names import configurable
from lmx.core import spread
from lmx.layers.attention.dot import Scored, attend
from lmx.layers.mask import Place, visible


@dataclass(frozen=True)
class Seen:
    """Which keys a query sees: `mask.visible`, by where queries and keys stand.

    Where `whole` is true the rows are one document each, all of it at hand: a query
    sees itself and what is before it in the row, or the last `window` of these.
    """

    query: Place
    key: Place
    window: int | None = None
    whole: bool = False

    @property
    def at_hand(self) -> bool:
        """Whether the keys are the queries' own tokens, in their order: no cache."""
        return self.key is self.query

    @property
    def mask(self) -> Bool[Array, "B T S"]:
        """True where query t sees key s: as large as the logits of one head."""
        return visible(self.query, self.key, self.window)


class Kernel(ABC):
    """Anything that computes attention.

    Attributes:
        serves: the parameters of `Attention` that it can serve of those that ask for
            more than dot products.
    """

    serves: ClassVar[frozenset[str]] = frozenset()

    def check(self, head_width: int, beyond: Iterable[str]) -> None:
        """Refuses a head that it cannot serve.

        `beyond` are the parameters of `Attention` that ask for more than dot products.
        """
        del head_width
        for parameter in beyond:
            if parameter not in self.serves:
                raise ValueError(
                    f"the kernel {type(self).__name__} cannot do what"
                    f" Attention.{parameter} asks for: do without that, or choose"
                    " Attention.kernel=@Reference()."
                )

    @abstractmethod
    def __call__(
        self,
        q: Float[Array, "B T N H"],
        k: Float[Array, "B S K H"],
        v: Float[Array, "B S K H"],
        seen: Seen,
        *,
        scale: float | None = None,
        cap: float | None = None,
        scored: Scored | None = None,
        sink: Float[Array, "N"] | None = None,
        drop: Callable[[Array], Array] | None = None,
    ) -> Float[Array, "B T N H"]:
        """What `dot.attend` returns for these arguments."""


@configurable
@dataclass(frozen=True)
class Reference(Kernel):
    """`dot.attend`: does everything, everywhere, and holds all logits at once."""

    serves = frozenset(("position", "sink", "logit_cap", "dropout"))

    def __call__(self, q, k, v, seen, **how):
        return attend(q, k, v, seen.mask, **how)


@configurable
@dataclass(frozen=True)
class XLA(Kernel):
    """`jax.nn.dot_product_attention` as XLA compiles it, on any backend.

    Its softmax is taken in float32, of float64 too.
    """

    implementation: ClassVar[Literal["xla", "cudnn"]] = "xla"

    def __call__(self, q, k, v, seen, *, scale=None, **beyond):
        del beyond  # `check` saw that nothing is asked for
        if seen.whole:  # jax counts the keys before a query's own
            before = None if seen.window is None else (seen.window - 1, 0)
            how: dict[str, Any] = dict(is_causal=True, local_window_size=before)
        else:
            how = dict(mask=seen.mask[:, None])
        return jax.nn.dot_product_attention(
            q, k, v, scale=scale, implementation=self.implementation, **how
        )


@configurable
@dataclass(frozen=True)
class CuDNN(XLA):
    """cuDNN's flash attention, on NVIDIA GPUs, which never holds the logits.

    Heads are a multiple of 8 wide, and 128 at most (256 from Hopper on). Packed rows,
    and a cache, cost a dense mask of two bytes for each pair of a query and a key;
    rows of one document each, which a model is called with `segments=None` for, cost
    none. Dao 2023, arXiv:2307.08691.
    """

    implementation: ClassVar[Literal["xla", "cudnn"]] = "cudnn"

    def check(self, head_width: int, beyond: Iterable[str]) -> None:
        super().check(head_width, beyond)
        if head_width % 8 or head_width > 256:
            raise ValueError(
                f"the kernel CuDNN cannot serve Attention.head_width={head_width}: it"
                " must be a multiple of 8 and 256 at most, or choose"
                " Attention.kernel=@Reference()."
            )

    def __call__(self, q, k, v, seen, **how):
        if (backend := spread.platform()) != "gpu":
            raise ValueError(
                f"the kernel CuDNN runs on GPUs and this process is on {backend}:"
                " choose Attention.kernel=@Reference()."
            )
        if split := spread.axes("T"):
            raise ValueError(
                "the kernel CuDNN takes rows whole, and a rule splits them over"
                f" {split}: choose Attention.kernel=@Ring()."
            )
        if q.dtype not in (jnp.bfloat16, jnp.float16):
            raise ValueError(
                f"the kernel CuDNN computes in bfloat16 or float16, not {q.dtype}: set"
                " Precision.compute='bfloat16', or Attention.kernel=@Reference()."
            )
        if not seen.whole:
            _say_price(seen.mask.size * q.dtype.itemsize)
        return super().__call__(q, k, v, seen, **how)


@cache
def _say_price(size: int) -> None:
    """Says once what a mask of `size` bytes is for."""
    logging.getLogger(__name__).warning(
        "the kernel CuDNN takes packed rows, or a cache, as a dense mask of %.1f MB"
        " that every layer reads: rows of one document each need none.",
        size / 1e6,
    )
