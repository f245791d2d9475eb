"""Resolving a `.gin` file, and the errors of invalid ones."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Literal

import jax
import pytest
from flax import nnx

from lmx.config.format import show
from lmx.config.registry import _REGISTRY, ConfigError, config_fields, configurable
from lmx.config.resolve import from_json, load
from lmx.config.value import diff


@configurable
class Sail(nnx.Module):
    def __init__(self, mast: int, rngs: nnx.Rngs, *, area: float, colour: str = "red"):
        self.size = (mast, area, colour)


@configurable
@dataclass(frozen=True, kw_only=True)
class Crew:
    hands: int
    watch: Literal["port", "starboard"] = "port"


@configurable
@dataclass(frozen=True, kw_only=True)
class Ship:
    sail: Callable[..., Sail]
    crew: Crew
    mate: Crew | None = None
    ports: tuple[str, ...] = ()
    stores: Mapping[str, float] = field(default_factory=dict)


BASE = """
HANDS = 7
Ship:
  sail = @Sail
  crew = @Crew()
  stores = {'rum': 2}
Sail.area = 10
Crew.hands = %HANDS
"""


@pytest.fixture
def sail(tmp_path, monkeypatch):
    """Loads `text` as file `trip.gin`, which may include `base.gin`."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "base.gin").write_text(BASE)

    def sail(text="include 'base.gin'", *overrides):
        (tmp_path / "trip.gin").write_text(text)
        return load(["trip.gin"], overrides, root=Ship)

    return sail


def test_called_references_are_built_and_uncalled_ones_are_factories(sail):
    ship = sail().build()
    assert ship.crew == Crew(hands=7)
    assert ship.sail(3, nnx.Rngs(0)).size == (3, 10.0, "red")


def test_a_configurable_class_is_returned_unchanged():
    assert isinstance(Sail, type) and Sail.__module__ == __name__


def test_the_later_binding_wins_and_overrides_come_last(sail):
    text = "include 'base.gin'\nSail.area = 20\nSail.area = 30"
    assert sail(text)["sail.area"] == 30.0
    assert sail(text, "Sail.area=40")["sail.area"] == 40.0


def test_an_override_needs_no_quotes_for_a_bare_word(sail):
    assert sail(BASE, "Sail.colour=/dark-blue.png")["sail.colour"] == "/dark-blue.png"
    assert sail(BASE, "HANDS=9")["crew.hands"] == 9


def test_a_scope_reaches_the_reference_that_names_it(sail):
    config = sail(BASE + "Ship.mate = @small/Crew()\nsmall/Crew.hands = 1")
    assert (config["crew.hands"], config["mate.hands"]) == (7, 1)


def test_configs_are_independent_of_each_other(sail):
    configs = [sail(BASE, f"HANDS={n}") for n in (1, 2, 4)]
    assert [c["crew.hands"] for c in configs] == [1, 2, 4]
    assert len({c.digest() for c in configs}) == 3


def test_provenance_does_not_affect_equality(sail):
    assert sail(BASE) == sail(BASE, "HANDS=7", "Sail.area=10.0")


def test_a_config_is_immutable(sail):
    with pytest.raises(TypeError):
        sail().fields["ports"] = ("Hull",)


def test_json_and_back_is_the_same(sail):
    config = sail(BASE, "Ship.ports=['Hull', 'Cork']")
    assert from_json(config.to_json()) == config
    assert from_json(config.to_json()).build().ports == ("Hull", "Cork")


def test_json_of_a_parameter_since_removed_says_so(sail):
    old = sail().to_json().replace('"colour"', '"color"')
    with pytest.raises(ConfigError, match="@Sail has no field 'color'; did you mean"):
        from_json(old)


def test_diff_names_what_differs(sail):
    assert diff(sail(), sail(BASE, "HANDS=8")) == {"crew.hands": (7, 8)}


def test_explain_follows_macros_and_replaced_bindings(sail):
    config = sail("include 'base.gin'", "HANDS=9")
    assert config.explain("crew.hands").splitlines() == [
        "crew.hands = 9",
        "  base.gin:8 with %HANDS from override 'HANDS=9'",
        "  replaces 7 of base.gin:2",
    ]


def test_show_has_the_provenance_of_each_value(sail):
    lines = show(sail()).splitlines()
    origins = {line.partition("  ")[0]: line.rpartition("  ")[2] for line in lines}
    assert origins["crew.hands = 7"] == "base.gin:8 with %HANDS from base.gin:2"
    assert origins["sail.area = 10.0"] == "base.gin:7"
    assert origins["ports = ()"] == "default"


REFUSED = {
    "Sail.aera=3": "Sail has no parameter 'aera'; did you mean 'area'?",
    "Sial.area=3": "nothing configurable is named 'Sial'; did you mean 'Sail'?",
    "Sail.mast=3": "Sail has no parameter 'mast'",
    "Crew.hands=ten": "Crew.hands must be int, got 'ten'",
    "Crew.hands=1.5": "Crew.hands must be int, got 1.5",
    "Crew.hands=True": "Crew.hands must be int, got True",
    "Crew.watch=dog": "must be 'port' or 'starboard', got 'dog'",
    "Crew.hands=%HAND": "no macro HAND is defined; did you mean 'HANDS'?",
    "HANDZ=3": "nothing under @Ship() uses HANDZ; did you mean 'HANDS'?",
    "smal/Crew.hands=3": "nothing under @Ship() uses smal/Crew.hands",
    "Ship.crew=@Crw()": "nothing configurable is named 'Crw'; did you mean 'Crew'?",
    "Ship.crew=@Crew": "Ship.crew must be Crew, got @Crew",
    "Ship.crew=@Sail()": "Ship.crew must be Crew, got @Sail()",
    "Ship.sail=@Crew": "Ship.sail must be Callable[..., Sail], got @Crew",
    "Ship.mate=@Ship()": "@Ship contains itself",
    "Ship.ports=['Hull', 3]": "Ship.ports must be tuple[str, ...], got ('Hull', 3)",
    "Ship.ports=['Hull'": "",
    "Sail.area": "write it as Name.parameter=value",
}


@pytest.mark.parametrize("override", REFUSED)
def test_an_invalid_override_is_refused(sail, override):
    with pytest.raises(ConfigError) as error:
        sail("include 'base.gin'", override)
    assert str(error.value).startswith(f"override {override!r}: ")
    assert REFUSED[override] in str(error.value)


def test_an_error_in_a_file_has_its_line(sail):
    for line, message in [
        ("Crew.hand = 3", "trip.gin:2: Crew has no parameter 'hand'; did you mean"),
        ("Crew.hands = = 3", "trip.gin:2: Unable to parse value."),
        ("include 'bass.gin'", "trip.gin:2: there is no file bass.gin"),
        ("import lmx.wind", "trip.gin:2: No module named 'lmx.wind'"),
        ("odd/Crew.hands = 3", "trip.gin:2: nothing under @Ship() uses odd/Crew.hands"),
    ]:
        with pytest.raises(ConfigError) as error:
            sail(f"include 'base.gin'\n{line}")
        assert str(error.value).startswith(message)


def test_a_missing_required_field_is_named(sail):
    with pytest.raises(ConfigError, match=r"trip.gin:4: @Sail needs Sail.area: set it"):
        sail(BASE.replace("Sail.area = 10", ""))


def test_bindings_of_a_replaced_class_are_accepted(sail):
    text = "include 'base.gin'\nShip.mate = @Crew()\nShip.crew = @old/Crew()"
    config = sail(text + "\nold/Crew.hands = 3", "Ship.crew=@Crew()")
    assert config.unused_bindings == ("trip.gin:4: nothing uses old/Crew.hands",)


def test_names_are_unique():
    with pytest.raises(ConfigError, match="'Sail' already names"):
        configurable(type("Sail", (), {"__module__": "elsewhere"}))


def test_every_annotation_can_be_evaluated():
    for thing in list(_REGISTRY.values()):
        assert all(
            choice.annotation is not jax.Array
            for choice in config_fields(thing).values()
        )
