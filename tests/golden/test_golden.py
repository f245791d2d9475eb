"""Every experiment is a page of a lab notebook, and what it means is written down."""

import importlib.util
import pathlib

import pytest

from lmx.config.resolve import from_json, load
from lmx.config.value import diff
from lmx.models.hf.family import extract_math_config, load_families
from lmx.train.experiment import Experiment

HERE = pathlib.Path(__file__).parent
SPEC = importlib.util.spec_from_file_location("pages", HERE / "pages.py")
assert SPEC and SPEC.loader
pages = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(pages)
# As transformers counts the released models, tied embeddings once.
PUBLISHED = {
    "deepseek_v3": 671_026_419_200,  # and 14_848 biases of routers among them
    "gemma2_2b": 2_614_341_888,
    "gemma3_1b": 999_885_952,
    "gpt2": 124_439_808,
    "gpt_oss_20b": 20_914_757_184,
    "llama2_70b": 68_976_648_192,
    "llama2_7b": 6_738_415_616,
    "llama32_1b": 1_235_814_400,
    "llama3_405b": 405_853_388_800,
    "llama3_70b": 70_553_706_496,
    "llama3_8b": 8_030_261_248,
    "mistral_7b": 7_241_732_096,
    "mixtral_8x7b": 46_702_792_704,
    "olmo2_7b": 7_298_617_344,
    "qwen2_7b": 7_615_616_512,
    "qwen3_30b_a3b": 30_532_122_624,
    "qwen3_8b": 8_190_735_360,
}
FAMILIES = [page for page in pages.PAGES if page.parent.name == "families"]
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
    assert from_json(config.to_json()) == config
    (tmp_path / "page.gin").write_text(config.to_gin())
    assert load([tmp_path / "page.gin"], root=Experiment) == config


def test_every_family_has_a_page_with_a_published_number_of_parameters():
    assert {page.stem for page in FAMILIES} == PUBLISHED.keys()


@pytest.mark.parametrize("page", FAMILIES, ids=lambda page: page.stem)
def test_a_family_has_as_many_parameters_as_it_was_published_with(page):
    last = pages.text_of(page).read_text().splitlines()[-1]
    assert last.split()[-1] == f"{PUBLISHED[page.stem]:,}"


@pytest.mark.parametrize("page", FAMILIES, ids=lambda page: page.stem)
def test_a_family_page_is_the_model_that_its_published_fields_compose_to(page):
    """But for what a trained model does not show: how it was born, and is computed."""
    families = [
        family for family in load_families().values() if page.stem in family.presets
    ]
    assert len(families) == 1
    composed = families[0].to_config(families[0].presets[page.stem], page.stem)
    mine = load([page], root=Experiment)["model"]
    assert not diff(extract_math_config(mine), extract_math_config(composed["model"]))
