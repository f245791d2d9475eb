"""The house rules a machine can check."""

import ast
import pathlib
import re
from typing import Any

import pytest

from lmx.core.dims import LOGICAL

ROOT = pathlib.Path(__file__).parents[1]
ROOMS = "core config data layers models train infer evals post plan study cli".split()
FILES = sorted(p.relative_to(ROOT) for p in (ROOT / "lmx").rglob("*.py"))
TESTS = sorted(p.relative_to(ROOT) for p in (ROOT / "tests").rglob("*.py"))
README = (ROOT / "README.md").read_text()
BESIDE = {"faults", "golden", "parity"}  # folders of tests that mirror no room
all_files = pytest.mark.parametrize("path", FILES, ids=str)


def nodes(path, *kinds) -> list[Any]:
    tree = ast.walk(ast.parse((ROOT / path).read_text()))
    return [node for node in tree if isinstance(node, kinds)]


@all_files
def test_imports_point_down(path):
    """A folder may import itself and the folders before it in ROOMS."""
    if len(path.parts) < 3:
        return
    allowed = ROOMS[: ROOMS.index(path.parts[1]) + 1]
    for node in nodes(path, ast.ImportFrom):
        if (node.module or "").startswith("lmx."):
            folder = node.module.split(".")[1]
            assert folder in allowed, f"{path}:{node.lineno} reaches up into {folder}"


@all_files
def test_names_agree_with_einsums(path):
    """`y_BTH = einsum("BTD,DH->BTH", x_BTD, w_DH)`: suffixes match the equation."""
    for node in nodes(path, ast.Assign):
        call, target = node.value, node.targets[0]
        if getattr(getattr(call, "func", None), "attr", "") != "einsum":
            continue
        if not isinstance(call.args[0], ast.Constant):
            continue
        terms = re.split(",|->", call.args[0].value)
        for term, arg in zip(terms, [*call.args[1:], target], strict=True):
            suffix = isinstance(arg, ast.Name) and re.fullmatch(r".*_([A-Z1]+)", arg.id)
            where = f"{path}:{node.lineno} {getattr(arg, 'id', '')} is {term}"
            assert not suffix or suffix[1] == term, where


@all_files
def test_every_letter_is_in_the_alphabet(path):
    """Suffixes of local arrays, and jaxtyping's dimensions, are letters of `dims`."""
    for node in nodes(path, ast.Name):
        suffix = re.fullmatch(r"[a-z0-9_]+_([A-Z0-9]+)", node.id)
        for letter in suffix[1] if suffix else "":
            where = f"{path}:{node.lineno} {node.id}"
            assert letter in LOGICAL or letter.isdigit(), where


@all_files
def test_only_sharding_knows_the_mesh(path):
    if path.parts[1] in ("layers", "models", "data"):
        assert not re.search(
            r"\bmesh\b|PartitionSpec|with_sharding", (ROOT / path).read_text()
        )


@all_files
def test_every_module_says_what_it_is(path):
    tree = ast.parse((ROOT / path).read_text())
    assert ast.get_docstring(tree) or not tree.body, f"{path} has no docstring"


@all_files
def test_files_and_functions_are_short(path):
    assert len((ROOT / path).read_text().splitlines()) <= 400, path
    for node in nodes(path, ast.FunctionDef):
        assert node.end_lineno - node.lineno < 50, f"{path}:{node.lineno} {node.name}"


@pytest.mark.parametrize("folder", sorted({p.parent for p in FILES}), ids=str)
def test_a_folder_is_seen_at_a_glance(folder):
    entries = [p for p in (ROOT / folder).iterdir() if not p.name.startswith("__")]
    alike = folder.name == "families"
    assert alike or len(entries) <= 12, f"{folder} has {len(entries)} entries"


@pytest.mark.parametrize("path", TESTS, ids=str)
def test_tests_mirror_the_package(path):
    room = path.parts[1]
    assert len(path.parts) == 2 or room in BESIDE or (ROOT / "lmx" / room).is_dir()


WORDS = ["type: *ig{}nore", "pyright: *ig{}nore", "no{}qa", "[.]sk{}ip", "xf{}ail"]
SILENCED = re.compile("|".join(word.replace("{}", "") for word in WORDS))


@pytest.mark.parametrize("path", [*FILES, *TESTS], ids=str)
def test_no_complaint_is_silenced(path):
    assert not SILENCED.search((ROOT / path).read_text())


def tree():
    """The README's tree, as {path: what it says}."""
    block = re.search(r"```text\n(lmx/.*?)```", README, re.DOTALL)
    assert block, "README.md has no tree"
    lines = [line.split(maxsplit=1) for line in block[1].splitlines() if line.strip()]
    return {path: said for path, said in lines}


@all_files
def test_the_readme_says_what_each_file_is(path):
    if path.name != "__init__.py":
        said = ast.get_docstring(ast.parse((ROOT / path).read_text())) or ""
        first = said.splitlines()[0]
        assert tree().get(str(path.relative_to("lmx"))) == first.rstrip(".")


def test_the_readme_names_no_file_that_is_gone():
    for path in tree():
        assert (ROOT / "lmx" / path).exists() or (ROOT / path).exists(), path


def test_a_step_is_read_in_six_files_and_600_lines():
    files = re.findall(r"^\d\. `(lmx/[\w/]+\.py)`", README, re.MULTILINE)
    lines = sum(len((ROOT / file).read_text().splitlines()) for file in files)
    assert 0 < len(files) <= 6 and lines <= 600, (files, lines)


def test_the_readmes_targets_are_in_the_makefile():
    targets = re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert set(re.findall(r"(?:^|`)make ([a-z]+)", README, re.M)) <= set(targets)


def test_every_fault_has_a_test_and_every_test_of_faults_is_told():
    """`tests/faults/README.md` has a line for each, as in `test_soak.py::test_x`."""
    folder = ROOT / "tests" / "faults"
    told = (folder / "README.md").read_text()
    lines = [line for line in told.splitlines() if line.startswith("| ")][1:]
    assert lines and all("::test_" in line for line in lines), lines
    named = set(re.findall(r"`([\w/.]+[.]py)::(test_\w+)`", told))
    here = {
        (path.name, node.name)
        for path in folder.glob("test_*.py")
        for node in nodes(path.relative_to(ROOT), ast.FunctionDef)
        if node.name.startswith("test_")
    }
    elsewhere = {(path, name) for path, name in named if "/" in path}
    for path, name in elsewhere:
        defined = nodes((folder / path).resolve().relative_to(ROOT), ast.FunctionDef)
        assert name in {node.name for node in defined}, f"{path}::{name} is not there"
    assert named - elsewhere == here
