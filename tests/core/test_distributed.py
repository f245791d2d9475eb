"""Detection of the cluster and agreement of processes."""

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
def no_cluster(monkeypatch):
    """Removes the variables of all clusters."""
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


def test_without_a_cluster_there_is_one_process():
    assert distributed.detect_cluster() is None


def test_flags_set_index_and_number_of_processes():
    assert distributed.detect_cluster(1, 2, "node:4321") == ProcessInfo(
        1, 2, "node:4321"
    )
    assert distributed.detect_cluster(0, 1, "node:4321") is None


def test_slurm_sets_index_and_coordinator(slurm):
    assert distributed.detect_cluster() == ProcessInfo(2, 4, "node01:61447", [0])


@pytest.mark.parametrize(
    ("tasks", "devices"), [("1(x4)", None), ("4", [0]), ("1,3", [0]), ("12(x4)", [0])]
)
def test_one_task_a_node_has_all_devices_and_one_of_several_has_one(
    slurm, tasks, devices
):
    slurm.setenv(distributed.SLURM_TASKS, tasks)
    assert distributed.detect_cluster() == ProcessInfo(2, 4, "node01:61447", devices)


def test_flags_override_slurm(slurm):
    assert distributed.detect_cluster(coordinator="other:1") == ProcessInfo(
        2, 4, "other:1", [0]
    )


def test_one_task_of_slurm_is_one_process(slurm):
    slurm.setenv("SLURM_NTASKS", "1")
    assert distributed.detect_cluster() is None


def test_two_tpu_slices_of_gke_set_index_and_coordinator(monkeypatch):
    monkeypatch.setattr(cloud_tpu_cluster, "running_in_cloud_tpu_vm", True)
    monkeypatch.setenv("TPU_WORKER_HOSTNAMES", "localhost,b,c,d")
    monkeypatch.setenv("TPU_WORKER_ID", "3")
    monkeypatch.setenv("MEGASCALE_COORDINATOR_ADDRESS", "localhost")
    monkeypatch.setenv("MEGASCALE_NUM_SLICES", "2")
    monkeypatch.setenv("MEGASCALE_SLICE_ID", "1")
    assert distributed.detect_cluster() == ProcessInfo(7, 8, "localhost:8482")


def test_a_pod_without_an_index_is_one_process(monkeypatch):
    monkeypatch.setenv(distributed.KUBERNETES_MARKER, "10.0.0.1")
    assert distributed.detect_cluster() is None


@pytest.mark.parametrize("flags", [(1, None, None), (None, 2, None), (0, 2, None)])
def test_incomplete_flags_are_refused(flags):
    with pytest.raises(
        ClusterConfigError, match="--process and --coordinator go together"
    ):
        distributed.detect_cluster(*flags)


@pytest.mark.parametrize("number", [-1, 2])
def test_an_index_out_of_range_is_refused(number):
    with pytest.raises(
        ClusterConfigError, match=f"--process {number} of --processes 2: .* from 0"
    ):
        distributed.detect_cluster(number, 2, "node:1")


def test_a_lost_or_late_process_exits_with_75():
    """The error of gloo when one of two processes compiled for a minute longer."""
    late = (
        "UNKNOWN: Gloo context initialization failed: DEADLINE_EXCEEDED: GetKeyValue()"
        " timed out with key: cpu:gloo/0,2048/1 and duration: 29.999999959s"
    )
    assert distributed.exit_status(jax.errors.JaxRuntimeError(late)) == EXIT_RESTART
    assert distributed.exit_status(PeerLostError("process 1 died")) == EXIT_RESTART
    assert distributed.exit_status(jax.errors.JaxRuntimeError("out of memory")) == 1
    assert distributed.exit_status(ValueError(late)) == 1


def test_one_process_is_the_leader_and_reads_its_own_stop_signal():
    assert distributed.is_leader() and distributed.max_steps_in_flight() == 0
    assert distributed.broadcast_from_leader(lambda: {"a": 1}) == {"a": 1}
    stop_signal = distributed.StopSignal()
    assert stop_signal.get() is None
    stop_signal.set("stop")
    stop_signal.set("go on")
    assert stop_signal.get() == "stop"
