"""A model with trained parameters, and the config root of one trained elsewhere."""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, NamedTuple

import jax
from flax import nnx
from jaxtyping import PyTree

from lmx.config.registry import configurable
from lmx.config.value import Config, to_jsonable
from lmx.data.tokenizer.base import Tokenizer
from lmx.models.decoder import Decoder


@configurable
@dataclass(frozen=True, kw_only=True)
class Pretrained:
    """A model that was trained elsewhere.

    Attributes:
        family: the `model_type` of its files.
        source: SHA-256 of its files; None before it is imported into a run.
        hf_fields: fields of its config.json that change no logit, for an export.
        generation: its generation_config.json.
    """

    model: Callable[..., Decoder]
    family: str
    source: str | None = None
    hf_fields: Mapping[str, Any] = field(default_factory=dict)
    generation: Mapping[str, Any] = field(default_factory=dict)


def get_origin(config: Config[Pretrained]) -> dict[str, Any]:
    """The fields that an export needs: `TrainedModel.origin`."""
    names = ("family", "hf_fields", "generation")
    return {name: to_jsonable(config.fields[name]) for name in names}


class TrainedModel(NamedTuple):
    """The result of a run, or of files of Hugging Face.

    Attributes:
        config: an `Experiment` or a `Pretrained`.
        step: the last training step; 0 if it was not trained by lmx.
        graph: the model without its parameters.
        origin: the fields of the `Pretrained` that its training began with, if any.
    """

    config: Config[Any]
    step: int
    graph: nnx.GraphDef
    params: PyTree
    tokenizer: Tokenizer | None
    origin: Mapping[str, Any] = MappingProxyType({})

    @property
    def model(self) -> Decoder:
        """The model with its parameters."""
        return nnx.merge(self.graph, self.params)

    @property
    def training_length(self) -> int:
        """The longest sequence length of its training data; 0 without any."""
        pattern, lengths = re.compile(r"data\.(.+\.)?sequence_length(\.values)?"), [0]
        for name, value in self.config.flatten():
            if pattern.fullmatch(name):
                lengths += value if isinstance(value, tuple) else [value]
        return max(length for length in lengths if isinstance(length, int))

    @property
    def num_parameters(self) -> int:
        """The number of parameters."""
        return sum(leaf.size for leaf in jax.tree.leaves(self.params))
