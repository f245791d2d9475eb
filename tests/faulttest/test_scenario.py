"""What an experiment says of when it can be killed, and where else it can live."""

import pytest

from lmx.config.registry import ConfigError
from lmx.faulttest.process_group import Scenario, Topology
from lmx.faulttest.scenario import KillSchedule, create_folder, other_topologies

HOOKS = [
    "Experiment.hooks=[@Evaluate()]",
    "Evaluate.data=@RepeatTask()",
    "Evaluate.every=3",
]


def places(tiny, devices, mesh, *words):
    card = {"devices": devices, "mesh": mesh}
    return [
        [(p.processes, p.devices, {a: n for a, n in p.mesh if n > 1}) for p in turn]
        for turn in other_topologies(KillSchedule.from_config(tiny(*words)), card)
    ]


def test_a_plan_knows_what_is_saved_and_due_and_when(tiny):
    plan = KillSchedule.from_config(
        tiny(*HOOKS, "CheckpointPolicy.every=4", "CheckpointPolicy.keep=3")
    )
    assert (plan.steps, plan.save_every, plan.keep) == (10, 4, 3)
    assert plan.save_steps == [4, 8, 10] and plan.hook_steps == {3, 6, 9, 10}
    assert KillSchedule.from_config(tiny()).hook_steps == set()


def test_a_page_lives_on_as_many_devices_as_its_mesh_has(tiny):
    assert KillSchedule.from_config(tiny()).topology == Topology()
    plan = KillSchedule.from_config(tiny("Mesh.fsdp=2", "Mesh.tensor=2"))
    assert plan.topology.devices == 4 and plan.topology.overrides == []


def test_on_cpus_two_processes_and_four_devices_are_elsewhere(tiny):
    two, four = places(tiny, "1 x cpu", {})
    assert two[0] == (2, 1, {"fsdp": 2}) and four[0] == (1, 4, {"data": 2, "fsdp": 2})
    two, four = places(tiny, "4 x cpu", {"data": 2, "fsdp": 2}, "Mesh.fsdp=2")
    assert four[0] == (1, 4, {"data": 4})


def test_other_devices_are_put_along_another_axis_if_there_are_several(tiny):
    assert places(tiny, "1 x NVIDIA H100", {}) == []
    (turn,) = places(tiny, "8 x TPU v5e", {"fsdp": 8})
    assert [mesh for *_, mesh in turn] == [{"data": 8}, {"tensor": 8}]


def test_slices_stay_what_they_are(tiny):
    words = ["Mesh.replica=2", "Mesh.data=1"]
    (turn,) = places(tiny, "8 x TPU v5e", {"replica": 2, "fsdp": 4}, *words)
    assert [devices for _, devices, _ in turn] == [8, 8]
    assert "Mesh.replica" not in str(other_topologies(KillSchedule.from_config(tiny(*words)), {
        "devices": "1 x cpu", "mesh": {"replica": 2}
    })[0][0].overrides)  # fmt: skip


def test_a_proof_does_not_write_over_anything(tmp_path):
    folder = create_folder(tmp_path / "new")
    (folder / "file").touch()
    with pytest.raises(ConfigError, match="is not empty: name another --out"):
        create_folder(folder)


def test_every_process_is_told_its_run_its_place_and_its_modules(tmp_path):
    trial = Scenario(
        module="m",
        config="x.gin",
        overrides=["A.b=1"],
        imports=["mine"],
        folder=tmp_path,
    )
    place = Topology(2, 3, (("fsdp", 6),))
    assert trial.build_command("run", place) == (
        ["train", "x.gin", "A.b=1", "Mesh.fsdp=6", "--import", "mine"]
        + ["--run", f"{tmp_path / 'run'}"]
    )
    flags = trial.build_env(place)["XLA_FLAGS"]
    assert flags.endswith("--xla_force_host_platform_device_count=3")
