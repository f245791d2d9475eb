"""`lmx config`: its five commands, their errors, and the names that need no import."""

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass

import pytest

from lmx.cli import load
from lmx.cli.main import main
from lmx.config import registry
from lmx.config.registry import ConfigError, Execution, configurable, find
from lmx.config.resolve import from_json
from lmx.run.run_dir import METADATA, SCHEMA


@configurable
@dataclass(frozen=True, kw_only=True)
class Chapter:
    pages: int = 10


@configurable
@dataclass(frozen=True, kw_only=True)
class Book:
    """A book with a title."""

    title: str
    chapter: Callable[..., Chapter] = Chapter
    shelf: Execution[int] = 1


@pytest.fixture
def lmx(tmp_path, monkeypatch, capsys):
    """Runs `lmx config ...` beside config files; returns status, output and errors."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(load, "ROOT", "Book")
    (tmp_path / "a.gin").write_text("Book.title = 'A'\nP = 5\nChapter.pages = %P")
    (tmp_path / "b.gin").write_text("include 'a.gin'\nBook.title = 'B'\n")
    (tmp_path / "run").mkdir()
    recorded = load.load_config("a.gin").to_json()
    (tmp_path / "run" / "experiment.json").write_text(recorded)
    (tmp_path / "run" / METADATA).write_text(json.dumps({"schema": SCHEMA}))

    def lmx(*arguments):
        with pytest.raises(SystemExit) as stop:
            main(["config", *arguments])
        return (stop.value.code, *capsys.readouterr())

    return lmx


def test_show_prints_a_line_for_each_value_and_the_ids(lmx):
    status, out, _ = lmx("show", "a.gin")
    config = load.load_config("a.gin")
    assert status == 0
    assert [line.split("  ")[0] for line in out.splitlines()] == [
        "title = 'A'",
        "chapter = @Chapter",
        "chapter.pages = 5",
        "shelf = 1",
        f"run id {config.run_id()}, digest {config.digest()}",
    ]


def test_options_and_overrides_can_be_in_any_order(lmx):
    for arguments in (
        ("--json", "a.gin", "P=7", "Book.title=two words"),
        ("a.gin", "--json", "P=7", "Book.title=two words"),
        ("a.gin", "--gin.P=7", "Book.title=two words", "--json"),
    ):
        fields = json.loads(lmx("show", *arguments)[1])["fields"]
        assert fields["chapter.pages"]["value"] == 7
        assert fields["title"] == {
            "value": "two words",
            "from": "override 'Book.title=two words'",
        }


def test_explain_takes_paths_and_class_parameters(lmx):
    out = lmx("explain", "a.gin", "title", "Chapter.pages", "P=7")[1]
    assert out.splitlines() == [
        "title = 'A'",
        "  a.gin:1",
        "chapter.pages = 7",
        "  a.gin:3 with %P from override 'P=7'",
        "  replaces 5 of a.gin:2",
    ]
    data = json.loads(lmx("explain", "a.gin", "title", "--json")[1])
    assert data == {"title": {"value": "A", "lines": ["a.gin:1"]}}


def test_diff_compares_configs_and_runs_and_their_run_ids(lmx):
    first, last = lmx("diff", "a.gin", "b.gin")[1].splitlines()
    assert first == "title: 'A' -> 'B'" and last.startswith("run id ")
    assert "the same run id" in lmx("diff", "run", "a.gin")[1]
    data = json.loads(lmx("diff", "a.gin", "b.gin", "P=1", "--json")[1])
    assert data == {"title": {"old": "A", "new": "B"}}


def test_tree_draws_references_and_its_json_can_be_read_back(lmx):
    assert "└─ pages = 5" in lmx("tree", "a.gin")[1]
    data = json.loads(lmx("tree", "run", "--json")[1])
    assert from_json(json.dumps(data["experiment"])) == load.load_config("a.gin")


def test_list_shows_names_parameters_and_experiments(lmx):
    status, out, _ = lmx("list")
    assert status == 0 and "Attention" in out and "lmx.layers.attention" in out
    status, out, _ = lmx("list", "Book")
    assert status == 0 and out.startswith("A book with a title.\n")
    assert [line.split() for line in out.splitlines()[2:]] == [
        ["parameter", "type", "default"],
        ["Book.title", "str", "required"],
        ["Book.chapter", "Callable[...,", "Chapter]", "@Chapter"],
        ["Book.shelf", "int", "1"],
    ]
    assert "did you mean 'Book'" in lmx("list", "Boook")[2]
    assert "no Book.page; did you mean" in lmx("list", "Book.page")[2]
    data = json.loads(lmx("list", "experiments", "--json")[1])
    assert {"quickstart", "families/llama3_8b"} <= data.keys()
    assert data["quickstart"].endswith("?")


def test_list_shows_what_can_stand_in_a_place_with_one_line_each(lmx):
    for name in ("Book.chapter", "Chapter"):
        assert "Chapter" in lmx("list", name)[1]
    rows = json.loads(lmx("list", "FeedForward", "--json")[1])
    assert {"@SwiGLU", "@GELU", "@MoE"} <= rows.keys() and all(rows.values())
    assert not any("Attention" in row for row in rows)
    assert rows.keys() == json.loads(lmx("list", "Decoder.mlp", "--json")[1]).keys()
    assert "@Evaluate()" in json.loads(lmx("list", "HookConfig", "--json")[1])


@pytest.mark.parametrize(
    ("name", "owner"),
    [
        ("lr", "WSD.peak_lr"),
        ("dim", "Decoder.width"),
        ("n_layers", "Decoder.depth"),
        ("peak_lr", "Cosine.peak_lr"),
    ],
)
def test_list_shows_whose_a_parameter_is_by_its_names_elsewhere_too(lmx, name, owner):
    status, out, _ = lmx("list", name)
    assert status == 0 and owner in out and out.startswith("parameter ")
    rows = json.loads(lmx("list", name, "--json")[1])
    assert owner in [row[0] for row in rows] and all(len(row) == 4 for row in rows)


def test_list_shows_ranges_and_the_documentation_of_bases(lmx):
    out = lmx("list", "Attention")[1]
    assert "float; 0 or more, and below 1" in out
    assert "Attention.out: make the projections; `@EinsumBias` adds biases." in out
    rows = json.loads(lmx("list", "InfiniAttention", "--json")[1])
    assert all(len(row) == 4 for row in rows)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["show", "c.gin"], "there is no file c.gin; there are a.gin, b.gin"),
        (["show", "quickstar"], "there is no file quickstar; did you mean 'quickstart"),
        (["show", "a.gin", "Chapter.page=3"], "override 'Chapter.page=3': Chapter has"),
        (["show", "a.gin", "b.gin"], "got 'a.gin b.gin': write lmx config show CONFIG"),
        (["diff", "a.gin"], "write lmx config diff A B [Name.parameter=value ...]"),
        (["explain", "a.gin"], "write lmx config explain CONFIG.gin PATH ..."),
        (["explain", "a.gin", "titel"], "has no field 'titel'; did you mean 'title'?"),
        (["show", "run", "P=3"], "nothing under @Book() uses P"),
        (["show", "a.gin", "--import", "nowhere"], "--import nowhere: No module named"),
    ],
)
def test_invalid_arguments_end_with_status_2(lmx, arguments, message):
    status, out, err = lmx(*arguments)
    assert (status, out) == (2, "")
    assert err.startswith("error: ") and message in err


def test_an_unknown_option_is_refused(lmx):
    assert lmx("show", "a.gin", "--jsn")[0] == 2


def test_a_run_with_a_broken_record_is_named(lmx, tmp_path):
    (tmp_path / "run" / "experiment.json").write_text("{")
    assert "run/experiment.json" in lmx("show", "run")[2]


def test_a_user_module_is_imported_from_the_working_folder(lmx, tmp_path):
    (tmp_path / "my_own.py").write_text(
        "from lmx.config.registry import configurable\n"
        "@configurable\n"
        "class MyOwnChapter:\n"
        "    def __init__(self, *, pages: int = 3): ...\n"
    )
    arguments = ("show", "a.gin", "Book.chapter=@MyOwnChapter", "--import", "my_own")
    message = "must be Callable[..., Chapter], got @MyOwnChapter"
    assert message in lmx(*arguments)[2]


def test_names_of_lmx_need_no_import(tmp_path, monkeypatch):
    (tmp_path / "layer.py").write_text(
        "from lmx.config.registry import configurable\n\n\n"
        "@configurable\nclass Shipped:\n    pass\n\n\nconfigurable(Other)\n"
    )
    monkeypatch.setattr(registry, "_LMX", tmp_path)
    registry.find_declarations.cache_clear()
    try:
        assert registry.find_declarations() == {
            "Shipped": ("lmx.layer",),
            "Other": ("lmx.layer",),
        }
        with pytest.raises(ConfigError, match="named 'Shiped'; did you mean 'Shipped'"):
            find("Shiped", "here")
        with pytest.raises(ConfigError, match="cannot import Shipped: No module"):
            find("Shipped", "here")
    finally:
        registry.find_declarations.cache_clear()


@pytest.mark.parametrize("place", ["wheel/lmx", "checkout"])
def test_shipped_experiments_are_found_in_a_wheel_and_in_a_checkout(
    tmp_path, monkeypatch, place
):
    folder = tmp_path / place / "experiments"
    (folder / "families").mkdir(parents=True)
    for name in ("one", "families/two"):
        (folder / f"{name}.gin").write_text("Book.title = 'x'")
    monkeypatch.setattr(registry, "_LMX", tmp_path / place.partition("/")[0] / "lmx")
    assert list(registry.find_experiments()) == ["families/two", "one"]
    assert registry.locate_config("families/two") == folder / "families" / "two.gin"


def test_reading_a_config_needs_no_jax():
    program = (
        "import sys, lmx.cli.config, lmx.config.resolve\n"
        "print([m for m in ('jax', 'numpy', 'tensorflow', 'absl') if m in sys.modules])"
    )
    ran = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert ran.stdout.strip() == "[]"
