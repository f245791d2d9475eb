"""Parameters behind `**kwargs`: a config sees those of the call that it reaches."""

from typing import Any

import pytest

from lmx.config.gin import parse
from lmx.config.registry import ConfigError, NonNegative, config_fields
from lmx.config.resolve import resolve


class Layer:
    """Has parameters of its own."""

    def __init__(self, width: int, *, heads: int, window: int = 8, scale: float = 1.0):
        self.all = (width, heads, window, scale)


class Narrow(Layer):
    """Fixes the window, and adds a parameter."""

    def __init__(self, width: int, *, gate: NonNegative[float] = 0.0, **kwargs: Any):
        super().__init__(width, window=4, **kwargs)


class Narrower(Narrow):
    """Has another default."""

    def __init__(self, width: int, *, scale: float = 2.0, **kwargs: Any):
        super().__init__(width, scale=scale, **kwargs)


class Logged:
    """A mixin: where `super()` leads depends on the class."""

    def __init__(self, *args: Any, name: str = "x", **kwargs: Any):
        super().__init__(*args, **kwargs)


class LoggedNarrow(Logged, Narrow):
    """No constructor of its own."""


def wrap(width: int, *, twice: bool = False, **options: Any) -> Layer:
    """A function around a class."""
    return Narrower(width * (1 + twice), **options)


def test_a_subclass_and_a_wrapper_have_the_parameters_of_what_they_call():
    assert [*config_fields(Narrow)] == ["heads", "scale", "gate"]
    assert [*config_fields(Narrower)] == ["heads", "scale", "gate"]
    assert config_fields(Narrower)["scale"].default == 2.0
    assert config_fields(Narrow)["heads"] == config_fields(Layer)["heads"]
    assert [*config_fields(wrap)] == ["heads", "scale", "gate", "twice"]
    assert config_fields(wrap)["gate"].ranges == config_fields(Narrow)["gate"].ranges


def test_a_mixin_forwards_to_the_next_class_of_the_instance():
    assert [*config_fields(LoggedNarrow)] == ["heads", "scale", "gate", "name"]
    assert [*config_fields(Logged)] == ["name"]


def lose(**kwargs: Any) -> Any:
    """Forwards to no call."""
    return dict(kwargs)


def fork(**kwargs: Any) -> Any:
    """Forwards to two calls."""
    return Layer(1, **kwargs), Narrow(1, **kwargs)


def call_unknown(make: Any, **kwargs: Any) -> Any:
    """Forwards to what its caller gives."""
    return make(**kwargs)


@pytest.mark.parametrize("function", [lose, fork, call_unknown])
def test_what_cannot_be_seen_through_is_refused_by_name(function):
    message = rf"{function.__name__}: a config cannot see .* behind \*\*kwargs: pass"
    with pytest.raises(ConfigError, match=message):
        config_fields(function)


def test_code_without_a_source_file_is_refused_by_name():
    scope: dict[str, Any] = {"Layer": Layer}
    exec("def made(**kwargs):\n    return Layer(1, **kwargs)", scope)
    with pytest.raises(ConfigError, match="made: a config cannot see .* in a file"):
        config_fields(scope["made"])


def test_a_config_sets_and_checks_a_parameter_of_the_base_class():
    words = ["InfiniAttention.logit_cap=0.0"]
    words += [f"InfiniAttention.{x}=4" for x in ("heads", "kv_heads", "head_dim")]
    words += ["InfiniAttention.segment_length=2"]
    with pytest.raises(ConfigError, match="logit_cap is 0.0: it must be above 0"):
        resolve(parse([], words), "InfiniAttention")
    with pytest.raises(ConfigError, match="InfiniAttention has no parameter 'window'"):
        parse([], ["InfiniAttention.window=4"])
