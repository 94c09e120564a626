"""Volumes as bytes that any server reads and that lose nothing.

NIfTI-2, because its affine is float64: a volume that travels keeps its grid to the last bit.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import numpy as np

from fastsam3d.io.nifti_header import DTYPE_NAMES, HEADER_2

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from fastsam3d.volume import Volume

_MAGIC: Final = b"n+2\0\r\n\x1a\n"
_MM: Final = 2
_ALIGNED: Final = 2  # Some other program's or scanner's coordinates: RAS+ and no more is claimed.
_CODES: Final = {np.dtype(name): code for code, name in DTYPE_NAMES.items()}


def volume_to_bytes(volume: Volume) -> bytes:
    """Return a volume as an uncompressed NIfTI-2 file.

    Args:
        volume: Booleans become uint8 and float16 becomes float32, neither of which loses anything.
    """
    array = _writable(volume.array)
    fields: Any = np.zeros((), HEADER_2)
    affine, shape = volume.geometry.affine, volume.shape
    values: dict[str, Any] = {
        "sizeof_hdr": HEADER_2.itemsize,
        "magic": _MAGIC,
        "datatype": _CODES[array.dtype],
        "bitpix": array.dtype.itemsize * 8,
        "dim": (3, *shape, 1, 1, 1, 1),
        "pixdim": (1, *volume.geometry.spacing, 0, 0, 0, 0),
        "vox_offset": HEADER_2.itemsize + 4,
        "scl_slope": 1,
        "sform_code": _ALIGNED,
        "srow": affine[:3],
        "xyzt_units": _MM,
    }
    for name, value in values.items():
        fields[name] = value
    return b"".join((fields.tobytes(), bytes(4), array.tobytes(order="F")))


def _writable(array: NDArray[Any]) -> NDArray[Any]:
    if array.dtype == np.bool_:
        return array.view(np.uint8)
    if array.dtype.newbyteorder("=") not in _CODES:
        array = array.astype(np.float32)
    return array.astype(array.dtype.newbyteorder("<"), copy=False)
