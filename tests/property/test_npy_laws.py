"""Arrays as .npy bytes: what NumPy writes, and nothing else is read."""

import io

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from fedmap import npy

DTYPES = st.sampled_from(["float32", "float64", "float16", ">f4", "int64", "uint8", "bool", "complex64"])
ARRAYS = DTYPES.flatmap(lambda dtype: arrays.arrays(dtype, arrays.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=4)))


def _saved(array: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.save(file, array, allow_pickle=False)
    return file.getvalue()


@given(ARRAYS, st.booleans())
def test_the_bytes_are_numpys(array: np.ndarray, turned: bool) -> None:
    array = array.T if turned else array
    assert npy.to_bytes(array) == _saved(array)


@given(ARRAYS)
def test_what_was_written_is_read_over_the_same_bytes(array: np.ndarray) -> None:
    found = npy.view(npy.to_bytes(array), array.dtype, array.shape)
    assert found is not None
    assert (found.dtype, found.shape, found.tobytes()) == (array.dtype, array.shape, array.tobytes())
    assert not found.flags.writeable


@given(ARRAYS, ARRAYS, st.binary(max_size=3))
def test_anything_else_is_not_read(array: np.ndarray, other: np.ndarray, more: bytes) -> None:
    data = npy.to_bytes(array)
    if (array.dtype, array.shape) != (other.dtype, other.shape):
        assert npy.view(data, other.dtype, other.shape) is None
    assert (npy.view(data + more, array.dtype, array.shape) is None) == bool(more)
    assert npy.view(data[:-1], array.dtype, array.shape) is None or not array.size
    assert npy.view(b"", array.dtype, array.shape) is None
    assert npy.view(data, np.dtype(object), array.shape) is None
