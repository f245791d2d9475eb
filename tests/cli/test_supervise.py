"""The supervisor restarts a process that dies while a restart can help."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from lmx.cli import supervise
from lmx.cli.supervise import Supervisor
from lmx.run.goodput import read_timing

ROOT = Path(__file__).parents[2]
# Each start takes the first word left in a file: the exit status or the signal, with an
# `s` if it saves a checkpoint first: `-9s` saves and is killed, `75` only exits.
CHILD = """
import os, sys
from pathlib import Path
words, run = Path("words"), Path("run/checkpoints")
how, *rest = words.read_text().split()
words.write_text(" ".join(rest))
if how.endswith("s"):
    run.mkdir(parents=True, exist_ok=True)
    (run / f"{len(list(run.iterdir())):08d}").mkdir()
number = int(how.strip("s"))
if number < 0:
    os.kill(os.getpid(), -number)
sys.exit(number)
"""


@pytest.fixture
def pauses(monkeypatch):
    """The pauses before restarts."""
    waited = []

    class Wake:
        def wait(self, seconds):
            waited.append(seconds)
            return False

        def set(self):
            pass

    monkeypatch.setattr(supervise.threading, "Event", Wake)
    return waited


@pytest.fixture
def run_child(tmp_path, monkeypatch, capsys):
    """Supervises children that end so; returns status, remaining words, stderr."""
    monkeypatch.chdir(tmp_path)

    def run_child(*words, restarts=9):
        Path("words").write_text(" ".join(words))
        status = Supervisor([sys.executable, "-c", CHILD], Path("run"), restarts)()
        return status, Path("words").read_text().split(), capsys.readouterr().err

    return run_child


@pytest.mark.parametrize("word", ["0", "1", "2", "130", "143"])
def test_a_deterministic_error_or_a_requested_stop_is_not_restarted(
    run_child, pauses, word
):
    assert run_child(word, "0")[:2] == (int(word), ["0"]) and pauses == []


def test_it_restarts_after_a_kill_a_crash_and_a_lost_peer(run_child, pauses):
    status, _, out = run_child("-9s", "75s", "-6s", "0")
    assert status == 0 and pauses == [1.0, 1.0, 1.0]
    assert "the run was killed by SIGKILL: restarting in 1 s, 9 left" in out
    assert "the run exited with 75: restarting in 1 s, 8 left" in out


def test_pauses_double_up_to_a_minute_while_nothing_is_saved(run_child, pauses):
    words = ["-9", "75"] * 4
    assert run_child(*words, "75s", "0")[0] == 0
    assert pauses == [1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 60.0, 60.0, 1.0]


def test_it_gives_up_after_the_same_death_twice_with_nothing_saved(run_child, pauses):
    status, left, out = run_child("-9s", "-9s", "-9", "0")
    assert (status, left) == (137, ["0"])
    assert "killed by SIGKILL, as before, and nothing was saved between" in out


def test_after_the_last_restart_it_gives_up(run_child, pauses):
    status, left, out = run_child("75s", "75s", "75s", "0", restarts=2)
    assert (status, left) == (75, ["0"]) and "no restart is left" in out


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_is_forwarded_once_and_not_restarted(tmp_path, signum):
    child = (
        "import signal, sys, time\n"
        "def stop(*_): print('stopped', flush=True); time.sleep(1); sys.exit(75)\n"
        f"signal.signal({int(signum)}, stop)\n"
        "print('ready', flush=True); time.sleep(60)\n"
    )
    program = (
        "import sys; from pathlib import Path\n"
        "from lmx.cli.supervise import Supervisor\n"
        f"sys.exit(Supervisor([sys.executable, '-c', {child!r}], Path('r'), 5)())"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", program],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert process.stdout and process.stdout.readline() == "ready\n"
    os.killpg(process.pid, signum)  # as a terminal does
    assert process.communicate(timeout=30) == ("stopped\n", None)
    assert process.returncode == 75


def test_the_supervisor_of_a_run_needs_no_jax():
    program = (
        "import sys, lmx.cli.supervise\n"
        "print([name for name in ('jax', 'flax', 'orbax') if name in sys.modules])"
    )
    ran = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, cwd=ROOT
    )
    assert ran.stdout == "[]\n", ran.stderr


def test_a_dead_process_is_recorded_in_the_timing_of_its_run(
    tmp_path, monkeypatch, pauses
):
    child = (
        "import os; from pathlib import Path\n"
        "from lmx.run.goodput import TimeAccounting\n"
        "from lmx.run.run_dir import RunDir\n"
        "account = TimeAccounting(); account.start_attempt(RunDir(Path('.')), 3)\n"
        "os.kill(os.getpid(), 9)\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    started = time.monotonic()
    assert Supervisor([sys.executable, "-c", child], tmp_path, 0)() == 137
    attempt, note, death = read_timing(tmp_path)
    assert attempt["step"] == note["step"] == 3 and death["exit_status"] == -9
    assert 0.0 <= death["clock"] - note["clock"] < time.monotonic() - started


def test_a_run_started_from_a_supervised_one_has_no_supervisor(tmp_path, monkeypatch):
    """The child knows the supervisor; what the child starts knows none."""
    code = (
        "import subprocess, sys\n"
        "from lmx.core.rendezvous import SUPERVISOR_PID\n"
        "print(SUPERVISOR_PID, file=open('pids', 'a'))\n"
        "if len(sys.argv) == 1:\n"
        "    subprocess.run([sys.executable, __file__, 'inner'], check=True)\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    Path("child.py").write_text(code)
    assert Supervisor([sys.executable, "child.py"], tmp_path, 0)() == 0
    assert Path("pids").read_text().split() == [f"{os.getpid()}", "None"]
