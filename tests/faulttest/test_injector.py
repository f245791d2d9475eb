"""A batch has one fingerprint on every mesh, and a state's folder names its step."""

import jax
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from lmx.core.batch import Batch
from lmx.core.sharding import RULES, Mesh
from lmx.faulttest.injector import fingerprint, parse_step


def batch(tokens, spec=("data", "context"), **axes):
    """A batch on a mesh with these axes."""
    mesh = Mesh(**({"data": 1} | axes)).build(jax.devices(), RULES)
    place = NamedSharding(mesh, PartitionSpec(*spec))
    parts = (tokens, tokens + 1, np.ones(tokens.shape, np.float32), tokens, tokens)
    return Batch(*jax.device_put(parts, place))


@pytest.mark.parametrize(
    "axes", [{"data": 8}, {"data": 2, "context": 4}, {"data": 2, "tensor": 4}], ids=str
)
def test_a_batch_has_one_fingerprint_on_every_mesh(axes):
    tokens = np.random.default_rng(0).integers(0, 99, (8, 16)).astype(np.int32)
    assert fingerprint(batch(tokens, **axes)) == fingerprint(batch(tokens))


def test_every_change_of_tokens_order_or_field_changes_the_fingerprint():
    tokens = np.arange(128, dtype=np.int32).reshape(8, 16)
    fingerprints = {fingerprint(batch(tokens))}
    changed = tokens.copy()
    changed[3, 5] += 1
    for other in (changed, tokens[::-1].copy(), tokens[:, ::-1].copy(), tokens + 1):
        fingerprints.add(fingerprint(batch(other)))
    same = batch(tokens)
    fingerprints.add(
        fingerprint(same._replace(tokens=same.targets, targets=same.tokens))
    )
    assert len(fingerprints) == 6


def test_only_the_folder_of_a_committed_state_has_a_step():
    assert parse_step("run/checkpoints/00000012") == 12
    for other in ("checkpoints/00000012.tmp", "other/00000012", "checkpoints/.old"):
        assert parse_step(other) is None
