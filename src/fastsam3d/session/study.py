"""A study: one volume, many objects, everything undoable, saved after every step.

The study is the place where people work: it orders objects, locks, clean-up steps and undo around
one `Session`, which answers prompts. Its state is one immutable value that is replaced as a whole,
so a call that raises leaves everything as it was. One thread at a time.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from fastsam3d.errors import PromptError, SessionStateError
from fastsam3d.prompts import Point, PromptLog
from fastsam3d.session.channels import ALL_CHANNELS, select_channel
from fastsam3d.session.neighbours import negatives_near
from fastsam3d.session.object_mask import ObjectMask
from fastsam3d.session.objects import shown_prediction
from fastsam3d.session.postprocess import Step, apply_steps
from fastsam3d.session.session import Session
from fastsam3d.session.study_base import StudyBase
from fastsam3d.session.suggest import suggest_objects

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from os import PathLike
    from pathlib import Path

    from fastsam3d.io.segmentation import Colour, Terminology
    from fastsam3d.prompts import Prompt
    from fastsam3d.segmenter import Prediction
    from fastsam3d.session.candidates import Candidate
    from fastsam3d.session.objects import Overlap, StudyObject
    from fastsam3d.session.session import Device
    from fastsam3d.session.suggest import Suggestion, SuggestPolicy
    from fastsam3d.session.uncertainty import UncertaintyMap
    from fastsam3d.volume import Volume


class Study(StudyBase):
    """Segments many objects of one volume.

    Args:
        session: Answers prompts; belongs to the study from now on.
        volume: Not to be changed while the study uses it.
        overlap: Who owns a voxel that several objects claim, see `StudyState`.
        locked_negatives: Give the first prompt of an object so many negative points inside
            locked objects and locked voxels nearby; they are part of its log.
        autosave: Write the study here after every change; see `save`.

    Example:
        >>> study = Study.from_pretrained(read_volume("ct.nii.gz"))  # doctest: +SKIP
        >>> liver = study.add_object("liver")  # doctest: +SKIP
        >>> study.add(liver, Point.voxel((120, 88, 40))).mask  # doctest: +SKIP
    """

    def __init__(
        self,
        session: Session,
        volume: Volume,
        *,
        overlap: Overlap = "last_wins",
        locked_negatives: int = 0,
        autosave: str | PathLike[str] | None = None,
    ) -> None:
        super().__init__(session, volume, overlap=overlap, autosave=autosave)
        self.locked_negatives = locked_negatives

    @classmethod
    def from_pretrained(
        cls,
        volume: Volume,
        name_or_path: str | Path = "hr_s",
        *,
        device: Device = "auto",
        **options: Any,
    ) -> Self:
        """Make a study with the weights of a registry name or a .safetensors file.

        Args:
            volume: Not to be changed while the study uses it.
            name_or_path: As `Session.from_pretrained`.
            device: As `Session.from_pretrained`.
            **options: As the constructor.

        Raises:
            ModelNotFoundError: No such model.
            CheckpointError: The weights are damaged or do not fit their card.
            ConfigError: CUDA is asked for and absent, or an option cannot be used.
        """
        return cls(Session.from_pretrained(name_or_path, device=device), volume, **options)

    def log(self, object_id: int) -> PromptLog:
        """Return what was done to the prompts of an object, with the ids of its prompts.

        Raises:
            SessionStateError: There is no such object.
        """
        return self.state.find(object_id).log

    # Prompts

    def add(self, object_id: int, *prompts: Prompt) -> Prediction:
        """Give an object prompts, as one step of its log.

        Args:
            object_id: Which object.
            prompts: Of any kind, in order.

        Returns:
            The object as it is shown, with `changed` relative to what the whole study showed
            before.

        Raises:
            SessionStateError: There is no such object, or it is locked.
            PromptError: A prompt does not fit the volume, or none was given.
            CheckpointError: The model returned logits that are not finite.
            VolumeWriteError: The answer is there but could not be saved automatically.
        """
        item = self.state.find_unlocked(object_id)
        _check_any(prompts)
        if not len(item.log):
            prompts = (*self._neighbour_points(object_id, prompts[0]), *prompts)
        return self._with_log(item, item.log.add(*prompts))

    def set_prompts(self, object_id: int, *prompts: Prompt) -> Prediction:
        """Replace all prompts of an object at once, by none too; see `add`.

        Raises:
            PromptError: A prompt does not fit the volume.
            SessionStateError: There is no such object, or it is locked.
        """
        item = self.state.find_unlocked(object_id)
        log = item.log.clear()
        return self._with_log(item, log.add(*prompts) if prompts else log)

    def remove_prompt(self, object_id: int, *prompt_ids: int) -> Prediction:
        """Take prompts back as if they had never been given; see `add`.

        Raises:
            PromptError: There is no such prompt.
            SessionStateError: There is no such object, or it is locked.
        """
        item = self.state.find_unlocked(object_id)
        return self._with_log(item, item.log.remove(*prompt_ids))

    def edit_prompt(self, object_id: int, prompt_id: int, prompt: Prompt) -> Prediction:
        """Replace a prompt in its place; see `add`.

        Raises:
            PromptError: There is no such prompt, or the new one does not fit the volume.
            SessionStateError: There is no such object, or it is locked.
        """
        item = self.state.find_unlocked(object_id)
        return self._with_log(item, item.log.edit(prompt_id, prompt))

    def undo_prompt(self, object_id: int) -> Prediction:
        """Undo the latest step of one object's log, whatever was done to others since; see `add`.

        Raises:
            PromptError: Nothing is left to undo.
            SessionStateError: There is no such object, or it is locked.
        """
        item = self.state.find_unlocked(object_id)
        return self._with_log(item, item.log.undo())

    def redo_prompt(self, object_id: int) -> Prediction:
        """Redo what `undo_prompt` undid; see `add`.

        Raises:
            PromptError: Nothing was undone.
            SessionStateError: There is no such object, or it is locked.
        """
        item = self.state.find_unlocked(object_id)
        return self._with_log(item, item.log.redo())

    # Objects

    def add_object(
        self,
        name: str | None = None,
        *,
        colour: Colour | None = None,
        terminology: Terminology | None = None,
        prompts: Iterable[Prompt] = (),
        channel: str = ALL_CHANNELS,
    ) -> int:
        """Add an object at the end of the list, as one change, and return its id.

        Args:
            name: For people; "Object N" by default.
            colour: Red, green, blue; by default one that depends on the id alone.
            terminology: What it is.
            prompts: Its first prompts, in order; without any it is empty.
            channel: What they are answered on, see `set_channel`.

        Raises:
            ConfigError: The name or the colour cannot be used, or there is no such channel.
            PromptError: A prompt does not fit the volume.
            CheckpointError: The model returned logits that are not finite.
        """
        select_channel(self._volume, channel)
        given = {"name": name, "colour": colour, "terminology": terminology, "channel": channel}
        fields = {key: value for key, value in given.items() if value is not None}
        object_id = self.state.next_id
        state, first = self.state.added(**fields), tuple(prompts)
        if first:
            log = PromptLog().add(*self._neighbour_points(object_id, first[0]), *first)
            state = state.with_object(self._answered(state.find(object_id), log)[0])
        self._commit(state)
        return object_id

    def take_over(self, item: StudyObject, *prompts: Prompt) -> Prediction:
        """Have an object of another time point here too, with prompts of its own.

        It keeps its id, name, colour and codes. An object of that id is replaced, in its place.

        Args:
            item: The object there.
            prompts: Its prompts here, in order.

        Raises:
            SessionStateError: The object of that id is locked here.
            PromptError: A prompt does not fit the volume, or none was given.
            CheckpointError: The model returned logits that are not finite.
        """
        _check_any(prompts)
        before, state = self.state, self.state.with_id(item)
        answered, prediction = self._answered(
            state.find_unlocked(item.id), PromptLog().add(*prompts)
        )
        self._commit(state.with_object(answered))
        return shown_prediction(self._volume, self.state, before, item.id, prediction)

    def suggest(
        self,
        policy: SuggestPolicy | None = None,
        *,
        on_progress: Callable[[int, int], None] | None = None,
        is_cancelled: Callable[[], bool] | None = None,
    ) -> tuple[Suggestion, ...]:
        """Look for objects everywhere, but for those that are there; see `suggest_objects`.

        Nothing is changed until one is accepted.

        Raises:
            CheckpointError: The model returned logits that are not finite.
        """
        return suggest_objects(
            self.session.predictor,
            self._volume,
            policy,
            known=self.state.shown.values(),
            on_progress=on_progress,
            is_cancelled=is_cancelled,
        )

    def accept(self, suggestion: Suggestion, *, name: str | None = None) -> int:
        """Add a suggestion as an object, on which prompts build, and return its id.

        Args:
            suggestion: Of this volume.
            name: As `add_object`.

        Raises:
            ConfigError: The name cannot be used.
            PromptError: The suggestion is of another volume and does not fit.
        """
        object_id = self.state.next_id
        state = self.state.added(**({} if name is None else {"name": name}))
        item = state.find(object_id).started_from(suggestion.mask, self._volume.geometry)
        self._commit(state.with_object(replace(item, quality=suggestion.quality)))
        return object_id

    def describe(
        self,
        object_id: int,
        *,
        name: str | None = None,
        colour: Colour | None = None,
        terminology: Terminology | None = None,
    ) -> None:
        """Rename, recolour or code an object; a locked one too.

        Raises:
            ConfigError: The name or the colour cannot be used.
            SessionStateError: There is no such object.
        """
        given = {"name": name, "colour": colour, "terminology": terminology}
        fields: dict[str, Any] = {key: value for key, value in given.items() if value is not None}
        self._commit(self.state.with_object(replace(self.state.find(object_id), **fields)))

    def delete(self, object_id: int) -> None:
        """Delete an object; others show again what it had covered.

        Raises:
            SessionStateError: There is no such object, it is locked, or it owns locked voxels.
        """
        self._commit(self.state.deleted(object_id))

    def move(self, object_id: int, position: int) -> None:
        """Move an object to a position of the list, from 0; the order says who wins overlaps.

        Raises:
            SessionStateError: There is no such object or position.
        """
        self._commit(self.state.moved(object_id, position))

    def merge(self, object_id: int, *others: int) -> None:
        """Make one object of what several show; it keeps the first one's id, name and place.

        Its log starts anew with that mask, on which further prompts build.

        Raises:
            SessionStateError: No other is given, one is not there, is locked, or (unless it is
                the first) owns locked voxels.
        """
        self._commit(self.state.merged((object_id, *others), self._volume.geometry))

    def split(self, object_id: int, point: Point, *, name: str | None = None) -> int:
        """Make the connected part at a click an object of its own and return its id.

        The logs of both start anew with their masks.

        Raises:
            PromptError: The click is not on the object, or the object is in one piece.
            SessionStateError: There is no such object, it is locked, or the part has locked
                voxels.
        """
        i, j, k = np.floor(np.add(point.to_voxel(self._volume.geometry).position, 0.5)).tolist()
        new_id = self.state.next_id
        state = self.state.split(object_id, (int(i), int(j), int(k)), self._volume.geometry)
        if name is not None:
            state = state.with_object(replace(state.find(new_id), name=name))
        self._commit(state)
        return new_id

    # Clean-up

    def set_steps(self, object_id: int, *steps: Step) -> Prediction:
        """Choose the clean-up steps of an object, in their order; none gives the answer back.

        Returns:
            As `add`.

        Raises:
            PromptError: The point of a step lies outside of the volume.
            SessionStateError: There is no such object, or it is locked.
        """
        item = self.state.find_unlocked(object_id)
        cleaned = apply_steps(item.answer, steps, self._volume.geometry)
        return self._show(replace(item, steps=steps, cleaned=cleaned), None)

    # Ambiguity and trust

    def candidates(self, object_id: int) -> tuple[Candidate, ...]:
        """Return up to three masks that an object's prompts may have meant, best quality first.

        Raises:
            SessionStateError: There is no such object.
            CheckpointError: The model returned logits that are not finite.
        """
        return self.session.candidates() if self._recall(object_id) else ()

    def choose(self, object_id: int, candidate: Candidate) -> Prediction:
        """Make a candidate an object's answer, as one step of its log; see `add`.

        Raises:
            PromptError: The candidate is of another volume.
            SessionStateError: There is no such object, or it is locked.
        """
        return self.add(object_id, candidate.prompt)

    def uncertainty(
        self, object_id: int, *, samples: int = 16, jitter_mm: float = 2.0, seed: int = 0
    ) -> UncertaintyMap:
        """Return how sure an object's answer is; see `Session.uncertainty`.

        Raises:
            SessionStateError: There is no such object, or no prompt has placed it yet.
            ConfigError: A number is out of range.
            CheckpointError: The model returned logits that are not finite.
        """
        if not self._recall(object_id):
            message = f"Object {object_id} has no prompt yet; add a point or a box first."
            raise SessionStateError(message)
        return self.session.uncertainty(samples=samples, jitter_mm=jitter_mm, seed=seed)

    def set_channel(self, object_id: int, channel: str) -> Prediction:
        """Answer an object's prompts on one channel of the volume, or on "all"; see `add`.

        Raises:
            ConfigError: There is no such channel.
            SessionStateError: There is no such object, or it is locked.
            CheckpointError: The model returned logits that are not finite.
        """
        item = self.state.find_unlocked(object_id)
        select_channel(self._volume, channel)
        return self._with_log(replace(item, channel=channel), item.log)

    # Results

    def replay(self) -> tuple[int, ...]:
        """Compute all answers anew from the logs.

        Returns:
            Ids of the objects whose answer differs from the kept one: none with the same weights
            and device.

        Raises:
            PromptError: A prompt does not fit the volume.
            CheckpointError: The model returned logits that are not finite.
        """
        self.session.reset()
        return tuple(
            item.id
            for item in self.objects
            if not self._answer(item.log, item.channel)[0].equals(item.answer)
        )

    def _recall(self, object_id: int) -> bool:
        """Have the session at an object's answer; False where it has no prompt."""
        item = self.state.find(object_id)
        return self._answer(item.log, item.channel)[1] is not None

    def _neighbour_points(self, object_id: int, prompt: Prompt) -> tuple[Point, ...]:
        closed = self.state.closed_to(object_id)
        return negatives_near(prompt, closed, self._volume.geometry, limit=self.locked_negatives)

    def _answer(self, log: PromptLog, channel: str) -> tuple[ObjectMask, Prediction | None]:
        if not len(log):
            return ObjectMask.empty(), None
        prediction = self.session.predict(log.prompts, channel=channel)
        return ObjectMask.of(prediction), prediction

    def _answered(self, item: StudyObject, log: PromptLog) -> tuple[StudyObject, Prediction | None]:
        answer, prediction = self._answer(log, item.channel)
        changed = replace(
            item,
            log=log,
            answer=answer,
            cleaned=apply_steps(answer, item.steps, self._volume.geometry),
            quality=0.0 if prediction is None else prediction.predicted_quality,
        )
        return changed, prediction

    def _with_log(self, item: StudyObject, log: PromptLog) -> Prediction:
        return self._show(*self._answered(item, log))

    def _show(self, item: StudyObject, prediction: Prediction | None) -> Prediction:
        before, state = self.state, self.state.with_object(item)
        self._commit(state)
        return shown_prediction(self._volume, state, before, item.id, prediction)


def _check_any(prompts: tuple[Prompt, ...]) -> None:
    if not prompts:
        message = "There is no prompt to answer; add a point, a box, a scribble or a lasso."
        raise PromptError(message)
