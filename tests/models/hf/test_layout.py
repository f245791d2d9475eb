"""Layouts of tensors against einops."""

import einops
import numpy as np
import pytest

from lmx.config.registry import ConfigError
from lmx.models.hf.fields import TensorMap
from lmx.models.hf.weights import expand_map, group_by_tensor

SIZES = dict(N=4, K=2, H=6, D=5, F=3, R=7, E=4)

ALIKE = [
    "(N H) D -> D N H",
    "D (N H) -> N H D",
    "V -> V",
    "E D F -> E D F",
    "(K H) D -> D K H",
]


def shape_of(names):
    return tuple((SIZES | dict(V=9))[name] for name in names)


@pytest.mark.parametrize("layout", ALIKE)
def test_a_parameter_is_its_tensor_rearranged_as_by_einops(layout):
    shape = shape_of(layout.split("->")[1].split())
    (part,) = expand_map(TensorMap("t", "p", layout), "", (), {"p": shape})
    back = "->".join(reversed(layout.split("->")))
    value = np.arange(np.prod(shape)).reshape(shape)
    tensor = einops.rearrange(value, back)
    assert part.shape == tensor.shape
    np.testing.assert_array_equal(part.view(tensor), value)


@pytest.mark.parametrize(
    "layout, axis",
    [("D (3 N H) -> 3 D N H", "D (3 N H)"), ("E D (F 3) -> 3 E D F", "E D (F 3)")],
)
def test_parameters_indexed_by_a_digit_are_rearranged_as_their_stack(layout, axis):
    names = layout.split("-> 3")[1].split()
    shapes = dict.fromkeys("abc", shape_of(names))
    values = np.random.default_rng(0).normal(size=(3, *shape_of(names)))
    found = list(expand_map(TensorMap("t", ("a", "b", "c"), layout), "", (), shapes))
    letters = axis.replace("3", "three")
    tensor = einops.rearrange(values, f"three {' '.join(names)} -> {letters}")
    for part, value in zip(found, values, strict=True):
        np.testing.assert_array_equal(part.view(tensor), value)


def test_writing_to_all_views_fills_the_tensor():
    shapes = {"k": (5, 4, 6), "v": (5, 4, 6)}
    row = TensorMap("t", ("k", "v"), "(N 2 H) D -> 2 D N H")
    parts = list(expand_map(row, "", (), shapes))
    tensor = np.full(parts[0].shape, np.nan)
    for part in parts:
        part.view(tensor)[...] = 1.0
    assert not np.isnan(tensor).any()


def test_a_tensor_of_each_expert_has_its_index():
    row = TensorMap("e.{expert}.w", "gate", "F D -> D F")
    parts = list(expand_map(row, "blocks.", (2,), {"blocks.gate": (3, 4, 5, 6)}))
    assert [part.tensor for part in parts] == [f"e.{e}.w" for e in range(4)]
    assert [part.index for part in parts] == [(2, e) for e in range(4)]
    assert all(part.shape == (6, 5) for part in parts)
    assert list(group_by_tensor(parts)) == [part.tensor for part in parts]


def test_a_parameter_with_other_dimensions_is_refused():
    with pytest.raises(ConfigError, match="needs 2 dimensions after the first 1"):
        list(
            expand_map(TensorMap("t", "p", "F D -> D F"), "", (0,), {"p": (3, 4, 5, 6)})
        )
