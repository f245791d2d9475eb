"""Peak FLOP/s of devices."""

import jax
import pytest

from lmx.core import hardware


def test_a_device_without_a_data_sheet_has_no_peak():
    assert hardware.peak_flops(8) is None


def test_the_peak_of_several_devices_is_the_sum(monkeypatch):
    monkeypatch.setitem(hardware.PEAK_FLOPS, jax.devices()[0].device_kind, 2e12)
    assert hardware.peak_flops(8) == pytest.approx(8 * 2e12)
