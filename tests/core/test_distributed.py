"""Which process this is, as the machines tell it."""

import jax
import pytest
from jax._src.clusters import cloud_tpu_cluster

from lmx.core import distributed
from lmx.core.rendezvous import (
    EXIT_RESTART,
    ClusterConfigError,
    PeerLostError,
    ProcessInfo,
)

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
    signs = (
        *SLURM,
        distributed.SLURM_TASKS,
        distributed.KUBERNETES_MARKER,
        *distributed.INDEX_VARIABLES,
    )
    for name in (*signs, "OMPI_MCA_orte_hnp_uri"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def slurm(monkeypatch):
    for name, value in SLURM.items():
        monkeypatch.setenv(name, value)
    return monkeypatch


def test_where_nothing_tells_of_others_this_process_is_alone():
    assert distributed.detect_cluster() is None


def test_a_process_says_who_it_is():
    assert distributed.detect_cluster(1, 2, "node:4321") == ProcessInfo(
        1, 2, "node:4321"
    )
    assert distributed.detect_cluster(0, 1, "node:4321") is None


def test_slurm_tells_who_is_who(slurm):
    assert distributed.detect_cluster() == ProcessInfo(2, 4, "node01:61447", [0])


@pytest.mark.parametrize(
    ("tasks", "devices"), [("1(x4)", None), ("4", [0]), ("1,3", [0]), ("12(x4)", [0])]
)
def test_the_only_task_of_a_node_has_all_its_devices_and_one_of_several_has_one(
    slurm, tasks, devices
):
    slurm.setenv(distributed.SLURM_TASKS, tasks)
    assert distributed.detect_cluster() == ProcessInfo(2, 4, "node01:61447", devices)


def test_what_is_said_comes_before_what_slurm_tells(slurm):
    assert distributed.detect_cluster(coordinator="other:1") == ProcessInfo(
        2, 4, "other:1", [0]
    )


def test_one_task_of_slurm_is_alone(slurm):
    slurm.setenv("SLURM_NTASKS", "1")
    assert distributed.detect_cluster() is None


def test_two_tpu_slices_of_gke_tell_who_is_who(monkeypatch):
    monkeypatch.setattr(cloud_tpu_cluster, "running_in_cloud_tpu_vm", True)
    monkeypatch.setenv("TPU_WORKER_HOSTNAMES", "localhost,b,c,d")
    monkeypatch.setenv("TPU_WORKER_ID", "3")
    monkeypatch.setenv("MEGASCALE_COORDINATOR_ADDRESS", "localhost")
    monkeypatch.setenv("MEGASCALE_NUM_SLICES", "2")
    monkeypatch.setenv("MEGASCALE_SLICE_ID", "1")
    assert distributed.detect_cluster() == ProcessInfo(7, 8, "localhost:8482")


def test_a_pod_that_is_not_one_of_many_is_alone_and_asks_nobody(monkeypatch):
    monkeypatch.setenv(distributed.KUBERNETES_MARKER, "10.0.0.1")
    assert distributed.detect_cluster() is None


@pytest.mark.parametrize("told", [(1, None, None), (None, 2, None), (0, 2, None)])
def test_half_of_what_must_be_said_is_refused(told):
    with pytest.raises(
        ClusterConfigError, match="--process and --coordinator go together"
    ):
        distributed.detect_cluster(*told)


@pytest.mark.parametrize("number", [-1, 2])
def test_a_process_beyond_the_last_is_refused(number):
    with pytest.raises(
        ClusterConfigError, match=f"--process {number} of --processes 2: .* from 0"
    ):
        distributed.detect_cluster(number, 2, "node:1")


def test_a_restart_is_asked_for_where_one_is_lost_or_late():
    """What gloo said where one of two processes of SLURM compiled for a minute more."""
    late = (
        "UNKNOWN: Gloo context initialization failed: DEADLINE_EXCEEDED: GetKeyValue()"
        " timed out with key: cpu:gloo/0,2048/1 and duration: 29.999999959s"
    )
    assert distributed.exit_status(jax.errors.JaxRuntimeError(late)) == EXIT_RESTART
    assert distributed.exit_status(PeerLostError("process 1 died")) == EXIT_RESTART
    assert distributed.exit_status(jax.errors.JaxRuntimeError("out of memory")) == 1
    assert distributed.exit_status(ValueError(late)) == 1


def test_alone_the_first_is_asked_at_once_and_a_notice_is_read_back():
    assert distributed.is_leader() and distributed.max_steps_in_flight() == 0
    assert distributed.broadcast_from_leader(lambda: {"a": 1}) == {"a": 1}
    notice = distributed.StopSignal()
    assert notice.get() is None
    notice.set("stop")
    notice.set("go on")
    assert notice.get() == "stop"
