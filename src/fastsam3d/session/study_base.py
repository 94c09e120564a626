"""What every study has beneath its objects: a state that can be undone, and a file.

The state is one immutable value that is replaced as a whole, so a call that raises leaves
everything as it was.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from fastsam3d.session.objects import Overlap, StudyState
from fastsam3d.session.study_file import StudyFile, read_study, volume_hash, write_study
from fastsam3d.session.undo import UndoStack

if TYPE_CHECKING:
    from os import PathLike

    from fastsam3d.session.objects import StudyObject
    from fastsam3d.session.session import Session
    from fastsam3d.volume import Volume


class StudyBase:
    """State, undo and file of a study.

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
