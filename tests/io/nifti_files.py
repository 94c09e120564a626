"""Small hand-made NIfTI files, good and bad, independent of the package's own writer."""

from __future__ import annotations

import struct

import numpy as np

# Offsets of NIfTI-1 header fields, from the standard's table.
FIELDS = {
    "sizeof_hdr": (0, "i"), "dim": (40, "8h"), "datatype": (70, "h"), "bitpix": (72, "h"),
    "pixdim": (76, "8f"), "vox_offset": (108, "f"), "scl_slope": (112, "f"),
    "scl_inter": (116, "f"), "xyzt_units": (123, "B"), "descrip": (148, "80s"),
    "qform_code": (252, "h"), "sform_code": (254, "h"), "quatern": (256, "3f"),
    "qoffset": (268, "3f"), "srow": (280, "12f"), "magic": (344, "4s"),
}  # fmt: skip
CODES = {"u1": 2, "i2": 4, "i4": 8, "f4": 16, "f8": 64, "i1": 256, "u2": 512, "u4": 768}
ARRAY = np.arange(24, dtype="i2").reshape(2, 3, 4)
AFFINE = np.array([[2.0, 0, 0, -10], [0, 3, 0, 20], [0, 0, 4, 30], [0, 0, 0, 1]])


def nifti(array: np.ndarray = ARRAY, *, order: str = "<", **fields: object) -> bytes:
    """Return the bytes of a NIfTI-1 file; `fields` replace header fields."""
    values: dict[str, object] = {
        "sizeof_hdr": 348,
        "dim": (array.ndim, *array.shape, *[1] * (7 - array.ndim)),
        "datatype": CODES[array.dtype.str[1:]],
        "bitpix": array.dtype.itemsize * 8,
        "pixdim": (1, 2, 3, 4, 1, 1, 1, 1),
        "vox_offset": 352.0,
        "scl_slope": 1.0,
        "xyzt_units": 2,
        "sform_code": 1,
        "srow": tuple(AFFINE[:3].ravel()),
        "magic": b"n+1\0",
        **fields,
    }
    header = bytearray(352)
    for name, value in values.items():
        offset, code = FIELDS[name]
        items = value if isinstance(value, tuple) else (value,)
        struct.pack_into(order + code, header, offset, *items)
    return bytes(header) + array.astype(array.dtype.newbyteorder(order)).tobytes(order="F")


def field(data: bytes, name: str) -> tuple:
    """Return a header field of little-endian NIfTI-1 bytes."""
    offset, code = FIELDS[name]
    return struct.unpack_from("<" + code, data, offset)
