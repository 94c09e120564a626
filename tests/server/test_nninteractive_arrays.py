"""The nnInteractive array format: read and written as its client does, and never trusted."""

import contextlib
import struct
import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fastsam3d.server.errors import ApiError
from fastsam3d.server.nninteractive_arrays import DTYPES, ArrayBudget, pack_array, unpack_array

blosc2 = pytest.importorskip("blosc2")
theirs = pytest.importorskip("nnInteractive.inference.remote.serialization")

BUDGET = ArrayBudget(voxels=100_000, bytes=400_000)
FILTERS = [None, *([one] for one in (blosc2.Filter.NOFILTER, blosc2.Filter.SHUFFLE))]


@pytest.fixture(scope="module")
def arrays():
    rng = np.random.default_rng(5)
    return [
        np.zeros((1, 20, 30, 40), np.float32),
        rng.normal(size=(2, 10, 11, 12)).astype(np.float32),
        np.full((3, 4, 5), np.nan, np.float16),
        rng.normal(size=(7, 8, 9)) > 1,
        np.array([7], np.uint8),
        np.arange(-300, 300, dtype=np.int16).reshape(5, 120),
    ]


@pytest.mark.parametrize("codec", [blosc2.Codec.ZSTD, blosc2.Codec.LZ4])
@pytest.mark.parametrize("filters", FILTERS)
def test_what_the_client_writes_is_read(arrays, codec, filters):
    for array in arrays:
        found = unpack_array(theirs.pack_array(array, codec=codec, filters=filters), BUDGET)
        assert found.dtype == array.dtype
        np.testing.assert_array_equal(found, array)


def test_what_we_write_is_read_by_the_client_and_by_us(arrays):
    for array in arrays:
        for found in (
            theirs.unpack_array(pack_array(array)),
            unpack_array(pack_array(array), BUDGET),
        ):
            assert found.dtype == array.dtype
            np.testing.assert_array_equal(found, array)


def message(*, magic=b"NNIA", version=1, codec=1, name=b"uint8", shape=(8,), count=1, chunks=b""):
    head = struct.pack("<4sBBBB", magic, version, codec, len(shape), len(name)) + name
    sides = b"".join(struct.pack("<q", side) for side in shape)
    return head + sides + struct.pack("<I", count) + chunks


def chunk(data: bytes, **changed: int) -> bytes:
    """One chunk of bytes, with bytes of its Blosc2 header changed (`b31=0x40`)."""
    packed = bytearray(blosc2.compress2(data, typesize=1, codec=blosc2.Codec.ZSTD))
    for place, value in changed.items():
        packed[int(place[1:])] = value
    return struct.pack("<QQ", len(data), len(packed)) + bytes(packed)


EIGHT = bytes(range(8))
HOSTILE = {
    "nothing": b"",
    "a few bytes": b"NNIA\x01\x01",
    "another magic": message(magic=b"NNIB", chunks=chunk(EIGHT)),
    "another version": message(version=2, chunks=chunk(EIGHT)),
    "unknown codec": message(codec=9, chunks=chunk(EIGHT)),
    "no axis": message(shape=(), chunks=chunk(b"1")),
    "255 axes": message(shape=(1,) * 255, chunks=chunk(b"1")),
    "type object": message(name=b"object", chunks=chunk(EIGHT)),
    "type string": message(name=b"U8", chunks=chunk(EIGHT)),
    "type with fields": message(name=b"i4,f8", chunks=chunk(EIGHT)),
    "type not ascii": message(name=b"\xff\xfe", chunks=chunk(EIGHT)),
    "no type": message(name=b"", chunks=chunk(EIGHT)),
    "cut in its header": message()[:12],
    "negative side": message(shape=(-8,), chunks=chunk(EIGHT)),
    "two negative sides": message(shape=(-2, -4), chunks=chunk(EIGHT)),
    "side 0": message(shape=(0,), count=0),
    "no chunks": message(count=0),
    "2^32 - 1 chunks": message(count=2**32 - 1, chunks=chunk(EIGHT)),
    "fewer chunks than announced": message(count=2, chunks=chunk(EIGHT)),
    "bytes after the last chunk": message(chunks=chunk(EIGHT) + b"!"),
    "a chunk that is too long": message(chunks=chunk(EIGHT + EIGHT)),
    "a chunk that is too short": message(chunks=chunk(EIGHT[:4])),
    "a chunk of length 2^64 - 1": message(chunks=struct.pack("<QQ", 2**64 - 1, 40) + bytes(40)),
    "a chunk sent with 2^64 - 1": message(chunks=struct.pack("<QQ", 8, 2**64 - 1) + bytes(40)),
    "an empty chunk": message(chunks=struct.pack("<QQ", 0, 0)),
    "a chunk without a header": message(chunks=struct.pack("<QQ", 8, 8) + EIGHT),
    "zeros for a chunk": message(chunks=struct.pack("<QQ", 8, 40) + bytes(40)),
    "values left out": message(chunks=chunk(EIGHT, b31=0x40)),
    "a lazy chunk": message(chunks=chunk(EIGHT, b31=0x08)),
    "a dictionary": message(chunks=chunk(EIGHT, b31=0x01)),
    "a plug-in as filter": message(chunks=chunk(EIGHT, b21=160)),
    "a plug-in as codec": message(chunks=chunk(EIGHT, b2=0xE5)),
    "another codec inside": message(codec=2, chunks=chunk(bytes(range(256)) * 40)),
    "a short header inside": message(chunks=chunk(EIGHT, b2=0x80)),
    "another length inside": message(chunks=chunk(EIGHT, b4=200)),
    "a block larger than the chunk": message(chunks=chunk(EIGHT, b10=255)),
    "element size 0": message(chunks=chunk(EIGHT, b3=0)),
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_malformed_messages_are_refused(kind):
    with pytest.raises(ApiError) as found:
        unpack_array(HOSTILE[kind], BUDGET)
    assert (found.value.status, found.value.code) == (400, "bad_array")


@pytest.mark.parametrize(
    "shape", [(400_001,), (2**40, 2**40, 2**40), (2**62, 2**62, 2**62, 2**62), (101, 1000)]
)
def test_too_much_is_refused_before_anything_is_allocated(shape):
    tracemalloc.start()
    with pytest.raises(ApiError) as found:
        unpack_array(message(name=b"float32", shape=shape, chunks=chunk(EIGHT)), BUDGET)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert found.value.status == 413
    assert peak < 100_000


def test_a_bomb_is_refused_by_what_it_announces():
    bomb = theirs.pack_array(np.zeros((1, 512, 512, 64), np.uint8))
    assert len(bomb) < 200
    with pytest.raises(ApiError, match="at most 100000"):
        unpack_array(bomb, BUDGET)


def test_another_shape_than_expected_is_refused():
    budget = ArrayBudget(voxels=100, bytes=100, shape=(2, 3, 4))
    with pytest.raises(ApiError) as found:
        unpack_array(pack_array(np.zeros((4, 3, 2), np.uint8)), budget)
    assert (found.value.status, found.value.code) == (422, "bad_shape")


@given(st.binary(max_size=200))
@settings(max_examples=200, deadline=None)
def test_any_bytes_are_read_or_refused(data):
    for given_bytes in (data, b"NNIA\x01\x01" + data, message(chunks=data)):
        with pytest.raises(ApiError):
            unpack_array(given_bytes, BUDGET)


@given(st.data())
@settings(max_examples=200, deadline=None)
def test_changed_bytes_are_read_or_refused(data):
    name = data.draw(st.sampled_from(DTYPES))
    whole = bytearray(pack_array((np.arange(3000) % 50).astype(name).reshape(3, 10, 100)))
    for _ in range(data.draw(st.integers(1, 4))):
        whole[data.draw(st.integers(0, len(whole) - 1))] = data.draw(st.integers(0, 255))
    # Whatever is not an ApiError fails here.
    with contextlib.suppress(ApiError):
        assert unpack_array(bytes(whole), BUDGET).size <= BUDGET.voxels
