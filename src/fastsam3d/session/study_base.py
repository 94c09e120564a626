"""What every study has beneath its prompts: a state that can be undone, locks, results, a file.

The state is one immutable value that is replaced as a whole, so a call that raises leaves
everything as it was.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Self

import numpy as np

from fastsam3d import __version__
from fastsam3d.errors import VolumeWriteError
from fastsam3d.io.segmentation import write_segmentation
from fastsam3d.prompts import MaskPrompt
from fastsam3d.session.object_mask import ObjectMask
from fastsam3d.session.objects import Overlap, StudyState
from fastsam3d.session.statistics import ObjectStatistics, measure_object
from fastsam3d.session.study_file import StudyFile, read_study, volume_hash, write_study
from fastsam3d.session.undo import UndoStack
from fastsam3d.volume import Mask

if TYPE_CHECKING:
    from os import PathLike

    from fastsam3d.session.objects import StudyObject
    from fastsam3d.session.session import Session
    from fastsam3d.volume import Region, Volume


DICOM_SUFFIX: Final = ".dcm"


class StudyBase:
    """State, undo, locks, results and file of a study.

    Args:
        session: Answers prompts; belongs to the study from now on.
        volume: Not to be changed while the study uses it.
        overlap: Who owns a voxel that several objects claim, see `StudyState`.
        autosave: Write the study here after every change; see `save`.
    """

    def __init__(
        self,
        session: Session,
        volume: Volume,
        *,
        overlap: Overlap = "last_wins",
        autosave: str | PathLike[str] | None = None,
    ) -> None:
        self.session = session
        self.autosave = None if autosave is None else Path(autosave)
        self._volume = volume
        self._volume_hash: str | None = None
        self._states = UndoStack(StudyState(overlap=overlap), StudyState.masks)
        session.set_volume(volume)

    def __repr__(self) -> str:
        """Show the grid and the objects."""
        names = ", ".join(f"{item.id} {item.name!r}" for item in self.objects) or "none"
        return f"{type(self).__name__}({self._volume.geometry}, objects: {names})"

    @property
    def volume(self) -> Volume:
        """The volume."""
        return self._volume

    @property
    def state(self) -> StudyState:
        """Everything about the objects, as one immutable value."""
        return self._states.current

    @property
    def objects(self) -> tuple[StudyObject, ...]:
        """The objects, in the order of the list."""
        return self.state.objects

    # Undo

    @property
    def can_undo(self) -> bool:
        """Whether there is a change to take back."""
        return self._states.can_undo

    @property
    def can_redo(self) -> bool:
        """Whether there is a change to bring back."""
        return self._states.can_redo

    def undo(self) -> None:
        """Take the latest change of whatever kind back, exactly and at once.

        Raises:
            SessionStateError: There is nothing to take back.
        """
        self._states.undo()
        self._autosave()

    def redo(self) -> None:
        """Bring back what `undo` took.

        Raises:
            SessionStateError: There is nothing to bring back.
        """
        self._states.redo()
        self._autosave()

    # Locks and overlaps

    def lock(self, object_id: int) -> None:
        """Keep an object's voxels exactly as they are shown, whatever is done to others.

        Raises:
            SessionStateError: There is no such object.
        """
        self._commit(self.state.locked(object_id))

    def unlock(self, object_id: int) -> None:
        """Let an object change again.

        Raises:
            SessionStateError: There is no such object.
        """
        self._commit(self.state.unlocked(object_id))

    def lock_voxels(self, voxels: Mask | Region) -> None:
        """Keep the owners of more voxels (none, where there is none) exactly as they are now.

        Args:
            voxels: A mask on the volume's grid, or a box of the volume.

        Raises:
            PromptError: The mask lies on another grid.
        """
        geometry = self._volume.geometry
        if isinstance(voxels, Mask):
            MaskPrompt(voxels.array, voxels.geometry).to_voxel(geometry)
            added = ObjectMask.cropped(geometry.region, voxels.array)
        else:
            inside = voxels.clip(geometry.shape)
            added = ObjectMask.cropped(inside, np.ones(inside.shape, np.bool_))
        union = self.state.locked_voxels.union(added)
        self._commit(self.state.with_locked_voxels(union))

    def unlock_voxels(self) -> None:
        """Let all locked voxels change again; locked objects stay locked."""
        self._commit(self.state.with_locked_voxels(ObjectMask.empty()))

    def set_overlap(self, overlap: Overlap) -> None:
        """Choose who owns a voxel that several objects claim, see `StudyState`.

        Raises:
            ConfigError: No such policy.
        """
        self._commit(replace(self.state, overlap=overlap))

    # Results

    def mask(self, object_id: int) -> Mask:
        """Return an object as it is shown, 0 or 1 on the volume's grid.

        Raises:
            SessionStateError: There is no such object.
        """
        self.state.find(object_id)
        return self._volume.new_mask(self.state.shown[object_id].to_array(self._volume.shape))

    def label_map(self) -> Mask:
        """Return all objects: each voxel has the id of its object, or 0.

        uint8, or uint16 where an id exceeds 255. Where objects overlap, the later one of the
        list is seen.
        """
        labels = self.state.label_map(self._volume.shape)
        small = labels.astype(np.uint8) if labels.max(initial=0) <= 255 else labels
        return self._volume.new_mask(small)

    def statistics(self, object_id: int) -> ObjectStatistics:
        """Measure an object as it is shown.

        Raises:
            SessionStateError: There is no such object.
        """
        self.state.find(object_id)
        return measure_object(self.state.shown[object_id], self._volume)

    def export(
        self,
        path: str | PathLike[str],
        *,
        series: str | PathLike[str] | None = None,
        series_uid: str | None = None,
    ) -> None:
        """Write all objects with names, colours and codes; see `io.segmentation`.

        Args:
            path: ``.seg.nrrd`` for 3D Slicer, ``.dcm`` for DICOM SEG, or a label map in any format
                of `write_mask`.
            series: Folder of the DICOM series that the volume was read from; for ``.dcm`` only,
                which refers to its slices.
            series_uid: Which series of the folder, where it holds several.

        Raises:
            VolumeWriteError: The format cannot hold overlapping objects, DICOM SEG lacks its
                series, or gets another one, or has no voxel to write, or the system refused.
            VolumeReadError: The series cannot be read.
        """
        arrays, segments = self.state.layers(self._volume.shape)
        layers = [self._volume.new_mask(array) for array in arrays]
        if Path(path).suffix.lower() != DICOM_SUFFIX:
            write_segmentation(layers, segments, path)
            return
        if series is None:
            message = "DICOM SEG refers to slices; give their folder, as in series='ct_dicom'."
            raise VolumeWriteError(message)
        from fastsam3d.io.dicom_seg import (  # noqa: PLC0415 - most studies export other files
            Algorithm,
            SeriesHeaders,
            write_dicom_seg,
        )

        maker = Algorithm(f"fastsam3d {self.session.predictor.model.config.name}", __version__)
        headers = SeriesHeaders.read(series, series_uid)
        write_dicom_seg(layers, segments, headers, path, algorithm=maker)

    # Files

    def save(self, path: str | PathLike[str]) -> None:
        """Write everything but the volume and the undo history to one file, whole or not at all.

        The logs hold their own undo history.

        Raises:
            VolumeWriteError: The system refused; an earlier file is as it was.
        """
        if self._volume_hash is None:
            self._volume_hash = volume_hash(self._volume)
        contents = StudyFile(
            state=self.state,
            volume_hash=self._volume_hash,
            geometry=self._volume.geometry,
            model_id=self.session.predictor.model_id,
        )
        write_study(contents, path)

    @classmethod
    def load(
        cls, path: str | PathLike[str], session: Session, volume: Volume, **options: Any
    ) -> Self:
        """Go on with a saved study: the same masks, without running the model.

        Args:
            path: What `save` wrote.
            session: Answers further prompts; with other weights than before, an object's mask
                becomes theirs when its prompts change.
            volume: The volume that the study was made on.
            **options: As the constructor, without `overlap`.

        Raises:
            StudyFileError: The file is damaged, of another version, or of another volume.
        """
        contents = read_study(path, volume)
        study = cls(session, volume, overlap=contents.state.overlap, **options)
        study._states = UndoStack(contents.state, StudyState.masks)
        study._volume_hash = contents.volume_hash
        return study

    def _commit(self, state: StudyState) -> None:
        self._states.push(state)
        self._autosave()

    def _autosave(self) -> None:
        if self.autosave is not None:
            self.save(self.autosave)
