"""lmx reads `.gin` files as gin does: both agree on random files.

The files use only what has the same meaning in both. The intended differences are in
`tests/config/test_gin_differences.py`.
"""

import dataclasses
import pickle
import random
from pathlib import Path
from typing import Any

import gin
import pytest

from lmx.config.format import to_gin
from lmx.config.gin import BindingKey, parse
from lmx.config.registry import configurable
from lmx.config.resolve import Resolver, from_json, load


@dataclasses.dataclass(frozen=True, kw_only=True)
class Bud:
    a: Any = "bud"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Leaf:
    a: Any = 0
    b: Any = 1
    c: Any = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Twig:
    a: Any = 0
    left: Any = None
    right: Any = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Trunk:
    x: Any = None
    y: Any = None


KINDS = (Bud, Leaf, Twig, Trunk)
SCOPES = ["", "", "s/", "t/", "s/t/", "s/t/u/", "s/u/"]
SCALARS = ["0", "-1", "2.5", "-1e-3", "True", "None", "1_000", "0x1F", "1e999"]
STRINGS = ["'s'", '"it\'s"', "'a' 'b'", "'a' \\\n 'b'", "('c'\n 'd')", "'''\ne\n'''"]
MACROS = ["%M", "%N", "%Oak_tree"]
GAPS = [" ", " ", "\n      ", "  # why\n    "]


class RandomSource:
    """Writes random files: every construct, in random order and to random depth."""

    def __init__(self, seed: int):
        self.rng = random.Random(seed)

    def make_statements(self) -> list[str]:
        """Statements that bind everything, some of them several times."""
        lines = [
            f"M = {self.pick(['3', repr('m'), '{1: 2}', self.scoped('Bud')])}",
            f"N = {self.value(['%M', '7', self.scoped('Bud')])}",
            f"Oak_tree = {self.pick(['%N', '[%N, %M]', '{None: %N}', '-7'])}",
        ]
        for name, parameters, atoms in [
            ("Bud", "a", [*SCALARS, *STRINGS]),
            ("Leaf", "abc", [*SCALARS, *MACROS, "Bud"]),
            ("Twig", ["a", "left", "right"], [*STRINGS, *MACROS, *["Leaf"] * 9]),
        ]:
            for parameter in parameters:
                for scope in self.rng.sample(SCOPES, self.rng.randint(0, 3)):
                    lines.append(self.binding(scope + name, parameter, atoms))
        for parameter in ["x", "y", "y"]:
            lines.append(self.binding("Trunk", parameter, ["Twig", "Twig", "Leaf"]))
        self.rng.shuffle(lines)
        return lines

    def binding(self, name: str, parameter: str, atoms: list[str]) -> str:
        """One line, or a block, with comments here and there."""
        value, note = self.value(atoms), self.pick(["", "  # so", "\n# well\n\n"])
        if self.rng.random() < 0.3:
            return f"{name}:  # both\n\n  # first\n  {parameter} = {value}\n{note}"
        return f"{name}.{parameter} = {value}{note}"

    def value(self, atoms: list[str], depth: int = 2) -> str:
        """One of `atoms` or a container of them, which may break its lines."""
        kind, gap = self.rng.random(), self.pick(GAPS)
        if not depth or kind > 0.4:
            atom = self.pick(atoms)
            return self.reference(atom) if atom in map(named, KINDS) else atom
        inner = [self.value(atoms, depth - 1) for _ in range(self.rng.randint(0, 3))]
        if kind < 0.15:
            return f"[{f',{gap}'.join(inner)}]"
        if kind < 0.3:
            return f"({gap}{''.join(f'{item},{gap}' for item in inner)})"
        keys = self.rng.sample(["'k'", "1", "None", "'@l'", "-2.5"], len(inner))
        pairs = (f"{k}: {item}" for k, item in zip(keys, inner, strict=True))
        return "{" + f",{gap}".join(pairs) + "}"

    def reference(self, name: str) -> str:
        """Called in any scope; uncalled only in one of its own, where both agree."""
        if self.rng.random() < 0.2:
            return self.scoped(name, called=False)
        return f"@{self.pick(SCOPES)}{name}()"

    def scoped(self, name: str, *, called: bool = True) -> str:
        return f"@{self.pick(SCOPES[2:])}{name}{'()' * called}"

    def pick(self, words: list[str]) -> str:
        return self.rng.choice(words)


def named(thing: type) -> str:
    return thing.__name__


def plain(value: Any) -> Any:
    """Lists as tuples, objects as fields, factories called, values with their types."""
    if dataclasses.is_dataclass(value) and not callable(value):
        fields = dataclasses.fields(value)
        return type(value).__name__, [plain(getattr(value, f.name)) for f in fields]
    if callable(value):
        return "factory", plain(value())
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    return type(value).__name__, value


@pytest.fixture(scope="module")
def gin_trunk():
    for thing in KINDS:
        configurable(thing)
    *_, trunk = [gin.external_configurable(thing) for thing in KINDS]
    yield trunk
    gin.clear_config()


@pytest.fixture
def random_files(tmp_path, monkeypatch):
    """Random `one.gin` files, partly in included files."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "middle.gin").write_text("include 'inner.gin'\n")

    def random_files(seed: int):
        source, rng = RandomSource(seed), random.Random(seed)
        for _ in range(200):
            lines = source.make_statements()
            cut, end = sorted(rng.sample(range(len(lines) + 1), 2))
            (tmp_path / "inner.gin").write_text("\n".join(lines[cut:end]))
            lines[cut:end] = ["include 'middle.gin'"]
            (tmp_path / "one.gin").write_text("\n".join(lines))
            (tmp_path / "more.gin").write_text("\n".join(source.make_statements()[:2]))
            yield ["one.gin", "more.gin"]

    return random_files


@pytest.mark.parametrize(
    "seed",
    [0, 1, 2, *(pytest.param(n, marks=pytest.mark.nightly) for n in range(3, 16))],
)
def test_random_files_have_the_same_meaning_as_in_gin(gin_trunk, random_files, seed):
    for files in random_files(seed):
        gin.clear_config()
        gin.parse_config_files_and_bindings(files, [])
        ours = Resolver(parse(files)).resolve_root("Trunk").build()
        assert plain(ours) == plain(gin_trunk())


@pytest.mark.parametrize("seed", range(2))
def test_a_random_config_round_trips_through_json_and_gin(random_files, seed):
    for thing in KINDS:
        configurable(thing)
    for files in random_files(seed):
        config = Resolver(parse(files)).resolve_root("Trunk")
        assert from_json(config.to_json()) == config
        Path("flat.gin").write_text(to_gin(config))
        again = load(["flat.gin"], root=Trunk)
        assert again == config
        assert to_gin(again) == to_gin(config)
        assert pickle.loads(pickle.dumps(config)) == config


@pytest.mark.parametrize("name", ["quickstart", "experiments/quickstart.gin"])
def test_a_shipped_experiment_is_included_by_its_name_from_any_folder(tmp_path, name):
    file = tmp_path / "mine.gin"
    file.write_text(f"include '{name}'\nDecoder.depth = 2\n")
    assert parse([file])[BindingKey((), "Decoder", "depth")].value == 2
