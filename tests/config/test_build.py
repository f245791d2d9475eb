"""Building a config: objects, factories, and errors with their provenance."""

import pickle
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import pytest

from lmx.config.registry import ConfigError, configurable
from lmx.config.resolve import from_json, load


@configurable
class Wheel:
    def __init__(self, width: int, *, spokes: int, pairs: int = 2):
        if spokes % pairs:
            raise ValueError(f"{spokes} spokes are not pairs of {pairs}")
        self.width, self.spokes = width, spokes


@configurable
@dataclass(frozen=True, kw_only=True)
class Axle:
    length: float = 1.0

    def __post_init__(self):
        if self.length > 9:
            raise ValueError("it would not fit the road")


@configurable
class Pair:
    def __init__(self, *, axle: Axle = Axle(), wheel: Callable[..., Wheel] = Wheel):
        self.axle, self.wheels = axle, (wheel(3), wheel(3))


@configurable
@dataclass(frozen=True, kw_only=True)
class Cart:
    pair: Callable[..., Pair] = Pair
    spare: Wheel | None = None
    axles: tuple[Axle, ...] = (Axle(length=2.0), Axle())
    load: Mapping[str, float] = field(default_factory=dict)


@pytest.fixture
def cart(tmp_path, monkeypatch):
    """Loads a config that starts with the spokes of all wheels."""
    monkeypatch.chdir(tmp_path)

    def cart(text="", *overrides):
        (tmp_path / "cart.gin").write_text(f"Wheel.spokes = 8\n{text}")
        return load(["cart.gin"], overrides, root=Cart)

    return cart


def test_a_factory_takes_the_arguments_of_its_caller(cart):
    make = cart("Pair.wheel = @Wheel")["pair.wheel"].build()
    assert (make(3).width, make(width=4).width, make(3, spokes=4).spokes) == (3, 4, 4)


def test_two_calls_of_a_factory_share_no_object(cart):
    make = cart().build().pair
    assert make().axle is not make().axle
    assert make().wheels[0] is not make().wheels[1]


def test_factories_of_equal_configs_are_equal_and_hashable(cart):
    one, two, other = (cart("", *w).build().pair for w in ((), (), ["Axle.length=3"]))
    assert one == two and hash(one) == hash(two) and one != other


def test_factories_and_configs_can_be_pickled(cart):
    config = cart("Cart.load = {'hay': 2}")
    again = pickle.loads(pickle.dumps(config))
    assert again == config and again.provenance == config.provenance
    make = pickle.loads(pickle.dumps(config.build().pair))
    assert make == config.build().pair and make().wheels[0].spokes == 8


def test_a_mapping_is_passed_as_a_new_dict(cart):
    config = cart("Cart.load = {'hay': 2}")
    config.build().load["hay"] = 3.0
    assert config.build().load == {"hay": 2.0}
    with pytest.raises(TypeError):
        config["load"]["hay"] = 3.0


def test_an_error_of_a_constructor_shows_the_lines_that_set_its_fields(cart):
    with pytest.raises(ConfigError) as error:
        cart("\nPair.wheel = @Wheel", "Wheel.spokes=7").build().pair()
    assert str(error.value).splitlines() == [
        "7 spokes are not pairs of 2",
        "  Wheel.spokes = 7 set by override 'Wheel.spokes=7'",
        "  Wheel.pairs = 2 by default",
    ]


def test_an_error_shows_the_macro_of_a_value(cart):
    with pytest.raises(ConfigError) as error:
        cart("P = 3\nWheel.pairs = %P").build().pair()
    assert str(error.value).splitlines()[1:] == [
        "  Wheel.spokes = 8 set at cart.gin:1",
        "  Wheel.pairs = 3 set at cart.gin:3 with %P from cart.gin:2",
    ]


def test_an_error_that_names_no_field_shows_all_bound_fields(cart):
    with pytest.raises(ConfigError) as error:
        cart("Axle.length = 10").build()
    assert str(error.value) == (
        "it would not fit the road\n  Axle.length = 10.0 set at cart.gin:2"
    )
    assert isinstance(error.value.__cause__, ValueError)


def test_an_error_of_a_recorded_config_names_fields_without_lines(cart):
    config = from_json(cart("Axle.length = 10").to_json())
    with pytest.raises(ConfigError) as error:
        config.build()
    assert str(error.value) == "it would not fit the road"
    config = from_json(cart("Wheel.spokes = 7").to_json())
    with pytest.raises(ConfigError) as error:
        config.build().pair()
    assert str(error.value).endswith(
        "pairs of 2\n  Wheel.spokes = 7\n  Wheel.pairs = 2"
    )


def test_only_the_innermost_config_shows_its_lines(cart):
    with pytest.raises(ConfigError) as error:
        cart("Axle.length = 10\nCart.axles = ()").build().pair()
    assert str(error.value).count("\n") == 1


def test_other_errors_of_a_constructor_pass_unchanged(cart):
    with pytest.raises(TypeError, match="width"):
        cart().build().pair.config["wheel"].build()()
