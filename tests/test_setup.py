"""What a machine must have, and what an import costs."""

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
    """The requirement's package and, in turn, all that it pulls in here."""
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


def test_the_core_is_at_most_sixty_packages():
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
def test_jax_waits_until_it_is_needed(code):
    tell = "import atexit, sys; atexit.register(lambda: print(*sys.modules))\n"
    done = subprocess.run(
        [sys.executable, "-c", tell + code], capture_output=True, text=True, cwd=ROOT
    )
    modules = done.stdout.split()
    assert done.returncode == 0 and "lmx" in modules
    heavy = {"jax", "flax", "optax", "orbax", "numpy", "matplotlib", "grain"}
    assert not heavy & set(modules)
