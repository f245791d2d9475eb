"""Which models may go from left to right."""

from flax import nnx

from lmx.config.registry import ConfigError
from lmx.layers.mlp import FeedForward


def check_causal(model: nnx.Module) -> None:
    """Refuses a model in which a token depends on those after it."""
    for _, module in nnx.iter_modules(model):
        if isinstance(module, FeedForward) and not module.causal:
            raise ConfigError(
                f"{type(module).__name__} is not causal: what a token gets depends on"
                " the tokens after it, which are not there yet when text is made. Train"
                " with experts that see each token alone, as Decoder.mlp = @MoE."
            )
