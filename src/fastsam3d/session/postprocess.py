"""Steps that clean a mask up: explicit, in order, kept with the object, hence reversible.

Steps never change the answer of the model; they are applied to it anew whenever it or they change.
Lengths are millimetres of the volume, volumes millilitres. The scan's border is no edge of the
object: smoothing continues the mask beyond it.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from importlib import import_module
from typing import TYPE_CHECKING, Any, Final, Literal, cast

import numpy as np

from fastsam3d.errors import ConfigError, PromptError
from fastsam3d.prompts import Point
from fastsam3d.session.object_mask import ObjectMask
from fastsam3d.volume import Region

if TYPE_CHECKING:
    from collections.abc import Iterable

    from numpy.typing import NDArray

    from fastsam3d.volume import Geometry

    Bits = NDArray[np.bool_]

MAX_SMOOTHING_MM: Final = 50.0
_GAUSSIAN_REACH: Final = 4.0
_NEIGHBOURS: Final = np.ones((3, 3, 3), np.bool_)  # voxels that touch by a corner are connected


@dataclass(frozen=True)
class Smooth:
    """Round edges off.

    Attributes:
        radius_mm: Of the ball whose majority decides ("median"), or the standard deviation of
            the blur that is cut at a half ("gaussian").
        method: Which of the two; the median keeps flat faces and loses thin parts.

    Raises:
        ConfigError: An unknown method, or a radius out of range.
    """

    radius_mm: float
    method: Literal["median", "gaussian"] = "median"

    def __post_init__(self) -> None:
        """Check the numbers."""
        _check_positive(self.radius_mm, "Smoothing radius", MAX_SMOOTHING_MM)
        if self.method not in {"median", "gaussian"}:
            message = f"Smoothing must be median or gaussian, got {self.method!r}; choose one."
            raise ConfigError(message)


@dataclass(frozen=True)
class FillHoles:
    """Fill what the mask encloses.

    Attributes:
        axis: Array axis across slices whose holes count one by one; None for holes in 3-D.

    Raises:
        ConfigError: No such axis.
    """

    axis: int | None = None

    def __post_init__(self) -> None:
        """Check the axis."""
        if self.axis is not None and (type(self.axis) is not int or self.axis not in {0, 1, 2}):
            message = f"Axis to fill along must be None, 0, 1 or 2, got {self.axis!r}."
            raise ConfigError(message)


@dataclass(frozen=True)
class KeepComponent:
    """Keep one connected part.

    Attributes:
        point: In the part, or nearest to it; None keeps the largest part.
    """

    point: Point | None = None


@dataclass(frozen=True)
class RemoveSmall:
    """Remove small connected parts.

    Attributes:
        min_ml: Volume below which a part is removed.

    Raises:
        ConfigError: It is not positive.
    """

    min_ml: float

    def __post_init__(self) -> None:
        """Check the volume."""
        _check_positive(self.min_ml, "Smallest volume", 1e6)


Step = Smooth | FillHoles | KeepComponent | RemoveSmall
_KINDS: Final[dict[str, type[Step]]] = {
    "smooth": Smooth,
    "fill_holes": FillHoles,
    "keep_component": KeepComponent,
    "remove_small": RemoveSmall,
}


def apply_steps(mask: ObjectMask, steps: Iterable[Step], geometry: Geometry) -> ObjectMask:
    """Return a mask after steps, in their order.

    Args:
        mask: The model's answer.
        steps: What to do.
        geometry: Grid of the volume.

    Raises:
        PromptError: The point of a step lies outside of the volume.
    """
    for step in steps:
        if mask.is_empty:
            break
        if isinstance(step, Smooth):
            mask = _smooth(mask, step, geometry)
        elif isinstance(step, FillHoles):
            mask = ObjectMask(mask.region, _filled(mask.array, step.axis))
        elif isinstance(step, KeepComponent):
            mask = component(mask, step.point, geometry)
        else:
            mask = _without_small(mask, step.min_ml, geometry)
    return mask


def component(mask: ObjectMask, point: Point | None, geometry: Geometry) -> ObjectMask:
    """Return the connected part of a mask at a point, or nearest to it.

    Args:
        mask: Not empty.
        point: Where; None gives the largest part, of equals the first in array order.
        geometry: Grid of the volume.

    Raises:
        PromptError: The point lies outside of the volume.
    """
    labels, _ = _label(mask.array)
    if point is None:
        chosen = int(np.bincount(labels.ravel())[1:].argmax()) + 1
    else:
        at = np.asarray(point.to_voxel(geometry).position) - mask.region.start
        voxels = np.argwhere(labels)
        distance = np.square((voxels - at) * geometry.spacing).sum(axis=1)
        chosen = int(labels[tuple(voxels[distance.argmin()])])
    return ObjectMask.cropped(mask.region, labels == chosen)


def step_to_plain(step: Step) -> dict[str, Any]:
    """Return a step as values that JSON can hold."""
    (kind,) = (name for name, made in _KINDS.items() if type(step) is made)
    return {"kind": kind, **asdict(step)}


def step_from_plain(plain: Any) -> Step:
    """Make a step of what `step_to_plain` returned.

    Raises:
        ConfigError: It is malformed.
    """
    try:
        values: dict[str, Any] = dict(plain)
        made = _KINDS[values.pop("kind")]
        if values.get("point") is not None:
            values["point"] = Point(**values["point"])
        return made(**values)
    except (KeyError, TypeError, ValueError, PromptError) as error:
        message = f"Step is malformed ({error!r}); write it with step_to_plain."
        raise ConfigError(message) from error


def _smooth(mask: ObjectMask, step: Smooth, geometry: Geometry) -> ObjectMask:
    ndimage: Any = import_module("scipy.ndimage")  # Late: most objects do without.
    spacing = np.asarray(geometry.spacing)
    reach = step.radius_mm * (_GAUSSIAN_REACH if step.method == "gaussian" else 1.0)
    region = _padded(mask.region, np.ceil(reach / spacing).astype(int), geometry)
    inside = mask.part(region).astype(np.float32)
    if step.method == "gaussian":
        share = ndimage.gaussian_filter(
            inside, step.radius_mm / spacing, mode="nearest", truncate=_GAUSSIAN_REACH
        )
        return ObjectMask.cropped(region, share >= 0.5)
    return ObjectMask.cropped(region, _majority(inside, step.radius_mm / spacing))


def _majority(inside: NDArray[np.float32], radius: NDArray[np.float64]) -> Bits:
    """Return where more than half of an ellipsoid (an odd number of voxels) is foreground."""
    fft: Any = import_module("scipy.fft")
    reach: list[int] = np.floor(radius + 1e-6).astype(int).tolist()
    sides = [2 * n + 1 for n in reach]
    offsets = np.indices(sides) - np.reshape(reach, (3, 1, 1, 1))
    ball = np.square(offsets / np.maximum(radius, 1e-9)[:, None, None, None]).sum(axis=0) <= 1
    ball[tuple(reach)] = True
    padded = np.pad(inside, [(n, n) for n in reach], mode="edge")
    sizes = [fft.next_fast_len(n, real=True) for n in padded.shape]
    spectrum = fft.rfftn(padded.astype(np.float64), sizes) * fft.rfftn(ball.astype(float), sizes)
    # What wraps around ends where the first whole ball begins.
    whole = tuple(slice(2 * n, size) for n, size in zip(reach, padded.shape, strict=True))
    # Counts are whole numbers; rounding takes the noise of the Fourier transform off.
    counts = np.rint(fft.irfftn(spectrum, sizes)[whole])
    return np.asarray(2 * counts > np.count_nonzero(ball))


def _filled(array: Bits, axis: int | None) -> Bits:
    ndimage: Any = import_module("scipy.ndimage")
    if axis is None:
        return cast("Bits", ndimage.binary_fill_holes(array))
    slices = [ndimage.binary_fill_holes(part) for part in np.moveaxis(array, axis, 0)]
    return np.moveaxis(np.stack(slices), 0, axis)


def _without_small(mask: ObjectMask, min_ml: float, geometry: Geometry) -> ObjectMask:
    labels, _ = _label(mask.array)
    sizes_ml = np.bincount(labels.ravel()) * voxel_ml(geometry)
    is_kept = sizes_ml >= min_ml * (1 - 1e-9)
    is_kept[0] = False
    return ObjectMask.cropped(mask.region, is_kept[labels])


def voxel_ml(geometry: Geometry) -> float:
    """Return the volume of a voxel in millilitres."""
    return float(abs(np.linalg.det(geometry.affine[:3, :3]))) / 1000.0


def _label(array: Bits) -> tuple[NDArray[np.int32], int]:
    ndimage: Any = import_module("scipy.ndimage")
    return ndimage.label(array, structure=_NEIGHBOURS)


def _padded(region: Region, reach: NDArray[np.int_], geometry: Geometry) -> Region:
    low = np.maximum(np.subtract(region.start, reach), 0).tolist()
    high = np.minimum(np.add(region.stop, reach), geometry.shape).tolist()
    return Region(tuple(low), tuple(high))


def _check_positive(value: float, what: str, at_most: float) -> None:
    if isinstance(value, bool) or not 0 < value <= at_most:
        message = f"{what} must be above 0 and at most {at_most:g}, got {value!r}; correct it."
        raise ConfigError(message)
