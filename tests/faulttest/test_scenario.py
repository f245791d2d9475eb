"""The topologies of a fault test, and the commands and folders of its runs."""

import pytest

from lmx.config.registry import ConfigError
from lmx.core.sharding import Mesh
from lmx.faulttest.process_group import Scenario, Topology
from lmx.faulttest.scenario import create_folder, default_topology, other_topologies


def list_meshes(devices, axes, mesh=Mesh()):
    metadata = {"devices": devices, "mesh": axes}
    return [
        [(t.processes, t.devices, {a: n for a, n in t.mesh if n > 1}) for t in each]
        for each in other_topologies(mesh, metadata)
    ]


def test_the_default_topology_has_as_many_devices_as_the_mesh():
    assert default_topology(Mesh()) == Topology()
    assert default_topology(Mesh(fsdp=2, tensor=2)) == Topology(devices=4)


def test_cpus_are_tested_as_two_processes_and_as_four_devices():
    two, four = list_meshes("1 x cpu", {})
    assert two[0] == (2, 1, {"fsdp": 2}) and four[0] == (1, 4, {"data": 2, "fsdp": 2})
    two, four = list_meshes("4 x cpu", {"data": 2, "fsdp": 2}, Mesh(fsdp=2))
    assert four[0] == (1, 4, {"data": 4})


def test_other_devices_are_arranged_along_another_axis():
    assert list_meshes("1 x NVIDIA H100", {}) == []
    (each,) = list_meshes("8 x TPU v5e", {"fsdp": 8})
    assert [mesh for *_, mesh in each] == [{"data": 8}, {"tensor": 8}]


def test_slices_are_kept():
    mesh = Mesh(replica=2, data=1)
    (each,) = list_meshes("8 x TPU v5e", {"replica": 2, "fsdp": 4}, mesh)
    assert [devices for _, devices, _ in each] == [8, 8]
    metadata = {"devices": "1 x cpu", "mesh": {"replica": 2}}
    assert "replica" not in dict(other_topologies(mesh, metadata)[0][0].mesh)


def test_a_folder_with_files_is_refused(tmp_path):
    create_folder(tmp_path / "new")
    (tmp_path / "new" / "file").touch()
    with pytest.raises(ConfigError, match="is not empty: name another --out"):
        create_folder(tmp_path / "new")


def test_a_process_gets_its_run_mesh_devices_and_modules(tiny, tmp_path):
    scenario = Scenario(
        config=tiny(),
        file="x.gin",
        overrides=["A.b=1"],
        imports=["mine"],
        folder=tmp_path,
    )
    topology = Topology(2, 3, (("fsdp", 6),))
    assert scenario.build_command("run", topology) == (
        ["train", "x.gin", "A.b=1", "Mesh.fsdp=6", "--import", "mine"]
        + ["--run", f"{tmp_path / 'run'}"]
    )
    flags = scenario.build_env(topology)["XLA_FLAGS"]
    assert flags.endswith("--xla_force_host_platform_device_count=3")
