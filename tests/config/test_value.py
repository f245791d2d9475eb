"""Showing, drawing, comparing, explaining and storing a config."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import pytest

from lmx.config.format import draw_tree, show, to_gin
from lmx.config.registry import ConfigError, configurable
from lmx.config.resolve import from_json, load
from lmx.config.value import ABSENT, diff


@configurable
@dataclass(frozen=True, kw_only=True)
class Lamp:
    watts: float = 40.0
    tags: Mapping[Any, Any] | None = None


@configurable
class Bolt:
    """Nothing to choose."""


@configurable
class Door:
    def __init__(self, *, lamp: Lamp = Lamp(), locked: bool = True):
        self.lamp = lamp


@configurable
@dataclass(frozen=True, kw_only=True)
class House:
    door: Callable[..., Door] = Door
    lamps: tuple[Lamp, ...] = ()
    rooms: Mapping[str, Lamp] | None = None
    other: "House | None" = None
    limit: float = 1.0


@pytest.fixture
def house(tmp_path, monkeypatch):
    """Loads a config text and overrides."""
    monkeypatch.chdir(tmp_path)

    def house(text="", *overrides):
        (tmp_path / "house.gin").write_text(text)
        return load(["house.gin"], overrides, root=House)

    return house


FULL = """
House.lamps = [@Lamp(), @dim/Lamp()]
House.rooms = {'hall': @Lamp(), 'attic room': @dim/Lamp()}
dim/Lamp.watts = 15
"""


def test_a_path_reaches_into_tuples_and_mappings(house):
    config = house(FULL)
    assert config["lamps.1.watts"] == config["rooms.attic room.watts"] == 15.0
    assert str(config["lamps.0"]) == "@Lamp()"
    assert config.explain("lamps.1.watts") == "lamps.1.watts = 15.0\n  house.gin:4"


@pytest.mark.parametrize(
    ("path", "message"),
    [
        (
            "lamps.2.watts",
            "@House() has no field 'lamps.2.watts'; did you mean 'lamps.",
        ),
        ("dor", "has no field 'dor'; did you mean 'door'?"),
        ("door.lamp.wats", "did you mean 'door.lamp.watts'?"),
        ("limit.x", "has no field 'limit.x'"),
        ("lamps.x", "has no field 'lamps.x'"),
    ],
)
def test_an_unknown_path_is_reported_with_the_nearest(house, path, message):
    with pytest.raises(ConfigError) as error:
        house(FULL)[path]
    assert message in str(error.value)


def test_all_paths_of_a_class_parameter_are_found(house):
    config = house(FULL)
    assert config.find_paths("Lamp.watts") == [
        "door.lamp.watts",
        "lamps.0.watts",
        "lamps.1.watts",
        "rooms.hall.watts",
        "rooms.attic room.watts",
    ]
    assert config.find_paths("lamps.1.watts") == ["lamps.1.watts"]
    with pytest.raises(ConfigError, match="has no field 'Lamp.wats'"):
        config.find_paths("Lamp.wats")


def test_explain_shows_what_a_scope_hides(house):
    config = house(FULL + "Lamp.watts = 60")
    assert config.explain("lamps.1.watts").splitlines()[1:] == [
        "  house.gin:4",
        "  hides Lamp.watts = 60 of house.gin:5",
    ]


def test_an_override_that_every_scope_hides_is_refused(house):
    text = "House.door = @d/Door\nd/Lamp.watts = 5"
    with pytest.raises(ConfigError) as error:
        house(text, "Lamp.watts=9")
    assert str(error.value) == (
        "override 'Lamp.watts=9': Lamp.watts is hidden everywhere, by d/Lamp.watts"
        " (house.gin:2)"
    )
    assert house(text, "d/Lamp.watts=9")["door.lamp.watts"] == 9.0


def test_an_unknown_scope_is_reported_with_the_known_ones(house):
    with pytest.raises(
        ConfigError, match=r"dimm/Lamp.watts; there is @Lamp, @dim/Lamp"
    ):
        house(FULL, "dimm/Lamp.watts=3")


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("door.lamp.wats=9", "has no field door.lamp.wats; did you mean 'door.lamp.w"),
        ("lamps.1=3", "has no field lamps.1"),
        ("dor.lamp.watts=9", "nothing configurable is named 'dor.lamp'"),
        (
            "door.lamp.watts=9",
            "write Lamp.watts=VALUE, which sets lamps.0.watts, lamps.1.watts,",
        ),
        ("lamps.1.watts=9", "write dim/Lamp.watts=VALUE, which sets rooms."),
    ],
)
def test_a_path_that_is_unknown_or_not_alone_says_what_to_write(
    house, override, message
):
    with pytest.raises(ConfigError) as error:
        house(FULL, override)
    assert f"{error.value}".startswith(f"override {override!r}: ")
    assert message in f"{error.value}"


def test_a_path_as_it_is_shown_is_an_override(house):
    text = (
        "House.lamps = [@a/Lamp(), @b/Lamp()]\nHouse.door = @d/Door\nb/Lamp.watts = 5"
    )
    config = house(text, "lamps.0.watts=7", "lamps.1.watts=9", "limit=2")
    assert [config[f"lamps.{n}.watts"] for n in (0, 1)] == [7.0, 9.0]
    assert (config["door.lamp.watts"], config["limit"]) == (40.0, 2.0)
    assert config.explain("lamps.1.watts").splitlines()[1:] == [
        "  override 'lamps.1.watts=9'",
        "  replaces 5 of house.gin:3",
    ]
    assert house("", "door.lamp.watts=8")["door.lamp.watts"] == 8.0
    with pytest.raises(ConfigError, match="override 'Lamp.watts=2' set the same value"):
        house("", "Lamp.watts=2", "door.lamp.watts=8")


def test_a_path_keeps_to_a_macro_of_that_name(house):
    config = house("limit = 3.0\nHouse.limit = %limit", "limit=4.0")
    assert config["limit"] == 4.0
    assert config.find_provenance("limit")[0].endswith("override 'limit=4.0'")


def test_the_settings_of_what_an_override_removed_are_no_error(house):
    text = "House.lamps = [@dim/Lamp()]\ndim/Lamp.watts = 15"
    for override in ("House.lamps=()", "lamps=()"):
        config = house(text, override)
        assert config.unused_bindings == ("house.gin:2: nothing uses dim/Lamp.watts",)
    for removed in ("House.lamps=()", "House.lamps=[@Lamp()]"):
        with pytest.raises(ConfigError, match="house.gin:3: nothing .* uses no/Lamp"):
            house(text + "\nno/Lamp.watts = 1", removed)
    with pytest.raises(ConfigError, match="override 'dim/Lamp.watts=3': nothing under"):
        house(text, "House.lamps=()", "dim/Lamp.watts=3")


def test_the_tree_shows_references_and_values_that_are_not_defaults(house):
    assert draw_tree(house(FULL, "House.limit=2")).splitlines() == [
        "@House()",
        "├─ door: @Door",
        "│  └─ lamp: @Lamp()",
        "├─ lamps.0: @Lamp()",
        "├─ lamps.1: @Lamp()",
        "│  └─ watts = 15.0",
        "├─ rooms.hall: @Lamp()",
        "├─ rooms.attic room: @Lamp()",
        "│  └─ watts = 15.0",
        "└─ limit = 2.0",
    ]


def test_the_tree_of_a_recorded_configuration_is_the_same(house):
    config = house(FULL, "House.limit=2")
    assert draw_tree(from_json(config.to_json())) == draw_tree(config)
    assert draw_tree(house(FULL, "House.limit=2", "Door.locked=True")) == draw_tree(
        config
    )
    assert "recorded" in show(from_json(config.to_json()))


def test_configs_differ_by_path_and_missing_fields_are_absent(house):
    changed = diff(house(), house("House.lamps = [@Lamp()]\nLamp.watts = 41"))
    assert changed == {
        "door.lamp.watts": (40.0, 41.0),
        "lamps": ((), ("@Lamp()",)),
        "lamps.0.watts": (ABSENT, 41.0),
        "lamps.0.tags": (ABSENT, None),
    }
    assert diff(house(FULL), house(FULL)) == {}


STORED = [
    "{'a': 1, 'b': (1, [2])}",
    "{1: 'one', None: 2, True: 3, 2.5: {}}",
    "{'@Lamp()': {'watts': 1}}",
    "{'=map': []}",
    "{'': 1}",
    "{'k': (@Bolt(), @Bolt)}",
    "{'k': 1e999, 'l': -1e999}",
    "{'k': 'it\\'s \"so\"\\n\\\\ \u00e4'}",
]


@pytest.mark.parametrize("value", STORED)
def test_every_value_round_trips_through_json_and_gin(house, value):
    config = house(f"House.lamps = [@Lamp()]\nLamp.tags = {value}")
    assert from_json(config.to_json()) == config
    assert from_json(config.to_json(indent=2)).digest() == config.digest()
    assert house(to_gin(config)) == config


def test_a_scope_is_named_after_the_path_of_a_class_with_two_settings(house):
    assert to_gin(house(FULL)).split("\n\n") == [
        "House:\n  door = @Door\n  lamps = (@door_lamp/Lamp(), @lamps_1/Lamp())\n"
        "  rooms = {'hall': @door_lamp/Lamp(), 'attic room': @lamps_1/Lamp()}\n"
        "  other = None\n  limit = 1.0",
        "Door:\n  lamp = @door_lamp/Lamp()\n  locked = True",
        "door_lamp/Lamp:\n  watts = 40.0\n  tags = None",
        "lamps_1/Lamp:\n  watts = 15.0\n  tags = None\n",
    ]


def test_a_class_that_contains_itself_can_be_written(house):
    text = "House.other = @b/House()\nb/House.other = None\nb/House.limit = 3"
    config = house(text)
    assert (config["limit"], config["other.limit"]) == (1.0, 3.0)
    assert house(to_gin(config)) == config


def test_paths_with_the_same_letters_get_different_scopes(house):
    rooms = "{'a b': @x/Lamp(), 'a_b': @y/Lamp(), '\u00e4': @z/Lamp()}"
    scopes = "\n".join(f"{s}/Lamp.watts = {n}" for n, s in enumerate("xyz"))
    config = house(f"House.rooms = {rooms}\n{scopes}")
    assert house(to_gin(config)) == config


def test_defaults_are_written_too(house):
    assert "limit = 1.0" in to_gin(house())


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "JSON is not JSON: Expecting"),
        ("[1]", "JSON must hold a JSON object"),
        (
            '{"@Hous()": {}}',
            "nothing configurable is named 'Hous'; did you mean 'House'",
        ),
        ('{"@House()": {"limit": "x"}}', "recorded: House.limit must be float"),
        ('{"@House()": {"lamp": 1}}', "@House has no field 'lamp'; did you mean"),
    ],
)
def test_invalid_json_is_refused(text, message):
    with pytest.raises(ConfigError) as error:
        from_json(text)
    assert message in str(error.value)
