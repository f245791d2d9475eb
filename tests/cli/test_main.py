"""The command line as a whole."""

import subprocess
import sys
from pathlib import Path

import pytest

from lmx.cli import train
from lmx.cli.main import build_parser

ROOT = Path(__file__).parents[2]
HELP = {
    "": ["lmx train quickstart", "lmx generate runs/", "lmx eval", "lmx config show"],
    "train": [
        *["lmx train CONFIG.gin [Name.parameter=value ...]", "--run", "--json"],
        *["Ctrl-C saves", "srun -N", "tpu-vm ssh", "completionMode: Indexed"],
        *["--process 1", "--allow-change"],
    ],
    "generate": [
        *["lmx generate RUN", "--prompt", "--top-k", "--seed", "--min-p"],
        *["--typical-p", "--beams", "in this order"],
    ],
    "eval": ["lmx eval RUN FILE ...", "--stride", "bits per byte", "--json"],
    "plan": ["lmx plan CONFIG.gin", "--on MACHINE", "--png", "analytic"],
    "config": ["show", "explain", "diff", "tree", "list"],
    "ckpt": ["list", "verify", "diff", "lineage", "lmx ckpt verify runs/"],
    "reproduce": ["lmx reproduce METADATA", "--rtol"],
}


@pytest.mark.parametrize("command", HELP)
def test_help_explains_every_command(lmx, command):
    status, out, _ = lmx(*command.split(), "--help")
    assert status == 0
    for part in HELP[command]:
        assert part in out


def test_ctrl_c_before_training_shows_no_traceback(lmx, work, monkeypatch):
    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(train, "load_experiment", interrupt)
    assert lmx("train", "tiny.gin") == (130, "", "interrupted\n")


def test_an_error_of_the_program_keeps_its_traceback(work, monkeypatch):
    def fail(*_):
        raise ZeroDivisionError

    monkeypatch.setattr(train, "load_experiment", fail)
    with pytest.raises(ZeroDivisionError):
        train.train.execute(build_parser().parse_args(["train", "tiny.gin"]))


def test_help_imports_no_jax():
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
