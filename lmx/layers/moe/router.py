"""Which experts each token goes to."""

from abc import abstractmethod
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from einops import rearrange
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from lmx.config.registry import configurable
from lmx.core import partitioning
from lmx.core.mean import Aux
from lmx.core.precision import upcast
from lmx.layers.init import Init
from lmx.layers.linear import Einsum
from lmx.layers.moe.loss import balance_loss, load_bias_loss, router_z_loss


class Routing(NamedTuple):
    """Which experts each token goes to, and how much of each answer it takes."""

    experts: Int[Array, "B T C"]
    weights: Float[Array, "B T C"]


def route_top_k(logits: Float[Array, "B T E"], top_k: int) -> Routing:
    """Each token's best experts, weighted by a softmax over those alone."""
    best_BTC, experts_BTC = jax.lax.top_k(logits, top_k)
    return Routing(experts_BTC, jax.nn.softmax(best_BTC, axis=-1))


def route_softmax(logits: Float[Array, "B T E"], top_k: int) -> Routing:
    """Each token's best experts, weighted by their shares of a softmax over all."""
    shares_BTC, experts_BTC = jax.lax.top_k(jax.nn.softmax(logits, axis=-1), top_k)
    return Routing(experts_BTC, shares_BTC)


def best_group_mask(
    scores: Float[Array, "B T E"], groups: int, top_k: int
) -> Bool[Array, "B T E"]:
    """Whether an expert's group is among the best by the sum of its two best scores."""
    E = scores.shape[-1]
    grouped = rearrange(scores, "B T (groups E) -> B T groups E", groups=groups)
    sums = jax.lax.top_k(grouped, 2)[0].sum(axis=-1)
    best = jax.lax.top_k(sums, top_k)[1]
    kept = jax.nn.one_hot(best, groups, dtype="bool").any(axis=2)
    return jnp.repeat(kept, E // groups, axis=-1)


class Router(nnx.Module):
    """Anything that lets each token choose its experts.

    A device chooses for its own tokens, with the scores of all experts (letter C: what
    can be chosen is never split), since XLA would gather every token's for `top_k`.

    Attributes:
        choices: experts per token.
    """

    top_k: int

    @abstractmethod
    def __call__(
        self, x: Float[Array, "B T D"], segments: Int[Array, "B T"]
    ) -> tuple[Routing, Aux]:
        """The choices of every token, and the auxiliary losses over live ones."""


@configurable
class TopKRouter(Router):
    """The best experts, weighted by a softmax over their scores; the weights sum to 1.

    Scores are taken in at least float32. `linear` makes them, `@EinsumBias` with offsets.
    Shazeer et al. 2017, arXiv:1701.06538, section 2.1.
    """

    def __init__(
        self,
        width: int,
        experts: int,
        init: Init,
        *,
        top_k: int,
        linear: Callable[..., Einsum] = Einsum,
    ):
        check_top_k(type(self).__name__, top_k, experts)
        self.top_k = top_k
        self.score = linear("BTD,DE->BTE", dict(D=width, E=experts), init)

    def __call__(
        self, x: Float[Array, "B T D"], segments: Int[Array, "B T"]
    ) -> tuple[Routing, Aux]:
        logits_BTE = self.score(upcast(x))
        choose = partitioning.shard_map(self.route, ["BTC"], "BTC")
        routing = choose(logits_BTE)
        probs_BTE = jax.nn.softmax(logits_BTE, axis=-1)
        return routing, {
            "balance": balance_loss(probs_BTE, routing.experts, segments),
            "router_z": router_z_loss(logits_BTE, segments > 0),
        }

    def route(self, logits: Float[Array, "B T E"]) -> Routing:
        """The choices that these scores make."""
        return route_top_k(logits, self.top_k)


@configurable
class SoftmaxRouter(TopKRouter):
    """`TopKRouter`, weighted by a softmax over all experts: the weights sum to less than 1.

    Dai et al. 2024, arXiv:2401.06066, section 2 (DeepSeekMoE).
    """

    def route(self, logits: Float[Array, "B T E"]) -> Routing:
        return route_softmax(logits, self.top_k)


@configurable
class SigmoidRouter(Router):
    """Experts scored apart, and chosen with a bias that keeps their loads even.

    The bias decides who is chosen and weighs nothing; it learns from the auxiliary loss
    "load" alone, by steps of `rate` against its sign. Experts stand in `groups`, and a
    token chooses within the best `group_top_k` of them. The weights sum to `scale`.
    DeepSeek-AI 2024, arXiv:2412.19437, section 2.1.2, and its released code. "balance"
    counts, as there, the best by score without the bias.
    """

    def __init__(
        self,
        width: int,
        experts: int,
        init: Init,
        *,
        top_k: int,
        groups: int = 1,
        group_top_k: int = 1,
        scale: float = 1.0,
        bias_update_rate: float = 0.001,
    ):
        name = type(self).__name__
        check_top_k(name, top_k, experts)
        _check_groups(name, experts, groups, group_top_k, top_k)
        sizes = dict(D=width, E=experts)
        self.score = Einsum("BTD,DE->BTE", sizes, init)
        self.bias = init.upcast().full("E", sizes, 0.0)
        self.bias.set_metadata(sign_rate=bias_update_rate)
        self.top_k, self.scale = top_k, scale
        self.groups, self.group_top_k = groups, group_top_k

    def __call__(
        self, x: Float[Array, "B T D"], segments: Int[Array, "B T"]
    ) -> tuple[Routing, Aux]:
        scores_BTE = jax.nn.sigmoid(self.score(upcast(x)))
        bias_E = self.bias[...]
        choose = partitioning.shard_map(self.route, ["BTC", ""], "BTC")
        routing = choose(scores_BTE, bias_E)
        probs_BTE = scores_BTE / scores_BTE.sum(axis=-1, keepdims=True)
        best_BTC = partitioning.shard_map(self.select, ["BTC"], "BTC")(scores_BTE)
        return routing, {
            "balance": balance_loss(probs_BTE, best_BTC, segments),
            "load": load_bias_loss(bias_E, routing.experts, segments > 0),
        }

    def route(self, scores: Float[Array, "B T E"], bias: Float[Array, "E"]) -> Routing:
        """The choices that these scores make under the bias."""
        biased_BTE = scores + jnp.broadcast_to(bias, scores.shape)
        if self.group_top_k < self.groups:
            kept_BTE = best_group_mask(biased_BTE, self.groups, self.group_top_k)
            biased_BTE = jnp.where(kept_BTE, biased_BTE, -jnp.inf)
        experts_BTC = self.select(biased_BTE)
        scores_BTC = jnp.take_along_axis(scores, experts_BTC, axis=-1)
        return Routing(experts_BTC, self.weigh(scores_BTC) * self.scale)

    def select(self, scores: Float[Array, "B T E"]) -> Int[Array, "B T C"]:
        """Those of the highest scores."""
        return jax.lax.top_k(scores, self.top_k)[1]

    def weigh(self, scores: Float[Array, "B T C"]) -> Float[Array, "B T C"]:
        """What the scores of the chosen weigh."""
        return scores / (scores.sum(axis=-1, keepdims=True) + 1e-20)  # its code's


@configurable
class UnnormalizedSigmoidRouter(SigmoidRouter):
    """`SigmoidRouter`, weighted by the scores as they are: the weights sum to anything."""

    def weigh(self, scores: Float[Array, "B T C"]) -> Float[Array, "B T C"]:
        return scores


def check_top_k(name: str, top_k: int, experts: int) -> None:
    """Refuses to choose more than there is, or nothing."""
    if not 0 < top_k <= experts:
        raise ValueError(
            f"a token cannot choose {top_k} of {experts} experts: {name}.choices"
            " must be 1 or more, and at most MoE.experts."
        )


def _check_groups(
    name: str, experts: int, groups: int, group_choices: int, choices: int
) -> None:
    """Refuses groups that are no groups, or in which a token finds too few experts."""
    if groups < 1 or experts % groups or (groups > 1 and experts // groups < 2):
        raise ValueError(
            f"{experts} experts do not stand in {groups} groups: {name}.groups must"
            " divide MoE.experts into equal groups of 2 or more."
        )
    if not 0 < group_choices <= groups or group_choices * experts // groups < choices:
        raise ValueError(
            f"a token cannot choose {choices} experts within {group_choices} of"
            f" {groups} groups of {experts // groups}: {name}.group_choices must be"
            f" at most {name}.groups, and hold {name}.choices experts."
        )
