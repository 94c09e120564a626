"""Images and labels that MONAI Label's clients keep on the server's disk; off by default.

One folder per image, named by a digest of the id that the client gave, so that no name from outside
becomes a path. Only files that we have read and written anew are kept, never bytes as they came.
All of it blocks, so it is called beside the event loop, one writer at a time.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Self

from fastsam3d.errors import ConfigError
from fastsam3d.io import write_mask, write_volume
from fastsam3d.io.atomic import staged
from fastsam3d.server.errors import ApiError

if TYPE_CHECKING:
    from fastsam3d.volume import Mask, Volume

MAX_IMAGES: Final = 10_000
MAX_TAGS: Final = 100
MAX_NAME_CHARACTERS: Final = 200
DEFAULT_TAG: Final = "final"
IMAGE_FILE: Final = "image.nii.gz"
_RECORD: Final = "record.json"


@dataclass(frozen=True, kw_only=True)
class Record:
    """What is kept of one image.

    Attributes:
        id: The client's name of it.
        has_image: Whether its voxels are here, or only labels of an image of the PACS.
        labels: File name of each label, by its tag.
    """

    id: str
    has_image: bool = False
    labels: dict[str, str] = field(default_factory=dict[str, str])

    @classmethod
    def read(cls, path: Path) -> Self:
        """Read a record of ours."""
        plain: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        return cls(**plain)


class Datastore:
    """Images and labels below one folder.

    Args:
        root: The folder; made if it is not there.

    Raises:
        ConfigError: It cannot be made.
    """

    def __init__(self, root: Path) -> None:
        try:
            root.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            message = f"The datastore's folder cannot be made ({error.strerror}); choose another."
            raise ConfigError(message) from error
        self._root = root

    def records(self) -> list[Record]:
        """Return all records, by id."""
        found = [Record.read(path) for path in self._root.glob(f"*/{_RECORD}")]
        return sorted(found, key=lambda record: record.id)

    def has_image(self, image_id: str) -> bool:
        """Whether the voxels of an image are here."""
        record = self._find(image_id)
        return record is not None and record.has_image

    def put_image(self, image_id: str, volume: Volume) -> None:
        """Keep an image; one of the same id, with its labels, is replaced.

        Raises:
            ApiError: 422 ``bad_value``: no name; 503 ``datastore_full``.
            VolumeWriteError: The system refused.
        """
        folder = self._make(image_id)
        write_volume(volume, folder / IMAGE_FILE)
        self._write(Record(id=image_id, has_image=True))

    def put_label(self, image_id: str, tag: str, mask: Mask) -> None:
        """Keep a label of an image; one of the same tag is replaced.

        Raises:
            ApiError: As `put_image`; 422 ``bad_value``: too many tags.
            VolumeWriteError: The system refused.
        """
        _check_name(tag, "tag")
        folder = self._make(image_id)
        record = self._find(image_id) or Record(id=image_id)
        labels = {**record.labels, tag: f"label-{_digest(tag)}.nrrd"}
        if len(labels) > MAX_TAGS:
            raise ApiError(422, "bad_value", f"At most {MAX_TAGS} tags fit an image.")
        write_mask(mask, folder / labels[tag])
        self._write(replace(record, labels=labels))

    def image_path(self, image_id: str) -> Path:
        """Return the file of an image.

        Raises:
            ApiError: 404 ``image_not_found``.
        """
        if not self.has_image(image_id):
            message = "The server keeps no image of that name; upload it first."
            raise ApiError(404, "image_not_found", message)
        return self._folder(image_id) / IMAGE_FILE

    def label_path(self, image_id: str, tag: str) -> Path:
        """Return the file of a label.

        Raises:
            ApiError: 404 ``label_not_found``.
        """
        record = self._find(image_id)
        if record is None or tag not in record.labels:
            message = "The server keeps no label of that name and tag; see /datastore/?output=all."
            raise ApiError(404, "label_not_found", message)
        return self._folder(image_id) / record.labels[tag]

    def describe(self) -> dict[str, Any]:
        """Return all images and labels as the protocol lists them."""
        objects: dict[str, Any] = {
            record.id: {
                "image": {"ext": ".nii.gz" if record.has_image else "", "info": {}},
                "labels": {tag: {"ext": ".nrrd", "info": {}} for tag in record.labels},
            }
            for record in self.records()
        }
        return {"name": "fastsam3d", "description": "", "objects": objects}

    def status(self) -> dict[str, Any]:
        """Return how much is done, as the protocol counts."""
        records = self.records()
        tags = [tag for record in records for tag in record.labels]
        return {
            "total": len(records),
            "completed": sum(DEFAULT_TAG in record.labels for record in records),
            "label_tags": {tag: tags.count(tag) for tag in sorted(set(tags))},
        }

    def next_unlabelled(self) -> str | None:
        """Return the first image without a final label; None if there is none."""
        waiting = (r.id for r in self.records() if r.has_image and DEFAULT_TAG not in r.labels)
        return next(waiting, None)

    def _folder(self, image_id: str) -> Path:
        return self._root / _digest(image_id)

    def _find(self, image_id: str) -> Record | None:
        path = self._folder(image_id) / _RECORD
        return Record.read(path) if path.is_file() else None

    def _make(self, image_id: str) -> Path:
        _check_name(image_id, "image")
        folder = self._folder(image_id)
        if not folder.is_dir():
            if sum(1 for _ in self._root.iterdir()) >= MAX_IMAGES:
                message = "The server's datastore is full; ask who runs it."
                raise ApiError(503, "datastore_full", message)
            folder.mkdir()
        return folder

    def _write(self, record: Record) -> None:
        plain = record.__dict__
        with staged(self._folder(record.id) / _RECORD) as scratch:
            scratch.write_text(json.dumps(plain), encoding="utf-8")


def _check_name(name: str, what: str) -> None:
    if not 0 < len(name) <= MAX_NAME_CHARACTERS or not name.isprintable():
        message = f"The {what} must have 1 to {MAX_NAME_CHARACTERS} printable characters."
        raise ApiError(422, "bad_value", message)


def _digest(name: str) -> str:
    return hashlib.sha256(name.encode("utf-8", "surrogateescape")).hexdigest()[:32]
