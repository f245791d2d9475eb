"""Parametrizations that transfer hyper-parameters over width and depth: muP, CompleteP.

They act on initial weights and on the optimizer alone. A multiplier c of the forward
pass is folded into a weight: W' = c W is stored, and its optimizer sees W = W' / c, the
gradient c dL/dW', and steps of W. Models thus run, are saved and are exported as usual.
"""

import inspect
import math
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cache, partial
from typing import Any, ClassVar, NamedTuple

import jax
import optax
from flax import nnx
from jaxtyping import PyTree

from lmx.config.registry import Positive, configurable, find, require
from lmx.config.value import Factory
from lmx.core.console import print_line
from lmx.core.sharding import is_variable
from lmx.layers.attention.attention import Attention
from lmx.layers.attention.mla import MLA
from lmx.layers.linear import TiedLMHead
from lmx.layers.norm import OffsetRMSNorm
from lmx.models.block import Block, ReorderedNorm
from lmx.models.decoder import Decoder
from lmx.models.params import flatten_params

FINITE = {"vocab", "length", "experts", "reach"}  # logical axes that are no widths
DURATION_EXPONENT = -0.3  # -0.32 of Bjorck et al. 2024, arXiv:2409.19913, rounded
_warn_once = cache(print_line)


class ParamRule(NamedTuple):
    """Factors of one parameter, relative to the base model.

    Attributes:
        init: of the standard deviation that the initializer gives.
        multiplier: of the weight in the forward pass, folded into the stored one.
        lr, weight_decay, eps: of Adam; decay is per unit of learning rate.
        muon_lr: of Muon.
        shift: added to initial values.
    """

    init: float = 1.0
    multiplier: float = 1.0
    lr: float = 1.0
    weight_decay: float = 1.0
    eps: float = 1.0
    muon_lr: float = 1.0
    shift: float = 0.0


class ParamPair(NamedTuple):
    """A parameter of a model, and that of the base model."""

    param: Any
    base: Any

    def ratio(self, axes: tuple[str, ...]) -> float:
        """Size / base size over those of the axes that are widths."""
        sizes, base = (dict(zip(p.axes, p.shape, strict=True)) for p in self)
        ratios = (sizes[axis] / base[axis] for axis in axes if axis not in FINITE)
        return math.prod(ratios, start=1.0)


@dataclass(frozen=True)
class Transfer:
    """What an optimizer needs to know of a parametrization; by default, of none.

    An optimizer takes part if its second argument is `transfer`: it applies `adam` or
    `muon` to the transformation that makes its steps, and `fold` to the whole.
    """

    rules: Mapping[str, ParamRule]
    pairs: Mapping[str, ParamPair]
    lr: float = 1.0
    batch: float = 1.0  # batch size / that of the base

    def beta(self, beta: float) -> float:
        """The decay of a mean over steps: of the same mean over tokens."""
        require(
            self.batch * (1 - beta) < 1,
            f"batches of {self.batch:.3g} times base_batch are too large for a mean"
            f" with decay {beta}: use smaller ones.",
        )
        return beta if self.batch == 1 else 1 - self.batch * (1 - beta)

    def adam(self, optimizer: optax.GradientTransformation) -> Any:
        """Adam with decoupled weight decay, at each parameter's rate, decay and eps."""
        root = self.batch**0.5
        return self._wrap(
            optimizer,
            to_grads=lambda rule: root / rule.eps,
            to_params=lambda rule: root * rule.weight_decay,
            to_updates=lambda rule: root * self.lr * rule.lr,
        )

    def muon(
        self, optimizer: optax.GradientTransformation, scale: Callable[[Any], float]
    ) -> Any:
        """Orthogonalized steps; warns where their `scale` does not transfer."""
        require(
            self.batch == 1,
            "the rules for the batch size are those of Adam: unset base_batch.",
        )
        for path, pair in self.pairs.items():
            if is_hidden_matrix(pair.param):
                factor, dims = scale(pair.param) / scale(pair.base), pair.param
                wanted = (pair.ratio(dims.out_dims) / pair.ratio(dims.in_dims)) ** 0.5
                if not math.isclose(factor, wanted, rel_tol=1e-6):
                    _warn_once(
                        f"warning: Muon's steps of {path} are {factor:.3g} times those"
                        f" of the base model, and one rate transfers with {wanted:.3g}:"
                        " set muon.scaling = 'spectral'."
                    )
        return self._wrap(optimizer, to_updates=lambda rule: self.lr * rule.muon_lr)

    def fold(self, optimizer: optax.GradientTransformation) -> Any:
        """The optimizer of the weights without their multipliers."""
        return self._wrap(
            optimizer,
            to_grads=lambda rule: rule.multiplier,
            to_params=lambda rule: 1 / rule.multiplier,
            to_updates=lambda rule: rule.multiplier,
        )

    def _wrap(
        self,
        optimizer: optax.GradientTransformation,
        *,
        to_grads: Callable[[ParamRule], float] = lambda _: 1.0,
        to_params: Callable[[ParamRule], float] = lambda _: 1.0,
        to_updates: Callable[[ParamRule], float] = lambda _: 1.0,
    ) -> optax.GradientTransformation:
        def scale(factor: Callable[[ParamRule], float], tree: PyTree) -> PyTree:
            return self.map(lambda rule, x: x * factor(rule), tree)

        def update(updates, state, params=None):
            updates, params = scale(to_grads, updates), scale(to_params, params)
            updates, state = optimizer.update(updates, state, params)
            return scale(to_updates, updates), state

        if not self.rules:
            return optimizer
        return optax.GradientTransformation(optimizer.init, update)

    def map(self, function: Callable[[ParamRule, Any], Any], tree: PyTree) -> PyTree:
        """The tree with `function(rule, array)` for each parameter."""

        def apply(path: Any, leaf: Any) -> Any:
            name = jax.tree_util.keystr(path, simple=True, separator=".")
            return leaf.replace(function(self.rules[name], leaf[...]))

        return jax.tree.map_with_path(apply, tree, is_leaf=is_variable)


NO_TRANSFER = Transfer({}, {})


def is_hidden_matrix(p: Any) -> bool:
    """Whether it is a matrix, but no embedding and no head."""
    return bool(p.in_dims) and "vocab" not in p.axes and "length" not in p.axes


@configurable
@dataclass(frozen=True, kw_only=True)
class MuP:
    """muP: one learning rate for all widths. Yang et al. 2022, arXiv:2203.03466.

    With m = fan-in / that of the base model, weights of hidden layers have their
    variance x 1/m, rate x 1/m, weight decay x m (it is multiplied by the rate); logits
    of the head and of routers x 1/m; attention logits base head_dim / head_dim times
    those of the base's scale; eps x 1/m of the width. Embeddings, norms and biases stay
    as they are. Muon's rate does not change: set `muon.scaling = 'spectral'`. At the
    size of the base model nothing changes.

    Attributes:
        base: the model for which the hyper-parameters were tuned, with any depth.
        base_tokens: tokens of its training; rates then are x (tokens / those)^-0.3
            (Bjorck et al. 2024, arXiv:2409.19913).
        base_batch: tokens of its batches; with k times as many AdamW then has rate and
            weight decay x sqrt(k), 1 - b1 and 1 - b2 x k, and eps x 1 / sqrt(k)
            (Malladi et al. 2022, arXiv:2205.10287).
    """

    scales_depth: ClassVar[bool] = False

    base: Callable[..., Decoder]
    base_tokens: Positive[float | None] = None
    base_batch: Positive[float | None] = None

    def build_optimizer(
        self,
        optimizer: Callable[..., optax.GradientTransformation],
        learning_rate: optax.Schedule,
        model: Decoder,
        tokens: int,
        steps: int,
    ) -> optax.GradientTransformation:
        """The optimizer of a model, for a run of so many tokens and steps."""
        named = isinstance(optimizer, Factory)
        function = find(optimizer.config.name, "build") if named else optimizer
        require(
            "transfer" in inspect.signature(function).parameters,
            f"{function.__name__} has no rules for {type(self).__name__}: take @adamw"
            " or @muon, or give an optimizer of your own a second argument `transfer`,"
            " as lmx.train.optim.parametrization.Transfer says.",
        )
        duration, batch = tokens / (self.base_tokens or tokens), 1.0
        if self.base_batch:
            batch = tokens / steps / self.base_batch
        transfer = replace(
            self.compare(model), lr=duration**DURATION_EXPONENT, batch=batch
        )
        return optimizer(learning_rate, transfer)

    def init(self, build_model: Callable[..., Decoder], rngs: nnx.Rngs) -> Decoder:
        """A model with the initial weights of this parametrization."""
        model = build_model(rngs)
        graph, params = nnx.split(model)
        scaled = self.compare(model).map(
            lambda rule, x: x * (rule.init * rule.multiplier) + rule.shift, params
        )
        return nnx.merge(graph, scaled)

    def compare(self, model: Decoder) -> Transfer:
        """The rules of all parameters of a model, which may be abstract, by path."""
        depth = model.stack.depth
        base = nnx.eval_shape(lambda: self.base(nnx.Rngs(0), depth=depth))
        own = self.base if self.scales_depth else partial(self.base, depth=depth)
        base_depth = nnx.eval_shape(lambda: own(nnx.Rngs(0))).stack.depth
        new, old = (
            flatten_params(nnx.split(x)[1], is_leaf=is_variable) for x in (model, base)
        )
        others = [path for path in {**new, **old} if (path in new) != (path in old)]
        require(
            not others,
            f"{type(self).__name__}.base has other parameters than the model, such as"
            f" {', '.join(others[:1])}: it must differ in sizes alone.",
        )
        pairs = {path: ParamPair(p, old[path]) for path, p in new.items()}
        width = pairs["embedding"].ratio(("embed",))
        multipliers = {
            **_fold_logits(model, pairs, width),
            **_fold_attention(model, base, pairs),
            **dict.fromkeys(_list_branch_ends(model, pairs), base_depth / depth),
        }
        gains = {  # of 1 + offset
            ".".join(map(str, (*path, "offset")))
            for path, module in nnx.iter_modules(model)
            if isinstance(module, OffsetRMSNorm)
        }
        rules = {}
        for path, pair in pairs.items():
            std, factor = _std(model, pair.param, depth), multipliers.get(path, 1.0)
            init = _std(base, pair.base, base_depth) / std if std else 1.0
            rules[path] = _make_rule(pair, init)._replace(
                multiplier=factor,
                eps=(base_depth / depth if path.startswith("stack.") else 1) / width,
                shift=factor - 1 if path in gains else 0.0,
            )
        return Transfer(rules, pairs)


@configurable
class CompleteP(MuP):
    """`MuP`, and one learning rate for all depths. Dey et al. 2025, arXiv:2505.01618.

    With mL = depth / depth of the base model, outputs of residual branches are x 1/mL,
    and eps of the parameters in blocks x 1/mL: alpha = 1 of table 1. Muon's rate then
    needs no factor of depth.
    """

    scales_depth = True


def _make_rule(pair: ParamPair, init: float) -> ParamRule:
    """Without multiplier and eps."""
    m = pair.ratio(pair.param.in_dims)
    if _is_output(pair.param):
        return ParamRule(init, muon_lr=m)
    return ParamRule(init * m**-0.5, lr=1 / m, weight_decay=m)


def _is_output(p: Any) -> bool:
    """Whether a matrix makes logits: of tokens, or of experts."""
    return bool(p.in_dims) and {*p.out_dims} <= {"vocab", "experts"}


def _std(model: Decoder, p: Any, depth: int) -> float:
    """The standard deviation of initial values by the initializer; 0 for constants."""
    if "role" not in p.get_metadata():
        return 0.0
    fan_in = math.prod(p.shape[p.axes.index(axis)] for axis in p.in_dims)
    return model.initializer.std_for(p.role, fan_in, depth)


def _fold_logits(
    model: Decoder, pairs: Mapping[str, ParamPair], width: float
) -> dict[str, float]:
    """1/m of heads and routers; a tied head has it in the norms before it."""
    found = {
        path: 1 / pair.ratio(pair.param.in_dims)
        for path, pair in pairs.items()
        if _is_output(pair.param)
    }
    if isinstance(model.head, TiedLMHead):
        last = re.compile(r"(mtp\.modules\.\d+\.)?norm\.\w+")
        found |= {path: 1 / width for path in pairs if last.fullmatch(path)}
    return found


def _fold_attention(
    model: Decoder, base: Decoder, pairs: Mapping[str, ParamPair]
) -> dict[str, float]:
    """Base head_dim / head_dim times the base's scale of logits, in the queries."""
    found: dict[str, float] = {}
    bases: dict[Any, Any] = dict(nnx.iter_modules(base))
    for path, attention in nnx.iter_modules(model):
        if not isinstance(attention, Attention | MLA):
            continue
        prefix = ".".join(map(str, path))
        names = (f"{prefix}.{name}.w" for name in ("q", "query", "query.up"))
        weight = next(name for name in names if name in pairs)
        size, base_size = (p.shape[p.axes.index("head_dim")] for p in pairs[weight])
        scale, base_scale = attention.scale, bases[path].scale
        scale = size**-0.5 if scale is None else scale
        base_scale = base_size**-0.5 if base_scale is None else base_scale
        factor = base_scale * (base_size / size) / scale
        require(
            factor == 1 or type(attention) in (Attention, MLA),
            f"{type(attention).__name__} has no rule for the scale of queries: give the"
            f" base model head_dim = {size} too.",
        )
        normed = getattr(attention, "q_norm", None)
        ends = f"{prefix}.q_norm." if normed else weight.removesuffix("w")
        found |= {name: factor for name in pairs if name.startswith(ends)}
    return found


def _list_branch_ends(model: Decoder, pairs: Mapping[str, ParamPair]) -> Iterator[str]:
    """The last parameters of each residual branch of the stack."""
    for path, block in nnx.iter_modules(model.stack):
        if not isinstance(block, Block):
            continue
        for branch in ("attention", "mlp"):
            prefix = ".".join(map(str, ("stack", *path, branch)))
            norm = f"{prefix}_out_norm." if block.out_norms else f"{prefix}_norm."
            if block.out_norms or isinstance(block, ReorderedNorm):
                yield from (name for name in pairs if name.startswith(norm))
                continue
            for name, pair in pairs.items():
                role = pair.param.get_metadata("role", None)
                if name.startswith(f"{prefix}.") and role == "residual":
                    biases = name.removesuffix("w") + "b", f"{name}_b"
                    yield from (x for x in (name, *biases) if x in pairs)
