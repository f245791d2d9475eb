"""Prints statements and lines of lmx/ by package; exits with 1 above the budget.

A statement is a node of Python's `ast.stmt`; docstrings are not counted.
"""

import ast
import collections
import pathlib
import sys

STATEMENTS, LINES, FUNCTION = 16_830, 34_220, 50
ROOT = pathlib.Path(__file__).parents[1] / "lmx"


def is_docstring(node):
    value = getattr(node, "value", None)
    return isinstance(node, ast.Expr) and isinstance(value, ast.Constant)


def main():
    statements, lines, files = (collections.Counter() for _ in range(3))
    longest = (0, "")
    for path in sorted(ROOT.rglob("*.py")):
        text = path.read_text()
        package = path.relative_to(ROOT).parts[0] if path.parent != ROOT else "lmx"
        files[package] += 1
        lines[package] += len(text.splitlines())
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.stmt):
                statements[package] += not is_docstring(node)
            if isinstance(node, ast.FunctionDef):
                size = node.end_lineno - node.lineno + 1
                longest = max(longest, (size, f"{path.relative_to(ROOT)} {node.name}"))
    print(f"{'package':12}{'files':>8}{'statements':>12}{'lines':>8}")
    for package in sorted(files):
        row = files[package], statements[package], lines[package]
        print(f"{package:12}{row[0]:8,}{row[1]:12,}{row[2]:8,}")
    total = files.total(), statements.total(), lines.total()
    print(f"{'all':12}{total[0]:8,}{total[1]:12,}{total[2]:8,}")
    print(f"the longest function has {longest[0]} lines: {longest[1]}")
    over = total[1] > STATEMENTS or total[2] > LINES or longest[0] > FUNCTION
    if over:
        print(
            f"above the budget of {STATEMENTS:,} statements, {LINES:,} lines and"
            f" {FUNCTION} lines a function"
        )
    return int(over)


if __name__ == "__main__":
    sys.exit(main())
