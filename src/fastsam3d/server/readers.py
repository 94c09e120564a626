"""Reading what strangers send, in processes that may end without anyone else noticing.

NIfTI is read by our own parser, numpy and zlib, here; every other format goes through libraries of
C++ (GDCM, ITK and their image codecs) and is read by a child process with bounds on memory, on
computing and on time. Children are started when the first such file comes, and kept.
"""

from __future__ import annotations

import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final, cast

import numpy as np

from fastsam3d.errors import FastSAM3DError, VolumeReadError, VolumeTooLargeError
from fastsam3d.io import read_mask, read_volume
from fastsam3d.io.streams import sniff, volume_limit
from fastsam3d.server import arena
from fastsam3d.server.child import Child, ChildDiedError
from fastsam3d.volume import Geometry, Mask, SourceHeader, Volume

if TYPE_CHECKING:
    from collections.abc import Generator
    from pathlib import Path

    from numpy.typing import NDArray

    from fastsam3d.server.settings import ServerSettings
    from fastsam3d.volume import Modality

MAX_CHILDREN: Final = 3
"""One file that takes its time must not keep the others waiting."""
MAX_IDLE: Final = 1
_TARGET: Final = "fastsam3d.server.read_child:create"
_EXTRA_BYTES: Final = 2**30
_MEMORY_FACTOR: Final = 3  # slices, the volume of them, and its copy for the parent


class Readers:
    """Reads files, many threads at a time.

    Args:
        settings: Limits.
        target: What answers in the children; for tests.
    """

    def __init__(self, settings: ServerSettings, target: str = _TARGET) -> None:
        self._settings = settings
        self._target = target
        self._places = threading.BoundedSemaphore(MAX_CHILDREN)
        self._lock = threading.Lock()
        self._idle: list[Child] = []
        self._is_closed = False

    def volume(
        self, source: Path, *, series_uid: str | None = None, time: int | None = None
    ) -> Volume:
        """Read a volume.

        Args:
            source: A file, or a folder of DICOM files.
            series_uid: As `fastsam3d.io.read_volume`.
            time: As `fastsam3d.io.read_volume`.

        Raises:
            VolumeReadError: As `fastsam3d.io.read_volume`; reading it ended its process.
            GeometryError: As `fastsam3d.io.read_volume`.
        """
        if _is_ours(source):
            with volume_limit(self._settings.max_volume_bytes):
                return read_volume(source, series_uid=series_uid, time=time)
        facts, array = self._ask(source, series_uid=series_uid, time=time, is_mask=False)
        geometry, modality = _geometry(facts, array), cast("Modality | None", facts["modality"])
        return Volume(array, geometry, modality, _header(facts))

    def mask(self, source: Path) -> Mask:
        """Read a label map.

        Raises:
            VolumeReadError: As `volume`, or a value is no label.
            GeometryError: As `volume`.
        """
        if _is_ours(source):
            with volume_limit(self._settings.max_volume_bytes):
                return read_mask(source)
        facts, array = self._ask(source, is_mask=True)
        return Mask(array, _geometry(facts, array), _header(facts))

    def close(self) -> None:
        """End the children that are idle, and the others when they are."""
        with self._lock:
            self._is_closed = True
            idle, self._idle = self._idle, []
        for child in idle:
            child.close()

    def _ask(
        self,
        source: Path,
        *,
        is_mask: bool,
        series_uid: str | None = None,
        time: int | None = None,
    ) -> tuple[dict[str, Any], NDArray[Any]]:
        request = {
            "path": str(source.resolve()),
            "series_uid": series_uid,
            "time": time,
            "is_mask": is_mask,
            "max_bytes": self._settings.max_volume_bytes,
        }
        timeout_s = self._settings.read_timeout_s
        try:
            with self._child() as child:
                facts, (view,) = child.call(request, timeout_s=timeout_s)
                # Kept in the order in memory that the reader chose.
                array = view.copy(order="K")
                child.forget()
                return facts, array
        except ChildDiedError as error:
            message = (
                f"The file could not be read, the process that tried {error.why}; it may be "
                "damaged, copy or export it again."
            )
            raise VolumeReadError(message) from error
        except MemoryError as error:
            message = "Reading the file takes more memory than one may have; crop or resample it."
            raise VolumeTooLargeError(message) from error

    @contextmanager
    def _child(self) -> Generator[Child]:
        with self._places:
            with self._lock:
                child = self._idle.pop() if self._idle else None
            if child is None or not child.is_alive:
                child = self._started()
            is_sound = False
            try:
                yield child
                is_sound = True
            except FastSAM3DError:
                is_sound = True  # It has answered: the file is at fault.
                raise
            finally:
                with self._lock:
                    is_kept = is_sound and not self._is_closed and len(self._idle) < MAX_IDLE
                    if is_kept:
                        self._idle.append(child)
                if not is_kept:
                    child.close()

    def _started(self) -> Child:
        memory_bytes = _MEMORY_FACTOR * self._settings.max_volume_bytes + _EXTRA_BYTES
        cpu_s = max(1, round(self._settings.read_timeout_s))
        return Child(self._target, {"memory_bytes": memory_bytes, "cpu_s": cpu_s})


def _geometry(facts: dict[str, Any], array: NDArray[Any]) -> Geometry:
    return Geometry(cast("tuple[int, int, int]", array.shape), np.asarray(facts["affine"]))


def _header(facts: dict[str, Any]) -> SourceHeader | None:
    payload = facts["header"]
    return None if payload is None else SourceHeader("itk", tuple(map(float, payload)))


def _is_ours(source: Path) -> bool:
    """Whether a file is read in this process: everywhere but on Linux, where all are."""
    return not arena.IS_SUPPORTED or (source.is_file() and sniff(source) == "nifti")
