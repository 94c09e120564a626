"""The model, loaded once, and the memory of all sessions that share it."""

from __future__ import annotations

import threading
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import torch

from fastsam3d.model.registry import load_card
from fastsam3d.prompts import Point
from fastsam3d.server.errors import RETRY_LATER_S, ApiError
from fastsam3d.session import Session
from fastsam3d.volume import Geometry, Volume

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Hashable

    from fastsam3d.server.room import Room
    from fastsam3d.server.settings import ServerSettings
    from fastsam3d.session import Predictor

NOTICE: Final = "For research; not a medical device and not for clinical use."
_WARM_UP_SIDE: Final = 48


@dataclass(frozen=True, kw_only=True)
class ModelFacts:
    """What clients are told about the model.

    Attributes:
        name: Name of the weights.
        id: Digest of the weights.
        license: SPDX identifier of the weights' licence.
        notice: What users must know.
    """

    name: str
    id: str
    license: str
    notice: str = NOTICE

    def to_plain(self) -> dict[str, str]:
        """Return the facts as JSON holds them."""
        return {
            "name": self.name,
            "id": self.id,
            "license": self.license,
            "notice": self.notice,
        }


class ModelHost:
    """One model and what its sessions may take.

    Args:
        predictor: Runs the model; shared by all sessions, used by the engine's thread only.
        facts: What clients are told.
        settings: Bounds of memory, and the engine's threads.
    """

    def __init__(self, predictor: Predictor, facts: ModelFacts, settings: ServerSettings) -> None:
        self._settings = settings
        self._model = ObservedModel(predictor.model)
        predictor.model = self._model
        self.predictor = predictor
        self.facts = facts
        # Rooms by when they last worked, the longest ago first.
        self._rooms: dict[Hashable, Room] = {}
        self._lock = threading.Lock()

    @classmethod
    def load(cls, settings: ServerSettings) -> ModelHost:
        """Load the model that the settings name.

        Raises:
            ModelNotFoundError: No such model.
            CheckpointError: The weights are damaged or do not fit their card.
            ConfigError: CUDA is asked for and absent.
        """
        card = load_card(settings.model)
        session = Session.from_pretrained(settings.model, device=settings.device)
        facts = ModelFacts(name=card.name, id=card.sha256, license=card.licence)
        return cls(session.predictor, facts, settings)

    def set_up_thread(self) -> None:
        """Prepare the engine's thread."""
        if self._settings.threads is not None:
            torch.set_num_threads(self._settings.threads)

    def new_session(self) -> Session:
        """Make a session that shares the model."""
        return Session(
            self.predictor,
            cache_bytes=min(self._settings.session_cache_bytes, self._settings.total_cache_bytes),
            state_bytes=self._settings.session_state_bytes,
        )

    def warm_up(self) -> None:
        """Answer one click on a phantom, so that the first client does not pay for first times."""
        array = np.zeros((_WARM_UP_SIDE,) * 3, np.float32)
        middle = _WARM_UP_SIDE // 2
        array[middle - 6 : middle + 6, middle - 6 : middle + 6, middle - 6 : middle + 6] = 1
        session = self.new_session()
        session.set_volume(Volume(array, Geometry(array.shape, np.eye(4))))
        session.add_point(Point.voxel((middle, middle, middle)))

    def check_room_for(self, room: Room, volume: Volume) -> None:
        """Refuse a volume beyond the bounds of one session or of all.

        Raises:
            ApiError: 413 ``too_large``, 503 ``volumes_full``.
        """
        size = volume.array.size
        if size > self._settings.max_voxels:
            message = f"The volume has {size} voxels, at most {self._settings.max_voxels} fit."
            raise ApiError(413, "too_large", message)
        with self._lock:
            others = sum(other.num_voxels for other in self._rooms.values() if other is not room)
            if others + size > self._settings.max_open_voxels:
                message = "The volumes of other sessions fill the server; try again later."
                headers = {"Retry-After": str(RETRY_LATER_S)}
                raise ApiError(503, "volumes_full", message, headers)
            self._rooms[id(room)] = room

    @contextmanager
    def at_work(self, room: Room) -> Generator[None]:
        """Do a room's job; afterwards, drop embeddings of others if all take too much.

        Called in the engine's thread, which alone touches the caches.
        """
        with self._lock:
            self._rooms[id(room)] = self._rooms.pop(id(room), room)
        yield
        with self._lock:
            self._rooms = {key: other for key, other in self._rooms.items() if not other.is_closed}
            rooms = tuple(self._rooms.values())
        total = sum(other.embedding_bytes for other in rooms)
        for other in rooms:
            if total <= self._settings.total_cache_bytes:
                break
            total -= other.embedding_bytes
            other.drop_embeddings()

    def forget(self, room: Room) -> None:
        """Count a room no longer."""
        with self._lock:
            self._rooms.pop(id(room), None)

    @contextmanager
    def watched(self, observer: Callable[[str], None] | None) -> Generator[None]:
        """Tell of the stages of a job, ``encoding`` and ``decoding``, as they begin.

        Called in the engine's thread.
        """
        self._model.observer = observer
        try:
            yield
        finally:
            self._model.observer = None


class ObservedModel:
    """A model that says what it is doing; see `predictor.PromptableModel`.

    Args:
        model: Does the work, and answers for everything else.
    """

    def __init__(self, model: Any) -> None:
        self._model = model
        self.config = model.config
        self.observer: Callable[[str], None] | None = None

    def encode_image(self, image: Any) -> Any:
        """Embed ROIs."""
        self._tell("encoding")
        return self._model.encode_image(image)

    def decode_masks(self, *args: Any, **options: Any) -> Any:
        """Return logits and predicted quality."""
        self._tell("decoding")
        return self._model.decode_masks(*args, **options)

    def __getattr__(self, name: str) -> Any:
        """Return anything else of the model."""
        return getattr(self._model, name)

    def _tell(self, stage: str) -> None:
        if self.observer is not None:
            self.observer(stage)
