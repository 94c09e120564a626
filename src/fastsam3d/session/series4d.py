"""The time points of one scan: a study each, objects that go from one to the next.

An object has the same id, name and colour at all time points. The studies share one predictor;
embeddings are kept for the time points used last only, so memory does not grow with time.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Self

from fastsam3d.errors import GeometryError, SessionStateError, VolumeReadError
from fastsam3d.io import read_time_points
from fastsam3d.session.propagate import propagated_prompts
from fastsam3d.session.session import Session
from fastsam3d.session.study import Study

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from os import PathLike

    from fastsam3d.segmenter import Prediction
    from fastsam3d.session.predictor import Predictor
    from fastsam3d.session.session import Device
    from fastsam3d.volume import Volume

MAX_LIVE: Final = 2
"""Time points whose embeddings are kept."""


class Series:
    """Segments objects at all time points of one scan.

    Args:
        predictor: Runs the model.
        volumes: One for each time point, in order, all on one grid; not to be changed.
        autosave: Folder in which each study is written after every change.
        **options: Of every study, see `Study`.

    Raises:
        VolumeReadError: There is no volume.
        GeometryError: The volumes lie on different grids.

    Example:
        >>> series = Series.from_pretrained("cine.nii.gz")  # doctest: +SKIP
        >>> ventricle = series[0].add_object("ventricle")  # doctest: +SKIP
        >>> series[0].add(ventricle, Point.voxel((120, 88, 4)))  # doctest: +SKIP
        >>> series.propagate(ventricle, start=0)  # doctest: +SKIP
    """

    def __init__(
        self,
        predictor: Predictor,
        volumes: Iterable[Volume],
        *,
        autosave: str | PathLike[str] | None = None,
        **options: Any,
    ) -> None:
        self.volumes = tuple(volumes)
        _check_volumes(self.volumes)
        self._predictor = predictor
        self._folder = None if autosave is None else Path(autosave)
        self._options = options
        self._studies: dict[int, Study] = {}
        self._live: list[int] = []

    @classmethod
    def from_pretrained(
        cls,
        path: str | PathLike[str],
        name_or_path: str | Path = "hr_s",
        *,
        device: Device = "auto",
        **options: Any,
    ) -> Self:
        """Open a 4-D file with the weights of a registry name or a .safetensors file.

        Args:
            path: As `read_time_points`.
            name_or_path: As `Session.from_pretrained`.
            device: As `Session.from_pretrained`.
            **options: As the constructor.

        Raises:
            VolumeReadError: The file cannot be read.
            GeometryError: The file has an impossible geometry.
            ModelNotFoundError: No such model.
            CheckpointError: The weights are damaged or do not fit their card.
            ConfigError: CUDA is asked for and absent, or an option cannot be used.
        """
        volumes = read_time_points(path)
        session = Session.from_pretrained(name_or_path, device=device)
        return cls(session.predictor, volumes, **options)

    def __repr__(self) -> str:
        """Show the number of time points and their grid."""
        return f"Series({len(self)} time points, {self.volumes[0].geometry})"

    def __len__(self) -> int:
        """Return the number of time points."""
        return len(self.volumes)

    def __getitem__(self, time: int) -> Study:
        """Return the study of a time point; its state is kept, whatever is done at others.

        Args:
            time: From 0.

        Raises:
            SessionStateError: There is no such time point.
        """
        self._check_time(time)
        if time not in self._studies:
            session = Session(self._predictor)
            self._studies[time] = Study(
                session, self.volumes[time], autosave=self._path(time), **self._options
            )
        self._live = [*(t for t in self._live if t != time), time]
        while len(self._live) > MAX_LIVE:
            asleep = self._studies[self._live.pop(0)]
            asleep.session.set_volume(asleep.volume)  # Forgets embeddings, and nothing else.
        return self._studies[time]

    def copy(self, object_id: int, *, source: int, target: int, refine: bool = True) -> Prediction:
        """Give an object that one time point has to another, where it replaces its like.

        It starts there from its mask here. With `refine` a point in the middle of that mask asks
        the model to look again.

        Args:
            object_id: Which object.
            source: Time point that has it.
            target: Time point that gets it.
            refine: Let the model look again; otherwise the mask is copied.

        Returns:
            The object at the target, as `Study.add`.

        Raises:
            SessionStateError: No such time point or object, it is empty, or locked at the target.
            CheckpointError: The model returned logits that are not finite.
        """
        here = self[source]
        prompts = propagated_prompts(here, object_id, here.volume.geometry, refine=refine)
        item = here.state.find(object_id)
        return self[target].take_over(item, *prompts)

    def propagate(
        self,
        object_id: int,
        *,
        start: int,
        stop: int | None = None,
        refine: bool = True,
        on_progress: Callable[[int, int], None] | None = None,
        is_cancelled: Callable[[], bool] | None = None,
    ) -> tuple[int, ...]:
        """Carry an object from time point to time point, each from the one before.

        Time points where the object is locked stay as they are, and what follows starts from them.

        Args:
            object_id: Which object.
            start: Time point that has it.
            stop: Last time point to reach; before `start` it goes back in time. By default the
                end of the series.
            refine: As `copy`.
            on_progress: Told after each time point how many are done, and of how many.
            is_cancelled: Asked before each time point; give a `threading.Event`'s `is_set`.

        Returns:
            The time points that were changed; the walk ends where the object is found no more.

        Raises:
            SessionStateError: No such time point or object, or it is empty at `start`.
            CheckpointError: The model returned logits that are not finite.
        """
        last = len(self) - 1 if stop is None else stop
        step = 1 if last >= start else -1
        walk = range(start + step, last + step, step)
        for end in (last, start):
            self._check_time(end)
        self[start].state.find(object_id)
        changed: list[int] = []
        for done, time in enumerate(walk, start=1):
            if is_cancelled is not None and is_cancelled():
                break
            if not self._is_locked(time, object_id):
                answer = self.copy(object_id, source=time - step, target=time, refine=refine)
                changed.append(time)
                if answer.region.is_empty:
                    break
            if on_progress is not None:
                on_progress(done, len(walk))
        return tuple(changed)

    def save(self, folder: str | PathLike[str]) -> None:
        """Write the study of each time point that was used into a folder, which must exist.

        Raises:
            VolumeWriteError: The system refused.
        """
        for time, study in self._studies.items():
            study.save(Path(folder) / _file_name(time))

    @classmethod
    def load(
        cls,
        folder: str | PathLike[str],
        predictor: Predictor,
        volumes: Iterable[Volume],
        **options: Any,
    ) -> Self:
        """Go on with a saved series: the same masks, without running the model.

        Args:
            folder: What `save` or `autosave` wrote into.
            predictor: Answers further prompts.
            volumes: Those that the series was made on.
            **options: As the constructor; an `overlap` is that of each file.

        Raises:
            StudyFileError: A file is damaged, of another version, or of another volume.
            VolumeReadError: As the constructor.
            GeometryError: As the constructor.
        """
        series = cls(predictor, volumes, **options)
        kept = {key: value for key, value in series._options.items() if key != "overlap"}
        for time, volume in enumerate(series.volumes):
            path = Path(folder) / _file_name(time)
            if path.exists():
                series._studies[time] = Study.load(
                    path, Session(predictor), volume, autosave=series._path(time), **kept
                )
        return series

    def _check_time(self, time: int) -> None:
        if not 0 <= time < len(self):
            message = f"Time point must be 0 to {len(self) - 1}, got {time}; choose one of them."
            raise SessionStateError(message)

    def _is_locked(self, time: int, object_id: int) -> bool:
        return any(item.id == object_id and item.is_locked for item in self[time].objects)

    def _path(self, time: int) -> Path | None:
        return None if self._folder is None else self._folder / _file_name(time)


def _file_name(time: int) -> str:
    return f"time{time:04d}.study"


def _check_volumes(volumes: tuple[Volume, ...]) -> None:
    if not volumes:
        message = "A series needs at least one volume, got none; see read_time_points."
        raise VolumeReadError(message)
    for time, volume in enumerate(volumes):
        if not volume.geometry.is_close(volumes[0].geometry):
            message = (
                f"Time points must lie on one grid, got {volume.geometry} at time {time} and "
                f"{volumes[0].geometry} at time 0; open a study for each and use "
                "propagate, or bring them onto one grid with resample_volume."
            )
            raise GeometryError(message)
