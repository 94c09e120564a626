"""A study in one file: a zip with one JSON text and the masks as compressed bits.

The file holds no voxel of the volume, only its hash. What is read may come from anyone: sizes are
held against limits before anything is unpacked, and nothing in it is executed.
"""

from __future__ import annotations

import hashlib
import json
import math
import zipfile
import zlib
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from fastsam3d.errors import (
    ConfigError,
    GeometryError,
    PromptError,
    SessionStateError,
    StudyFileError,
    VolumeWriteError,
)
from fastsam3d.io.atomic import staged
from fastsam3d.io.segmentation import Code, Terminology
from fastsam3d.prompts import MaskPrompt, PromptLog
from fastsam3d.session.channels import ALL_CHANNELS, MultiVolume, select_channel
from fastsam3d.session.object_mask import ObjectMask
from fastsam3d.session.objects import StudyObject, StudyState
from fastsam3d.session.postprocess import step_from_plain, step_to_plain
from fastsam3d.volume import Geometry, Region

if TYPE_CHECKING:
    from os import PathLike

    from fastsam3d.volume import Volume

FORMAT: Final = "fastsam3d-study"
FORMAT_VERSION: Final = 1
STUDY_MEMBER: Final = "study.json"
MAX_JSON_BYTES: Final = 64 * 2**20
MAX_MASK_VOXELS: Final = 4 * 2**30
MAX_MEMBERS: Final = 200_000
_DATE: Final = (1980, 1, 1, 0, 0, 0)  # equal studies give equal files
_DAMAGED: Final = (
    zipfile.BadZipFile,
    zlib.error,
    EOFError,
    KeyError,
    TypeError,
    ValueError,
    AttributeError,
    NotImplementedError,
    OverflowError,
    RecursionError,
    RuntimeError,
    ConfigError,
    GeometryError,
    PromptError,
    SessionStateError,
)


@dataclass(frozen=True, eq=False, kw_only=True)
class StudyFile:
    """What a file holds.

    Attributes:
        state: All objects.
        volume_hash: Of the volume, see `volume_hash`.
        geometry: Of the volume.
        model_id: Hash of the weights that answered the prompts, or their name.
    """

    state: StudyState
    volume_hash: str
    geometry: Geometry
    model_id: str


def volume_hash(volume: Volume) -> str:
    """Return the SHA-256 of a volume's shape, type and voxels.

    Neither the memory order of the array nor where it lies plays a part. Of several channels it
    is that of all, of their names and of how they are combined.
    """
    if isinstance(volume, MultiVolume):
        parts = [volume_hash(channel) for channel in volume.channels]
        text = json.dumps([volume.combination, volume.names, parts])
        return hashlib.sha256(text.encode()).hexdigest()
    found = hashlib.sha256(f"{volume.array.dtype.str} {volume.shape}".encode())
    for slab in np.moveaxis(volume.array, 2, 0):
        found.update(np.ascontiguousarray(slab.T).data)
    return found.hexdigest()


def write_study(contents: StudyFile, path: str | PathLike[str]) -> None:
    """Write a study, whole or not at all.

    Args:
        contents: What to write.
        path: In an existing folder; replaced if it exists.

    Raises:
        VolumeWriteError: The system refused; an earlier file is as it was.
    """
    target = Path(path)
    if not target.parent.is_dir() or target.is_dir():
        message = f"Cannot write {target.name!r}: its folder does not exist; create it first."
        raise VolumeWriteError(message)
    masks = _Masks()
    plain = _study_to_plain(contents, masks)
    with staged(target) as scratch, zipfile.ZipFile(scratch, "w") as archive:
        text = json.dumps(plain, allow_nan=False, ensure_ascii=False)
        _put(archive, STUDY_MEMBER, text.encode(), zipfile.ZIP_DEFLATED)
        for name, mask in masks.members.items():
            _put(archive, name, mask.packed, zipfile.ZIP_STORED)


def read_study(path: str | PathLike[str], volume: Volume) -> StudyFile:
    """Read a study that was made on a volume.

    Args:
        path: What `write_study` wrote, or anything.
        volume: The volume.

    Raises:
        StudyFileError: The file is missing, damaged, of another version, or of another volume.
    """
    name = Path(path).name
    try:
        with zipfile.ZipFile(path) as archive:
            return _read(archive, name, volume)
    except OSError as error:
        message = f"Cannot read {name!r}: {error.strerror or error}; check the path."
        raise StudyFileError(message) from error
    except _DAMAGED as error:
        message = (
            f"{name!r} is not a study or is damaged ({type(error).__name__}: {error}); "
            "take an earlier copy."
        )
        raise StudyFileError(message) from error


def _read(archive: zipfile.ZipFile, name: str, volume: Volume) -> StudyFile:
    if len(archive.infolist()) > MAX_MEMBERS:
        raise ValueError(f"{len(archive.infolist())} members")
    plain = json.loads(_bounded(archive, STUDY_MEMBER, MAX_JSON_BYTES))
    if plain["format"] != FORMAT:
        raise ValueError(f"format {plain['format']!r}")
    if plain["version"] != FORMAT_VERSION:
        message = (
            f"{name!r} is a study of version {plain['version']!r} and this program reads version "
            f"{FORMAT_VERSION}; open it with the program that wrote it ({plain['program']!r})."
        )
        raise StudyFileError(message)
    geometry = Geometry(plain["volume"]["shape"], plain["volume"]["affine"])
    found = volume_hash(volume)
    if plain["volume"]["sha256"] != found or not geometry.is_close(volume.geometry):
        message = (
            f"{name!r} was made on another volume, {geometry}, and not on this one, "
            f"{volume.geometry}; open it with its own."
        )
        raise StudyFileError(message)
    state = _state_from_plain(plain, _Reader(archive, geometry))
    for item in state.objects:
        select_channel(volume, item.channel)
    return StudyFile(
        state=state,
        volume_hash=found,
        geometry=volume.geometry,
        model_id=str(plain["model_id"]),
    )


class _Masks:
    """Masks on their way into a file, each once."""

    def __init__(self) -> None:
        self.members: dict[str, ObjectMask] = {}
        self._names: dict[int, str] = {}

    def to_plain(self, mask: ObjectMask) -> dict[str, Any]:
        """Return what finds a mask in the file."""
        name = self._names.setdefault(id(mask), f"masks/{len(self._names)}")
        self.members[name] = mask
        return {"start": mask.region.start, "stop": mask.region.stop, "bits": name}

    def prompt_to_plain(self, prompt: MaskPrompt) -> dict[str, Any]:
        """Return what finds the voxels of a mask prompt in the file."""
        return self.to_plain(ObjectMask(prompt.region, prompt.part))


class _Reader:
    """Masks on their way out of a file, held against the volume's grid and a budget."""

    def __init__(self, archive: zipfile.ZipFile, geometry: Geometry) -> None:
        self.geometry = geometry
        self._archive = archive
        self._budget = MAX_MASK_VOXELS
        self._known: dict[tuple[Region, str], ObjectMask] = {}

    def mask(self, plain: Any) -> ObjectMask:
        """Return the mask that `_Masks.to_plain` described."""
        region, name = Region(plain["start"], plain["stop"]), str(plain["bits"])
        if region.is_empty:
            return ObjectMask.empty()
        if (region, name) not in self._known:
            num_voxels = math.prod(region.shape)
            self._budget -= num_voxels
            if region.clip(self.geometry.shape) != region or self._budget < 0:
                raise ValueError(f"a mask at {region} does not fit")
            # Bits that deflate badly still take no more than this.
            packed = _bounded(self._archive, name, num_voxels // 4 + 1024)
            self._known[region, name] = ObjectMask.unpacked(region, packed)
        return self._known[region, name]

    def optional_mask(self, plain: Any) -> ObjectMask | None:
        """Return a mask, or None where none was written."""
        return None if plain is None else self.mask(plain)

    def prompt(self, plain: Any) -> MaskPrompt:
        """Return the mask prompt that `_Masks.prompt_to_plain` described."""
        mask = self.mask(plain)
        return MaskPrompt.of_part(mask.region, mask.array, self.geometry)


def _bounded(archive: zipfile.ZipFile, name: str, limit: int) -> bytes:
    """Return a member of at most `limit` bytes; the zip's own checksum is verified."""
    info = archive.getinfo(name)
    if info.file_size > limit:
        raise ValueError(f"{name} has {info.file_size} bytes, at most {limit} fit")
    with archive.open(info) as stream:
        # What the directory announces may be a lie: never read more.
        data = stream.read(limit + 1)
    if len(data) != info.file_size:
        raise ValueError(f"{name} has not the size that is announced")
    return data


def _put(archive: zipfile.ZipFile, name: str, data: bytes, method: int) -> None:
    info = zipfile.ZipInfo(name, _DATE)
    info.compress_type = method
    archive.writestr(info, data)


def _study_to_plain(contents: StudyFile, masks: _Masks) -> dict[str, Any]:
    state = contents.state
    return {
        "format": FORMAT,
        "version": FORMAT_VERSION,
        "program": _program(),
        "model_id": contents.model_id,
        "volume": {
            "sha256": contents.volume_hash,
            "shape": list(contents.geometry.shape),
            "affine": contents.geometry.affine.tolist(),
        },
        "overlap": state.overlap,
        "next_id": state.next_id,
        "locked_voxels": masks.to_plain(state.locked_voxels),
        "objects": [_object_to_plain(item, masks) for item in state.objects],
    }


def _object_to_plain(item: StudyObject, masks: _Masks) -> dict[str, Any]:
    return {
        "id": item.id,
        "name": item.name,
        "colour": list(item.colour),
        "terminology": None if item.terminology is None else asdict(item.terminology),
        "log": item.log.to_plain(masks.prompt_to_plain),
        "steps": [step_to_plain(step) for step in item.steps],
        "quality": item.quality,
        "answer": masks.to_plain(item.answer),
        "cleaned": masks.to_plain(item.cleaned),
        "held": None if item.held is None else masks.to_plain(item.held),
        "pinned": masks.to_plain(item.pinned),
        "channel": item.channel,
    }


def _state_from_plain(plain: Any, reader: _Reader) -> StudyState:
    objects = tuple(_object_from_plain(item, reader) for item in plain["objects"])
    ids = [item.id for item in objects]
    next_id = _whole(plain["next_id"])
    if len(set(ids)) != len(ids) or not all(0 < object_id < next_id for object_id in ids):
        raise ValueError(f"object ids {ids} below {next_id}")
    return StudyState(
        objects=objects,
        overlap=plain["overlap"],
        locked_voxels=reader.mask(plain["locked_voxels"]),
        next_id=next_id,
    )


def _object_from_plain(plain: Any, reader: _Reader) -> StudyObject:
    red, green, blue = plain["colour"]
    quality = plain["quality"]
    if not 0 <= quality <= 1e6:
        raise ValueError(f"quality {quality}")
    return StudyObject(
        id=_whole(plain["id"]),
        name=plain["name"],
        colour=(red, green, blue),
        terminology=_terminology_from_plain(plain["terminology"]),
        log=PromptLog.from_plain(plain["log"], reader.prompt),
        steps=tuple(step_from_plain(step) for step in plain["steps"]),
        quality=float(quality),
        answer=reader.mask(plain["answer"]),
        cleaned=reader.mask(plain["cleaned"]),
        held=reader.optional_mask(plain["held"]),
        pinned=reader.mask(plain["pinned"]),
        channel=str(plain.get("channel", ALL_CHANNELS)),
    )


def _terminology_from_plain(plain: Any) -> Terminology | None:
    if plain is None:
        return None
    modifier = None if plain["modifier"] is None else Code(**plain["modifier"])
    return Terminology(Code(**plain["category"]), Code(**plain["type"]), modifier)


def _whole(value: object) -> int:
    if type(value) is not int:
        raise ValueError(f"{value!r} is not a whole number")
    return value


def _program() -> str:
    from importlib.metadata import PackageNotFoundError, version  # noqa: PLC0415 - takes 20 ms

    try:
        return f"fastsam3d {version('fastsam3d')}"
    except PackageNotFoundError:
        return "fastsam3d"
