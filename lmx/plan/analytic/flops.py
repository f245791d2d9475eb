"""The arithmetic of a token in three conventions, and what a device really does."""

from typing import NamedTuple

from lmx.models import flops
from lmx.models.decoder import Decoder
from lmx.models.remat import Remat

# Products of queries with keys and the like, in a fused kernel: its backward pass takes
# the scores anew. Dao 2023, arXiv:2307.08691, section 2.3.
FORWARD, BACKWARD = 2, 5


class Flops(NamedTuple):
    """FLOPs of training on one token.

    Attributes:
        weights: 6 for each weight that it meets (6N). Kaplan et al. 2020,
            arXiv:2001.08361, section 2.1.
        attention: and attention's own, as if it saw all tokens; what `lmx train` calls
            MFU counts so. Chowdhery et al. 2022, arXiv:2204.02311, appendix B.
        causal: and attention's own, of the tokens before it only.
        executed: what is done: as `causal`, and what the backward pass computes again.
        attending: of `executed`, attention's own.
    """

    weights: float
    attention: float
    causal: float
    executed: float
    executed_attention: float


def count_flops(model: Decoder, length: int, remat: Remat) -> Flops:
    """All conventions for rows of `length` tokens, each one document.

    Attention is taken to skip what it may not see and to keep no scores, so that all
    policies but `keep_all` compute it again.
    """
    weights = flops.train_flops_per_token(model, 0)
    further = model.mtp.modules if model.mtp else ()
    blocks = [*model.stack.kinds(), *((module.block, 1) for module in further)]
    seen = sum(
        layers
        * block.attention.macs_per_pair
        * _mean_keys(length, block.attention.window)
        for block, layers in blocks
    )
    inner = sum(
        flops.count_active_weights(block, block.mlp.active_fraction)
        for block, _ in blocks
    )
    attending = seen * (FORWARD + BACKWARD + (remat != "keep_all") * FORWARD)
    again = 2 * inner if remat == "keep_none" else 0.0
    return Flops(
        weights=weights,
        attention=flops.train_flops_per_token(model, length),
        causal=weights + 6 * seen,
        executed=weights + again + attending,
        executed_attention=attending,
    )


def _mean_keys(length: int, window: int | None) -> float:
    """How many tokens one sees on average, itself among them."""
    reach = min(length, window or length)
    return reach * (2 * length - reach + 1) / (2 * length)
