"""The root of a configuration without a recipe: a model that was trained elsewhere."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from lmx.config.registry import configurable
from lmx.models.decoder import Decoder


@configurable
@dataclass(frozen=True, kw_only=True)
class Pretrained:
    """What a model is, but not how it came to be.

    Attributes:
        family: whose names and layouts its files had.
        source: SHA-256 of those files; None: it was never put into a run.
        facts: what their config.json said that changes no logit, such as the longest
            text it was trained on; an export says it again.
        generation: their generation_config.json.
    """

    model: Callable[..., Decoder]
    family: str
    source: str | None = None
    hf_fields: Mapping[str, Any] = field(default_factory=dict)
    generation: Mapping[str, Any] = field(default_factory=dict)
