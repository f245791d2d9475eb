"""Dependencies, and what is imported when."""

import importlib.metadata
import pathlib
import re
import subprocess
import sys
import tomllib

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = pathlib.Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
PINS = [
    Requirement(line)
    for line in (ROOT / "constraints.txt").read_text().splitlines()
    if line and not line.startswith("#")
]


def needs(requirement, extras=("",)):
    """The package of the requirement and all its dependencies."""
    found, todo = set(), [(Requirement(requirement), extras)]
    while todo:
        wanted, extras = todo.pop()
        if not any(
            (m := wanted.marker) is None or m.evaluate({"extra": e}) for e in extras
        ):
            continue
        name = canonicalize_name(wanted.name)
        if (name, frozenset(wanted.extras)) in found:
            continue
        found.add((name, frozenset(wanted.extras)))
        for line in importlib.metadata.requires(name) or []:
            todo.append((Requirement(line), ("", *wanted.extras)))
    return {name for name, _ in found}


def core():
    return set().union(*map(needs, PROJECT["dependencies"]))


def test_the_core_has_at_most_sixty_packages():
    assert 20 < len(core()) <= 60


def test_every_package_is_pinned_exactly():
    dev = set().union(*map(needs, PROJECT["optional-dependencies"]["dev"]))
    here = {
        canonicalize_name(pin.name): pin
        for pin in PINS
        if pin.marker is None or pin.marker.evaluate()
    }
    assert (core() | dev) - {"pip"} <= set(here)
    for pin in PINS:
        assert re.fullmatch(r"==[\w.]+", str(pin.specifier)), pin
        assert pin.url is None


IMPORT = "import lmx"
HELP = "from lmx.cli.main import main; main(['--help'])"


@pytest.mark.parametrize("code", [IMPORT, HELP], ids=["import lmx", "lmx --help"])
def test_jax_is_imported_only_when_needed(code):
    tell = "import atexit, sys; atexit.register(lambda: print(*sys.modules))\n"
    done = subprocess.run(
        [sys.executable, "-c", tell + code], capture_output=True, text=True, cwd=ROOT
    )
    modules = done.stdout.split()
    assert done.returncode == 0 and "lmx" in modules
    heavy = {"jax", "flax", "optax", "orbax", "numpy", "matplotlib", "grain"}
    assert not heavy & set(modules)


LEAN = ["einops", "flax", "jax", "jaxtyping", "numpy", "optax"]  # all that a step needs
BEYOND = ["gin", "orbax", "grain", "sentencepiece", "tqdm", "matplotlib", "chex"]
BEYOND += ["tensorboardX", "safetensors", "tokenizers", "scipy"]
REFUSE = f"""
import importlib, importlib.abc, pathlib, sys

class Refuse(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {BEYOND}:
            raise ImportError(f"{{name}} is not here")

sys.meta_path.insert(0, Refuse())
"""
IMPORTS = """
for room in ("layers", "models"):
    for file in sorted(pathlib.Path("lmx", room).rglob("*.py")):
        importlib.import_module(".".join(file.with_suffix("").parts))
importlib.import_module("lmx.train.step")
importlib.import_module("lmx.train.optim.schedule")
print(*sys.modules)
"""
BENCHMARK = """
import runpy

sys.argv = ["benchmarks/gpu.py", "--tiny", "--rounds", "1"]
runpy.run_path("benchmarks/gpu.py", run_name="__main__")
"""


def leanly(code):
    """The output of a Python without the packages `BEYOND`."""
    words = [sys.executable, "-c", REFUSE + code]
    done = subprocess.run(words, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_every_dependency_is_listed():
    modules = {re.split(r"\W", name)[0] for name in PROJECT["dependencies"]}
    assert modules <= {*LEAN, *BEYOND}


def test_layers_models_and_the_step_need_few_packages():
    modules = leanly(IMPORTS).split()
    assert {"lmx.models.families.llama", "lmx.models.decoder"} <= set(modules)
    assert not set(BEYOND) & set(modules)


@pytest.mark.nightly
def test_the_benchmark_of_gpus_runs_on_few_packages():
    printed = leanly(BENCHMARK)
    for row in ("product", "tiny, reference", "tiny, XLA"):
        assert re.search(rf"^{row} +\d", printed, re.MULTILINE)
