"""The names that an error offers."""

import pytest

from lmx.config.names import find_nearest


@pytest.mark.parametrize(
    ("name", "names", "nearest"),
    [
        ("swiglu", ["MoE", "SwiGLU"], "SwiGLU"),
        ("layer_norm", ["LayerNorm", "Norm"], "LayerNorm"),
        ("lr", ["peak_lr", "warmup_steps"], "peak_lr"),
        ("n_layers", ["depth", "width"], "depth"),
        ("dim", ["depth", "width"], "width"),
        ("model.n_layers", ["data.depth", "model.depth"], "model.depth"),
        ("wide", ["depth"], None),
    ],
)
def test_case_and_synonyms_of_other_frameworks_are_understood(name, names, nearest):
    assert find_nearest(name, names) == nearest
