"""Every config and every Python block of the README and of docs/ works."""

import contextlib
import io
import re
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import pytest

from lmx.cli.main import main
from lmx.config.resolve import load
from lmx.data.store.build import BuildTokenStore
from lmx.study.sweep import Sweep
from lmx.train.checkpoint.import_hf import import_hf
from lmx.train.experiment import Experiment
from tests.data.tokenizer.test_hf_folder import by_bytes

ROOT = Path(__file__).parents[1]
IN_ORDER = ("notebook.md", "recipes.md")  # whose Python blocks need those before
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def find_blocks(language):
    pattern = re.compile(rf"^```{language}\n(.*?)^```", re.MULTILINE | re.DOTALL)
    return [
        pytest.param(text, id=f"{page.name} {index}")
        for page in PAGES
        if language != "python" or page.name not in IN_ORDER
        for index, text in enumerate(pattern.findall(page.read_text()))
    ]


@pytest.fixture
def checkout(tmp_path, monkeypatch):
    """A working folder with the experiments and the tests of this repository."""
    for name in ("experiments", "tests"):
        (tmp_path / name).symlink_to(ROOT / name)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("text", find_blocks("gin"))
def test_a_config_resolves_and_all_of_it_is_used(text, checkout, llama):
    if "runs/llama" in text:
        import_hf(llama(), checkout / "runs" / "llama")
    (checkout / "my.gin").write_text(text)
    roots = (BuildTokenStore, Sweep)
    root = next((x for x in roots if text.startswith(x.__name__)), Experiment)
    config = load(["my.gin"], root=root)
    unused = [line for line in config.unused_bindings if line.startswith("my.gin")]
    assert not unused
    built = config.build()
    if isinstance(built, Sweep):
        assert built.list_runs()
    if isinstance(built, Experiment):
        built.abstract_model()


@pytest.fixture(scope="session")
def tiny_run(tmp_path_factory):
    """A run of one step."""
    run = tmp_path_factory.mktemp("runs") / "quickstart"
    config = str(ROOT / "tests" / "train" / "tiny.gin")
    words = ["train", config, "Experiment.steps=1", "Mesh.data=1", "--run", str(run)]
    with contextlib.redirect_stdout(io.StringIO()), pytest.raises(SystemExit) as stop:
        main(words)
    assert stop.value.code == 0
    return run


@pytest.mark.parametrize("text", find_blocks("python"))
def test_a_python_block_runs(text, checkout, tiny_run, llama):
    (checkout / "runs").mkdir()
    (checkout / "runs" / "quickstart").symlink_to(tiny_run)
    (checkout / "Llama-3.2-1B").symlink_to(llama())
    file = checkout / "mymodule.py"  # whose source shows what **kwargs stands for
    file.write_text(text)
    scope = {"tokens": jnp.zeros((1, 4), "int32"), "__name__": "mymodule"}
    exec(compile(text, file, "exec"), scope)


def run_in_order(name: str) -> dict[str, Any]:
    """The names after all Python blocks of a page, each of at most 25 lines."""
    page = (ROOT / "docs" / name).read_text()
    cells = re.findall(r"^```python\n(.*?)^```", page, re.MULTILINE | re.DOTALL)
    names: dict[str, Any] = {"__name__": "notebook"}
    for cell in cells:
        assert cell.count("\n") <= 25
        exec(cell, names)
    return names


@pytest.fixture
def one_device(monkeypatch):
    monkeypatch.setattr(jax, "devices", lambda: jax.local_devices()[:1])


def test_the_blocks_of_the_notebook_run_in_order(checkout, one_device):
    names = run_in_order("notebook.md")
    assert jnp.isfinite(names["nats"]) and names["nats"] < 4.0


@pytest.mark.faults
def test_the_jobs_of_a_new_user_run_in_order(checkout, one_device, llama, capsys):
    model = llama(vocab_size=310, eos_token_id=1)
    by_bytes().save(str(model / "tokenizer.json"))
    (checkout / "Llama-3.2-1B").symlink_to(model)
    names = run_in_order("recipes.md")
    assert len(names["table"]) == 6
    assert set(names["table"]["state"]) == {"done"}
    assert (checkout / "exported" / "config.json").is_file()
    out = capsys.readouterr().out
    for part in ("kv_heads", "The first tensor that is not finite", "does not fit"):
        assert part in out
