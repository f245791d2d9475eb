"""Which models may go from left to right."""

from flax import nnx

from lmx.config.names import ConfigError
from lmx.layers.mlp import FeedForward


def check_causal(model: nnx.Module) -> None:
    """Refuses a model in which a token depends on those after it."""
    for _, module in nnx.iter_modules(model):
        if isinstance(module, FeedForward) and not module.causal:
            parts = [type(part).__name__ for _, part in nnx.iter_children(module)]
            named = f"{type(module).__name__} of {', '.join(parts) or 'nothing'}"
            raise ConfigError(
                f"{named} is not causal: what it does to a token depends on the tokens"
                " after it, which are not there yet when text is made. Train it with a"
                " router that looks at each token alone, such as MoE.router = @TopK."
            )
