"""Every experiment is a page of a lab notebook, and what it means is written down."""

import importlib.util
import pathlib

import pytest

from lmx.config.resolve import from_json, load
from lmx.train.experiment import Experiment

HERE = pathlib.Path(__file__).parent
SPEC = importlib.util.spec_from_file_location("pages", HERE / "pages.py")
assert SPEC and SPEC.loader
pages = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(pages)
all_pages = pytest.mark.parametrize("page", pages.PAGES, ids=lambda page: page.stem)


@all_pages
def test_a_page_asks_before_it_sets(page):
    lines = page.read_text().splitlines()
    assert lines[0].startswith("# ") and lines[0].endswith("?")
    for word in ("    lmx train", "Expect  ", "Cost    ", "Result  "):
        assert any(line.startswith(f"# {word}") for line in lines), word


@all_pages
def test_a_changed_meaning_shows_as_a_changed_text(page):
    """After a change on purpose: `python tests/golden/pages.py`, and read the diff."""
    assert pages.text_of(page).read_text() == pages.golden(page)


@all_pages
def test_a_page_survives_json_and_its_own_text(page, tmp_path):
    config = load([page], root=Experiment)
    assert from_json(config.json()) == config
    (tmp_path / "page.gin").write_text(config.text())
    assert load([tmp_path / "page.gin"], root=Experiment) == config
