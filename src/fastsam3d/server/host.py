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
from fastsam3d.server.engine_process import TARGET, EngineProcess
from fastsam3d.server.errors import RETRY_LATER_S, ApiError
from fastsam3d.session import Predictor, Session
from fastsam3d.session.session import choose_device
from fastsam3d.volume import Geometry, Volume

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Hashable

    from fastsam3d.server.room import Room
    from fastsam3d.server.settings import ServerSettings

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
        engine: Any = predictor.model
        self._engine = engine if isinstance(engine, EngineProcess) else None
        if self._engine is not None:
            self._engine.on_loss(self._drop_embeddings)
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
            ConfigError: CUDA is asked for and absent, or a process of its own where there is none.
            EngineCrashedError: The engine's process ended as it started.
        """
        card = load_card(settings.model)
        facts = ModelFacts(name=card.name, id=card.sha256, license=card.licence)
        if not settings.has_engine_process(choose_device(settings.device).type):
            session = Session.from_pretrained(settings.model, device=settings.device)
            return cls(session.predictor, facts, settings)
        options = {
            "model": str(settings.model),
            "device": settings.device,
            "threads": settings.threads,
        }
        engine = EngineProcess(TARGET, options, timeout_s=settings.predict_timeout_s)
        predictor = Predictor(engine, card.preprocessing, model_id=card.sha256)
        return cls(predictor, facts, settings)

    @property
    def is_down(self) -> bool:
        """Whether the engine's process does not start."""
        return self._engine is not None and self._engine.is_down

    @property
    def restarts(self) -> int:
        """How often the engine's process was started again."""
        return 0 if self._engine is None else self._engine.restarts

    def tend(self) -> None:
        """Look after the engine's process, in the engine's thread."""
        if self._engine is not None:
            self._engine.tend()

    def close(self) -> None:
        """End the engine's process; after the engine's thread."""
        if self._engine is not None:
            self._engine.close()

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
        self.tend()
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

    def _drop_embeddings(self) -> None:
        with self._lock:
            rooms = tuple(self._rooms.values())
        for room in rooms:
            room.drop_embeddings()

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
