"""Ring schedules compute every visible pair once, with balanced work."""

import itertools

import numpy as np
import pytest

from lmx.layers.attention.ring_schedule import choose_schedule

SHAPES = [
    (length, devices, block, window)
    for length, devices in [(16, 1), (16, 2), (48, 4), (48, 3), (64, 8)]
    for block in (2, 3, 64)
    for window in (None, 1, 4, 11, 40)
]


def tokens(course, device):
    """The tokens of each block of a device, by a loop."""
    return [
        [*range(begin, min(begin + course.block, (piece + 1) * course.chunk_length))]
        for piece in course.chunks[device]
        for begin in range(
            piece * course.chunk_length, (piece + 1) * course.chunk_length, course.block
        )
    ]


@pytest.mark.parametrize(("length", "devices", "block", "window"), SHAPES)
def test_every_visible_pair_is_computed_once(length, devices, block, window):
    course = choose_schedule(length, devices, block, window)
    met = np.zeros((length, length), int)
    for (at, step), device in itertools.product(
        enumerate(course.steps), range(devices)
    ):
        queries = tokens(course, device)
        keys = tokens(course, (device - at) % devices)
        for query, key, unpadded in step[device]:
            met[np.ix_(queries[query], keys[key])] += unpadded
    t, s = np.indices(met.shape)
    seen = (t >= s) & (t - s < (window or length))
    np.testing.assert_array_equal(met[seen], 1)
    assert met.max() == 1


@pytest.mark.parametrize(("length", "devices", "block"), [(64, 2, 4), (64, 8, 2)])
def test_causal_work_is_balanced_over_devices_at_every_step(length, devices, block):
    steps = choose_schedule(length, devices, block, None).steps
    unpadded = np.stack([step[..., 2].sum(axis=1) for step in steps])
    assert len(steps) == devices
    np.testing.assert_array_equal(unpadded, unpadded[:, :1].repeat(devices, axis=1))
    blocks = length // block  # the number in a triangle of blocks
    assert unpadded.sum() == blocks * (blocks + 1) // 2


def test_a_window_limits_the_number_of_steps():
    steps = {w: len(choose_schedule(256, 8, 8, w).steps) for w in (1, 2, 33, 34, 256)}
    assert steps == {1: 1, 2: 2, 33: 2, 34: 3, 256: 8}


def test_a_row_that_does_not_divide_evenly_is_refused():
    with pytest.raises(ValueError, match=r"24 tokens over 8 devices: .*multiple of 16"):
        choose_schedule(24, 8, 4, None)
