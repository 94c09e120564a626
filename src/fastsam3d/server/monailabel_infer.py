"""What a MONAI Label client asks of a model, as prompts, and the answer as label map and file.

The protocol has no memory: each request holds all points. Its answer is that of our API to the
same points, ``Session.predict``, in this order: region of interest, mask, points on the object,
points on background.
"""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeGuard, cast

import numpy as np

import fastsam3d
from fastsam3d.errors import PromptError
from fastsam3d.io import Segment, write_volume
from fastsam3d.io.dicom_seg import Algorithm, write_dicom_seg
from fastsam3d.prompts import Box, Point, PromptSet
from fastsam3d.prompts.plain import load_json
from fastsam3d.server.errors import ApiError
from fastsam3d.session.objects import colour_of
from fastsam3d.volume import Volume

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

    from fastsam3d.io.dicom_seg import SeriesHeaders
    from fastsam3d.prompts import MaskPrompt, Prompt
    from fastsam3d.segmenter import Prediction
    from fastsam3d.session import Session
    from fastsam3d.volume import Mask

MODEL: Final = "fastsam3d"
"""One object: points of the keys ``foreground`` and ``background``."""
LABELS_MODEL: Final = "fastsam3d_labels"
"""Several objects in one request: points under the name of each."""
LABELS: Final = (
    "structure", "lesion", "tumour", "liver", "spleen", "pancreas", "kidney left", "kidney right",
    "stomach", "bladder", "heart", "aorta", "lung", "brain", "bone", "muscle",
)  # fmt: skip
"""Names that clients offer. The model does not know them: it segments what is clicked."""
BACKGROUND: Final = "background"

MAX_POINTS: Final = 256
"""Points of one request; each costs a decoding."""
MAX_OBJECTS: Final = 64
"""Objects of one request."""
MAX_LABEL_CHARACTERS: Final = 100
EXTENSIONS: Final = (".nrrd", ".nii.gz", ".nii", ".mha")
DTYPES: Final = ("uint8", "uint16", "int16", "int32")
# Keys of the protocol that are never names of objects.
_NOT_LABELS: Final = frozenset(
    ("background", "foreground", "roi", "label", "label_info", "label_names", "model", "image",
     "points", "point_labels", "label_prompt", "spatial_size", "spacing", "slice")
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Form:
    """How the answer is to be written.

    Attributes:
        extension: One of `EXTENSIONS`.
        dtype: One of `DTYPES`.
        is_compressed: Whether the voxels of formats that can be are compressed.
    """

    extension: str = ".nrrd"
    dtype: str = "uint8"
    is_compressed: bool = True


@dataclass(frozen=True, kw_only=True)
class Ask:
    """One request.

    Attributes:
        prompts: Prompts of each object, by its name.
        values: Voxel value of each object in the answer.
        form: How it is to be written.
    """

    prompts: Mapping[str, PromptSet]
    values: Mapping[str, int]
    form: Form


@dataclass(frozen=True, kw_only=True, eq=False)
class Answer:
    """What was found.

    Attributes:
        mask: Label map on the grid of the volume.
        predictions: Of each object, by its name.
    """

    mask: Mask
    predictions: Mapping[str, Prediction]


def read_params(text: str) -> dict[str, Any]:
    """Parse the ``params`` of a request.

    Raises:
        ApiError: 400 ``bad_params``: no JSON object.
    """
    try:
        params = load_json(text or "{}")
    except PromptError as error:
        raise ApiError(400, "bad_params", "The field params must be a JSON object.") from error
    if not isinstance(params, dict):
        raise ApiError(400, "bad_params", "The field params must be a JSON object.")
    return cast("dict[str, Any]", params)


def read_ask(model: str, params: Mapping[str, Any], mask: MaskPrompt | None = None) -> Ask:
    """Read what is asked.

    Args:
        model: `MODEL` or `LABELS_MODEL`.
        params: From the client.
        mask: A mask to go on from, sent as a file.

    Raises:
        ApiError: 404 ``model_not_found``, 422 ``bad_value`` or ``too_many_points``.
        PromptError: A coordinate or the region is malformed, or nothing is prompted.
    """
    form = _read_form(params)
    common: tuple[Prompt, ...] = () if mask is None else (mask,)
    if params.get("roi"):
        common = (_read_roi(params["roi"]), *common)
    background = _read_points(params, BACKGROUND, positive=False)
    if model == MODEL:
        name = _read_name(params)
        given = {name: _read_points(params, "foreground", positive=True)}
        values = {name: 1}
    elif model == LABELS_MODEL:
        names = [key for key in params if key not in _NOT_LABELS and _are_points(params[key])]
        given = {name: _read_points(params, name, positive=True) for name in names}
        values = _values_of(names)
    else:
        message = f"There is no model of that name; take {MODEL} or {LABELS_MODEL}, see /info/."
        raise ApiError(404, "model_not_found", message)
    _check_numbers(given, background)
    prompts = {name: PromptSet((*common, *points, *background)) for name, points in given.items()}
    if not any(len(each) for each in prompts.values()):
        message = "There is no prompt to answer; give at least one point in foreground."
        raise PromptError(message)
    return Ask(prompts=prompts, values=values, form=form)


def predict(session: Session, ask: Ask) -> Answer:
    """Answer a request; for the engine's thread.

    Where objects overlap, the later one of the request is seen.

    Raises:
        PromptError: A prompt does not fit the volume.
        CheckpointError: The model returned logits that are not finite.
    """
    volume = session.volume
    # In the order of files, which saves turning a whole volume round.
    labels: NDArray[Any] = np.zeros(volume.shape, ask.form.dtype, order="F")
    found: dict[str, Prediction] = {}
    for name, prompts in ask.prompts.items():
        prediction = session.predict(prompts)
        inside = prediction.region_mask.astype(bool)
        labels[prediction.region.slices][inside] = ask.values[name]
        found[name] = prediction
    return Answer(mask=volume.new_mask(labels), predictions=found)


def describe(ask: Ask, answer: Answer) -> dict[str, Any]:
    """Return what a client is told beside the label map."""
    found = answer.predictions.values()
    encode_ms, click_ms = sum(p.encode_ms for p in found), sum(p.click_ms for p in found)
    return {
        "label_names": dict(ask.values),
        "centroids": [],
        "quality": {name: p.predicted_quality for name, p in answer.predictions.items()},
        "warnings": list(dict.fromkeys(text for p in found for text in p.warnings)),
        "latencies": {
            "pre": round(encode_ms / 1000, 4),
            "infer": round(click_ms / 1000, 4),
            "total": round((encode_ms + click_ms) / 1000, 4),
        },
    }


def to_file(answer: Answer, form: Form) -> bytes:
    """Return the label map as the bytes of a file; takes a while, so not for the event loop."""
    with tempfile.TemporaryDirectory(prefix="fastsam3d-") as scratch:
        path = Path(scratch) / f"mask{form.extension}"
        mask = answer.mask
        voxels = Volume(mask.array.astype(form.dtype), mask.geometry, source=mask.source)
        write_volume(voxels, path, is_compressed=form.is_compressed)
        return path.read_bytes()


def to_dicom_seg(ask: Ask, answer: Answer, series: SeriesHeaders, model: str) -> bytes:
    """Return the objects as a DICOM SEG file; takes a while, so not for the event loop.

    Raises:
        VolumeWriteError: As `write_dicom_seg`.
    """
    segments = [
        Segment(label=value, name=name, colour=colour_of(value))
        for name, value in ask.values.items()
    ]
    with tempfile.TemporaryDirectory(prefix="fastsam3d-") as scratch:
        path = Path(scratch) / "mask.dcm"
        maker = Algorithm(f"fastsam3d {model}", fastsam3d.__version__)
        write_dicom_seg([answer.mask], segments, series, path, algorithm=maker)
        return path.read_bytes()


def series_mask(volume: Volume, data: bytes) -> Mask:
    """Return a label map that a viewer sent as bare bytes, one a voxel, i fastest.

    Raises:
        ApiError: 422 ``bad_label``: another number of voxels than the image has.
    """
    values = np.frombuffer(data, np.uint8)
    if values.size != volume.array.size:
        message = f"The label must have {volume.array.size} bytes, got {values.size}."
        raise ApiError(422, "bad_label", message)
    return volume.new_mask(values.reshape(volume.shape, order="F"))


def _read_form(params: Mapping[str, Any]) -> Form:
    extension = params.get("result_extension") or ".nrrd"
    dtype = params.get("result_dtype") or "uint8"
    for value, known, what in (
        (extension, EXTENSIONS, "result_extension"),
        (dtype, DTYPES, "result_dtype"),
    ):
        if value not in known:
            raise ApiError(422, "bad_value", f"{what} must be one of {', '.join(known)}.")
    is_compressed = params.get("result_compress", True) is not False
    return Form(extension=extension, dtype=dtype, is_compressed=is_compressed)


def _read_name(params: Mapping[str, Any]) -> str:
    name = params.get("label")
    return name if _is_name(name) else LABELS[0]


def _is_name(name: object) -> TypeGuard[str]:
    return isinstance(name, str) and 0 < len(name) <= MAX_LABEL_CHARACTERS and name.isprintable()


def _are_points(value: object) -> bool:
    if not isinstance(value, list):
        return False
    items = cast("list[object]", value)
    return bool(items) and all(isinstance(item, list) for item in items)


def _read_points(params: Mapping[str, Any], key: str, *, positive: bool) -> tuple[Point, ...]:
    value: object = params.get(key) or []
    if not isinstance(value, list):
        message = f"Points of {key!r} must be a list of [i, j, k]; correct the request."
        raise PromptError(message)
    items = cast("list[Any]", value)
    if len(items) > MAX_POINTS:
        raise _too_many()
    for item in items:
        if not isinstance(item, list):
            message = f"A point of {key!r} must be [i, j, k]; correct the request."
            raise PromptError(message)
    return tuple(Point.voxel(item, positive=positive) for item in items)


def _read_roi(value: object) -> Box:
    """Return the region of interest: i, i, j, j, k, k, either of a pair first, both included."""
    numbers = cast("list[Any]", value) if isinstance(value, list) else []
    is_whole = all(type(n) in {int, float} and float(n).is_integer() for n in numbers)
    if len(numbers) != 6 or not is_whole:
        message = "The roi must be six whole numbers, imin, imax, jmin, jmax, kmin, kmax."
        raise PromptError(message)
    pairs = [sorted(numbers[axis : axis + 2]) for axis in (0, 2, 4)]
    return Box.voxel([low for low, _ in pairs], [high + 1 for _, high in pairs])


def _values_of(names: list[str]) -> dict[str, int]:
    """Return voxel values: what /info/ says, and the next free ones for other names."""
    for name in names:
        if not _is_name(name):
            message = f"A label must be 1 to {MAX_LABEL_CHARACTERS} printable characters."
            raise ApiError(422, "bad_value", message)
    values = {name: LABELS.index(name) + 1 for name in names if name in LABELS}
    for name in names:
        values.setdefault(name, len(LABELS) + 1 + sum(n not in LABELS for n in values))
    return values


def _check_numbers(given: Mapping[str, tuple[Point, ...]], background: tuple[Point, ...]) -> None:
    if len(given) > MAX_OBJECTS:
        message = f"At most {MAX_OBJECTS} objects fit one request, got {len(given)}; send fewer."
        raise ApiError(422, "too_many_points", message)
    if sum(len(points) + len(background) for points in given.values()) > MAX_POINTS:
        raise _too_many()


def _too_many() -> ApiError:
    message = f"At most {MAX_POINTS} points fit one request; send fewer."
    return ApiError(422, "too_many_points", message)
