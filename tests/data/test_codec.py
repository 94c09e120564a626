import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from fastsam3d.data.codec import ARRAY_DTYPES, decode_array, encode_array
from fastsam3d.errors import DatasetError


@settings(max_examples=60, deadline=None)
@given(
    array=st.sampled_from(ARRAY_DTYPES).flatmap(
        lambda name: hnp.arrays(
            np.dtype(name), hnp.array_shapes(min_dims=1, max_dims=3, max_side=5)
        )
    ),
    predict=st.booleans(),
)
def test_decoding_gives_back_the_same_array(array: np.ndarray, predict: bool) -> None:
    blob, header = encode_array(array, predict=predict)
    restored = decode_array(blob, header)
    assert restored.dtype == array.dtype
    np.testing.assert_array_equal(restored, array)


@pytest.mark.parametrize("dtype", ["uint8", "int16"])
def test_smooth_intensities_are_stored_as_differences_and_shrink(dtype: str) -> None:
    ramp = np.add.outer(np.arange(40) * 3, np.arange(60))[..., None] + np.arange(10)
    array = (ramp % 251).astype(dtype)
    blob, header = encode_array(array, predict=True)
    assert header["axes"]
    assert blob.nbytes < 0.1 * array.nbytes


def test_extremes_of_signed_integers_survive_differences() -> None:
    array = np.array([[-32768, 32767, -32768, 0]] * 9, dtype=np.int16)
    blob, header = encode_array(array, predict=True)
    np.testing.assert_array_equal(decode_array(blob, {**header}), array)


def test_floats_are_refused() -> None:
    with pytest.raises(DatasetError, match="float32"):
        encode_array(np.zeros(3, dtype=np.float32), predict=True)


def test_a_cut_blob_is_told() -> None:
    blob, header = encode_array(np.arange(200, dtype=np.uint8), predict=False)
    with pytest.raises(DatasetError, match="copy the pack"):
        decode_array(blob[:-20], header)
    with pytest.raises(DatasetError, match="copy the pack"):
        decode_array(blob, {**header, "shape": [7]})
