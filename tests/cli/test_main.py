"""The command as a whole."""

import subprocess
import sys
from pathlib import Path

import pytest

from lmx.cli import train

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(
    ("words", "wanted"),
    [
        (
            [],
            [
                "lmx train experiments/",
                "lmx generate runs/",
                "lmx eval",
                "lmx config show",
            ],
        ),
        (["train"], ["lmx train EXPERIMENT.gin", "--run", "--json", "Ctrl-C saves"]),
        (
            ["train"],
            ["srun -N", "tpu-vm ssh", "completionMode: Indexed", "--process 1"],
        ),
        (["generate"], ["lmx generate RUN", "--prompt", "--top-k", "--seed"]),
        (
            ["generate"],
            ["--min-p", "--typical-p", "--beams", "in this order"],
        ),
        (["eval"], ["lmx eval RUN TEXT_FILE", "--stride", "bits per byte", "--json"]),
        (["plan"], ["lmx plan EXPERIMENT.gin", "--on", "--png", "analytic"]),
        (["config"], ["show", "why", "diff", "tree"]),
    ],
)
def test_help_teaches_every_verb(lmx, words, wanted):
    status, said, _ = lmx(*words, "--help")
    assert status == 0
    for part in wanted:
        assert part in said


def test_ctrl_c_before_training_is_no_traceback(lmx, work, monkeypatch):
    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(train, "load_config", interrupted)
    assert lmx("train", "tiny.gin") == (130, "", "stopped at once\n")


def test_asking_for_help_brings_no_jax():
    program = (
        "import sys, lmx.cli.main\n"
        "try: lmx.cli.main.main(['train', '--help'])\n"
        "except SystemExit: pass\n"
        "print([name for name in ('jax', 'numpy', 'flax') if name in sys.modules])"
    )
    ran = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        check=True,
        cwd=ROOT,
    )
    assert ran.stdout.splitlines()[-1] == "[]"
