"""What the nnInteractive protocol remembers of a room: one object, and what its client sees of it.

A client keeps a buffer with the mask and is sent only the box that changed. So the desk remembers
what every client's buffer holds by now. It is used by the engine's thread only, like the study.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from fastsam3d.errors import PromptError
from fastsam3d.prompts import MaskPrompt, Painted
from fastsam3d.segmenter import EMPTY_REGION
from fastsam3d.server.errors import ApiError
from fastsam3d.session.object_mask import ObjectMask

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from fastsam3d.prompts import Prompt
    from fastsam3d.server.room import Room
    from fastsam3d.session import Study
    from fastsam3d.volume import Region

KEY: Final = "nninteractive"
OBJECT_NAME: Final = "nnInteractive"
MAX_PROMPTS: Final = 500
MAX_PAINTED_BYTES: Final = 64 * 2**20
"""Of all painted prompts of the object, eight voxels a byte."""


@dataclass(frozen=True, eq=False)
class Change:
    """What a client is told after a request.

    Attributes:
        has_run: Whether something was computed or taken back.
        region: Box of the buffer that may differ from before; empty where nothing does.
        part: What the buffer holds there from now on; None where nothing changes.
    """

    has_run: bool
    region: Region = EMPTY_REGION
    part: NDArray[Any] | None = None


NOTHING: Final = Change(has_run=False)


@dataclass(eq=False)
class Desk:
    """The protocol's memory of a room, for one volume.

    Attributes:
        dtype: Of the client's buffer; None until it has announced one.
        is_certain: Whether the client got the latest change. If not, the next one holds all that
            it may have missed.
    """

    dtype: np.dtype[Any] | None = None
    is_certain: bool = True
    _object_id: int | None = None
    _waiting: list[Prompt] = field(default_factory=list["Prompt"])
    # Of each step that can be taken back: changes of the study, and the object before it.
    _steps: list[tuple[int, int | None]] = field(default_factory=list[tuple[int, int | None]])
    _shown: ObjectMask = field(default_factory=ObjectMask.empty)
    _touched: Region = EMPTY_REGION

    def set_buffer(self, dtype: np.dtype[Any]) -> None:
        """Begin with a buffer that holds nothing yet."""
        self.dtype = dtype
        self._forget_shown()

    def give(self, study: Study, prompt: Prompt | None, *, is_answered: bool) -> Change:
        """Take a prompt, and answer all that wait.

        Args:
            study: Of the room.
            prompt: None for one that says nothing.
            is_answered: Whether to answer now, or to wait for more.

        Raises:
            PromptError: The prompt does not fit the volume, or there are too many.
            ApiError: 409 ``no_buffer``.
        """
        self._check_buffer()
        if prompt is not None:
            prompt.to_voxel(study.volume.geometry)
            self._check_room(study, prompt)
            self._waiting.append(prompt)
        return self.answer(study) if is_answered else NOTHING

    def answer(self, study: Study) -> Change:
        """Answer the prompts that wait, each as a step of its own."""
        self._check_buffer()
        if not self._waiting:
            return NOTHING
        while self._waiting:
            # Taken out first: one that cannot be answered must not stand in the way of others.
            prompt = self._waiting.pop(0)
            before = self._object_id
            num_changes = 1
            if before is None:
                self._object_id = study.add_object(OBJECT_NAME)
                num_changes = 2
            study.add(self._current_id(), prompt)
            self._steps.append((num_changes, before))
        return self._show(study)

    def start_from(self, study: Study, mask: MaskPrompt, *, is_answered: bool) -> Change:
        """Forget all prompts and go on from a mask, which the client's buffer shows already."""
        self._check_buffer()
        self._waiting.clear()
        before = self._object_id
        num_changes = self._drop_object(study) + 1
        prompts = () if mask.is_empty else (mask,)
        self._object_id = study.add_object(OBJECT_NAME, prompts=prompts)
        self._steps.append((num_changes, before))
        self._shown = study.state.shown[self._object_id]
        # The client has overwritten its whole buffer, and may have missed nothing.
        self._touched, self.is_certain = self._shown.region, True
        return Change(has_run=True) if is_answered else NOTHING

    def undo(self, study: Study) -> Change:
        """Take the latest step back, exactly."""
        self._check_buffer()
        if self._waiting:
            self._waiting.pop()
            return Change(has_run=True)
        if not self._steps or not study.can_undo:
            return NOTHING
        num_changes, self._object_id = self._steps.pop()
        for _ in range(num_changes):
            if study.can_undo:
                study.undo()
        return self._show(study)

    def reset(self, study: Study) -> None:
        """Forget all prompts; the client empties its buffer by itself."""
        self._waiting.clear()
        self._drop_object(study)
        self._object_id = None
        self._steps.clear()
        self._forget_shown()

    def _current_id(self) -> int:
        return 0 if self._object_id is None else self._object_id

    def _drop_object(self, study: Study) -> int:
        """Delete the object if it is there; return how many changes of the study that took."""
        if all(item.id != self._object_id for item in study.objects):
            return 0
        study.delete(self._current_id())
        return 1

    def _check_buffer(self) -> None:
        if self.dtype is None:
            message = "There is no target buffer yet; send set_target_buffer after set_image."
            raise ApiError(409, "no_buffer", message)

    def _check_room(self, study: Study, prompt: Prompt) -> None:
        known = [item for item in study.objects if item.id == self._object_id]
        given = [*(known[0].log.prompts if known else ()), *self._waiting, prompt]
        painted = sum(len(one.bits) for one in given if isinstance(one, Painted))
        if len(given) > MAX_PROMPTS or painted > MAX_PAINTED_BYTES:
            message = (
                f"An object takes at most {MAX_PROMPTS} prompts, and so much painted; go on from "
                "its mask as initial segmentation."
            )
            raise PromptError(message)

    def _forget_shown(self) -> None:
        self._shown, self._touched, self.is_certain = ObjectMask.empty(), EMPTY_REGION, True

    def _show(self, study: Study) -> Change:
        """Return what the client's buffer lacks."""
        new = study.state.shown.get(self._current_id(), ObjectMask.empty())
        region = self._shown.region.union(new.region)
        if self.is_certain:
            differs = self._shown.part(region) != new.part(region)
            region = ObjectMask.cropped(region, differs).region
        else:
            region = region.union(self._touched)
        self._shown, self.is_certain = new, True
        self._touched = self._touched.union(new.region)
        if region.is_empty:
            return Change(has_run=True)
        return Change(True, region, new.part(region).astype(self.dtype))


def desk_of(room: Room) -> Desk:
    """Return the desk of a room; a new volume comes with a new one."""
    return room.extra.setdefault(KEY, Desk())
