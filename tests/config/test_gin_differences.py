"""The intended differences between a config and gin's own runtime."""

import dataclasses
from collections.abc import Callable
from typing import Any

import gin
import pytest

from lmx.config.registry import ConfigError, configurable
from lmx.config.resolve import load
from lmx.config.value import Factory


@dataclasses.dataclass(frozen=True, kw_only=True)
class Shell:
    age: Any = 0


@dataclasses.dataclass(frozen=True, kw_only=True)
class Snail:
    size: float = 0.5
    shell: Any = Shell()


@dataclasses.dataclass(frozen=True, kw_only=True)
class Pond:
    x: Any = None
    y: Any = None


def pebble(weight: int = 1) -> int:
    return weight


@dataclasses.dataclass(frozen=True)
class Refused:
    """An outcome: an error whose message holds these words."""

    words: str


@pytest.fixture(scope="module", autouse=True)
def gins():
    """The same classes under gin's runtime."""
    things = (Shell, Snail, Pond, pebble)
    for thing in things:
        configurable(thing)
    yield {thing.__name__: gin.external_configurable(thing) for thing in things}
    gin.clear_config()


SCOPED = "Pond.x = @s/Snail()\ns/Shell.age = 1\n"

# What differs: (the config, the pond that gin makes, the pond that lmx makes).
DIFFER: dict[str, tuple[str, Any, Any]] = {
    "a list is a tuple, since configs are immutable": (
        "Pond.x = [1, [2]]",
        Pond(x=[1, [2]]),
        Pond(x=(1, (2,))),
    ),
    "an uncalled reference has the scope of its place, not of its call": (
        SCOPED + "s/Snail.shell = @Shell",
        Pond(x=Snail(shell=Shell(age=0))),
        Pond(x=Snail(shell=Shell(age=1))),
    ),
    "a macro opens no scope of its own name": (
        SCOPED + "M = @Shell()\ns/Snail.shell = %M",
        Pond(x=Snail(shell=Shell(age=0))),
        Pond(x=Snail(shell=Shell(age=1))),
    ),
    "a scoped macro is not looked for in the scopes around it": (
        "s = 1\nPond.x = %s/M",
        Pond(x=1),
        Refused("x.gin:2: no macro s/M is defined; there are s"),
    ),
    "a default is a reference too, and can be bound": (
        "Pond.x = @Snail()\nShell.age = 5",
        Pond(x=Snail(shell=Shell(age=0))),
        Pond(x=Snail(shell=Shell(age=5))),
    ),
    "a value has the type of its annotation": (
        "Pond.x = @Snail()\nSnail.size = 'big'",
        Pond(x=dataclasses.replace(Snail(), **{"size": "big"})),
        Refused("x.gin:2: Snail.size must be float, got 'big'"),
    ),
    "a value that JSON cannot store is an error": (
        "Pond.x = b'a'",
        Pond(x=b"a"),
        Refused("x.gin:1: Pond.x must be a plain value, got b'a'"),
    ),
    "a key is a scalar": (
        "Pond.x = {(1, 2): 3}",
        Pond(x={(1, 2): 3}),
        Refused("x.gin:1: Pond.x must be a plain value, got {(1, 2): 3}"),
    ),
    "a binding that nothing uses is an error": (
        "Snail.size = 2.0",
        Pond(),
        Refused("x.gin:1: nothing under @Pond() uses Snail.size"),
    ),
    "a macro that nothing uses is an error": (
        "M = 1",
        Pond(),
        Refused("x.gin:1: nothing under @Pond() uses M"),
    ),
    "a required value must be given, even if no caller needs it": (
        "Pond.x = 1\nPond.y = %gin.REQUIRED",
        None,  # gin hands on a marker
        Refused("x.gin:2: Pond.y is required: add Pond.y=VALUE"),
    ),
    "a name has no module, since names are unique": (
        f"Pond.x = @{__name__}.Shell()",
        Pond(x=Shell()),
        Refused("did you mean 'Shell'?"),
    ),
    "a parameter of the calling code cannot be set": (
        "Pond.x = @pebble()\npebble.weight = 3",
        Pond(x=3),
        Refused("pebble has no parameter 'weight' to set: the calling code"),
    ),
    "a constant of the program cannot be named": (
        "Pond.x = %GRAVITY",
        Pond(x=9.81),
        Refused("x.gin:1: no macro GRAVITY is defined"),
    ),
    "there are no singletons": (
        "Pond.x = @a/gin.singleton()\na/gin.singleton.constructor = @Shell",
        Pond(x=Shell()),
        Refused("nothing configurable is named 'gin.singleton'"),
    ),
    "a config imports only modules of lmx": (
        "import json",
        Pond(),
        Refused("x.gin:1: a config can import modules of lmx only"),
    ),
    "a circle of macros is an error": (
        "M = %N\nN = %M\nPond.x = %M",
        Refused("maximum recursion depth"),
        Refused("is defined by itself"),
    ),
    "a circle of references is an error": (
        "Pond.x = @Snail()\nSnail.shell = @Snail()",
        Refused("maximum recursion depth"),
        Refused("x.gin:2: @Snail contains itself"),
    ),
    "an include is relative to the file that includes it": (
        "include 'deep/outer.gin'",
        Refused("Unable to open file: inner.gin"),
        Pond(x=1),
    ),
}


def outcome(make: Callable[[], Pond]) -> Any:
    """The pond with its factories called, or the error."""
    try:
        pond = make()
    except (ValueError, OSError, RecursionError) as error:
        return error
    shell = getattr(pond.x, "shell", None)
    if isinstance(shell, Factory | type):
        return Pond(x=dataclasses.replace(pond.x, shell=shell()))
    return pond


@pytest.mark.parametrize("what", DIFFER)
def test_differs_from_gin_on_purpose(what, gins, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    text, gins_pond, our_pond = DIFFER[what]
    (tmp_path / "x.gin").write_text(text)
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "outer.gin").write_text("include 'inner.gin'")
    (tmp_path / "deep" / "inner.gin").write_text("Pond.x = 1")

    def gins_way():
        gin.parse_config_file("x.gin")
        return gins["Pond"]()

    gin.clear_config(clear_constants=True)
    gin.constant("GRAVITY", 9.81)
    ours = outcome(lambda: load(["x.gin"], root=Pond).build())
    for wanted, got in [(gins_pond, outcome(gins_way)), (our_pond, ours)]:
        if isinstance(wanted, Refused):
            assert isinstance(got, Exception) and wanted.words in str(got)
        elif wanted is not None:
            assert got == wanted


def test_other_code_does_not_use_the_config(gins, tmp_path):
    (tmp_path / "x.gin").write_text("Pond.x = @Shell()\nShell.age = 3")
    gin.clear_config()
    gin.parse_config_file(str(tmp_path / "x.gin"))
    assert gins["Shell"]().age == 3
    ours = load([tmp_path / "x.gin"], root=Pond).build()
    assert (ours.x, Shell()) == (Shell(age=3), Shell(age=0))


@pytest.mark.parametrize("text", ["Pond.x = 1 + 1", "Pond.x = @Shell(age=1)"])
def test_neither_supports_arithmetic_or_calls_with_arguments(text, gins, tmp_path):
    (tmp_path / "x.gin").write_text(text)
    with pytest.raises(SyntaxError):
        gin.parse_config(text)
    with pytest.raises(ConfigError, match="x.gin:1: Expected"):
        load([tmp_path / "x.gin"], root=Pond)
