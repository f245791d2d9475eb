"""A digest is a function of names, dtypes, shapes and elements, and of nothing else."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from lmx.core.sharding import RULES, Mesh
from lmx.train.checkpoint import digest
from lmx.train.checkpoint.digest import (
    combine_digests,
    compute_checksums,
    compute_digests,
)

KINDS = ("float32", "bfloat16", "float16", "int32", "uint8", "bool", "float8_e4m3fn")
PLACES = [(), ("fsdp",), (None, "fsdp"), ("data", "fsdp"), (("data", "fsdp"),)]


def values(kind, shape=(16, 20, 12), seed=0):
    noise = np.random.default_rng(seed).normal(size=shape) * 100
    return jnp.asarray(noise).astype(kind)


def mixed(number):
    """Steele, Lea and Flood 2014, figure 16, one number at a time."""
    number = (number + 1) * 0x9E3779B97F4A7C15 % 2**64
    number = (number ^ number >> 30) * 0xBF58476D1CE4E5B9 % 2**64
    number = (number ^ number >> 27) * 0x94D049BB133111EB % 2**64
    return number ^ number >> 31


def slow(x):
    """The two sums, word by word, by the arithmetic of Python."""
    size = min(4, x.itemsize)
    words = np.asarray(x).reshape(-1).view(f"<u{size}").tolist()
    total = [0, 0]
    for place, word in enumerate(words):
        block, inner = divmod(place, digest.BLOCK_WORDS)
        for lane in range(2):
            weight = mixed(inner) | 1
            weight *= mixed(block ^ (lane + 1) << 60) | 1
            total[lane] = (total[lane] + word * weight) % 2**64
    return total


@pytest.fixture(scope="module")
def mesh():
    return Mesh(data=2, fsdp=4).build(jax.devices(), RULES)


@pytest.mark.parametrize("kind", KINDS)
def test_sums_are_those_of_a_loop_over_words(kind):
    x = values(kind)
    np.testing.assert_array_equal(compute_checksums(x), slow(x))


def test_words_of_64_bits_count_as_two(x64):
    x = values("float64", (3, 5000))
    np.testing.assert_array_equal(compute_checksums(x), slow(x))


@pytest.mark.parametrize("kind", ["float32", "bfloat16"])
@pytest.mark.parametrize("place", PLACES, ids=str)
def test_no_mesh_changes_a_digest(mesh, kind, place):
    x = values(kind)
    spread = jax.device_put(x, NamedSharding(mesh, PartitionSpec(*place)))
    assert compute_digests({"w": x}) == compute_digests({"w": spread})
    np.testing.assert_array_equal(compute_checksums(x), compute_checksums(spread))


@pytest.mark.parametrize("shape", [(), (1,), (0, 3), (7, 1, 9)])
def test_any_shape_has_a_digest(shape):
    x = values("int32", shape)
    np.testing.assert_array_equal(compute_checksums(x), slow(x))


@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.parametrize("at_once", [50, 1 << 16])
def test_sums_of_parts_add_up(monkeypatch, axis, at_once):
    monkeypatch.setattr(digest, "AT_ONCE", at_once)
    x = np.asarray(values("bfloat16"))
    total = np.zeros(2, np.uint64)
    for begin, end in [(0, 5), (5, 6), (6, x.shape[axis])]:
        index = [slice(None)] * 3
        index[axis] = slice(begin, end)
        total += digest.checksum_part(x[tuple(index)], tuple(index), x.shape)
    np.testing.assert_array_equal(compute_checksums(x), total)


def test_a_replica_that_is_not_the_first_adds_nothing(mesh):
    x = jax.device_put(values("int32"), NamedSharding(mesh, PartitionSpec("fsdp")))
    firsts = [s for s in x.addressable_shards if s.replica_id == 0]
    parts = [digest.checksum_part(np.asarray(s.data), s.index, x.shape) for s in firsts]
    assert len(firsts) == 4
    np.testing.assert_array_equal(compute_checksums(x), sum(parts))


def test_one_flipped_bit_anywhere_changes_it():
    x = np.asarray(values("uint8", (20_000,)))
    found = {tuple(compute_checksums(x))}
    for place in range(0, x.size, 397):
        for bit in (0, 7):
            other = x.copy()
            other[place] ^= 1 << bit
            found.add(tuple(compute_checksums(other)))
    assert len(found) == 1 + 2 * len(range(0, x.size, 397))


@pytest.mark.parametrize(
    "change",
    [
        lambda x: -x,
        lambda x: x.at[0].set(x[1]).at[1].set(x[0]),
        lambda x: x.at[0, 0].set(x[8, 0]).at[8, 0].set(x[0, 0]),
        lambda x: x.at[3:5, 7].multiply(-1),
        lambda x: jnp.roll(x, 1),
        lambda x: x.T.reshape(x.shape),
        lambda x: x.at[5].set(0),
    ],
)
def test_signs_places_and_gaps_count(change):
    x = values("float32", (16, 4000))
    assert compute_digests([x]) != compute_digests([change(x)])


def test_name_dtype_and_shape_count():
    x = jnp.zeros(6, "int32")
    found = [{"w": x}, {"v": x}, {"w": x.reshape(2, 3)}, {"w": x.astype("uint32")}]
    told = [*(d for state in found for d in compute_digests(state).values())]
    assert len(set(told)) == 4 and all(len(d) == 32 for d in told)


def test_keys_count_by_their_bits():
    keys = [jax.random.key(seed) for seed in (0, 0, 1)]
    same, again, other = (compute_digests({"key": key}) for key in keys)
    assert same == again != other


def test_a_root_is_of_names_and_digests_in_any_order():
    told = compute_digests({"a": values("int32"), "b": values("bool")})
    assert combine_digests(told) == combine_digests(dict(reversed(told.items())))
    assert combine_digests(told) != combine_digests({"a": told["b"], "b": told["a"]})
    assert combine_digests(told) != combine_digests({"a": told["a"]})


def test_digests_of_this_schema_stay_what_they_are():
    x = np.arange(20_000, dtype="<f4").reshape(2, -1)
    told = compute_digests({"w": x, "step": np.int32(7)})
    assert combine_digests(told) == "c8a76f55445849b943d9a6013a3cc069"
