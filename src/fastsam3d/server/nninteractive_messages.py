"""Requests of the nnInteractive protocol as values: metadata, images, boxes and painted masks."""

from __future__ import annotations

import json
import math
from typing import TYPE_CHECKING, Any, Final, NoReturn, cast

import numpy as np

from fastsam3d.errors import PromptError
from fastsam3d.prompts import Box, MaskPrompt, Painted, Point, SliceBox
from fastsam3d.prompts.painted import MAX_PAINTED_VOXELS, fill_outline
from fastsam3d.server.errors import ApiError
from fastsam3d.server.nninteractive_arrays import ArrayBudget, unpack_array
from fastsam3d.session.channels import stack_channels
from fastsam3d.volume import Geometry, Region, Volume

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

    from fastsam3d.prompts import Prompt
    from fastsam3d.server.settings import ServerSettings

MAX_META_CHARACTERS: Final = 16 * 1024
MAX_CHANNELS: Final = 16
BUFFER_DTYPES: Final = (
    "bool", "int8", "uint8", "int16", "uint16", "int32", "uint32", "int64", "uint64",
)  # fmt: skip
MAX_INDEX: Final = 2**31
# An array comes without directions. Its axes are taken to run as in an axial scan that ITK read:
# from feet to head, from front to back, from right to left.
_DIRECTIONS: Final = np.array([[0.0, 0.0, -1.0], [0.0, -1.0, 0.0], [1.0, 0.0, 0.0]])


def parse_meta(text: str | bytes | None) -> dict[str, Any]:
    """Return the metadata of a request; nothing at all says nothing.

    Raises:
        ApiError: 400 ``bad_message``.
    """
    if not text:
        return {}
    if len(text) > MAX_META_CHARACTERS:
        bad(f"metadata has {len(text)} characters, at most {MAX_META_CHARACTERS} fit")
    try:
        found = json.loads(text, parse_constant=_refuse_constant)
    except (ValueError, RecursionError):
        bad("metadata is not JSON")
    if not isinstance(found, dict):
        bad("metadata is not an object")
    return cast("dict[str, Any]", found)


def read_flag(meta: Mapping[str, Any], name: str, *, default: bool | None = None) -> bool:
    """Return a boolean of the metadata.

    Raises:
        ApiError: 400 ``bad_message``: it is missing without a default, or none.
    """
    value = meta.get(name, default)
    if not isinstance(value, bool):
        bad(f"{name} must be true or false")
    return value


def bad(why: str) -> NoReturn:
    """Refuse a request.

    Raises:
        ApiError: 400 ``bad_message``.
    """
    raise ApiError(400, "bad_message", f"The request is malformed: {why}.")


# Images


def read_image(
    message: bytes | memoryview, meta: Mapping[str, Any], settings: ServerSettings
) -> Volume:
    """Return the volume of an image (C, X, Y, Z) with its spacing in the same order.

    Args:
        message: The packed array.
        meta: With ``image_properties`` and in it, perhaps, ``spacing`` in mm.
        settings: Bounds.

    Returns:
        Several channels are a `MultiVolume`: the model sees all of them.

    Raises:
        ApiError: 400, 413 or 422, as `unpack_array`.
        FastSAM3DError: The values cannot be a volume.
    """
    spacing = _read_spacing(meta)
    budget = ArrayBudget(voxels=settings.max_voxels, bytes=2 * settings.max_volume_bytes)
    array = unpack_array(message, budget)
    if array.ndim != 4 or array.shape[0] > MAX_CHANNELS:
        shape = tuple(array.shape)
        text = f"An image has axes C, X, Y, Z and at most {MAX_CHANNELS} channels, got {shape}."
        raise ApiError(422, "bad_shape", text)
    if array.dtype.itemsize > 4:
        with np.errstate(over="ignore"):  # What becomes infinite is refused as such.
            array = array.astype(np.float32)
    if array.dtype == np.bool_:
        array = array.view(np.uint8)
    geometry = image_geometry(cast("tuple[int, int, int]", array.shape[1:]), spacing)
    volumes = [Volume(channel, geometry) for channel in array]
    return volumes[0] if len(volumes) == 1 else stack_channels(volumes)


def image_geometry(
    shape: tuple[int, int, int], spacing: tuple[float, float, float] = (1.0, 1.0, 1.0)
) -> Geometry:
    """Return the grid that an image without directions is taken to have.

    Args:
        shape: Of the array, as the client sent it.
        spacing: In mm, in the same order.
    """
    affine = np.eye(4)
    affine[:3, :3] = _DIRECTIONS * spacing
    return Geometry(shape, affine)


def _read_spacing(meta: Mapping[str, Any]) -> tuple[float, float, float]:
    properties: Any = meta.get("image_properties") or {}
    if not isinstance(properties, dict):
        bad("image_properties is not an object")
    spacing: Any = cast("dict[str, Any]", properties).get("spacing")
    if spacing is None:
        return (1.0, 1.0, 1.0)
    if not isinstance(spacing, list) or len(cast("list[Any]", spacing)) != 3:
        bad("spacing must be three numbers")
    values = cast("list[Any]", spacing)
    if not all(type(value) in {int, float} and 1e-6 < value < 1e6 for value in values):
        bad("spacing must be three lengths in mm")
    return float(values[0]), float(values[1]), float(values[2])


def read_buffer(
    meta: Mapping[str, Any], settings: ServerSettings
) -> tuple[tuple[int, ...], np.dtype[Any]]:
    """Return shape and type of a client's buffer; nothing of that size is ever allocated.

    Raises:
        ApiError: 400 ``bad_message``, 413 ``too_large``.
    """
    shape, name = meta.get("shape"), meta.get("dtype")
    if not isinstance(shape, list) or len(cast("list[Any]", shape)) != 3:
        bad("shape must be three whole numbers")
    sides = tuple(cast("list[Any]", shape))
    if any(type(side) is not int or not 0 < side <= MAX_INDEX for side in sides):
        bad("shape must be three whole numbers above 0")
    if name not in BUFFER_DTYPES:
        bad("dtype must be bool or a whole number such as uint8")
    if math.prod(sides) > settings.max_voxels:
        message = f"A buffer has at most {settings.max_voxels} voxels, got {math.prod(sides)}."
        raise ApiError(413, "too_large", message)
    return sides, np.dtype(name)


# Prompts


def read_point(meta: Mapping[str, Any]) -> Prompt:
    """Return the point of a request.

    Raises:
        ApiError: 400 ``bad_message``.
        PromptError: The coordinates are not three numbers.
    """
    coordinates = meta.get("coordinates")
    if not isinstance(coordinates, list):
        bad("coordinates must be three numbers")
    positive = read_flag(meta, "include_interaction")
    return Point.voxel(cast("list[float]", coordinates), positive=positive)


def read_box(meta: Mapping[str, Any], geometry: Geometry) -> Prompt:
    """Return the box of a request; of size 1 along an axis it is a box on a slice.

    A negative box says that all within it is not the object.

    Raises:
        ApiError: 400 ``bad_message``.
        PromptError: A negative box lies outside of the volume or is too large.
    """
    region = read_region(meta.get("bbox_coords"))
    flat = [axis for axis in range(3) if region.shape[axis] == 1]
    if read_flag(meta, "include_interaction"):
        if flat:
            return SliceBox(region.start, region.stop, flat[0], "voxel")
        return Box.voxel(region.start, region.stop)
    inside = Box.voxel(region.start, region.stop).to_voxel(geometry).region
    if math.prod(inside.shape) > MAX_PAINTED_VOXELS:
        message = (
            f"A negative box holds at most {MAX_PAINTED_VOXELS} voxels, got {inside.shape}; give "
            "a smaller one."
        )
        raise PromptError(message)
    axis = flat[0] if flat else None
    full = np.ones(inside.shape, np.bool_)
    return Painted.of(full, geometry, region=inside, positive=False, lasso_axis=axis)


def read_region(coordinates: Any) -> Region:
    """Return the box of three pairs of whole numbers, each sorted.

    Raises:
        ApiError: 400 ``bad_message``: it is malformed, or has no size along an axis.
    """
    if not isinstance(coordinates, list) or len(cast("list[Any]", coordinates)) != 3:
        bad("a box must be three pairs of whole numbers")
    pairs = [_read_pair(pair) for pair in cast("list[Any]", coordinates)]
    (i0, i1), (j0, j1), (k0, k1) = pairs
    return Region((i0, j0, k0), (i1, j1, k1))


def _read_pair(pair: Any) -> tuple[int, int]:
    values = cast("list[Any]", pair) if isinstance(pair, list) else []
    is_whole = [
        type(value) in {int, float} and abs(value) <= MAX_INDEX and value == int(value)
        for value in values
    ]
    if len(values) != 2 or not all(is_whole):
        bad("a box must be three pairs of whole numbers")
    low, high = sorted(int(value) for value in values)
    if low == high:
        bad("a box must have a size along each axis")
    return low, high


def mask_region(meta: Mapping[str, Any], geometry: Geometry) -> Region:
    """Return where the mask of a request lies: the whole volume, or its ``interaction_bbox``.

    Raises:
        ApiError: 400 ``bad_message``, 422 ``bad_shape``.
    """
    box = meta.get("interaction_bbox")
    if box is None:
        return geometry.region
    region = read_region(box)
    if region.clip(geometry.shape) != region:
        message = f"interaction_bbox {region} reaches out of the image of {geometry.shape}."
        raise ApiError(422, "bad_shape", message)
    return region


def read_mask(message: bytes, region: Region, geometry: Geometry) -> MaskPrompt:
    """Return the mask of a request; every value but 0 counts.

    Raises:
        ApiError: 400, 413 or 422, as `unpack_array`; 400 where values are not finite.
    """
    size = math.prod(region.shape)
    array = unpack_array(message, ArrayBudget(voxels=size, bytes=8 * size, shape=region.shape))
    if array.dtype.kind == "f":
        array = _finite(array) != 0
    return MaskPrompt.of_part(region, array, geometry)


def to_stroke(mask: MaskPrompt, *, positive: bool) -> Prompt | None:
    """Return a painted scribble; None where nothing is painted."""
    return None if mask.is_empty else Painted.of_mask(mask, positive=positive)


def to_area(mask: MaskPrompt, drawn_on: Region, *, positive: bool) -> Prompt | None:
    """Return the area of a lasso, whether it came filled or as an outline; None for nothing.

    Args:
        mask: What came.
        drawn_on: Box that was sent; where it has size 1 the slice was drawn on.
        positive: Whether the area is on the object.

    Raises:
        PromptError: It does not lie on one slice.
    """
    if mask.is_empty:
        return None
    sent = [axis for axis in range(3) if drawn_on.shape[axis] == 1]
    flat = sent or [axis for axis in range(3) if mask.region.shape[axis] == 1]
    if not flat:
        message = f"A lasso lies on one slice, got a box of {mask.region.shape}; scribble instead."
        raise PromptError(message)
    axis = flat[0]
    area = fill_outline(mask.part, axis)
    return Painted.of(area, mask.geometry, region=mask.region, positive=positive, lasso_axis=axis)


def _finite(array: NDArray[Any]) -> NDArray[Any]:
    if not np.isfinite(array).all():
        bad("a mask holds values that are not finite")
    return array


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(name)
