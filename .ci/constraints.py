"""Exact versions of all that lmx[dev] pulls in, resolved afresh on each Python given.

Run as `make constraints`. Lines that differ between Pythons carry a marker.
"""

import collections
import json
import os
import subprocess
import sys
import tempfile

HEADER = """\
# Exact versions of all that `lmx[dev]` pulls in. Made by `make constraints` on
# Python {}; where these differ, a marker says which line is whose.
"""
# Mirrors and wheel folders of one machine must not decide what others can install.
PLAIN = {"PIP_CONFIG_FILE": os.devnull, "PIP_FIND_LINKS": "", "PIP_EXTRA_INDEX_URL": ""}


def resolve(python, *wanted):
    """What pip would install on this Python, as {name: version}."""
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run([python, "-m", "venv", folder], check=True)
        pip = [f"{folder}/bin/python", "-m", "pip"]
        # An old pip reads no metadata ahead of the download, and resolves slowly.
        env = {**os.environ, **PLAIN}
        subprocess.run([*pip, "install", "-qU", "pip"], check=True, env=env)
        options = ["--dry-run", "--ignore-installed", "--quiet", "--report", "-"]
        command = [*pip, "install", *options, *wanted]
        report = subprocess.run(command, check=True, env=env, stdout=subprocess.PIPE)
    found = (item["metadata"] for item in json.loads(report.stdout)["install"])
    return {item["name"]: item["version"] for item in found if item["name"] != "lmx"}


def version(python):
    """Major and minor version, as in '3.12'."""
    ask = "import sys; print('%d.%d' % sys.version_info[:2])"
    return subprocess.check_output([python, "-c", ask], text=True).strip()


def main():
    """Print constraints.txt for the Pythons on the command line."""
    pins = collections.defaultdict(lambda: collections.defaultdict(list))
    pythons = {version(python): python for python in sys.argv[1:]}
    for name, python in pythons.items():
        for package, exact in resolve(python, ".[dev]").items():
            pins[package][exact].append(name)
    print(HEADER.format(", ".join(pythons)))
    for package in sorted(pins, key=str.lower):
        for exact, names in pins[package].items():
            which = " or ".join(f'python_version == "{name}"' for name in names)
            everywhere = len(names) == len(pythons)
            print(f"{package}=={exact}" + ("" if everywhere else f" ; {which}"))


if __name__ == "__main__":
    main()
