"""Which process this is, as the machines tell it."""

import jax
import pytest
from jax._src.clusters import cloud_tpu_cluster

from lmx.core import process
from lmx.core.lobby import AGAIN, LostError, Seat, SeatError

SLURM = {
    "SLURM_JOB_ID": "7",
    "SLURM_STEP_NODELIST": "node[01-04]",
    "SLURM_NTASKS": "4",
    "SLURM_PROCID": "2",
    "SLURM_LOCALID": "0",
}


@pytest.fixture(autouse=True)
def nowhere(monkeypatch):
    """None of the signs by which a cluster is known."""
    signs = (*SLURM, process.TASKS, process.POD, *process.INDEXED)
    for name in (*signs, "OMPI_MCA_orte_hnp_uri"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def slurm(monkeypatch):
    for name, value in SLURM.items():
        monkeypatch.setenv(name, value)
    return monkeypatch


def test_where_nothing_tells_of_others_this_process_is_alone():
    assert process.seat() is None


def test_a_process_says_who_it_is():
    assert process.seat(1, 2, "node:4321") == Seat(1, 2, "node:4321")
    assert process.seat(0, 1, "node:4321") is None


def test_slurm_tells_who_is_who(slurm):
    assert process.seat() == Seat(2, 4, "node01:61447", [0])


@pytest.mark.parametrize(
    ("tasks", "devices"), [("1(x4)", None), ("4", [0]), ("1,3", [0]), ("12(x4)", [0])]
)
def test_the_only_task_of_a_node_has_all_its_devices_and_one_of_several_has_one(
    slurm, tasks, devices
):
    slurm.setenv(process.TASKS, tasks)
    assert process.seat() == Seat(2, 4, "node01:61447", devices)


def test_what_is_said_comes_before_what_slurm_tells(slurm):
    assert process.seat(coordinator="other:1") == Seat(2, 4, "other:1", [0])


def test_one_task_of_slurm_is_alone(slurm):
    slurm.setenv("SLURM_NTASKS", "1")
    assert process.seat() is None


def test_two_tpu_slices_of_gke_tell_who_is_who(monkeypatch):
    monkeypatch.setattr(cloud_tpu_cluster, "running_in_cloud_tpu_vm", True)
    monkeypatch.setenv("TPU_WORKER_HOSTNAMES", "localhost,b,c,d")
    monkeypatch.setenv("TPU_WORKER_ID", "3")
    monkeypatch.setenv("MEGASCALE_COORDINATOR_ADDRESS", "localhost")
    monkeypatch.setenv("MEGASCALE_NUM_SLICES", "2")
    monkeypatch.setenv("MEGASCALE_SLICE_ID", "1")
    assert process.seat() == Seat(7, 8, "localhost:8482")


def test_a_pod_that_is_not_one_of_many_is_alone_and_asks_nobody(monkeypatch):
    monkeypatch.setenv(process.POD, "10.0.0.1")
    assert process.seat() is None


@pytest.mark.parametrize("told", [(1, None, None), (None, 2, None), (0, 2, None)])
def test_half_of_what_must_be_said_is_refused(told):
    with pytest.raises(SeatError, match="--process and --coordinator go together"):
        process.seat(*told)


@pytest.mark.parametrize("number", [-1, 2])
def test_a_process_beyond_the_last_is_refused(number):
    with pytest.raises(
        SeatError, match=f"--process {number} of --processes 2: .* from 0"
    ):
        process.seat(number, 2, "node:1")


def test_a_restart_is_asked_for_where_one_is_lost_or_late():
    """What gloo said where one of two processes of SLURM compiled for a minute more."""
    late = (
        "UNKNOWN: Gloo context initialization failed: DEADLINE_EXCEEDED: GetKeyValue()"
        " timed out with key: cpu:gloo/0,2048/1 and duration: 29.999999959s"
    )
    assert process.status(jax.errors.JaxRuntimeError(late)) == AGAIN
    assert process.status(LostError("process 1 is gone")) == AGAIN
    assert process.status(jax.errors.JaxRuntimeError("out of memory")) == 1
    assert process.status(ValueError(late)) == 1


def test_alone_the_first_is_asked_at_once_and_a_notice_is_read_back():
    assert process.first() and process.ahead() == 0
    assert process.from_first(lambda: {"a": 1}) == {"a": 1}
    notice = process.Notice()
    assert notice.read() is None
    notice.post("stop")
    notice.post("go on")
    assert notice.read() == "stop"
