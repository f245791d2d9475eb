"""Defaults that are configurable, and the fields that are not part of the run id."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import pytest

from lmx.config.format import to_gin
from lmx.config.registry import ConfigError, Execution, configurable
from lmx.config.resolve import from_json, load


@configurable
@dataclass(frozen=True, kw_only=True)
class Port:
    depth: int = 5
    keeper: str = "Ann"


@configurable
class Chart:
    def __init__(self, width: int, *, scale: float = 1.0):
        self.width, self.scale = width, scale


@configurable
class Star:
    def __init__(self, *, north: bool = True):
        self.north = north


@configurable
def steer(*, by: Execution[str] = "stars", speed: int = 3) -> Port:
    return Port()


@configurable
@dataclass(frozen=True, kw_only=True)
class Route:
    start: Port = Port(depth=9)
    stops: tuple[Port, ...] = (Port(), Port(depth=2))
    named: Mapping[str, Port] = field(default_factory=lambda: {"home": Port(depth=1)})
    chart: Callable[..., Chart] = Chart
    steered: Callable[..., Port] = steer
    crew: Execution[int] = 4
    harbour: Execution[Port] = field(default_factory=Port)
    flag: Execution[Port | None] = None


@pytest.fixture
def route(tmp_path, monkeypatch):
    """Loads a config text and overrides."""
    monkeypatch.chdir(tmp_path)

    def route(text="", *overrides):
        (tmp_path / "route.gin").write_text(text)
        return load(["route.gin"], overrides, root=Route)

    return route


def test_an_empty_config_builds_the_defaults_of_the_signature(route):
    built, plain = route().build(), Route()
    for name in ("start", "stops", "named", "crew", "harbour", "flag"):
        assert getattr(built, name) == getattr(plain, name)
    assert built.chart(7).scale == 1.0


def test_a_default_instance_can_be_bound_without_a_reference_to_it(route):
    config = route("Port.keeper = 'Bob'")
    assert config["start.keeper"] == config["named.home.keeper"] == "Bob"
    assert config["stops.1.keeper"] == config["harbour.keeper"] == "Bob"


def test_fields_of_a_default_instance_are_defaults(route):
    assert route()["start.depth"] == 9
    assert route()["stops.0.depth"] == 5
    assert route("Port.depth = 3")["start.depth"] == 3
    assert route().explain("start.depth") == "start.depth = 9\n  default"


def test_a_default_class_or_function_can_be_bound(route):
    config = route("Chart.scale = 2\nsteer.speed = 1")
    assert (str(config["chart"]), config["chart.scale"]) == ("@Chart", 2.0)
    assert config["steered.speed"] == 1


def test_a_reference_has_the_defaults_of_its_class(route):
    assert route("Route.start = @Port()")["start.depth"] == 5


def test_a_default_has_the_scope_of_the_field_that_holds_it(route):
    config = route(
        "Route.steered = @far/steer\nRoute.start = @far/Port()", "Port.depth=1"
    )
    assert config["start.depth"] == 1


def test_setting_a_field_to_its_default_changes_nothing(route):
    config = route("Route.crew = 4\nRoute.chart = @Chart\nChart.scale = 1.0")
    assert config == route() and config.digest() == route().digest()


def test_defaults_round_trip_through_json_and_gin(route):
    config = route("Route.start = @Port()")
    assert from_json(config.to_json()) == config
    assert route(to_gin(config)) == config
    assert from_json('{"@Route()": {}}') == route()


def test_a_default_whose_arguments_are_unknown_is_refused(route, tmp_path):
    @configurable
    @dataclass(frozen=True, kw_only=True)
    class Sky:
        star: Star = Star()

    with pytest.raises(ConfigError) as error:
        load([], root=Sky)
    message = "default Sky.star: the arguments of a Star instance are unknown"
    assert message in str(error.value)


def test_a_default_that_a_config_cannot_express_is_refused():
    @configurable
    @dataclass(frozen=True, kw_only=True)
    class Sum:
        over: Callable[..., float] = sum

    with pytest.raises(ConfigError, match="cannot express: make it @configurable"):
        load([], root=Sum)


EXECUTION = [
    "Route.crew=9",
    "steer.by='moon'",
    "Route.harbour=@h/Port() h/Port.depth=7",
    "Route.flag=@f/Port() f/Port.keeper=Eve",
]
MATHEMATICS = [
    "Port.depth=8",
    "steer.speed=9",
    "Chart.scale=0.5",
    "Route.stops=()",
    "Route.named={}",
    "Route.start=@Port()",
]


@pytest.mark.parametrize("words", EXECUTION)
def test_execution_changes_the_digest_and_never_the_run_id(route, words):
    config = route("", *words.split())
    assert config.run_id() == route().run_id()
    assert config.digest() != route().digest()


@pytest.mark.parametrize("words", MATHEMATICS)
def test_what_changes_the_mathematics_changes_the_run_id(route, words):
    assert route("", words).run_id() != route().run_id()


def test_the_identity_has_no_field_of_execution_at_any_depth(route):
    text = route().identity().to_json()
    assert not any(word in text for word in ("crew", "harbour", "flag", '"by"'))
    assert from_json(route().to_json()).run_id() == route().run_id()


def test_a_run_id_is_twelve_digits_and_stable(route):
    assert route().run_id() == route().run_id()
    assert len(route().run_id()) == 12
