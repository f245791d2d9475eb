"""The feed-forward layers that tokens are shared out among."""

from abc import abstractmethod
from collections.abc import Callable, Mapping
from typing import ClassVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from lmx.core.mean import Aux
from lmx.layers.init import Init
from lmx.layers.mlp import FeedForward

ExpertMatmul = Callable[
    [Array, Array], Array
]  # of rows and E matrices: each row with its own
Weights = Mapping[str, Array]


def swiglu(
    gate: Float[Array, "*rows F"], up: Float[Array, "*rows F"]
) -> Float[Array, "*rows F"]:
    """silu(gate) * up. Shazeer 2020, arXiv:2002.05202."""
    return jax.nn.silu(gate) * up


def clamped_swiglu(
    gate: Float[Array, "*rows F"],
    up: Float[Array, "*rows F"],
    limit: float,
    alpha: float,
) -> Float[Array, "*rows F"]:
    """SiLU of that slope of the gate, times up + 1, where neither goes beyond `limit`.

    OpenAI 2025, arXiv:2508.10925 (gpt-oss), section 2.2, and its released code.
    """
    gate = jnp.minimum(gate, limit)
    up = jnp.clip(up, -limit, limit)
    return gate * jax.nn.sigmoid(alpha * gate) * (up + 1)


class Experts(FeedForward):
    """Alike layers of which each token meets a few, and one it always meets.

    Attributes:
        shared: what every token meets beside the experts it is routed to. Dai et al.
            2024, arXiv:2401.06066, section 3.2.
        letters: of what each expert has its own of.
    """

    weight_letters: ClassVar[Mapping[str, str]] = {
        "gate": "EDF",
        "up": "EDF",
        "down": "EFD",
    }

    def __init__(
        self,
        width: int,
        init: Init,
        *,
        experts: int,
        hidden: int,
        shared: Callable[..., FeedForward] | None = None,
    ):
        sizes = dict(D=width, E=experts, F=hidden)
        self.gate = init.weight("EDF", sizes, in_dims="D", out_dims="F")
        self.up = init.weight("EDF", sizes, in_dims="D", out_dims="F")
        self.down = init.weight(
            "EFD", sizes, in_dims="F", out_dims="D", role="residual"
        )
        self.shared = shared and shared(width, init)

    @abstractmethod
    def apply_routed(
        self, x: Float[Array, "B T D"], segments: Int[Array, "B T"]
    ) -> tuple[Float[Array, "B T D"], Aux]:
        """What the experts make of the tokens that are theirs."""

    def __call__(
        self, x: Float[Array, "B T D"], segments: Int[Array, "B T"]
    ) -> tuple[Float[Array, "B T D"], Aux]:
        y_BTD, aux = self.apply_routed(x, segments)
        if self.shared:
            always_BTD, more = self.shared(x, segments)
            y_BTD, aux = y_BTD + always_BTD, {**aux, **more}
        return y_BTD, aux

    def cast_weights(self, dtype: jnp.dtype) -> Weights:
        """What each expert has its own of, by name."""
        return {
            name: getattr(self, name)[...].astype(dtype) for name in self.weight_letters
        }

    def apply_experts(
        self, x: Float[Array, "*rows D"], matmul: ExpertMatmul, weights: Weights
    ) -> Float[Array, "*rows D"]:
        """What each row's expert makes of it, where `matmul` knows whose it is.

        With a share of the weights along F, it is a share of that: they add up.
        """
        gate, up = (self.project(name, x, matmul, weights) for name in ("gate", "up"))
        return self.project("down", self.activate(gate, up), matmul, weights)

    def activate(
        self, gate: Float[Array, "*rows F"], up: Float[Array, "*rows F"]
    ) -> Float[Array, "*rows F"]:
        """What goes down again."""
        return swiglu(gate, up)

    def project(
        self,
        name: str,
        x: Float[Array, "*rows _"],
        matmul: ExpertMatmul,
        weights: Weights,
    ) -> Float[Array, "*rows _"]:
        """Each row times its expert's matrix of that name."""
        return matmul(x, weights[name])
