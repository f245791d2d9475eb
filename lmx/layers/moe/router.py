"""MoE routers: the experts of each token and their weights, and auxiliary losses."""

from abc import abstractmethod
from collections.abc import Callable
from functools import partial
from typing import ClassVar, NamedTuple

import jax
import jax.numpy as jnp
from einops import rearrange
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from lmx.config.registry import NonNegative, Positive, check_argument, configurable
from lmx.core import partitioning
from lmx.core.mean import Aux, Mean
from lmx.core.precision import upcast
from lmx.layers.init import Init
from lmx.layers.linear import Einsum
from lmx.layers.tap import tap


def count_choices(
    experts: Int[Array, "B T C"], count: int, unpadded: Bool[Array, "B T"]
) -> Int[Array, "B T E"]:
    """1 where an unpadded token goes to an expert, of `count`."""
    one_hot_BTCE = jax.nn.one_hot(experts, count, dtype="int32")
    return one_hot_BTCE.sum(axis=2) * unpadded[:, :, None]


def sum_per_document(
    values: Int[Array, "B T E"], segments: Int[Array, "B T"]
) -> Int[Array, "B T E"]:
    """At each token, the sum over its document, a run of equal segments."""
    number_BT = jnp.cumsum(jnp.diff(segments, axis=1, prepend=0) != 0, axis=1)
    add = partial(jax.ops.segment_sum, num_segments=segments.shape[1] + 1)
    sums = jax.vmap(add)(values, number_BT)
    return jnp.take_along_axis(sums, number_BT[:, :, None], axis=1)


def balance_loss(
    probs: Float[Array, "B T E"],
    experts: Int[Array, "B T C"],
    segments: Int[Array, "B T"],
) -> Mean:
    """1 if every expert gets an equal share of a document, E if one gets all of it.

    Fedus et al. 2021, arXiv:2101.03961, equation 4, per document as in DeepSeek-AI
    2024, arXiv:2412.19437, section 2.1.2, so that packing does not matter.
    """
    E, unpadded_BT = probs.shape[-1], segments > 0
    counts_BTE = sum_per_document(count_choices(experts, E, unpadded_BT), segments)
    total_BT1 = jnp.maximum(counts_BTE.sum(axis=-1, keepdims=True), 1)
    fraction_BTE = (counts_BTE / total_BT1).astype(probs.dtype)
    total = E * (probs * fraction_BTE * unpadded_BT[:, :, None]).sum()
    return Mean(total, unpadded_BT.sum().astype(probs.dtype))


def router_z_loss(logits: Float[Array, "B T E"], unpadded: Bool[Array, "B T"]) -> Mean:
    """Squared log of the softmax denominator. Zoph et al. 2022, arXiv:2202.08906."""
    z_BT = jax.nn.logsumexp(logits, axis=-1) ** 2
    return Mean((z_BT * unpadded).sum(), unpadded.sum().astype(logits.dtype))


def load_bias_loss(
    bias: Float[Array, "E"], experts: Int[Array, "B T C"], unpadded: Bool[Array, "B T"]
) -> Mean:
    """Always 0; its gradient is positive for overloaded experts, else negative.

    Wang et al. 2024, arXiv:2408.15664, algorithm 1.
    """
    E = bias.shape[0]
    load_E = count_choices(experts, E, unpadded).sum(axis=(0, 1))
    excess_E = (E * load_E - load_E.sum()).astype(bias.dtype)  # E times the overload
    total = (excess_E * (bias - jax.lax.stop_gradient(bias))).sum()
    return Mean(total, unpadded.sum().astype(bias.dtype))


class Routing(NamedTuple):
    """The experts of each token, and the weights of their outputs."""

    experts: Int[Array, "B T C"]
    weights: Float[Array, "B T C"]


def best_group_mask(
    scores: Float[Array, "B T E"], groups: int, top_k: int
) -> Bool[Array, "B T E"]:
    """True for experts in the `top_k` groups by the sum of their two best scores."""
    E = scores.shape[-1]
    grouped = rearrange(scores, "B T (groups E) -> B T groups E", groups=groups)
    sums = jax.lax.top_k(grouped, 2)[0].sum(axis=-1)
    best = jax.lax.top_k(sums, top_k)[1]
    mask = jax.nn.one_hot(best, groups, dtype="bool").any(axis=2)
    return jnp.repeat(mask, E // groups, axis=-1)


class Router(nnx.Module):
    """Base class of routers, by which each token chooses `top_k` experts.

    Each device routes its own tokens with the scores of all experts (letter C is never
    sharded), since XLA would gather all tokens for `top_k`.
    """

    top_k: int

    @abstractmethod
    def __call__(
        self, x: Float[Array, "B T D"], segments: Int[Array, "B T"]
    ) -> tuple[Routing, Aux]:
        """The routing of every token, and the auxiliary losses of unpadded tokens."""


@configurable
class TopKRouter(Router):
    """Best experts by score, weighted by a softmax over their scores: weights sum to 1.

    Shazeer et al. 2017, arXiv:1701.06538, section 2.1.
    """

    def __init__(
        self,
        width: int,
        experts: int,
        init: Init,
        *,
        top_k: Positive[int],
        linear: Callable[..., Einsum] = Einsum,
    ):
        check_top_k(f"{type(self).__name__}.top_k", top_k, experts)
        self.top_k = top_k
        self.score = linear("BTD,DE->BTE", dict(D=width, E=experts), init)

    def __call__(self, x, segments):
        logits_BTE = tap("router.logits", self.score(upcast(x)))
        routing = partitioning.shard_map(self.route, ["BTC"], "BTC")(logits_BTE)
        probs_BTE = jax.nn.softmax(logits_BTE, axis=-1)
        return routing, {
            "balance": balance_loss(probs_BTE, routing.experts, segments),
            "router_z": router_z_loss(logits_BTE, segments > 0),
        }

    def route(self, logits: Float[Array, "B T E"]) -> Routing:
        """The routing of tokens with these logits."""
        best_BTC, experts_BTC = jax.lax.top_k(logits, self.top_k)
        return Routing(experts_BTC, jax.nn.softmax(best_BTC, axis=-1))


@configurable
class SoftmaxRouter(TopKRouter):
    """`TopKRouter`, weighted by a softmax over all experts: weights sum to less than 1.

    Dai et al. 2024, arXiv:2401.06066, section 2 (DeepSeekMoE).
    """

    def route(self, logits):
        probs_BTE = jax.nn.softmax(logits, axis=-1)
        weights_BTC, experts_BTC = jax.lax.top_k(probs_BTE, self.top_k)
        return Routing(experts_BTC, weights_BTC)


@configurable
class SigmoidRouter(Router):
    """Independent sigmoid scores, balanced by a selection bias without a loss.

    The bias affects the choice of experts, not their weights. Its only gradient is the
    auxiliary loss "load": it moves by `bias_update_rate` against the sign. Experts form
    `groups`, and a token chooses within its best `group_top_k` groups. Weights sum to
    `scale`. DeepSeek-AI 2024, arXiv:2412.19437, section 2.1.2, and its released code.
    "balance" counts the best experts by score without the bias, as that code does.
    """

    normalize: ClassVar[bool] = True

    def __init__(
        self,
        width: int,
        experts: int,
        init: Init,
        *,
        top_k: Positive[int],
        groups: Positive[int] = 1,
        group_top_k: Positive[int] = 1,
        scale: Positive[float] = 1.0,
        bias_update_rate: NonNegative[float] = 0.001,
    ):
        name = type(self).__name__
        check_top_k(f"{name}.top_k", top_k, experts)
        check_argument(
            experts % groups == 0 and (groups == 1 or experts // groups >= 2),
            f"{experts} experts do not form {groups} groups: {name}.groups must divide"
            " MoE.experts into equal groups of 2 or more.",
        )
        check_argument(
            group_top_k <= groups and group_top_k * experts // groups >= top_k,
            f"a token cannot choose {top_k} experts within {group_top_k} of {groups}"
            f" groups of {experts // groups}: {name}.group_top_k must be at most"
            f" {name}.groups, and cover {name}.top_k experts.",
        )
        sizes = dict(D=width, E=experts)
        self.score = Einsum("BTD,DE->BTE", sizes, init)
        self.bias = init.upcast().full("E", sizes, 0.0)
        self.bias.set_metadata(sign_rate=bias_update_rate)
        self.top_k, self.scale = top_k, scale
        self.groups, self.group_top_k = groups, group_top_k

    def __call__(self, x, segments):
        scores_BTE = jax.nn.sigmoid(tap("router.logits", self.score(upcast(x))))
        bias_E = self.bias[...]
        route = partitioning.shard_map(self.route, ["BTC", ""], "BTC")
        routing = route(scores_BTE, bias_E)
        probs_BTE = scores_BTE / scores_BTE.sum(axis=-1, keepdims=True)
        best_BTC = partitioning.shard_map(self.select, ["BTC"], "BTC")(scores_BTE)
        return routing, {
            "balance": balance_loss(probs_BTE, best_BTC, segments),
            "load": load_bias_loss(bias_E, routing.experts, segments > 0),
        }

    def route(self, scores: Float[Array, "B T E"], bias: Float[Array, "E"]) -> Routing:
        """The routing of tokens with these scores under the bias."""
        biased_BTE = scores + jnp.broadcast_to(bias, scores.shape)
        if self.group_top_k < self.groups:
            mask_BTE = best_group_mask(biased_BTE, self.groups, self.group_top_k)
            biased_BTE = jnp.where(mask_BTE, biased_BTE, -jnp.inf)
        experts_BTC = self.select(biased_BTE)
        weights_BTC = jnp.take_along_axis(scores, experts_BTC, axis=-1)
        if self.normalize:  # 1e-20 as in the released code
            weights_BTC /= weights_BTC.sum(axis=-1, keepdims=True) + 1e-20
        return Routing(experts_BTC, weights_BTC * self.scale)

    def select(self, scores: Float[Array, "B T E"]) -> Int[Array, "B T C"]:
        """The experts with the highest scores."""
        return jax.lax.top_k(scores, self.top_k)[1]


@configurable
class UnnormalizedSigmoidRouter(SigmoidRouter):
    """`SigmoidRouter`, weighted by the scores themselves."""

    normalize = False


def check_top_k(parameter: str, top_k: int, experts: int) -> None:
    """Raises ValueError unless tokens can choose `top_k` of the experts."""
    check_argument(
        top_k <= experts,
        f"a token cannot choose {top_k} of {experts} experts: {parameter} must be at"
        " most MoE.experts.",
    )
