"""What is known of devices."""

import jax
import pytest

from lmx.core import device


def test_a_device_without_a_data_sheet_has_no_peak():
    assert device.peak() is None


def test_all_devices_together_reach_the_sum_of_their_peaks(monkeypatch):
    monkeypatch.setitem(device.PEAKS, jax.devices()[0].device_kind, 2e12)
    assert device.peak() == pytest.approx(2e12 * jax.device_count())
