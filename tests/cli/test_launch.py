"""`lmx launch`, and the job of SLURM that it hands over."""

import os
import subprocess
from pathlib import Path

import pytest

JOB = Path(__file__).parents[2] / "launch" / "slurm.sh"


@pytest.fixture
def program(work, monkeypatch):
    """Makes a program that writes its words to a file and ends with that status."""
    monkeypatch.setenv("PATH", f"{work}{os.pathsep}{os.environ['PATH']}")

    def program(name, status=0):
        text = f'#!/bin/sh\necho "$@" > {work}/{name}.words\nexit {status}\n'
        (work / name).write_text(text)
        (work / name).chmod(0o755)
        return work / f"{name}.words"

    return program


def test_a_command_has_the_words_of_training_after_its_own_and_its_status_counts(
    lmx, program
):
    words = program("sbatch", 7)
    run = ["--run", "here", "tiny.gin", "Mesh.data=2", "--plan", "v5e-2"]
    status, _, moaned = lmx("launch", "sbatch -N 2 'a b'", *run)
    assert status == 7
    assert words.read_text() == f"-N 2 a b {' '.join(run)}\n"
    assert f"+ sbatch -N 2 'a b' {' '.join(run)}\n" in moaned


def test_what_does_not_fit_is_not_launched(lmx, program):
    words = program("sbatch")
    huge = ["tiny.gin", "Decoder.width=16384", "SwiGLU.hidden=65536"]
    status, _, moaned = lmx("launch", "sbatch", *huge, "--plan", "v5e-8")
    assert status == 1 and "does not fit" in moaned and " fits (" in moaned
    assert not words.exists()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["sbatch", "tiny.gin", "Decoder.dept=2"], "depth"),
        (["sbatch", "tiny.gin", "--plan", "h10-8"], "did you mean 'h100"),
        (["sbatch", "tiny.gin", "--plan"], "as in --plan h100-8x4"),
        (["sbatsh -N 2", "tiny.gin"], "sbatsh does not run here"),
        (["sbatch 'x", "tiny.gin"], "No closing quotation"),
        ([" ", "tiny.gin"], "names no program"),
    ],
)
def test_wrong_words_are_refused_before_anything_is_queued(lmx, program, words, said):
    queued = program("sbatch")
    status, _, moaned = lmx("launch", *words)
    assert status == 2 and said in moaned and "Traceback" not in moaned
    assert not queued.exists()


@pytest.mark.parametrize(("status", "again"), [(0, False), (1, False), (143, True)])
def test_a_job_of_slurm_goes_back_in_the_queue_if_its_run_was_saved_and_not_done(
    program, status, again
):
    trained, queued = program("srun", status), program("scontrol")
    job = ["bash", JOB, "tiny.gin", "TextDataset.text=a b", "--run", "x"]
    ended = subprocess.run(job, env={**os.environ, "SLURM_JOB_ID": "9"})
    words = "lmx train --restarts 5 --grace 110 tiny.gin TextDataset.text=a b --run x\n"
    assert (ended.returncode, trained.read_text()) == (status, words)
    assert queued.exists() == again and (not again or "requeue 9" in queued.read_text())
