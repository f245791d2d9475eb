"""A model with trained parameters, its config and its tokenizer."""

from typing import Any, NamedTuple

import jax
from flax import nnx
from jaxtyping import PyTree

from lmx.config.value import Config
from lmx.data.tokenizer.base import Tokenizer
from lmx.models.decoder import Decoder


class TrainedModel(NamedTuple):
    """The result of a run, or of files of Hugging Face.

    Attributes:
        config: an `Experiment` or a `Pretrained`.
        step: after which training step; 0 if it was not trained by lmx.
        graph: the model without its parameters.
    """

    config: Config[Any]
    step: int
    graph: nnx.GraphDef
    params: PyTree
    tokenizer: Tokenizer | None

    @property
    def model(self) -> Decoder:
        """The model with its parameters."""
        return nnx.merge(self.graph, self.params)

    @property
    def num_parameters(self) -> int:
        """The number of parameters."""
        return sum(leaf.size for leaf in jax.tree.leaves(self.params))
