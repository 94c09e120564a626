"""The NIfTI-1 and NIfTI-2 headers: what they mean, what we refuse, how we write them.

Our own parser, because general ones accept zero dimensions, NaN geometry and truncated data,
and because results must carry the input's header bits (forms, codes, units) unchanged.

Precedence of geometry: a set sform, else a set qform, else the bare voxel sizes (method 1 of
the standard). Metres and micrometres are converted to millimetres.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, BinaryIO, Final, Literal

import numpy as np

from fastsam3d.errors import GeometryError, VolumeReadError
from fastsam3d.io.streams import fill
from fastsam3d.volume import Geometry, SourceHeader

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Float64Array = NDArray[np.float64]

logger = logging.getLogger(__name__)

MAX_DATA_OFFSET: Final = 64 * 2**20
"""Bound of header extensions, in bytes."""
MAX_FORM_MISMATCH_VOXELS: Final = 0.1
"""sform and qform further apart than this at a corner are reported."""
NIFTI1_MAX_DIM: Final = 32767
MM_PER_UNIT: Final = {1: 1000.0, 3: 0.001}

HEADER_1: Final = np.dtype(
    [
        ("sizeof_hdr", "i4"), ("unused", "S35"), ("dim_info", "u1"), ("dim", "i2", 8),
        ("intent_p", "f4", 3), ("intent_code", "i2"), ("datatype", "i2"), ("bitpix", "i2"),
        ("slice_start", "i2"), ("pixdim", "f4", 8), ("vox_offset", "f4"), ("scl_slope", "f4"),
        ("scl_inter", "f4"), ("slice_end", "i2"), ("slice_code", "u1"), ("xyzt_units", "u1"),
        ("cal_max", "f4"), ("cal_min", "f4"), ("slice_duration", "f4"), ("toffset", "f4"),
        ("glmax", "i4"), ("glmin", "i4"), ("descrip", "S80"), ("aux_file", "S24"),
        ("qform_code", "i2"), ("sform_code", "i2"), ("quatern", "f4", 3), ("qoffset", "f4", 3),
        ("srow", "f4", (3, 4)), ("intent_name", "S16"), ("magic", "S4"),
    ]
)  # fmt: skip
HEADER_2: Final = np.dtype(
    [
        ("sizeof_hdr", "i4"), ("magic", "S8"), ("datatype", "i2"), ("bitpix", "i2"),
        ("dim", "i8", 8), ("intent_p", "f8", 3), ("pixdim", "f8", 8), ("vox_offset", "i8"),
        ("scl_slope", "f8"), ("scl_inter", "f8"), ("cal_max", "f8"), ("cal_min", "f8"),
        ("slice_duration", "f8"), ("toffset", "f8"), ("slice_start", "i8"), ("slice_end", "i8"),
        ("descrip", "S80"), ("aux_file", "S24"), ("qform_code", "i4"), ("sform_code", "i4"),
        ("quatern", "f8", 3), ("qoffset", "f8", 3), ("srow", "f8", (3, 4)), ("slice_code", "i4"),
        ("xyzt_units", "i4"), ("intent_code", "i4"), ("intent_name", "S16"), ("dim_info", "u1"),
        ("unused", "S15"),
    ]
)  # fmt: skip
DTYPE_NAMES: Final = {
    2: "u1", 4: "i2", 8: "i4", 16: "f4", 64: "f8", 256: "i1", 512: "u2", 768: "u4", 1024: "i8",
    1280: "u8",
}  # fmt: skip
UNREADABLE_DATATYPES: Final = {
    1: "1-bit voxels", 32: "complex64", 128: "RGB", 1536: "float128", 1792: "complex128",
    2048: "complex256", 2304: "RGBA",
}  # fmt: skip
_MAGIC_2: Final = b"n+2\0\r\n\x1a\n"


@dataclass(frozen=True)
class NiftiHeader:
    """A header that passed every check.

    Attributes:
        raw: Header bytes as they are in the file; of a 4-D file, those of one time point.
        geometry: Grid in RAS+ millimetres; a missing third axis has one voxel.
        dtype: Type of the stored voxels, in the file's byte order.
        offset: Position of the first voxel in the inflated file, in bytes.
        slope: Factor from stored to real values; 1 when the header sets none.
        intercept: Term added after the factor.
        num_times: Volumes along the fourth axis.
    """

    raw: bytes
    geometry: Geometry
    dtype: np.dtype[Any]
    offset: int
    slope: float
    intercept: float
    num_times: int = 1


def read_header(stream: BinaryIO) -> NiftiHeader:
    """Read and check the header at the start of a stream.

    Args:
        stream: Inflated NIfTI file at position 0; left right behind the header.

    Raises:
        VolumeReadError: Truncated, not single-file NIfTI, or not scalar 3-D or 4-D.
        GeometryError: Singular, NaN or otherwise impossible geometry.
    """
    raw = bytes(fill(stream, bytearray(4)))
    header_dtype = HEADER_2 if _is_nifti2(raw) else HEADER_1
    raw += bytes(fill(stream, bytearray(header_dtype.itemsize - len(raw))))
    if len(raw) < header_dtype.itemsize:
        message = f"File is truncated, got {len(raw)} of {header_dtype.itemsize} header bytes."
        raise VolumeReadError(message)
    fields = _fields(raw)
    _check_magic(bytes(fields["magic"]))
    # Signalling NaNs warn when they are converted; the checks below tell of them in words.
    with np.errstate(invalid="ignore"):
        slope, intercept = _scale(fields)
        shape, num_times = _shape(fields)
        geometry = _geometry(fields, shape)
        if num_times > 1:  # What is written from here on is of one time point.
            fields["dim"] = [3, *shape, 1, 1, 1, 1]
            raw = fields.tobytes()
        return NiftiHeader(
            raw=raw,
            geometry=geometry,
            dtype=_voxel_dtype(fields).newbyteorder(byte_order(raw)),
            offset=_data_offset(fields),
            slope=slope,
            intercept=intercept,
            num_times=num_times,
        )


def make_header(geometry: Geometry, dtype: np.dtype[Any], source: SourceHeader | None) -> bytes:
    """Make the header of a file with a given grid.

    Args:
        geometry: Grid of the data, RAS+ millimetres.
        dtype: Type of the data, one of `DTYPE_NAMES`.
        source: Header of the volume's own file. When it describes exactly `geometry`, its
            forms, codes, units, dimensions, version and byte order are kept.

    Returns:
        Header and empty extension flag; the data follows directly, in `byte_order`.
    """
    fields = _kept_fields(geometry, source)
    if fields is None:
        fields = _new_fields(geometry)
    codes = {np.dtype(name): code for code, name in DTYPE_NAMES.items()}
    values: dict[str, Any] = {
        "datatype": codes[dtype.newbyteorder("=")],
        "bitpix": dtype.itemsize * 8,
        "scl_slope": 1,
        "scl_inter": 0,
        "cal_min": 0,
        "cal_max": 0,
        "vox_offset": fields.dtype.itemsize + 4,
    }
    for name, value in values.items():
        fields[name] = value
    return fields.tobytes() + bytes(4)


def byte_order(raw: bytes) -> Literal["<", ">"]:
    """Return "<" or ">", the byte order of a header and its data."""
    return "<" if int.from_bytes(raw[:4], "little") in {348, 540} else ">"


def _is_nifti2(raw: bytes) -> bool:
    return 540 in {int.from_bytes(raw[:4], "little"), int.from_bytes(raw[:4], "big")}


def _fields(raw: bytes) -> Any:
    # A numpy record: its fields have no static types, hence Any here and below.
    dtype = HEADER_2 if _is_nifti2(raw) else HEADER_1
    return np.frombuffer(raw, dtype=dtype.newbyteorder(byte_order(raw))).copy()[0]


def _check_magic(magic: bytes) -> None:
    if magic[:3] in {b"n+1", b"n+2"}:
        return
    kind = "a .hdr/.img pair" if magic[:2] == b"ni" else "an Analyze 7.5 or damaged header"
    message = f"Only single-file NIfTI can be read, got {kind}; convert it to .nii.gz first."
    raise VolumeReadError(message)


def _shape(fields: Any) -> tuple[tuple[int, int, int], int]:
    """Return the shape of a volume and the number of volumes."""
    dim = [int(value) for value in fields["dim"]]
    num_axes, sizes = dim[0], dim[1 : dim[0] + 1]
    if not 2 <= num_axes <= 7 or min(sizes) < 1:
        message = f"Header dimensions must be 2 to 7 positive sizes, got {dim}; export it again."
        raise VolumeReadError(message)
    if any(size > 1 for size in sizes[4:]):
        message = f"Volume must be 3-D, got shape {tuple(sizes)}; select one channel first."
        raise VolumeReadError(message)
    i, j, k, num_times = (*sizes, 1, 1)[:4]
    return (i, j, k), num_times


def _voxel_dtype(fields: Any) -> np.dtype[Any]:
    code = int(fields["datatype"])
    if code not in DTYPE_NAMES:
        kind = UNREADABLE_DATATYPES.get(code, f"datatype code {code}")
        message = f"Voxels must be one real number each, got {kind}; convert to a scalar volume."
        raise VolumeReadError(message)
    dtype = np.dtype(DTYPE_NAMES[code])
    if int(fields["bitpix"]) not in {0, dtype.itemsize * 8}:
        message = (
            f"Header contradicts itself, got {int(fields['bitpix'])} bits per voxel for {dtype}; "
            "export the volume again."
        )
        raise VolumeReadError(message)
    return dtype


def _data_offset(fields: Any) -> int:
    minimum = fields.dtype.itemsize + 4
    offset = float(fields["vox_offset"]) or minimum
    if not minimum <= offset <= MAX_DATA_OFFSET:
        message = f"Data must start {minimum} bytes or more into the file, got {offset}."
        raise VolumeReadError(message)
    return int(offset)


def _scale(fields: Any) -> tuple[float, float]:
    slope, intercept = float(fields["scl_slope"]), float(fields["scl_inter"])
    if slope == 0.0:
        return 1.0, 0.0
    if not (np.isfinite(slope) and np.isfinite(intercept)):
        message = (
            f"Intensity scaling must be finite, got slope {slope} and intercept {intercept}; "
            "set scl_slope to 1 and scl_inter to 0 if the voxels hold real values."
        )
        raise VolumeReadError(message)
    return slope, intercept


def _geometry(fields: Any, shape: tuple[int, int, int]) -> Geometry:
    has_sform, has_qform = int(fields["sform_code"]) > 0, int(fields["qform_code"]) > 0
    if not has_sform:
        return Geometry(shape, _qform(fields) if has_qform else np.diag([*_zooms(fields), 1.0]))
    geometry = Geometry(shape, _sform(fields))
    if has_qform:
        _report_mismatch(geometry, fields)
    return geometry


def _report_mismatch(geometry: Geometry, fields: Any) -> None:
    try:
        other = Geometry(geometry.shape, _qform(fields))
    except GeometryError:
        return  # A broken qform does not matter beside a valid sform.
    if not geometry.is_close(other, tolerance_voxels=MAX_FORM_MISMATCH_VOXELS):
        logger.warning("NIfTI sform and qform place the volume differently; the sform is used.")


def _mm_per_unit(fields: Any) -> float:
    return MM_PER_UNIT.get(int(fields["xyzt_units"]) & 7, 1.0)


def _sform(fields: Any) -> Float64Array:
    affine = np.eye(4)
    affine[:3] = fields["srow"].astype(np.float64) * _mm_per_unit(fields)
    return affine


def _zooms(fields: Any) -> Float64Array:
    zooms = fields["pixdim"][1:4].astype(np.float64) * _mm_per_unit(fields)
    zooms[int(fields["dim"][0]) :] = 1.0  # Unused by the file: a 2-D image is 1 mm thick.
    if not (np.isfinite(zooms).all() and zooms.min() > 0):
        message = f"Voxel sizes must be positive millimetres, got {zooms.tolist()}; set pixdim."
        raise GeometryError(message)
    return zooms


def _qform(fields: Any) -> Float64Array:
    b, c, d = (float(value) for value in fields["quatern"])
    # Headers round the quaternion to float32: a may come out slightly imaginary.
    a = float(np.sqrt(max(0.0, 1.0 - (b * b + c * c + d * d))))
    norm = float(np.sqrt(a * a + b * b + c * c + d * d))
    a, b, c, d = a / norm, b / norm, c / norm, d / norm
    rotation = np.array(
        [
            [a * a + b * b - c * c - d * d, 2 * (b * c - a * d), 2 * (b * d + a * c)],
            [2 * (b * c + a * d), a * a + c * c - b * b - d * d, 2 * (c * d - a * b)],
            [2 * (b * d - a * c), 2 * (c * d + a * b), a * a + d * d - b * b - c * c],
        ]
    )
    handedness = -1.0 if float(fields["pixdim"][0]) < 0 else 1.0
    affine = np.eye(4)
    affine[:3, :3] = rotation * (_zooms(fields) * [1.0, 1.0, handedness])
    affine[:3, 3] = fields["qoffset"].astype(np.float64) * _mm_per_unit(fields)
    return affine


def _kept_fields(geometry: Geometry, source: SourceHeader | None) -> Any:
    if source is None or not isinstance(source.payload, bytes):
        return None
    fields = _fields(source.payload)
    with np.errstate(invalid="ignore"):
        is_same = _geometry(fields, _shape(fields)[0]) == geometry
    return fields if is_same else None


def _new_fields(geometry: Geometry) -> Any:
    is_large = max(geometry.shape) > NIFTI1_MAX_DIM
    fields: Any = np.zeros((), dtype=HEADER_2 if is_large else HEADER_1)
    rotation, affine = geometry.direction, geometry.affine
    handedness = 1.0 if np.linalg.det(rotation) > 0 else -1.0
    is_rigid = np.allclose(rotation.T @ rotation, np.eye(3), atol=1e-5)
    fields["sizeof_hdr"] = fields.dtype.itemsize
    fields["magic"] = _MAGIC_2 if is_large else b"n+1"
    fields["dim"] = [3, *geometry.shape, 1, 1, 1, 1]
    fields["pixdim"] = [handedness, *geometry.spacing, 1, 1, 1, 1]
    fields["xyzt_units"] = 2
    fields["srow"] = affine[:3]
    fields["sform_code"] = 1
    if is_rigid:  # A quaternion cannot say shear; such a grid has an sform only.
        fields["quatern"] = _quaternion(rotation * [1.0, 1.0, handedness])
        fields["qoffset"] = affine[:3, 3]
        fields["qform_code"] = 1
    return fields


def _quaternion(rotation: Float64Array) -> Float64Array:
    """Return b, c, d of the unit quaternion of a proper rotation, with a not negative.

    Source: the largest eigenvector of Bar-Itzhack's matrix (J. Guidance 23(6), 2000), which is
    stable for half turns too.
    """
    (xx, xy, xz), (yx, yy, yz), (zx, zy, zz) = rotation
    matrix = np.array(
        [
            [xx - yy - zz, xy + yx, xz + zx, zy - yz],
            [xy + yx, yy - xx - zz, yz + zy, xz - zx],
            [xz + zx, yz + zy, zz - xx - yy, yx - xy],
            [zy - yz, xz - zx, yx - xy, xx + yy + zz],
        ]
    )
    vector = np.linalg.eigh(matrix).eigenvectors[:, -1]
    return vector[:3] * (-1.0 if vector[3] < 0 else 1.0)
