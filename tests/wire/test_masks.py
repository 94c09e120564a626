"""Masks as runs: exact both ways, and safe to read from anyone."""

import contextlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from fastsam3d.errors import WireError
from fastsam3d.wire.frames import pack_frame, unpack_frame
from fastsam3d.wire.masks import decode_runs, encode_runs


@given(hnp.arrays(np.bool_, hnp.array_shapes(min_dims=3, max_dims=3, min_side=0, max_side=6)))
def test_any_mask_comes_back_as_it_was(mask):
    found = decode_runs(encode_runs(mask), mask.shape)
    assert found.dtype == np.uint8
    np.testing.assert_array_equal(found, mask)


def test_the_format_is_as_documented():
    mask = np.zeros((2, 2, 100), np.uint8)
    mask[1, 0, 0] = mask[1, 1, 99] = 1
    assert encode_runs(mask) == bytes([0xC8, 0x01, 1, 0xC6, 0x01, 1])
    assert encode_runs(np.ones((1, 1, 3))) == bytes([0, 3])


def test_a_large_box_needs_no_more_than_its_runs():
    mask = np.zeros((1, 1, 300_000), np.bool_)
    mask[0, 0, 5:7] = True
    assert encode_runs(mask) == bytes([5, 2, 0xD9, 0xA7, 0x12])


@pytest.mark.parametrize(
    ("payload", "shape", "reason"),
    [
        (b"\x08", (2, 2, 3), "fill the 12"),
        (b"\x08\x05", (2, 2, 3), "fill the 12"),
        (b"\x8c", (2, 2, 3), "within a number"),
        (b"\xff\xff\xff\xff\xff\x0f", (2, 2, 3), "more than its box"),
        (b"\x00" * 14 + b"\x0c", (2, 2, 3), "more than its box"),
        (b"\xff\xff\xff\xff\x7f", (1300, 1300, 1300), "at most"),
        (b"\x0c", (2, 6), "three sides"),
        (b"\x0c", (-2, -2, 3), "three sides"),
        (b"", (1, 1, 1), "fill the 1"),
    ],
)
def test_what_is_malformed_is_refused_before_it_costs_anything(payload, shape, reason):
    with pytest.raises(WireError, match=reason):
        decode_runs(payload, shape)


@given(st.binary(max_size=40))
def test_no_bytes_do_worse_than_a_typed_error(payload):
    with contextlib.suppress(WireError):
        assert decode_runs(payload, (3, 4, 5)).max(initial=0) <= 1


@given(st.binary(max_size=60))
def test_no_message_does_worse_than_a_typed_error(message):
    with contextlib.suppress(WireError):
        unpack_frame(message)


def test_a_frame_comes_back_as_it_was():
    header, payload = unpack_frame(pack_frame({"type": "mask", "seq": 3}, b"abc"))
    assert header == {"type": "mask", "seq": 3}
    assert bytes(payload) == b"abc"
