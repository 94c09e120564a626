"""The files of the CVPR 2025 challenge for interactive 3D segmentation, in our terms and back.

An input holds ``imgs`` (D, H, W), ``spacing`` and prompts; our volumes are (I, J, K), that is the
same voxels as (W, H, D): their arrays transposed. Places in ``clicks`` and ``boxes`` are array
indices (z, y, x); boxes are closed intervals, ours half-open. The files carry no orientation; they
are taken to be what SimpleITK reads of an axial scan: x to the patient's left, y to the back, z up.

Source: keys and conventions as in CVPR25_iter_eval.py and get_boxes.py of
github.com/JunMa11/CVPR-MedSegFMCompetition (commits 00201e8, 07b3ec3) and the dataset card of
junma/CVPR-BiomedSegFM. Which axis comes first in ``spacing`` is not stated: the authors' scripts
store SimpleITK's x, y, z, as their SAM-Med3D baseline reads it, while the evaluation script uses it
for z, y, x. We read x, y, z unless told otherwise.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal, Protocol, cast

import numpy as np

from fastsam3d.errors import DatasetError
from fastsam3d.eval.boxed import BoxedMask
from fastsam3d.eval.challenge_npz import MAX_BYTES, read_npz
from fastsam3d.prompts import Box, Point, PromptSet
from fastsam3d.volume import Geometry, Region, Volume

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from fastsam3d.segmenter import Prediction

SpacingOrder = Literal["xyz", "zyx"]
MAX_CLASSES = 1000
MAX_CLICKS = 1000
BOX_KEYS = ("z_min", "z_max", "z_mid_y_min", "z_mid_y_max", "z_mid_x_min", "z_mid_x_max")


class PromptSegmenter(Protocol):
    """The part of `fastsam3d.segmenter.Segmenter` that answers all prompts at once."""

    def set_volume(self, volume: Volume) -> None:
        """Start anew on a volume."""
        ...

    def predict(self, prompts: PromptSet) -> Prediction:
        """Replace all prompts."""
        ...


@dataclass(frozen=True, eq=False, kw_only=True)
class ChallengeCase:
    """What a file of the challenge says.

    Attributes:
        volume: The image.
        boxes: Box of class 1, 2, ... on the voxels of `volume`; None where the file has no boxes.
        clicks: Clicks of class 1, 2, ..., in the order given (foreground first without an order).
        previous: Labels of the round before, (I, J, K); None without any.
        labels: The truth, (I, J, K), None where the file has none. Never given to a segmenter.
    """

    volume: Volume
    boxes: tuple[Region, ...] | None = None
    clicks: tuple[tuple[Point, ...], ...] = ()
    previous: NDArray[Any] | None = field(default=None, repr=False)
    labels: NDArray[Any] | None = field(default=None, repr=False)

    @property
    def num_classes(self) -> int:
        """Number of classes that have a prompt."""
        return max(len(self.boxes or ()), len(self.clicks))

    def prompts(self, index: int) -> PromptSet:
        """Return the prompts of class `index` + 1: its box, then its clicks; possibly none."""
        given: list[Box | Point] = []
        if self.boxes is not None and index < len(self.boxes):
            given.append(Box.voxel(self.boxes[index].start, self.boxes[index].stop))
        if index < len(self.clicks):
            given.extend(self.clicks[index])
        return PromptSet(tuple(given))


def read_challenge(
    path: Path,
    *,
    truth: Path | None = None,
    spacing_order: SpacingOrder = "xyz",
    max_bytes: int = MAX_BYTES,
) -> ChallengeCase:
    """Read an input file, with its truth where it has any.

    Args:
        path: The .npz file.
        truth: File with ``gts`` where the input has none.
        spacing_order: Which axis comes first in ``spacing``.
        max_bytes: Budget for all arrays of a file together.

    Raises:
        DatasetError: A file is missing, damaged, too large, or what it says does not fit together.
    """
    found = read_npz(
        path,
        arrays=("imgs", "gts", "spacing", "prev_pred"),
        records=("boxes", "clicks", "clicks_order"),
        max_bytes=max_bytes,
    )
    if truth is not None:
        found["gts"] = read_npz(truth, arrays=("gts",), max_bytes=max_bytes).get("gts")
    try:
        return _as_case(found, spacing_order)
    except _Misfit as error:
        raise DatasetError(f"{path.name} {error}; it is not a file of the challenge.") from error


def predict_classes(segmenter: PromptSegmenter, given: ChallengeCase) -> NDArray[np.uint16]:
    """Segment every class and put them on one label map.

    The answer to several prompts is that of giving them one by one, so that it does not need
    ``prev_pred``; a class without prompts keeps what ``prev_pred`` says. Where masks overlap the
    smaller one wins.

    Args:
        segmenter: Answers prompts.
        given: From `read_challenge`; its truth is not looked at.

    Returns:
        Labels 1, 2, ... of the classes, (D, H, W).
    """
    segmenter.set_volume(given.volume)
    shape = given.volume.shape
    masks: list[BoxedMask] = []
    for index in range(_last_class(given)):
        prompts = given.prompts(index)
        if prompts.prompts:
            answer = segmenter.predict(prompts)
            masks.append(BoxedMask.of(shape, answer.region, answer.region_mask))
        elif given.previous is not None:
            whole = Region((0, 0, 0), shape)
            masks.append(BoxedMask.of(shape, whole, given.previous == index + 1))
        else:
            masks.append(BoxedMask.empty(shape))
    labels = np.zeros(shape, np.uint16)
    for number, mask in enumerate(without_overlaps(masks), start=1):
        labels[mask.region.slices][mask.array] = number
    return np.ascontiguousarray(labels.transpose())


def without_overlaps(masks: Sequence[BoxedMask]) -> list[BoxedMask]:
    """Give every voxel to one mask: where masks overlap, the smaller one (the later of equals).

    Args:
        masks: One per class, on one grid.

    Returns:
        The masks in the same order; boxes are not tightened.
    """
    result = list(masks)
    order = sorted(range(len(masks)), key=lambda n: (masks[n].num_voxels, -n))
    for rank, number in enumerate(order):
        for smaller in order[:rank]:
            other = result[smaller]
            common = other.region.intersection(result[number].region)
            if not common.is_empty:
                result[number] = _minus(result[number], other, common)
    return result


def _minus(mask: BoxedMask, other: BoxedMask, common: Region) -> BoxedMask:
    array = mask.array.copy()
    i, j, k = mask.region.start
    array[common.shift((-i, -j, -k)).slices] &= ~other.crop(common)
    return replace(mask, array=array)


def _last_class(given: ChallengeCase) -> int:
    if given.previous is None:
        return given.num_classes
    return max(given.num_classes, min(int(given.previous.max()), MAX_CLASSES))


class _Misfit(Exception):  # noqa: N818 - becomes a DatasetError that names the file
    """What does not fit together in a file."""


def _as_case(found: dict[str, Any], order: SpacingOrder) -> ChallengeCase:
    if "imgs" not in found or "spacing" not in found:
        raise _Misfit("lacks imgs or spacing")
    image_DHW = cast("NDArray[Any]", found["imgs"])
    if image_DHW.ndim != 3 or 0 in image_DHW.shape:
        raise _Misfit(f"has imgs of shape {image_DHW.shape}, not (D, H, W)")
    image = image_DHW.transpose()
    volume = Volume(image, _geometry(image, found["spacing"], order))
    boxes = clicks = None
    if "boxes" in found:
        boxes = tuple(_box(record, volume.shape) for record in _records(found["boxes"], "boxes"))
    if "clicks" in found:
        clicks = _clicks(found["clicks"], found.get("clicks_order"), volume.shape)
    return ChallengeCase(
        volume=volume,
        boxes=boxes,
        clicks=clicks or (),
        previous=_label_map(found.get("prev_pred"), volume.shape, "prev_pred"),
        labels=_label_map(found.get("gts"), volume.shape, "gts"),
    )


def _geometry(image: NDArray[Any], spacing: NDArray[Any], order: SpacingOrder) -> Geometry:
    sides = [float(side) for side in spacing.ravel()[:4]]
    if len(sides) != 3 or not all(np.isfinite(side) and side > 0 for side in sides):
        raise _Misfit(f"has spacing {sides}, not three positive millimetres")
    x, y, z = sides if order == "xyz" else reversed(sides)
    return Geometry(image.shape, np.diag([-x, -y, z, 1.0]))


def _label_map(
    array: NDArray[Any] | None, shape: tuple[int, int, int], name: str
) -> NDArray[Any] | None:
    if array is None:
        return None
    labels = array.transpose()
    if labels.shape != shape:
        raise _Misfit(f"has {name} of shape {array.shape} for imgs of {shape[::-1]}")
    low, high = labels.min(), labels.max()
    if not (low >= 0 and high <= np.iinfo(np.uint16).max):
        raise _Misfit(f"has {name} from {low} to {high}, not labels")
    small = labels.astype(np.uint8 if high <= np.iinfo(np.uint8).max else np.uint16)
    if labels.dtype.kind == "f" and not np.array_equal(small, labels):
        raise _Misfit(f"has {name} with fractions, not labels")
    return small


def _records(value: Any, name: str) -> list[Any]:
    if not isinstance(value, list) or len(cast("list[Any]", value)) > MAX_CLASSES:
        raise _Misfit(f"has {name} that is no list of at most {MAX_CLASSES} classes")
    return cast("list[Any]", value)


def _box(record: Any, shape: tuple[int, int, int]) -> Region:
    given = cast("dict[str, Any]", record) if isinstance(record, dict) else {}
    if not all(type(given.get(key)) in (int, float) for key in BOX_KEYS):
        raise _Misfit(f"has a box without numbers for {', '.join(BOX_KEYS)}")
    z0, z1, y0, y1, x0, x1 = (_whole(given[key], "box") for key in BOX_KEYS)
    region = Region((x0, y0, z0), (x1 + 1, y1 + 1, z1 + 1)).clip(shape)
    if region.is_empty:
        raise _Misfit(f"has a box from {(z0, y0, x0)} to {(z1, y1, x1)} outside of its image")
    return region


def _clicks(value: Any, orders: Any, shape: tuple[int, int, int]) -> tuple[tuple[Point, ...], ...]:
    records = _records(value, "clicks")
    ordered = [None] * len(records) if orders is None else _records(orders, "clicks_order")
    if len(ordered) != len(records):
        raise _Misfit(f"has clicks for {len(records)} classes and an order for {len(ordered)}")
    return tuple(_class_clicks(*pair, shape) for pair in zip(records, ordered, strict=True))


def _class_clicks(record: Any, order: Any, shape: tuple[int, int, int]) -> tuple[Point, ...]:
    given = cast("dict[str, Any]", record) if isinstance(record, dict) else {}
    queues = {sign: _places(given.get(sign), shape) for sign in ("fg", "bg")}
    num_clicks = sum(len(queue) for queue in queues.values())
    if order is None:
        order = ["fg"] * len(queues["fg"]) + ["bg"] * len(queues["bg"])
    signs = [str(sign) for sign in _records(order, "clicks_order")]
    if sorted(signs) != ["bg"] * len(queues["bg"]) + ["fg"] * len(queues["fg"]):
        raise _Misfit(f"has a clicks_order that does not match its {num_clicks} clicks")
    taken = {sign: iter(queue) for sign, queue in queues.items()}
    return tuple(Point.voxel(next(taken[sign]), positive=sign == "fg") for sign in signs)


def _places(value: Any, shape: tuple[int, int, int]) -> list[tuple[int, int, int]]:
    if not isinstance(value, list) or len(cast("list[Any]", value)) > MAX_CLICKS:
        raise _Misfit(f"has clicks without fg and bg lists of at most {MAX_CLICKS}")
    places: list[tuple[int, int, int]] = []
    for item in cast("list[Any]", value):
        numbers = cast("list[Any]", item) if isinstance(item, list) else []
        if len(numbers) != 3 or not all(type(n) in (int, float) for n in numbers):
            raise _Misfit(f"has a click at {item!r}, not at three numbers")
        z, y, x = (_whole(number, "click") for number in numbers)
        if not all(0 <= at < side for at, side in zip((x, y, z), shape, strict=True)):
            raise _Misfit(f"has a click at {(z, y, x)} outside of its image of {shape[::-1]}")
        places.append((x, y, z))
    return places


def _whole(number: float, what: str) -> int:
    if not np.isfinite(number) or number != int(number) or abs(number) > np.iinfo(np.int32).max:
        raise _Misfit(f"has a {what} at {number}, not at a voxel")
    return int(number)
