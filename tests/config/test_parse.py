"""Parsing files and overrides: includes, imports, quotes and error locations."""

import pytest

from lmx.config.registry import ConfigError, configurable
from lmx.config.resolve import load


@configurable
class Bell:
    def __init__(
        self,
        *,
        tone: str = "a",
        rings: int = 1,
        weight: float = 1.0,
        parts: tuple[str, ...] = (),
    ):
        self.all = (tone, rings, weight, parts)


@pytest.fixture
def bell(tmp_path, monkeypatch):
    """Loads `bell.gin` with this text, or the files named."""
    monkeypatch.chdir(tmp_path)

    def bell(text="", *overrides, files=("bell.gin",)):
        (tmp_path / "bell.gin").write_text(text)
        return load(files, overrides, root=Bell)

    return bell


def write(**files):
    for name, text in files.items():
        with open(f"{name}.gin", "w") as file:
            file.write(text)


def refusal(make, *args, **kwargs):
    with pytest.raises(ConfigError) as error:
        make(*args, **kwargs)
    return str(error.value)


WORDS = {
    "Bell.tone=low": "low",
    "--gin.Bell.tone=low": "low",
    "Bell.tone='low'": "low",
    "Bell.tone=../shared/data/x.txt": "../shared/data/x.txt",
    "Bell.tone=a-b.c:d+e,f": "a-b.c:d+e,f",
    "Bell.tone=def main": "def main",
    "Bell.tone = to be = or # not": "to be = or # not",
    "Bell.tone=two\nlines": "two\nlines",
    "Bell.tone=back\\slash": "back\\slash",
    "Bell.tone=1e": "1e",
    "Bell.tone='f(x)'": "f(x)",
    "Bell.tone='7'": "7",
}


@pytest.mark.parametrize("word", WORDS)
def test_text_on_the_command_line_needs_no_quotes(bell, word):
    assert bell("", word)["tone"] == WORDS[word]


def test_values_on_the_command_line_are_as_in_a_file(bell):
    config = bell("R = 1", "Bell.rings=%R", "R=3", "Bell.parts=['rope', 'yoke']")
    assert (config["rings"], config["parts"]) == (3, ("rope", "yoke"))


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("Bell.rings", "write it as Name.parameter=value"),
        ("Bell.rings=", "write it as Name.parameter=value"),
        ("=3", "Unexpected token."),
        ("Bell..rings=3", "Malformatted scope or selector."),
        ("Bell.rings=[1, 2", "is never closed"),
        ("Bell.tone=f(x)", "f is not a value: put text in quotes"),
        ("Bell.parts={[1]: 2}", "unhashable type: 'list'"),
        ("Bell.ring=3", "Bell has no parameter 'ring'; did you mean 'rings'?"),
        ("tower.bell.rings=3", "named 'tower.bell'; did you mean 'Bell'?"),
        ("x.y.rings=3", "nothing configurable is named 'x.y'; there is Bell.rings"),
        ("Bell=3", "nothing under @Bell() uses Bell: write Bell.parameter=value"),
        ("Bell.tone=7", "Bell.tone must be str, got 7"),
        ("Bell.rings='3'", "Bell.rings must be int, got '3'"),
        ("Bell.rings=%ONE", "no macro ONE is defined"),
        ("Bell.rings=[%gin.REQUIRED]", "%gin.REQUIRED must be the whole value"),
        ("import os", "write it as Name.parameter=value"),
    ],
)
def test_an_error_names_the_override(bell, override, message):
    error = refusal(bell, "", override)
    assert error.startswith(f"override {override!r}: ")
    assert message in error


@pytest.mark.parametrize(
    ("text", "line", "message"),
    [
        ("Bell.rings = 3\n\n# so\nBell.rings = [1,\n2", 4, "is never closed"),
        ("\nBell.tone = low", 2, "low is not a value: put text in quotes"),
        ("Bell:\n  rings = 1\n tone = 'a'", 3, "unindent does not match"),
        ("Bell:\nrings = 1", 2, "Expected indentation."),
        ("\n\nBel:\n  rings = 1", 3, "nothing configurable is named 'Bel'; did you"),
        ("Bell:\n  rings = 1\n  wait = 1", 3, "Bell has no parameter 'wait'"),
        ("Bell.parts = {\n[1]: 2}", 2, "unhashable type: 'list'"),
        ("M = {}\nBell.parts = {%M: 1}", 2, "a key must be a scalar: {%M: 1}"),
        ("import os", 1, "modules of lmx only: remove this line, and add --import"),
        ("import lmx.nothing", 1, "No module named 'lmx.nothing'"),
        ("import lmxx", 1, "modules of lmx only"),
        ("include 'gone.gin'", 1, "there is no file gone.gin"),
        (
            "include '.'",
            1,
            "is a folder, and not that of a run: name the .gin file in it",
        ),
        ("include 3", 1, "Expected file path as string."),
        ("R = 'x'\nBell.rings = %R", 2, "must be int, got 'x'"),
        (
            "\nBell.rings = %gin.REQUIRED",
            2,
            "Bell.rings is required: add Bell.rings=",
        ),
        ("R = %gin.REQUIRED\nBell.rings = %R", 1, "R is required: add R=VALUE"),
        ("M = %M\nBell.rings = %M", 1, "%M is defined by itself"),
    ],
)
def test_an_error_has_its_line(bell, text, line, message):
    error = refusal(bell, text)
    assert error.startswith(f"bell.gin:{line}")
    assert message in error


def test_an_error_in_an_included_file_has_the_line_of_that_file(bell):
    write(outer="include 'inner.gin'", inner="\n\nBell.rings = 'x'")
    assert refusal(bell, "include 'outer.gin'").startswith("inner.gin:3: Bell.rings")
    write(inner="\nBell.rings = [")
    assert refusal(bell, "include 'outer.gin'").startswith("inner.gin:2: ")


def test_an_error_names_the_macro_and_the_binding(bell):
    write(inner="R = 1\nBell.rings = %R")
    error = refusal(bell, "include 'inner.gin'", "R=many")
    assert error.startswith("inner.gin:2 with %R from override 'R=many': Bell.rings")


def test_a_missing_file_is_reported_with_the_nearest_name(bell, tmp_path):
    write(tenor="", treble="")
    error = refusal(bell, files=["tenr.gin"])
    assert error == "there is no file tenr.gin; did you mean 'tenor.gin'?"
    error = refusal(bell, "include 'trebel.gin'")
    assert error.endswith("there is no file trebel.gin; did you mean 'treble.gin'?")
    assert "there is no file nowhere/x.gin" in refusal(bell, files=["nowhere/x.gin"])
    assert "is a folder" in refusal(bell, files=[tmp_path])


def test_a_binary_file_is_refused(bell, tmp_path):
    (tmp_path / "noise.gin").write_bytes(b"\xff\xfe\x00")
    assert "noise.gin is not text" in refusal(bell, files=["noise.gin"])


def test_files_that_include_each_other_are_refused_with_both_lines(bell):
    write(one="\ninclude 'two.gin'", two="\n\ninclude 'one.gin'")
    error = refusal(bell, files=["one.gin"])
    assert error == ("two.gin:3: including one.gin makes a cycle, through one.gin:2")
    write(self="include 'self.gin'")
    assert refusal(bell, files=["self.gin"]).startswith(
        "self.gin:1: including self.gin"
    )


def test_two_files_may_include_the_same_one(bell):
    write(low="Bell.rings = 1", left="include 'low.gin'", right="include 'low.gin'")
    assert bell("include 'left.gin'\ninclude 'right.gin'")["rings"] == 1


def test_an_include_is_relative_to_its_file(bell, tmp_path):
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep/base.gin").write_text("Bell.rings = 4")
    (tmp_path / "deep/x.gin").write_text("include 'base.gin'")
    config = bell("include 'deep/x.gin'")
    assert config.explain("rings").splitlines()[1] == "  deep/base.gin:1"


def test_a_required_value_can_be_overridden(bell):
    assert bell("Bell.rings = %gin.REQUIRED", "Bell.rings=5")["rings"] == 5
    assert bell("R = %gin.REQUIRED\nBell.rings = %R", "R=5")["rings"] == 5


def test_of_two_files_the_second_wins(bell):
    write(one="Bell.rings = 1\nBell.tone = 'c'", two="Bell.rings = 2")
    config = bell(files=["one.gin", "two.gin"])
    assert (config["rings"], config["tone"]) == (2, "c")
    lines = ["rings = 2", "  two.gin:1", "  replaces 1 of one.gin:1"]
    assert config.explain("rings").splitlines() == lines


def test_an_infinite_number_can_be_written(bell):
    assert bell("Bell.weight = -1e999")["weight"] == float("-inf")
