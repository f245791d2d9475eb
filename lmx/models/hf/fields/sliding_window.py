"""Which layers see a window of tokens, as a config.json tells it."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from lmx.config.parse import Ref
from lmx.config.registry import ConfigError
from lmx.config.value import Config
from lmx.models.hf.fields.field import FieldMap, Values, ref

WINDOW, FULL = "sliding_attention", "full_attention"
SCOPES = {WINDOW: "local", FULL: "global"}


@dataclass(frozen=True)
class WindowFields(FieldMap):
    """`sliding_window` and `layer_types`: one attention, or a cycle of them.

    Attributes:
        default: the window where the file does not name one; null is none.
        types: of every layer, where the file does not name them; None: the window is
            every layer's, and files never name types.
        asks: further fields that `types` looks at.
        tells: what is written beside the types, given whether there is a window.
    """

    default: int | None = None
    layer_types: Callable[[Values], Sequence[str]] | None = None
    extra_names: tuple[str, ...] = ()
    extra_fields: Callable[[bool], dict[str, Any]] = lambda _: {}

    @property
    def names(self) -> tuple[str, ...]:
        typed = () if self.layer_types is None else ("layer_types",)
        return ("sliding_window", *typed, *self.extra_names)

    def with_defaults(self, given: Values) -> dict[str, Any]:
        window = given.get("sliding_window", self.default)
        depth = given["num_hidden_layers"]
        if self.layer_types is None:
            kinds = [WINDOW if window else FULL] * depth
        else:
            kinds = given.get("layer_types")
            kinds = kinds or self.layer_types({**given, "sliding_window": window})
        if len(kinds) != depth or not set(kinds) <= SCOPES.keys():
            raise ConfigError(
                f"layer_types names {len(kinds)} layers, {sorted(set(kinds))}: there"
                f" are {depth}, and only {WINDOW!r} and {FULL!r} can be had here."
            )
        if WINDOW in kinds and not window:
            raise ConfigError(f"layer_types has {WINDOW!r} and sliding_window is null.")
        return {"sliding_window": window, "layer_types": list(kinds)}

    def to_bindings(self, settled: Values) -> dict[str, Any]:
        kinds, window = settled["layer_types"], settled["sliding_window"]
        if len(set(kinds)) == 1:
            whole = {"Decoder.attention": ref("Attention")}
            return whole | ({"Attention.window": window} if kinds[0] == WINDOW else {})
        turn = [Ref((SCOPES[kind],), "Attention", False) for kind in find_cycle(kinds)]
        return {"Decoder.attention": turn, "local/Attention.window": window}

    def to_hf(self, config: Config) -> dict[str, Any]:
        windows = [layer.fields.get("window") for layer in list_attention(config)]
        known = sorted({window for window in windows if window})
        if len(known) > 1:
            raise ConfigError(f"windows of {known} tokens in one model.")
        unused = (
            None if self.layer_types is None else self.default
        )  # some want a number
        told: dict[str, Any] = {"sliding_window": known[0] if known else unused}
        if self.layer_types is not None:
            told["layer_types"] = [WINDOW if window else FULL for window in windows]
        return told | self.extra_fields(bool(known))


def list_attention(config: Config) -> list[Config]:
    """The attention of every layer."""
    kinds = config["model.attention"]
    kinds = kinds if isinstance(kinds, tuple) else (kinds,)
    return [kinds[i % len(kinds)] for i in range(config["model.depth"])]


def find_cycle(kinds: Sequence[str]) -> Sequence[str]:
    """As few of them as repeat to all."""
    return next(
        kinds[:period]
        for period in range(1, len(kinds) + 1)
        if all(kind == kinds[i % period] for i, kind in enumerate(kinds))
    )
