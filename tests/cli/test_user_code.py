"""The examples of docs/extending.md as modules of a user: trained, opened, changed."""

import contextlib
import io
import json
import re
import shutil
import sys
from pathlib import Path

import pytest

import lmx as library
from lmx.cli.main import main
from lmx.config import registry
from lmx.config.registry import ConfigError
from lmx.run.run_dir import RunDir, read_config, read_metadata
from lmx.run.user_code import digest_modules, find_sources, import_modules

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "extending.md").read_text()
BLOCKS = re.findall(r"^```python\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)
NAMES = [
    "GatedAttention",
    "ConfidencePenalty",
    "clipped_adamw",
    "InverseSquareRoot",
    "LogWeightNorm",
    "Counting",
]
WORDS = [
    "Decoder.attention=@GatedAttention",
    "GatedAttention.heads=4",
    "GatedAttention.kv_heads=2",
    "GatedAttention.head_dim=4",
    "GatedAttention.gain=0.5",
    "Experiment.loss=@ConfidencePenalty()",
    "Experiment.optimizer=@clipped_adamw",
    "clipped_adamw.weight_decay=0.2",
    "Experiment.schedule=@InverseSquareRoot()",
    "InverseSquareRoot.peak_lr=0.01",
    "Experiment.hooks=[@LogWeightNorm()]",
    "LogWeightNorm.every=2",
    "Experiment.data=@Counting()",
    "Counting.batch_size=8",
    "Counting.sequence_length=8",
    "Experiment.steps=4",
    "Mesh.data=1",
    "Decoder.depth=1",
]
MODULE = "mymodule"


def forget():
    """Undoes the imports of the user's modules in this process."""
    for name in (MODULE, "constants"):
        sys.modules.pop(name, None)
    for name in NAMES:
        registry._REGISTRY.pop(name, None)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with the modules, and a run of all of them, trained with --import."""
    folder = tmp_path_factory.mktemp("user")
    (folder / "constants.py").write_text("LIMIT = 0.1\n")
    (folder / f"{MODULE}.py").write_text(
        "from constants import LIMIT\n" + "\n\n".join(BLOCKS)
    )
    shutil.copy(ROOT / "tests" / "train" / "tiny.gin", folder)
    path, modules = [*sys.path], {*sys.modules}
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LMX_CACHE", str(folder / "cache"))
        patch.chdir(folder)
        words = ["train", "tiny.gin", *WORDS, "--run", "run", "--import", MODULE]
        with (
            contextlib.redirect_stdout(io.StringIO()),
            pytest.raises(SystemExit) as end,
        ):
            main(words)
        assert end.value.code == 0
        yield folder
    forget()
    sys.path[:] = path
    assert MODULE not in modules


@pytest.fixture
def inside(folder, monkeypatch):
    """The folder, with the modules not yet imported; changes of it are undone."""
    forget()
    monkeypatch.setenv("LMX_CACHE", str(folder / "cache"))
    monkeypatch.chdir(folder)
    source = (folder / f"{MODULE}.py").read_text()
    yield folder
    (folder / f"{MODULE}.py").write_text(source)
    (folder / "constants.py").write_text("LIMIT = 0.1\n")


def test_examples_have_at_most_20_lines_and_are_of_six_kinds():
    assert len(BLOCKS) == len(NAMES)
    for name, block in zip(NAMES, BLOCKS, strict=True):
        own = block[block.index("@configurable") :].strip().splitlines()
        assert name in block and len(own) <= 20


def test_all_six_kinds_take_part_in_a_run(inside):
    text = (inside / "run" / "metrics.jsonl").read_text()
    rows = [json.loads(row) for row in text.splitlines()]
    norms = [row["weight_norm"] for row in rows if "weight_norm" in row]
    assert len(norms) == 2 and any("entropy" in row for row in rows)
    config = read_config(inside / "run")
    assert config["optimizer.weight_decay"] == 0.2
    assert config["model.attention.dropout"] == 0.0


def test_a_module_named_once_is_imported_without_the_flag(inside, lmx):
    assert MODULE not in sys.modules
    trained = library.restore("run")
    assert trained.step == 4 and MODULE in sys.modules
    forget()
    assert lmx("ckpt", "diff", "run", "run")[0] == 0
    forget()
    assert "GatedAttention" in lmx("config", "show", "run")[1]


def test_a_module_named_once_is_listed_without_the_flag(inside, lmx):
    status, out, _ = lmx("config", "list", "GatedAttention")
    assert status == 0 and "GatedAttention.heads" in out


@pytest.mark.parametrize("changed", [MODULE, "constants"])
def test_a_module_that_was_not_named_is_not_imported(inside, lmx, changed):
    (inside / f"{changed}.py").write_text("raise SystemExit('imported')\n")
    for words in (["config", "show", "run"], ["ckpt", "diff", "run", "run"]):
        status, _, err = lmx(*words)
        assert status == 2 and MODULE not in sys.modules
        assert f"--import {MODULE}" in err
    status, _, err = lmx("reproduce", "run/metadata.json")
    assert status == 2 and f"--import {MODULE}" in err


def test_a_config_needs_no_flag_until_the_code_changes_and_then_it_is_named(
    inside, lmx
):
    assert "@GatedAttention" in lmx("config", "show", "tiny.gin", *WORDS)[1]
    forget()
    (inside / "constants.py").write_text("raise SystemExit('imported')\n")
    for name, module in (("GatedAttention", "MODULE"), (f"{MODULE}.Gated", MODULE)):
        status, _, err = lmx("config", "show", "tiny.gin", f"Decoder.mlp=@{name}")
        assert status == 2 and MODULE not in sys.modules
        assert f"named '{name}'" in err
        assert f"(a class of your own: --import {module})" in err


def claim(folder, allow=()):
    """Opens the run to resume it, with the code of now."""
    config = read_config(folder / "run")
    metadata = read_metadata(folder / "run") | {"imports": digest_modules(config)}
    RunDir.claim(folder / "run", config, metadata, None, allow).close()


@pytest.mark.parametrize("changed", [MODULE, "constants"])
def test_changed_code_is_refused_by_name_or_allowed_and_recorded(
    inside, changed, lmx, tmp_path
):
    backup = tmp_path / "run"
    shutil.copytree(inside / "run", backup)
    with (inside / f"{changed}.py").open("a") as file:
        file.write("NEW = 1\n")
    import_modules([MODULE])
    message = rf"(?s)code has changed since.*--allow-change.*code.{changed}: \w+ before"
    with pytest.raises(ConfigError, match=message):
        claim(inside)
    status, _, err = lmx("reproduce", "run/metadata.json", "--import", MODULE)
    assert status == 2 and f"{changed} is not the code of the run" in err
    assert f"{changed} has changed since the run" in err
    with pytest.raises(ConfigError, match="has no field 'codes'"):
        claim(inside, ["codes"])
    claim(inside, ["code"])
    recorded = read_metadata(inside / "run")
    [change] = recorded["allowed_changes"]
    assert change["name"] == f"code.{changed}" and change["from"] != change["to"]
    assert recorded["imports"][changed] == change["to"]
    assert len([*(inside / "run" / "code").iterdir()]) == 2  # both versions
    claim(inside)  # the new code is that of the run now
    shutil.rmtree(inside / "run")
    shutil.copytree(backup, inside / "run")


def test_the_sources_of_a_run_are_kept(inside):
    [version] = (inside / "run" / "code").iterdir()
    for name in (MODULE, "constants"):
        file = f"{name}.py"
        assert (version / file).read_bytes() == (inside / file).read_bytes()


def test_sources_are_found_without_running_any_of_them(tmp_path, monkeypatch):
    (tmp_path / "pack" / "inner").mkdir(parents=True)
    for name, text in {
        "pack/__init__.py": "raise SystemExit",
        "pack/inner/__init__.py": "",
        "pack/inner/layer.py": "from .. import other\nfrom ..deep import X",
        "pack/other.py": "import outside, numpy, lmx",
        "pack/deep.py": "",
        "outside.py": "import nowhere",
        "unused.py": "",
    }.items():
        (tmp_path / name).write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    assert sorted(find_sources(["pack.inner.layer"])) == [
        "outside",
        "pack",
        "pack.deep",
        "pack.inner",
        "pack.inner.layer",
        "pack.other",
    ]
    assert find_sources(["", "..", "nowhere", "pack.nothing", "sys"]) == {}
    assert "pack" not in sys.modules
    assert "lmx" not in find_sources([__name__])  # though it lies beside the tests
