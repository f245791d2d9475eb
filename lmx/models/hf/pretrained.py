"""Config root of an imported model, which has no training recipe."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from lmx.config.registry import configurable
from lmx.models.decoder import Decoder


@configurable
@dataclass(frozen=True, kw_only=True)
class Pretrained:
    """A model that was trained elsewhere.

    Attributes:
        family: the `model_type` of its files.
        source: SHA-256 of its files; None before it is imported into a run.
        hf_fields: fields of its config.json that change no logit, such as the longest
            text of its training; an export has them again.
        generation: its generation_config.json.
    """

    model: Callable[..., Decoder]
    family: str
    source: str | None = None
    hf_fields: Mapping[str, Any] = field(default_factory=dict)
    generation: Mapping[str, Any] = field(default_factory=dict)
