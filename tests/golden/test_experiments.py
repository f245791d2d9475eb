"""Every experiment documents itself, and its resolved settings are golden text."""

import pytest

from lmx.config.format import to_gin
from lmx.config.resolve import from_json, load
from lmx.config.value import diff
from lmx.models.hf.family import extract_math_config, load_families
from lmx.train.experiment import Experiment
from tests.golden.configs import (
    CONFIGS,
    DEFAULTS,
    EXPERIMENTS,
    SWEEPS,
    format_defaults,
    format_experiment,
    get_golden_path,
)

# As counted by transformers for the released models, tied embeddings once.
PUBLISHED = {
    "deepseek_v3": 671_026_419_200,  # including 14_848 router biases
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
FAMILIES = [path for path in EXPERIMENTS if path.parent.name == "families"]
for_all = pytest.mark.parametrize("path", EXPERIMENTS, ids=lambda path: path.stem)
for_families = pytest.mark.parametrize("path", FAMILIES, ids=lambda path: path.stem)


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_an_experiment_begins_with_a_question_and_an_expected_result(path):
    lines = path.read_text().splitlines()
    assert lines[0].startswith("# ") and lines[0].endswith("?")
    command = "sweep run" if path in SWEEPS else "train"
    for start in (f"    lmx {command}", "Expect  ", "Cost    ", "Result  "):
        assert any(line.startswith(f"# {start}") for line in lines), start


@for_all
def test_settings_without_defaults_are_the_golden_text(path):
    """After an intended change: `python -m tests.golden.configs`, and read the diff."""
    assert get_golden_path(path).read_text() == format_experiment(path)


def test_defaults_of_all_configurables_are_the_golden_text():
    """After an intended change: `python -m tests.golden.configs`, and read the diff."""
    assert DEFAULTS.read_text() == format_defaults()


@for_all
def test_an_experiment_survives_json_and_gin_text(path, tmp_path):
    config = load([path], root=Experiment)
    assert from_json(config.to_json()) == config
    (tmp_path / "copy.gin").write_text(to_gin(config))
    assert load([tmp_path / "copy.gin"], root=Experiment) == config


def test_every_family_has_an_experiment_with_a_published_parameter_count():
    assert {path.stem for path in FAMILIES} == PUBLISHED.keys()


@for_families
def test_a_family_has_the_published_number_of_parameters(path):
    last = get_golden_path(path).read_text().splitlines()[-1]
    assert last.split()[-1] == f"{PUBLISHED[path.stem]:,}"


@for_families
def test_a_family_experiment_equals_its_hugging_face_preset(path):
    """Except for what a trained model does not show: initialization and computation."""
    families = [f for f in load_families().values() if path.stem in f.presets]
    assert len(families) == 1
    preset = families[0].to_config(families[0].presets[path.stem], path.stem)
    model = load([path], root=Experiment)["model"]
    assert not diff(extract_math_config(model), extract_math_config(preset["model"]))
