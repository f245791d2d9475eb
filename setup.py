"""Adds the experiments, which stand at the top level, to the wheel as lmx.experiments.

All else is in pyproject.toml, which can name packages or find them, but not both.
"""

from setuptools import find_packages, setup

setup(
    packages=[*find_packages(include=["lmx*"]), "lmx.experiments"],
    package_dir={"lmx.experiments": "experiments"},
    package_data={
        "lmx.experiments": ["*.gin", "families/*.gin"],
    },
)
