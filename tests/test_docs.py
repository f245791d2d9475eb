"""Every example of the README and of docs/ runs, or is parsed and resolved."""

import pathlib
import re
import shlex

import numpy as np
import pytest

from lmx.cli.main import COMMANDS, build_parser
from lmx.config.resolve import load
from lmx.data.store.build import BuildTokenStore
from lmx.train.experiment import Experiment
from tests.llama import write_llama

ROOT = pathlib.Path(__file__).parents[1]
GENERATED = {"commands.md", "choices.md", "tree.md"}
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
PAGES = [page for page in PAGES if page.name not in GENERATED]
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```", re.MULTILINE | re.DOTALL)


def blocks(*languages):
    return [
        pytest.param(text, id=f"{page.name}-{index}")
        for page in PAGES
        for index, (language, text) in enumerate(BLOCK.findall(page.read_text()))
        if language in languages
    ]


@pytest.fixture
def checkout(tmp_path, monkeypatch):
    """A folder that has the experiments and the tests of this repository."""
    for name in ("experiments", "tests"):
        (tmp_path / name).symlink_to(ROOT / name)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("text", blocks("gin"))
def test_configs_resolve_as_written(text, checkout):
    (checkout / "my.gin").write_text(text)
    root = BuildTokenStore if text.startswith("BuildTokenStore") else Experiment
    config = load(["my.gin"], root=root)
    assert config.unused_bindings == ()


def lines():
    """Each `lmx ...` line of a shell block; with backslashes joined."""
    for parameter in blocks("sh", "console"):
        text = parameter.values[0].replace("\\\n", " ")
        for line in re.findall(r"^(?:\$ )?(lmx .*)$", text, re.MULTILINE):
            yield pytest.param(line, id=line)


@pytest.mark.parametrize("line", lines())
def test_command_lines_are_parsed_and_their_configs_resolve(line, checkout):
    _, *words = shlex.split(line, comments=True)
    args = build_parser().parse_args(words)
    assert args.command in COMMANDS
    if args.words[0].endswith(".gin") and (checkout / args.words[0]).exists():
        overrides = [word for word in args.words if "=" in word]
        load([args.words[0]], overrides, root=Experiment)


@pytest.mark.parametrize("text", blocks("python"))
def test_python_blocks_run(text, checkout, tiny_run, llama_folder):
    (checkout / "runs").mkdir()
    (checkout / "runs" / "quickstart").symlink_to(tiny_run)
    (checkout / "Llama-3.2-1B").symlink_to(llama_folder)
    exec(text, {"tokens": np.zeros((1, 8), "int32")})
