"""Names of machines, and the time of their links."""

import pytest

from lmx.plan.topology import parse_machine


@pytest.mark.parametrize(
    ("name", "devices", "groups"),
    [
        ("v5e-256", 256, 1),
        ("v5p-128", 64, 1),
        ("v6e-64", 64, 1),
        ("4xv5e-256", 1024, 4),
        ("h100-8x4", 32, 4),
        ("h200-8", 8, 1),
        ("cpu", 1, 1),
    ],
)
def test_a_name_has_the_number_of_devices_and_groups(name, devices, groups):
    machine = parse_machine(name)
    assert (machine.devices, machine.groups) == (devices, groups)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("v5x-256", "did you mean 'v5"),
        ("H100", "did you mean"),
        ("v5p-3", "multiple of 2"),
        ("0xv5e-4", "none may be 0"),
        ("v5e-512", "'2xv5e-256'"),
        ("", "no machine is named"),
    ],
)
def test_an_unknown_machine_is_refused_with_the_nearest_name(name, message):
    with pytest.raises(ValueError, match=message):
        parse_machine(name)


def test_a_gather_within_a_group_moves_the_missing_bytes_over_the_links():
    assert parse_machine("h100-8").estimate_gather(8e9, 8, 1) == pytest.approx(
        7e9 / 450e9
    )


def test_a_gather_along_one_side_of_a_torus_uses_only_that_side():
    got = parse_machine("v5e-256").estimate_gather(16e9, 16, 16)
    assert got == pytest.approx(15e9 / (200e9 / 2))


def test_a_gather_over_servers_sends_an_eighth_through_each_network_card():
    got = parse_machine("h100-8x4").estimate_gather(32e9, 32, 1)
    assert got == pytest.approx(28e9 / 450e9 + 24e9 / 8 / 50e9)


def test_devices_of_different_servers_use_only_the_network():
    got = parse_machine("h100-8x4").estimate_gather(4e9, 4, 8)
    assert got == pytest.approx(3e9 / 50e9)
