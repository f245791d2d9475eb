"""`lmx config`, word by word, and what a page may name without importing it."""

import argparse
import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass

import pytest

from lmx.cli import config as verbs
from lmx.config import discover
from lmx.config.registry import ConfigError, Execution, configurable, find
from lmx.config.resolve import from_json


@configurable
@dataclass(frozen=True, kw_only=True)
class Chapter:
    pages: int = 10


@configurable
@dataclass(frozen=True, kw_only=True)
class Book:
    title: str
    chapter: Callable[..., Chapter] = Chapter
    shelf: Execution[int] = 1


@pytest.fixture
def lmx(tmp_path, monkeypatch, capsys):
    """Runs `lmx config ...` on a shelf of pages; its status, output and errors."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(verbs, "_find_root", lambda: Book)
    (tmp_path / "a.gin").write_text("Book.title = 'A'\nP = 5\nChapter.pages = %P")
    (tmp_path / "b.gin").write_text("include 'a.gin'\nBook.title = 'B'\n")
    (tmp_path / "run").mkdir()
    recorded = verbs.load_config("a.gin").to_json()
    (tmp_path / "run" / "experiment.json").write_text(recorded)

    def lmx(*words):
        parser = argparse.ArgumentParser(prog="lmx")
        verbs.add(parser.add_subparsers(required=True))
        args = parser.parse_args(["config", *words])
        return (args.run(args), *capsys.readouterr())

    return lmx


def test_show_has_a_line_for_each_value_and_names_the_run(lmx):
    status, said, _ = lmx("show", "a.gin")
    config = verbs.load_config("a.gin")
    assert status == 0
    assert [line.split("  ")[0] for line in said.splitlines()] == [
        "title = 'A'",
        "chapter = @Chapter",
        "chapter.pages = 5",
        "shelf = 1",
        f"run id {config.run_id()}, digest {config.digest()}",
    ]


def test_words_may_stand_before_and_after_options(lmx):
    for words in (
        ("--json", "a.gin", "P=7", "Book.title=two words"),
        ("a.gin", "--json", "P=7", "Book.title=two words"),
        ("a.gin", "--gin.P=7", "Book.title=two words", "--json"),
    ):
        fields = json.loads(lmx("show", *words)[1])["fields"]
        assert fields["chapter.pages"]["value"] == 7
        assert fields["title"] == {
            "value": "two words",
            "from": "override 'Book.title=two words'",
        }


def test_why_takes_paths_and_labels_of_classes(lmx):
    said = lmx("why", "a.gin", "title", "Chapter.pages", "P=7")[1]
    assert said.splitlines() == [
        "title = 'A'",
        "  a.gin:1",
        "chapter.pages = 7",
        "  a.gin:3 with %P from override 'P=7'",
        "  replaces 5 of a.gin:2",
    ]
    told = json.loads(lmx("why", "a.gin", "title", "--json")[1])
    assert told == {"title": {"value": "A", "trail": ["a.gin:1"]}}


def test_diff_compares_pages_and_runs_and_says_whether_the_run_is_the_same(lmx):
    first, last = lmx("diff", "a.gin", "b.gin")[1].splitlines()
    assert first == "title: 'A' -> 'B'" and last.startswith("run ")
    assert "the same run" in lmx("diff", "run", "a.gin")[1]
    told = json.loads(lmx("diff", "a.gin", "b.gin", "P=1", "--json")[1])
    assert told == {"title": {"old": "A", "new": "B"}}


def test_tree_draws_and_for_a_machine_prints_what_from_json_reads(lmx):
    assert "└─ pages = 5" in lmx("tree", "a.gin")[1]
    told = json.loads(lmx("tree", "run", "--json")[1])
    assert from_json(json.dumps(told["experiment"])) == verbs.load_config("a.gin")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["show", "c.gin"], "there is no file c.gin; there are a.gin, b.gin"),
        (["show", "a.gin", "Chapter.page=3"], "override 'Chapter.page=3': Chapter has"),
        (["show", "a.gin", "b.gin"], "config show takes one page, then overrides"),
        (["diff", "a.gin"], "config diff takes two pages"),
        (["why", "a.gin"], "config why takes one page and at least one path"),
        (["why", "a.gin", "titel"], "has no field 'titel'; did you mean 'title'?"),
        (["show", "run", "P=3"], "start from its page, run/experiment.gin"),
        (["show", "a.gin", "--import", "nowhere"], "--import nowhere: No module named"),
    ],
)
def test_words_that_cannot_be_meant_end_with_status_2(lmx, words, message):
    status, said, moaned = lmx(*words)
    assert (status, said) == (2, "")
    assert moaned.startswith("config error: ") and message in moaned


def test_an_unknown_option_is_refused(lmx):
    with pytest.raises(SystemExit) as stop:
        lmx("show", "a.gin", "--jsn")
    assert stop.value.code == 2


def test_a_run_whose_record_is_broken_is_told_by_name(lmx, tmp_path):
    (tmp_path / "run" / "experiment.json").write_text("{")
    assert "config error: run/experiment.json: JSON: " in lmx("show", "run")[2]


def test_a_module_of_the_user_is_imported_from_where_they_stand(lmx, tmp_path):
    (tmp_path / "my_own.py").write_text(
        "from lmx.config.registry import configurable\n"
        "@configurable\n"
        "class MyOwnChapter:\n"
        "    def __init__(self, *, pages: int = 3): ...\n"
    )
    words = ("show", "a.gin", "Book.chapter=@MyOwnChapter", "--import", "my_own")
    assert "wants Callable[..., Chapter], got @MyOwnChapter" in lmx(*words)[2]


def test_help_teaches_with_an_example(lmx, capsys):
    for words in (["--help"], *([verb, "--help"] for verb in ("show", "why", "diff"))):
        with pytest.raises(SystemExit):
            lmx(*words)
        assert "  lmx config " in capsys.readouterr().out


def test_what_ships_with_lmx_needs_no_import(tmp_path, monkeypatch):
    (tmp_path / "layer.py").write_text(
        "from lmx.config.registry import configurable\n\n\n"
        "@configurable\nclass Shipped:\n    pass\n\n\nconfigurable(Other)\n"
    )
    monkeypatch.setattr(discover, "_LMX", tmp_path)
    discover.find_declarations.cache_clear()
    try:
        assert discover.find_declarations() == {
            "Shipped": ("lmx.layer",),
            "Other": ("lmx.layer",),
        }
        with pytest.raises(ConfigError, match="named 'Shiped'; did you mean 'Shipped'"):
            find("Shiped", "here")
        with pytest.raises(ConfigError, match="Shipped cannot be had: No module"):
            find("Shipped", "here")
    finally:
        discover.find_declarations.cache_clear()


def test_reading_a_configuration_needs_no_jax():
    program = (
        "import sys, lmx.cli.config, lmx.config.resolve\n"
        "print([m for m in ('jax', 'numpy', 'tensorflow', 'absl') if m in sys.modules])"
    )
    ran = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert ran.stdout.strip() == "[]"
