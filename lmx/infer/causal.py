"""Which models may go from left to right."""

from flax import nnx

from lmx.config.names import ConfigError
from lmx.layers.mlp import FeedForward


def check_causal(model: nnx.Module) -> None:
    """Refuses a model in which a token depends on those after it."""
    for _, module in nnx.iter_modules(model):
        if isinstance(module, FeedForward) and not module.causal:
            raise ConfigError(
                f"{type(module).__name__} is not causal: a token's vector depends on the"
                " tokens after it, which are not there yet when text is made. Train with experts that look at each token alone: Decoder.mlp = @MoE."
            )
