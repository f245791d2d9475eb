"""Rules of STYLE that a machine can check: each test lists every offender."""

import ast
import collections
import functools
import pathlib
import re
import subprocess
import sys
from typing import Any

from lmx.core.dims import LOGICAL

ROOT = pathlib.Path(__file__).parents[1]
# A package imports itself and those before it; pyproject.toml holds the same order.
PACKAGES = (
    "config core data layers models run train infer evals analysis faulttest plan study"
    " cli"
).split()
FILES = sorted(p.relative_to(ROOT) for p in (ROOT / "lmx").rglob("*.py"))
TESTS = sorted(p.relative_to(ROOT) for p in (ROOT / "tests").rglob("*.py"))
README = (ROOT / "README.md").read_text()
PROSE = [
    *sorted((ROOT / "docs").glob("*.md")),
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")),
]
UNMIRRORED = {"faults", "golden", "parity"}  # test folders that mirror no package


@functools.cache
def parse(path) -> ast.Module:
    return ast.parse((ROOT / path).read_text())


def nodes(path, *kinds) -> list[Any]:
    return [node for node in ast.walk(parse(path)) if isinstance(node, kinds)]


def functions():
    for path in FILES:
        for node in nodes(path, ast.FunctionDef, ast.AsyncFunctionDef):
            yield path, node


def check(offenders):
    """Fails with all offenders, one a line."""
    found = [f"{o}" for o in offenders]
    assert not found, "\n" + "\n".join(found)


def imports(path):
    """The modules of lmx that a file imports, as paths, with the line of each."""
    for node in nodes(path, ast.ImportFrom, ast.Import):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        else:
            names = [f"{node.module}.{alias.name}" for alias in node.names]
            names = [n if _to_path(n) else node.module for n in names]
        for name in names:
            if name.split(".")[0] == "lmx" and (target := _to_path(name)):
                yield node.lineno, target


def _to_path(name):
    path = pathlib.Path(*name.split("."))
    for candidate in (path.with_suffix(".py"), path / "__init__.py"):
        if (ROOT / candidate).is_file():
            return candidate


def test_a_package_imports_only_itself_and_those_before_it():
    rank = {name: i for i, name in enumerate(PACKAGES)}
    check(
        f"{path}:{line} imports {target}"
        for path in FILES
        if len(path.parts) > 2
        for line, target in imports(path)
        if len(target.parts) > 2 and rank[target.parts[1]] > rank[path.parts[1]]
    )


def test_the_entries_of_a_folder_import_one_another_in_one_direction():
    """No circle of files, nor of the folders that stand beside one another."""
    edges = collections.defaultdict(lambda: collections.defaultdict(dict))
    for path in FILES:
        for line, target in imports(path):
            depth = 0
            while (
                path.parts[depth] == target.parts[depth]
                and depth < min(len(path.parts), len(target.parts)) - 1
            ):
                depth += 1
            if path.parts[depth] != target.parts[depth] and depth > 0:
                folder = "/".join(path.parts[:depth])
                edge = edges[folder][path.parts[depth]]
                edge.setdefault(target.parts[depth], f"{path}:{line}")
    check(
        f"{folder}: " + " -> ".join(cycle)
        for folder, graph in edges.items()
        for cycle in _cycles(graph)
    )


def _cycles(graph):
    """Each strongly connected set of more than one entry, with where its edges are."""
    reach = {}
    for start in graph:
        seen, todo = set(), [start]
        while todo:
            for target in graph.get(todo.pop(), {}):
                if target not in seen:
                    seen.add(target)
                    todo.append(target)
        reach[start] = seen
    done = set()
    for start in sorted(graph):
        if start in reach[start] and start not in done:
            cycle = {n for n in reach[start] if start in reach.get(n, ())}
            done |= cycle
            yield [
                f"{a} imports {b} ({where})"
                for a in sorted(cycle)
                for b, where in sorted(graph[a].items())
                if b in cycle
            ]


def test_suffixes_of_arrays_match_their_einsum():
    """`y_BTH = einsum("BTD,DH->BTH", x_BTD, w_DH)`."""
    offenders = []
    for path in FILES:
        for node in nodes(path, ast.Assign):
            call, target = node.value, node.targets[0]
            if getattr(getattr(call, "func", None), "attr", "") != "einsum":
                continue
            if not isinstance(call.args[0], ast.Constant):
                continue
            terms = re.split(",|->", call.args[0].value)
            for term, arg in zip(terms, [*call.args[1:], target], strict=True):
                name = getattr(arg, "id", "")
                suffix = re.fullmatch(r".*_([A-Z1]+)", name)
                if suffix and suffix[1] != term:
                    offenders.append(f"{path}:{node.lineno} {name} is {term}")
    check(offenders)


def test_every_dimension_letter_is_in_the_alphabet():
    check(
        f"{path}:{node.lineno} {node.id}"
        for path in FILES
        for node in nodes(path, ast.Name)
        if (suffix := re.fullmatch(r"[a-z0-9_]+_([A-Z0-9]+)", node.id))
        for letter in suffix[1]
        if letter not in LOGICAL and not letter.isdigit()
    )


READ_SHARDS = {pathlib.Path("lmx/models/hf/api.py")}  # each device reads its own


def test_only_sharding_names_the_mesh():
    word = re.compile(r"mesh|PartitionSpec|with_sharding\w*")
    named = (ast.Name, ast.Attribute, ast.arg, ast.alias)
    check(
        f"{path}:{node.lineno} {name}"
        for path in FILES
        if path.parts[1] in ("layers", "models", "data") and path not in READ_SHARDS
        for node in nodes(path, *named)
        for field in ("id", "attr", "arg", "name")
        if word.fullmatch(name := getattr(node, field, None) or "")
    )


def test_every_module_has_a_docstring():
    check(p for p in FILES if parse(p).body and not ast.get_docstring(parse(p)))


def test_files_functions_and_folders_are_small():
    """At most 400 lines, 50 lines and 12 entries; folders of alike files are exempt."""
    folders = {p.parent for p in FILES if p.parent.name not in ("lmx", "families")}
    sizes = {
        f: sum(not p.name.startswith("__") for p in (ROOT / f).iterdir())
        for f in folders
    }
    check(
        [
            f"{p}: {n} lines"
            for p in FILES
            if (n := len((ROOT / p).read_text().splitlines())) > 400
        ]
        + [
            f"{p}:{f.lineno} {f.name}: {n} lines"
            for p, f in functions()
            if (n := f.end_lineno - f.lineno + 1) > 50
        ]
        + [f"{folder}: {n} entries" for folder, n in sizes.items() if n > 12]
    )


def test_a_class_name_has_one_meaning():
    found = collections.defaultdict(list)
    for path in FILES:
        for node in nodes(path, ast.ClassDef):
            found[node.name].append(str(path))
    check(f"{name}: {places}" for name, places in found.items() if len(places) > 1)


PARTICIPLE = re.compile(
    r"_?[a-z]+(ed|told|held|made|kept|sent|met|laid|dealt|found|said|born|drawn|known"
    r"|taken|given|written|seen)"
)


def test_functions_are_named_by_verbs():
    """At most 2% by a participle; properties are values and may be."""
    named = [
        f"{path}:{node.lineno} {node.name}"
        for path, node in functions()
        if PARTICIPLE.fullmatch(node.name)
        and not any("property" in ast.unparse(d) for d in node.decorator_list)
    ]
    assert len(named) <= 0.02 * len(list(functions())), "\n" + "\n".join(named)


ARCHAIC = re.compile(
    r"\b(whence|whose turn|thereof|herein|wherein|foretold|begotten|is told|are told"
    r"|was told|tells whom|goes on with|at hand|lobby|victim|chores?|dialect)\b",
    re.IGNORECASE,
)


def test_prose_is_plain_english():
    """A short list of the words that crept in most often; a reader finds the others."""
    files = [ROOT / path for path in FILES] + PROSE
    check(
        f"{file.relative_to(ROOT)}:{i} {match[0]!r}"
        for file in files
        for i, line in enumerate(file.read_text().splitlines(), 1)
        if (match := ARCHAIC.search(line))
    )


def test_tests_mirror_the_package():
    check(
        path
        for path in TESTS
        if len(path.parts) > 2
        and path.parts[1] not in UNMIRRORED
        and not (ROOT / "lmx" / path.parts[1]).is_dir()
    )


WORDS = [
    "type: *ig{}nore",
    "pyright: *ig{}nore",
    "no{}qa",
    r"[.]sk{}ip(if)?\b",
    "xf{}ail",
]
SILENCED = re.compile("|".join(word.replace("{}", "") for word in WORDS))


def test_no_complaint_is_silenced():
    check(p for p in [*FILES, *TESTS] if SILENCED.search((ROOT / p).read_text()))


RUNS_CODE = {"pickle", "cloudpickle", "dill", "marshal", "shelve", "joblib", "torch"}
IMPORTERS = {  # may import a module by name: those of lmx, or of `--import`
    "__init__.py", "config/gin.py", "config/registry.py", "data/optional.py",
    "models/hf/family.py", "plan/compile.py", "run/user_code.py",
}  # fmt: skip


def test_no_content_of_a_file_is_run():
    """No pickle is read, nothing is evaluated, and few files import by name."""
    offenders = []
    for path in FILES:
        for node in nodes(path, ast.Import):
            offenders += {a.name.split(".")[0] for a in node.names} & RUNS_CODE
        for node in nodes(path, ast.ImportFrom):
            offenders += {(node.module or "").split(".")[0]} & RUNS_CODE
        for node in nodes(path, ast.Call):
            called = getattr(node.func, "id", getattr(node.func, "attr", ""))
            bare = isinstance(node.func, ast.Name)
            runs = bare and called in ("eval", "exec", "compile", "__import__")
            by_name = called == "import_module"
            by_name &= str(path.relative_to("lmx")) not in IMPORTERS
            pickled = "allow_pickle" in {word.arg for word in node.keywords}
            if runs or by_name or pickled:
                offenders.append(f"{path}:{node.lineno} {called}")
    check(offenders)


def test_the_library_keeps_its_size():
    """.ci/size.py counts statements and lines, and fails above the budget."""
    script = [sys.executable, ".ci/size.py"]
    done = subprocess.run(script, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_readme_is_read_in_ten_minutes_and_its_targets_exist():
    assert len(README.splitlines()) <= 150
    targets = re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert set(re.findall(r"(?:^|`)make ([a-z]+)", README, re.M)) <= set(targets)


def test_generated_docs_are_fresh():
    script = [sys.executable, ".ci/docs.py", "--check"]
    done = subprocess.run(script, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_every_fault_has_a_test_and_every_fault_test_is_listed():
    """`tests/faults/README.md` has a line for each, as in `test_soak.py::test_x`."""
    folder = ROOT / "tests" / "faults"
    text = (folder / "README.md").read_text()
    rows = [line for line in text.splitlines() if line.startswith("| ")]
    rows = [line for line in rows if not line.startswith("| fault |")]
    assert rows and all("::test_" in row for row in rows), rows
    listed = set(re.findall(r"`([\w/.]+[.]py)::(test_\w+)`", text))
    defined = {
        (path.name, node.name)
        for path in folder.glob("test_*.py")
        for node in nodes(path.relative_to(ROOT), ast.FunctionDef)
        if node.name.startswith("test_")
    }
    outside = {(path, name) for path, name in listed if "/" in path}
    for path, name in outside:
        found = nodes((folder / path).resolve().relative_to(ROOT), ast.FunctionDef)
        assert name in {node.name for node in found}, f"{path}::{name} does not exist"
    assert listed - outside == defined
