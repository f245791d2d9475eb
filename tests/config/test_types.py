"""The values that each annotation accepts, and unsupported annotations."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import (
    Annotated,
    Any,
    Generic,
    Literal,
    Protocol,
    TypeVar,
    runtime_checkable,
)

import pytest

from lmx.config.coerce import coerce, coerce_field
from lmx.config.registry import (
    ConfigError,
    Execution,
    Positive,
    config_fields,
    configurable,
    format_type,
    unsupported_reason,
)
from lmx.config.resolve import load
from lmx.config.value import Config

T = TypeVar("T")


class Fruit(Generic[T]):
    """Something to make."""


@configurable
class Apple(Fruit[int]):
    def __init__(self, *, weight: float = 1.0):
        self.weight = weight


@configurable
class Press:
    """Itself callable: what it returns counts where a callable is wanted."""

    def __call__(self, fruit: Fruit) -> str:
        return "juice"


@configurable
def pick() -> Apple:
    return Apple()


@configurable
def recipe() -> Callable[[Fruit], str]:
    return str


@configurable
def parcel() -> Apple | None:
    return None


@runtime_checkable
class Presses(Protocol):
    def __call__(self, fruit: Fruit) -> str: ...


@runtime_checkable
class Peels(Protocol):
    def peel(self) -> None: ...


class HasWeight(Protocol):
    weight: float


def called(name: str) -> Config:
    return Config(name, True, {})


def uncalled(name: str) -> Config:
    return Config(name, False, {})


TAKES: list[tuple[Any, list[Any], list[Any]]] = [
    (int, [1, -3], [True, 1.0, "1", None]),
    (float, [1.5, 2], [True, "1", None, float("nan")]),
    (str, ["a", ""], [1, None]),
    (bool, [True], [1, "True"]),
    (None | int, [None, 1], ["None"]),
    (Literal["a", 1], ["a", 1], ["b", True, 1.0]),
    (tuple[int, str], [(1, "a")], [(1,), ("a", 1), (1, "a", 2)]),
    (tuple[float, ...], [(), (1, 2.5)], [("a",), 1, "ab"]),
    (tuple, [(1, "a")], [3]),
    (Mapping[str, float], [{}, {"a": 1}], [{1: 1}, {"a": "b"}, ()]),
    (Mapping, [{1: "a"}], [3, {(1,): 2}]),
    (int | str | tuple[int, ...], [1, "a", (1,)], [1.0, ("a",)]),
    (
        Any,
        [1, "a", None, (1, {"a": 2}), called("Apple")],
        [b"a", 1j, {(1,): 2}, object()],
    ),
    (Fruit, [called("Apple"), called("pick")], [uncalled("Apple"), called("Press"), 1]),
    (Fruit[int], [called("Apple")], [called("Press")]),
    (Apple | None, [called("Apple"), called("parcel"), None], [uncalled("Apple")]),
    (
        Callable[..., Fruit],
        [uncalled("Apple"), uncalled("pick")],
        [called("Apple"), uncalled("Press")],
    ),
    (
        Callable[..., str],
        [called("Press"), called("recipe")],
        [uncalled("Apple"), called("Apple")],
    ),
    (Callable[..., Any], [uncalled("Apple"), called("Press")], [called("Apple"), 1]),
    (tuple[Callable[..., str], ...], [(called("Press"),)], [(uncalled("Press"),)]),
    (Mapping[str, Fruit], [{"a": called("Apple")}], [{"a": called("Press")}]),
    (Presses, [called("Press")], [called("Apple"), uncalled("Press")]),
    (Peels, [], [called("Apple")]),
    (HasWeight, [called("Apple"), called("Press")], [1]),  # it cannot be checked
    (object, [called("Apple"), called("recipe")], [1, uncalled("Apple")]),
]


@pytest.mark.parametrize(("hint", "good", "bad"), TAKES, ids=lambda x: str(x)[:40])
def test_an_annotation_accepts_its_values_and_no_others(hint, good, bad):
    assert unsupported_reason(hint) is None
    for value in good:
        assert coerce(value, hint) == value
    for value in bad:
        with pytest.raises(TypeError):
            coerce(value, hint)


def test_an_int_becomes_a_float_where_one_is_wanted():
    assert type(coerce(2, float)) is float
    assert coerce([1, 2], tuple[float, ...]) == (1.0, 2.0)
    assert type(coerce(2, float | int)) is int


REFUSED = {
    list[int]: "list[int] cannot be written in a config: annotate it as tuple[X,",
    dict[str, int]: "annotate it as Mapping[str, X]",
    set: "annotate it as tuple[X, ...]",
    Sequence[int]: "annotate it as tuple[X, ...]",
    Iterable[int]: "annotate it as tuple[X, ...]",
    bytes: "annotate it as int, float or str",
    type[int]: "annotate it as Callable[..., X]",
    int | list[int]: "list[int] cannot be written",
    tuple[dict, ...]: "dict cannot be written",
    Mapping[str, list]: "list cannot be written",
    T: "T must be a class, scalar, Literal, union, tuple or Mapping",
    Literal[b"a"]: "a Literal holds str, int, float, bool or None",
    Execution[int] | None: "Execution must be outermost",
    Execution[list]: "list cannot be written",
}


@pytest.mark.parametrize("hint", REFUSED, ids=str)
def test_an_unsupported_annotation_is_refused_at_once(hint):
    def grow(*, height: Any): ...

    grow.__annotations__["height"] = hint
    with pytest.raises(ConfigError) as error:
        configurable(grow)
    assert str(error.value).startswith("grow.height: ")
    assert REFUSED[hint] in str(error.value)


def test_a_field_without_annotation_is_refused():
    def sow(*, seed=3): ...

    with pytest.raises(ConfigError, match="sow.seed has no annotation"):
        configurable(sow)


def test_parameters_of_the_caller_may_have_any_annotation():
    @configurable
    def press(
        fruits: list[Fruit], *rest: bytes, hard: Annotated[bool, "?"] = False
    ): ...

    assert list(config_fields(press)) == ["hard"]
    assert config_fields(press)["hard"].annotation is bool


def test_a_name_that_is_defined_later_is_checked_when_first_used(monkeypatch):
    def early(*, late: Any): ...

    early.__annotations__["late"] = "Late | None"
    configurable(early)
    with pytest.raises(NameError):
        config_fields(early)
    monkeypatch.setitem(globals(), "Late", Apple)
    assert config_fields(early)["late"].annotation == Apple | None


@pytest.mark.parametrize(
    ("value", "hint", "message"),
    [
        (uncalled("Apple"), Apple, "x must be Apple, got @Apple: write @Apple()"),
        (
            called("Apple"),
            Callable[..., Fruit],
            "Callable[..., Fruit], got @Apple(): write",
        ),
        (called("Press"), Apple | None, "x must be Apple or None, got @Press()"),
        (
            "lift",
            Literal["left", "up"],
            "'left' or 'up', got 'lift'; did you mean 'left'",
        ),
        (object, Fruit, ", which a config cannot express: make it @configurable"),
        ((1, "a"), tuple[int, ...], "x must be tuple[int, ...], got (1, 'a')"),
    ],
)
def test_an_error_suggests_a_value(value, hint, message):
    with pytest.raises(ConfigError) as error:
        coerce_field(value, hint, "x", "here")
    assert str(error.value).startswith("here: x must be ")
    assert message in str(error.value)


def test_annotations_are_formatted_as_text():
    assert format_type(Mapping[str, int | None]) == "Mapping[str, int or None]"
    assert format_type(Callable[..., Apple]) == "Callable[..., Apple]"
    assert format_type(Callable) == "Callable"


@configurable
def cellar(*, barrels: Execution[Positive[int]] = 1, depth: Positive[float | None] = 1):
    return None


@pytest.mark.parametrize("value", ["0", "-2", "1e999"])
def test_a_number_outside_the_range_beside_its_type_is_refused(tmp_path, value):
    config = tmp_path / "a.gin"
    config.write_text(f"cellar.depth = {value}")
    message = f"{config}:1: cellar.depth is .*: it must be above 0, and finite"
    with pytest.raises(ConfigError, match=message):
        load([config], root=cellar)
    assert load([], ["cellar.depth=None"], root=cellar)["depth"] is None
    assert config_fields(cellar)["barrels"].execution
