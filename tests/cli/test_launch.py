"""`lmx launch`, and the SLURM job that it submits."""

import os
import subprocess
from pathlib import Path

import pytest

JOB = Path(__file__).parents[2] / "launch" / "slurm.sh"


@pytest.fixture
def program(work, monkeypatch):
    """Makes a program that writes its arguments to a file and exits with a status."""
    monkeypatch.setenv("PATH", f"{work}{os.pathsep}{os.environ['PATH']}")

    def program(name, status=0):
        text = f'#!/bin/sh\necho "$@" > {work}/{name}.words\nexit {status}\n'
        (work / name).write_text(text)
        (work / name).chmod(0o755)
        return work / f"{name}.words"

    return program


def test_the_command_gets_the_arguments_of_training_and_its_status_is_returned(
    lmx, program
):
    words = program("sbatch", 7)
    run = ["--run", "here", "tiny.gin", "Mesh.data=2", "--plan", "v5e-2"]
    status, _, err = lmx("launch", "sbatch -N 2 'a b'", *run)
    assert status == 7
    assert words.read_text() == f"-N 2 a b {' '.join(run)}\n"
    assert f"+ sbatch -N 2 'a b' {' '.join(run)}\n" in err


def test_an_experiment_that_does_not_fit_is_not_launched(lmx, program):
    words = program("sbatch")
    huge = ["tiny.gin", "Decoder.width=16384", "SwiGLU.hidden=65536"]
    status, _, err = lmx("launch", "sbatch", *huge, "--plan", "v5e-8")
    assert status == 1 and "does not fit" in err and " fits (" in err
    assert not words.exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["sbatch", "tiny.gin", "Decoder.dept=2"], "depth"),
        (["sbatch", "tiny.gin", "--plan", "h10-8"], "did you mean 'h100"),
        (["sbatch", "tiny.gin", "--plan"], "as in --plan h100-8x4"),
        (["sbatsh -N 2", "tiny.gin"], "cannot run sbatsh"),
        (["sbatch 'x", "tiny.gin"], "No closing quotation"),
        ([" ", "tiny.gin"], "has no program"),
    ],
)
def test_wrong_arguments_are_refused_before_anything_is_queued(
    lmx, program, words, message
):
    queued = program("sbatch")
    status, _, err = lmx("launch", *words)
    assert status == 2 and message in err and "Traceback" not in err
    assert not queued.exists()


@pytest.mark.parametrize(("status", "again"), [(0, False), (1, False), (143, True)])
def test_a_slurm_job_requeues_itself_if_its_run_is_saved_and_unfinished(
    program, status, again
):
    trained, queued = program("srun", status), program("scontrol")
    job = ["bash", JOB, "tiny.gin", "TextDataset.text=a b", "--run", "x"]
    ended = subprocess.run(job, env={**os.environ, "SLURM_JOB_ID": "9"})
    words = "lmx train --restarts 5 --grace 110 tiny.gin TextDataset.text=a b --run x\n"
    assert (ended.returncode, trained.read_text()) == (status, words)
    assert queued.exists() == again and (not again or "requeue 9" in queued.read_text())
