"""The objects of a study and who owns which voxel: immutable states and pure functions.

An object's mask goes through stages, none of which loses anything: the *answer* of the model
to its prompts, the *cleaned* mask after its steps, and the *shown* mask after overlaps and locks
are settled. Who is in the way of whom is decided anew in every state, so an object that is deleted
or shrinks gives the voxels back that it had covered.

Two kinds of lock. A locked object keeps its shown mask, voxel by voxel. Locked voxels keep their
owners, whoever those are. Nothing but an unlock changes either.
"""

from __future__ import annotations

import colorsys
from dataclasses import dataclass, field, replace
from functools import cached_property
from importlib import import_module
from typing import TYPE_CHECKING, Any, Final, Literal, Self

import numpy as np

from fastsam3d.errors import ConfigError, PromptError, SessionStateError
from fastsam3d.io.segmentation import Colour, Segment, Terminology, check_text
from fastsam3d.prompts import MaskPrompt, PromptLog
from fastsam3d.segmenter import EMPTY_REGION, Prediction
from fastsam3d.session.channels import ALL_CHANNELS
from fastsam3d.session.object_mask import ObjectMask

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from numpy.typing import NDArray

    from fastsam3d.session.postprocess import Step
    from fastsam3d.volume import Geometry, Volume

Overlap = Literal["last_wins", "first_wins", "allow"]

OVERLAPS: Final = ("last_wins", "first_wins", "allow")
MAX_OBJECTS: Final = 65_535  # what a label map of uint16 can tell apart
COVERED_WARNING: Final = (
    "The mask lies within locked or winning objects, so nothing of it is shown; unlock them, or "
    "change the overlap policy."
)
_GOLDEN_TURN: Final = 0.618033988749895


def colour_of(object_id: int) -> Colour:
    """Return the colour that an object has by default: far from those of the ids before it.

    Args:
        object_id: From 1; the same id always has the same colour.
    """
    hue = (object_id - 1) * _GOLDEN_TURN % 1.0
    lightness = (0.5, 0.65, 0.4)[(object_id - 1) // 5 % 3]
    red, green, blue = colorsys.hls_to_rgb(hue, lightness, 0.85)
    return round(255 * red), round(255 * green), round(255 * blue)


@dataclass(frozen=True, eq=False, kw_only=True)
class StudyObject:
    """One object.

    Attributes:
        id: Its name in the study and its label in files; from 1, never given twice.
        name: For people; need not be unique.
        colour: Red, green, blue, 0 to 255.
        terminology: What it is; None where nobody said.
        log: Everything that was done to its prompts.
        steps: Clean-up steps, in their order.
        answer: What the model makes of the prompts.
        cleaned: The answer after the steps.
        quality: The model's estimate of the answer's IoU.
        held: Its exact voxels while it is locked; None while it is not.
        pinned: Its voxels among the study's locked voxels.
        channel: What of the volume its prompts are answered on; see `channels`.
    """

    id: int
    name: str
    colour: Colour
    terminology: Terminology | None = None
    log: PromptLog = field(default_factory=PromptLog)
    steps: tuple[Step, ...] = ()
    answer: ObjectMask = field(default_factory=ObjectMask.empty)
    cleaned: ObjectMask = field(default_factory=ObjectMask.empty)
    quality: float = 0.0
    held: ObjectMask | None = None
    pinned: ObjectMask = field(default_factory=ObjectMask.empty)
    channel: str = ALL_CHANNELS

    def __post_init__(self) -> None:
        """Check what people type."""
        check_text(self.name, "Object name")
        is_colour = len(self.colour) == 3 and all(
            type(value) is int and 0 <= value <= 255 for value in self.colour
        )
        if not is_colour:
            message = f"Colour must be three whole numbers of 0 to 255, got {self.colour!r}."
            raise ConfigError(message)

    @property
    def is_locked(self) -> bool:
        """Whether nothing may change its voxels."""
        return self.held is not None

    def started_from(self, mask: ObjectMask, geometry: Geometry) -> Self:
        """Return the object with a log that starts anew from a mask, and without steps."""
        prompt = MaskPrompt.of_part(mask.region, mask.array, geometry)
        quality = 0.0 if mask.is_empty else 1.0
        log = PromptLog().add(prompt)
        return replace(self, log=log, steps=(), answer=mask, cleaned=mask, quality=quality)


@dataclass(frozen=True, eq=False, kw_only=True)
class StudyState:
    """All objects of a study at one time.

    Attributes:
        objects: In the order of the list, which says who wins where objects overlap.
        overlap: "last_wins" (later objects of the list cover earlier ones), "first_wins" or
            "allow" (a voxel may belong to several; locked objects then keep their own voxels and
            leave others theirs).
        locked_voxels: Voxels whose owners do not change.
        next_id: Of the next object.
    """

    objects: tuple[StudyObject, ...] = ()
    overlap: Overlap = "last_wins"
    locked_voxels: ObjectMask = field(default_factory=ObjectMask.empty)
    next_id: int = 1

    def __post_init__(self) -> None:
        """Check the policy and the number of objects."""
        if self.overlap not in OVERLAPS:
            message = f"Overlap must be one of {', '.join(OVERLAPS)}, got {self.overlap!r}."
            raise ConfigError(message)
        if self.next_id > MAX_OBJECTS + 1:
            message = f"A study holds at most {MAX_OBJECTS} objects in its life; start a new one."
            raise SessionStateError(message)

    @cached_property
    def shown(self) -> dict[int, ObjectMask]:
        """The voxels of each object, by id, after overlaps and locks are settled."""
        shown = {o.id: o.held for o in self.objects if o.held is not None}
        taken = [] if self.overlap == "allow" else list(shown.values())
        ranked = self.objects if self.overlap == "first_wins" else self.objects[::-1]
        for item in ranked:
            if item.is_locked:
                continue
            mask = item.cleaned.difference(self.locked_voxels)
            for other in taken:
                mask = mask.difference(other)
            mask = mask.union(item.pinned)
            shown[item.id] = mask
            if self.overlap != "allow":
                taken.append(mask)
        return shown

    def masks(self) -> Iterator[ObjectMask]:
        """Iterate over all masks that the state holds; some more than once."""
        yield self.locked_voxels
        for item in self.objects:
            yield from (item.answer, item.cleaned, item.pinned, self.shown[item.id])

    def find(self, object_id: int) -> StudyObject:
        """Return an object by its id.

        Raises:
            SessionStateError: There is none.
        """
        for item in self.objects:
            if item.id == object_id:
                return item
        known = ", ".join(f"{o.id} ({o.name})" for o in self.objects) or "none"
        message = f"There is no object {object_id!r}; there are: {known}."
        raise SessionStateError(message)

    def find_unlocked(self, object_id: int) -> StudyObject:
        """Return an object that may be changed.

        Raises:
            SessionStateError: There is none, or it is locked.
        """
        item = self.find(object_id)
        if item.is_locked:
            message = f"Object {item.id} ({item.name}) is locked; unlock({item.id}) first."
            raise SessionStateError(message)
        return item

    def with_object(self, changed: StudyObject) -> Self:
        """Return the state with an object replaced by another of its id, in its place."""
        objects = tuple(changed if o.id == changed.id else o for o in self.objects)
        return replace(self, objects=objects)

    def added(self, **fields: Any) -> Self:
        """Return the state with a new object at the end of the list.

        Args:
            fields: As `StudyObject`, without `id`; name and colour have defaults.

        Raises:
            ConfigError: A name or colour cannot be used.
            SessionStateError: Too many objects.
        """
        fields = {"name": f"Object {self.next_id}", "colour": colour_of(self.next_id)} | fields
        new = StudyObject(id=self.next_id, **fields)
        return replace(self, objects=(*self.objects, new), next_id=self.next_id + 1)

    def with_id(self, item: StudyObject) -> Self:
        """Return the state with an object of a given id, described as `item`.

        Args:
            item: Of another state; only what people say about it is taken. Where there is an
                object of its id it is described anew, else an empty one is added at the end.

        Raises:
            SessionStateError: The id is too large.
        """
        said: dict[str, Any] = {
            "name": item.name,
            "colour": item.colour,
            "terminology": item.terminology,
        }
        for found in self.objects:
            if found.id == item.id:
                return self.with_object(replace(found, **said))
        new = StudyObject(id=item.id, **said)
        next_id = max(self.next_id, item.id + 1)
        return replace(self, objects=(*self.objects, new), next_id=next_id)

    def deleted(self, *object_ids: int) -> Self:
        """Return the state without objects.

        Raises:
            SessionStateError: One is not there, is locked, or owns locked voxels.
        """
        for object_id in object_ids:
            item = self.find_unlocked(object_id)
            if not item.pinned.is_empty:
                message = (
                    f"Object {item.id} ({item.name}) owns {item.pinned.num_voxels} locked voxels; "
                    "unlock_voxels() first."
                )
                raise SessionStateError(message)
        return replace(self, objects=tuple(o for o in self.objects if o.id not in object_ids))

    def merged(self, object_ids: tuple[int, ...], geometry: Geometry) -> Self:
        """Return the state with objects made one, which starts anew in the place of the first.

        Raises:
            SessionStateError: Fewer than two, one is not there, is locked, or (unless it is the
                first) owns locked voxels.
        """
        first, *others = dict.fromkeys(object_ids)
        if not others:
            message = f"Merging needs another object beside {first}; name one."
            raise SessionStateError(message)
        item = self.find_unlocked(first)
        state = self.deleted(*others)
        mask = self.shown[first]
        for other in others:
            mask = mask.union(self.shown[other])
        return state.with_object(item.started_from(mask, geometry))

    def split(self, object_id: int, voxel: tuple[int, int, int], geometry: Geometry) -> Self:
        """Return the state with the connected part at a voxel made a new object at the end.

        Raises:
            PromptError: The voxel is not in the object, or the object is in one piece.
            SessionStateError: There is no such object, it is locked, or the part has locked
                voxels.
        """
        item = self.find_unlocked(object_id)
        shown = self.shown[object_id]
        part = component_at(shown, voxel)
        if not part.intersection(self.locked_voxels).is_empty:
            message = f"The part of object {object_id} has locked voxels; unlock_voxels() first."
            raise SessionStateError(message)
        rest = item.started_from(shown.difference(part), geometry)
        state = self.with_object(rest).added()
        return state.with_object(state.objects[-1].started_from(part, geometry))

    def moved(self, object_id: int, position: int) -> Self:
        """Return the state with an object at another position of the list, from 0.

        Raises:
            SessionStateError: There is no such object or position.
        """
        item = self.find(object_id)
        others = [o for o in self.objects if o.id != object_id]
        if not 0 <= position <= len(others):
            message = f"Position must be 0 to {len(others)}, got {position}; choose one of them."
            raise SessionStateError(message)
        others.insert(position, item)
        return replace(self, objects=tuple(others))

    def locked(self, object_id: int) -> Self:
        """Return the state with an object locked as it is shown."""
        item = self.find(object_id)
        return self.with_object(replace(item, held=self.shown[object_id]))

    def unlocked(self, object_id: int) -> Self:
        """Return the state with an object unlocked."""
        return self.with_object(replace(self.find(object_id), held=None))

    def with_locked_voxels(self, voxels: ObjectMask) -> Self:
        """Return the state with other locked voxels, which keep the owners that they have now."""
        objects = tuple(
            replace(o, pinned=self.shown[o.id].intersection(voxels)) for o in self.objects
        )
        return replace(self, objects=objects, locked_voxels=voxels)

    def closed_to(self, object_id: int) -> list[ObjectMask]:
        """Return what an object cannot have: locked objects, and locked voxels not its own.

        Args:
            object_id: Of an object that is there, or is to come.
        """
        closed = [o.pinned if o.held is None else o.held for o in self.objects if o.id != object_id]
        unowned = self.locked_voxels
        for item in self.objects:
            unowned = unowned.difference(item.pinned)
        return [mask for mask in (*closed, unowned) if not mask.is_empty]

    def label_map(self, shape: tuple[int, int, int]) -> NDArray[np.uint16]:
        """Return ids on the volume's grid, 0 where there is no object, shape (I, J, K).

        Where objects overlap, the later one of the list is seen.
        """
        labels = np.zeros(shape, np.uint16)
        for item in self.objects:
            self.shown[item.id].paste(labels, item.id)
        return labels

    def layers(self, shape: tuple[int, int, int]) -> tuple[list[NDArray[np.uint16]], list[Segment]]:
        """Return label maps without overlaps, as few as needed, and what their labels mean."""
        members: list[list[ObjectMask]] = []
        arrays = [np.zeros(shape, np.uint16)]
        segments: list[Segment] = []
        for item in self.objects:
            mask = self.shown[item.id]
            layer = next(
                (n for n, used in enumerate(members) if _is_apart(mask, used)), len(members)
            )
            if layer == len(members):
                members.append([])
            if layer == len(arrays):
                arrays.append(np.zeros(shape, np.uint16))
            members[layer].append(mask)
            mask.paste(arrays[layer], item.id)
            segments.append(
                Segment(
                    label=item.id,
                    name=item.name,
                    colour=item.colour,
                    terminology=item.terminology,
                    layer=layer,
                )
            )
        return arrays, segments


def component_at(mask: ObjectMask, voxel: tuple[int, int, int]) -> ObjectMask:
    """Return the connected part of a mask (by faces, edges and corners) that holds a voxel.

    Raises:
        PromptError: The voxel is not in the mask, or the mask is in one piece.
    """
    ndimage: Any = import_module("scipy.ndimage")  # Late: most studies do without.
    if not mask.holds(voxel):
        message = f"Voxel {voxel} is not in the object; click on the part to split off."
        raise PromptError(message)
    labels, count = ndimage.label(mask.array, structure=np.ones((3, 3, 3)))
    if count == 1:
        message = "The object is in one piece; cut it by prompts before it can be split."
        raise PromptError(message)
    at = np.subtract(voxel, mask.region.start)
    return ObjectMask.cropped(mask.region, labels == labels[tuple(at)])


def _is_apart(mask: ObjectMask, others: Iterable[ObjectMask]) -> bool:
    return all(mask.difference(other) is mask for other in others)


def shown_prediction(
    volume: Volume,
    state: StudyState,
    before: StudyState,
    object_id: int,
    prediction: Prediction | None,
) -> Prediction:
    """Return an object as a state shows it, with what the model said about its answer.

    Args:
        volume: The volume.
        state: The state.
        before: The state before; `changed` is where any object is shown differently.
        object_id: Which object.
        prediction: The model's answer; None where it was not asked.
    """
    item, shown = state.find(object_id), state.shown[object_id]
    warnings = () if prediction is None else prediction.warnings
    if shown.is_empty and not item.cleaned.is_empty:
        warnings = (*warnings, COVERED_WARNING)
    changed = EMPTY_REGION
    for key, new in state.shown.items():
        old = before.shown.get(key, ObjectMask.empty())
        if not old.equals(new):
            changed = changed.union(old.region).union(new.region)
    return Prediction(
        volume=volume,
        region=shown.region,
        region_mask=shown.array.view(np.uint8),
        changed=changed,
        roi=EMPTY_REGION if prediction is None else prediction.roi,
        spacing_mm=0.0 if prediction is None else prediction.spacing_mm,
        predicted_quality=item.quality,
        encode_ms=0.0 if prediction is None else prediction.encode_ms,
        click_ms=0.0 if prediction is None else prediction.click_ms,
        warnings=warnings,
    )
