"""The weights card: the JSON file beside each weights file that says what the numbers are.

Reading is strict: a card with a missing, unknown or mistyped entry is refused, because a wrong
normalisation or architecture gives a model that runs and is wrong. The module imports no torch.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal, cast, get_args

from fastsam3d.errors import CheckpointError, ConfigError
from fastsam3d.model.config import DENSE, HighResConfig, ModelConfig, PatchEncoderConfig

Quantisation = Literal["none", "int8"]
Normalisation = Literal["roi_percentile_zscore", "foreground_zscore"]
FORMAT_VERSION = 1
# A card is a page of text; anything larger is not a card.
_MAX_CARD_BYTES = 1_000_000
# Far above any real width, depth or image size; bounds what a hostile card makes us build.
_MAX_SIZE = 4096
_MAX_GRID_SIZE = 64
_MAX_SCRIBBLE_POINTS = 16
_SHA256 = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True, kw_only=True)
class Preprocessing:
    """How a volume becomes the network's input.

    Attributes:
        normalisation: ``roi_percentile_zscore`` (ours) or ``foreground_zscore`` (official models).
        image_size: Side of the cubic ROI in voxels.
        spacings_mm: Isotropic ROI spacings that the model was trained for, ascending.
        scribble_points: Points along a scribble that the model was trained to be given at once;
            1 for a model that knows a first click alone.
        ct_window_hu: CT is shown through a window around the clicked tissue, this far to each side
            at least, in Hounsfield units; None where the model was trained to see all of it.
    """

    normalisation: Normalisation
    image_size: int
    spacings_mm: tuple[float, ...]
    scribble_points: int = 1
    ct_window_hu: float | None = None


@dataclass(frozen=True, kw_only=True)
class WeightsCard:
    """Facts about one weights file.

    Attributes:
        name: Name of the weights, by default that of the variant.
        architecture: Config that builds the network.
        preprocessing: How a volume becomes the network's input.
        licence: SPDX identifier of the weights' licence.
        training_data: What the weights were trained on, one entry per source.
        sha256: Digest of the weights file, lower-case hexadecimal.
        created: Date of the file, ISO 8601.
        quantisation: ``int8`` (matrices as int8 with scales, the rest float16) or ``none``.
        notes: Anything a user should know; may be empty.
    """

    name: str
    architecture: ModelConfig
    preprocessing: Preprocessing
    licence: str
    training_data: tuple[str, ...]
    sha256: str
    created: str
    quantisation: Quantisation = "none"
    notes: str = ""

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON-compatible data."""
        return {
            "format_version": FORMAT_VERSION,
            "name": self.name,
            "architecture": self.architecture.to_dict(),
            "preprocessing": {
                "normalisation": self.preprocessing.normalisation,
                "image_size": self.preprocessing.image_size,
                "spacings_mm": list(self.preprocessing.spacings_mm),
                "scribble_points": self.preprocessing.scribble_points,
                "ct_window_hu": self.preprocessing.ct_window_hu,
            },
            "licence": self.licence,
            "training_data": list(self.training_data),
            "sha256": self.sha256,
            "created": self.created,
            "quantisation": self.quantisation,
            "notes": self.notes,
        }

    @classmethod
    def from_dict(cls, data: object) -> WeightsCard:
        """Check parsed JSON and build the card.

        Raises:
            CheckpointError: An entry is missing, unknown, mistyped or out of range.
        """
        entries = _entries(data, "card", {"format_version", *(item.name for item in fields(cls))})
        if entries["format_version"] != FORMAT_VERSION:
            msg = (
                f"Card format_version must be {FORMAT_VERSION}, got "
                f"{entries['format_version']!r}; update fastsam3d."
            )
            raise CheckpointError(msg)
        sha256 = _text(entries, "sha256")
        if not _SHA256.fullmatch(sha256):
            raise _wrong("sha256", "64 lower-case hexadecimal digits", sha256)
        architecture = _architecture(entries["architecture"])
        preprocessing = _preprocessing(entries["preprocessing"])
        if preprocessing.image_size != architecture.image_size:
            expected = f"the architecture's {architecture.image_size}"
            raise _wrong("preprocessing.image_size", expected, preprocessing.image_size)
        return cls(
            name=_text(entries, "name"),
            architecture=architecture,
            preprocessing=preprocessing,
            licence=_text(entries, "licence"),
            training_data=_texts(entries, "training_data"),
            sha256=sha256,
            created=_text(entries, "created"),
            quantisation=cast("Quantisation", _one_of(entries, "quantisation", Quantisation)),
            notes=_text(entries, "notes"),
        )


def card_path(weights_path: Path) -> Path:
    """Return where the card of a weights file lies: beside it, with the suffix ``.json``."""
    return weights_path.with_suffix(".json")


def read_card(weights_path: Path) -> WeightsCard:
    """Read the card beside a weights file.

    Raises:
        CheckpointError: The card is missing, is not JSON or breaks a rule of the format.
    """
    path = card_path(weights_path)
    try:
        if path.stat().st_size > _MAX_CARD_BYTES:
            msg = f"Card {path} is larger than {_MAX_CARD_BYTES} bytes; it is not a weights card."
            raise CheckpointError(msg)
        data: object = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        msg = (
            f"Weights card {path} cannot be read ({error.strerror}); keep the .json file beside "
            "the weights, or convert the original checkpoint with `fastsam3d models convert`."
        )
        raise CheckpointError(msg) from error
    except (ValueError, RecursionError) as error:
        msg = f"Weights card {path} is not JSON text ({error}); fetch or convert the weights again."
        raise CheckpointError(msg) from error
    try:
        return WeightsCard.from_dict(data)
    except CheckpointError as error:
        msg = f"Weights card {path} is wrong: {error}"
        raise CheckpointError(msg) from error


def _architecture(data: object) -> ModelConfig:
    names = {item.name for item in fields(ModelConfig)}
    if isinstance(data, dict):  # cards from before there was a choice know one kind of attention
        data = {"attention": DENSE, **cast("dict[str, object]", data)}
    entries = _entries(data, "architecture", names)
    _entries(entries["patch"], "architecture.patch", {f.name for f in fields(PatchEncoderConfig)})
    _entries(entries["highres"], "architecture.highres", {f.name for f in fields(HighResConfig)})
    try:
        config = ModelConfig.from_dict(entries)
    except (ConfigError, TypeError) as error:
        msg = f"architecture cannot be built: {error}"
        raise CheckpointError(msg) from error
    reference = ModelConfig(name="", family="hr").to_dict()
    _check_types(entries, reference, "architecture")
    if config.grid_size > _MAX_GRID_SIZE:
        expected = f"at most {_MAX_GRID_SIZE} patches"
        raise _wrong("architecture.image_size", expected, config.image_size)
    return config


def _check_types(data: object, reference: object, where: str) -> None:
    """Compare JSON data with the same entries of a valid config, type by type."""
    if isinstance(reference, dict):
        for key, value in cast("dict[str, object]", reference).items():
            _check_types(cast("dict[str, object]", data)[key], value, f"{where}.{key}")
        return
    if isinstance(reference, list):
        samples = cast("list[object]", reference) or [0]
        for item in _list(data, where):
            _check_types(item, samples[0], where)
        return
    allowed = (int, float) if isinstance(reference, float) else (type(reference),)
    if type(data) not in allowed:
        raise _wrong(where, f"of type {type(reference).__name__}", data)
    if isinstance(data, int | float) and not 0 <= data <= _MAX_SIZE:
        raise _wrong(where, f"between 0 and {_MAX_SIZE}", data)


def _preprocessing(data: object) -> Preprocessing:
    names = {item.name for item in fields(Preprocessing)}
    if isinstance(data, dict):  # older cards do not have these
        data = {"scribble_points": 1, "ct_window_hu": None, **cast("dict[str, object]", data)}
    entries = _entries(data, "preprocessing", names)
    size, points = entries["image_size"], entries["scribble_points"]
    if type(points) is not int or not 1 <= points <= _MAX_SCRIBBLE_POINTS:
        expected = f"an integer from 1 to {_MAX_SCRIBBLE_POINTS}"
        raise _wrong("preprocessing.scribble_points", expected, points)
    if type(size) is not int:
        raise _wrong("preprocessing.image_size", "an integer", size)
    window = entries["ct_window_hu"]
    if window is not None and not _is_length(window):
        raise _wrong("preprocessing.ct_window_hu", "a positive number or null", window)
    values = _list(entries["spacings_mm"], "preprocessing.spacings_mm")
    if not values or not all(_is_length(value) for value in values):
        raise _wrong("preprocessing.spacings_mm", "a list of positive millimetres", values)
    return Preprocessing(
        normalisation=cast("Normalisation", _one_of(entries, "normalisation", Normalisation)),
        image_size=size,
        spacings_mm=tuple(float(cast("float", value)) for value in values),
        scribble_points=points,
        ct_window_hu=None if window is None else float(window),
    )


def _entries(data: object, what: str, expected: set[str]) -> dict[str, Any]:
    if not isinstance(data, dict):
        raise _wrong(what, "a JSON object", data)
    entries = cast("dict[str, Any]", data)
    missing, unknown = sorted(expected - set(entries)), sorted(set(entries) - expected)
    if missing or unknown:
        msg = f"{what} lacks {missing} and has unknown entries {unknown}; write the card again."
        raise CheckpointError(msg)
    return entries


def _text(entries: Mapping[str, Any], key: str) -> str:
    value: object = entries[key]
    if not isinstance(value, str):
        raise _wrong(key, "text", value)
    return value


def _texts(entries: Mapping[str, Any], key: str) -> tuple[str, ...]:
    values = _list(entries[key], key)
    if not all(isinstance(item, str) for item in values):
        raise _wrong(key, "a list of texts", values)
    return tuple(cast("list[str]", values))


def _list(value: object, key: str) -> list[object]:
    if not isinstance(value, list):
        raise _wrong(key, "a list", value)
    return cast("list[object]", value)


def _is_length(value: object) -> bool:
    return type(value) in (int, float) and 0 < cast("float", value) < math.inf


def _one_of(entries: Mapping[str, Any], key: str, kind: object) -> str:
    value = _text(entries, key)
    if value not in get_args(kind):
        raise _wrong(key, f"one of {list(get_args(kind))}", value)
    return value


def _wrong(key: str, expected: str, value: object) -> CheckpointError:
    return CheckpointError(f"{key} must be {expected}, got {value!r}; correct the card.")
