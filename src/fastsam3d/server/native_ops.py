"""What the native API's requests do to a study, and what they answer.

`Desk` remembers, for one room, which masks its clients have seen; `Desk.perform` runs in the
engine's thread and returns everything that there is to send.
"""

from __future__ import annotations

import base64
import time
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from fastsam3d.errors import PromptError, SessionStateError
from fastsam3d.prompts import MaskPrompt
from fastsam3d.prompts.plain import prompt_to_plain
from fastsam3d.segmenter import EMPTY_REGION
from fastsam3d.server import native_messages as messages
from fastsam3d.session.object_mask import ObjectMask
from fastsam3d.session.postprocess import step_from_plain, step_to_plain, voxel_ml
from fastsam3d.session.suggest import SuggestPolicy
from fastsam3d.wire.masks import encode_runs

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from fastsam3d.prompts import Prompt, PromptLog
    from fastsam3d.segmenter import Prediction
    from fastsam3d.server.room import Room
    from fastsam3d.session import Study
    from fastsam3d.session.candidates import Candidate
    from fastsam3d.session.objects import StudyObject
    from fastsam3d.session.suggest import Suggestion
    from fastsam3d.volume import Region

MAX_PROMPTS: Final = 500
"""Prompts of one object: taking an early one back plays all that follow again."""
_DESK: Final = "native"

MaskFrame = tuple[dict[str, Any], bytes]


@dataclass(frozen=True)
class Shown:
    """What clients know of an object's mask."""

    mask: ObjectMask
    version: int
    volume_ml: float


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What there is to send.

    Attributes:
        done: The closing message, without `seq`.
        masks: Headers and payloads of the masks that changed.
        encode_ms: Of the prediction, if the request made one.
        click_ms: Of the prediction, if the request made one.
    """

    done: dict[str, Any]
    masks: tuple[MaskFrame, ...] = ()
    encode_ms: float = 0.0
    click_ms: float = 0.0


@dataclass
class _Outcome:
    """What a request came to: a result, and the prediction of an object if there is one."""

    result: dict[str, Any] = field(default_factory=dict[str, Any])
    object: int | None = None
    predictions: list[Prediction] = field(default_factory=list["Prediction"])
    resend: tuple[int, ...] = ()


class Desk:
    """The native API's side of a room.

    Args:
        room: The room.
        max_objects: Objects at a time.
    """

    def __init__(self, room: Room, max_objects: int) -> None:
        self._room = room
        self._max_objects = max_objects
        self._shown: dict[int, Shown] = {}
        self._version = 0
        # Of the object that was asked about last, with the log that they belong to.
        self._candidates: dict[int, tuple[PromptLog, tuple[Candidate, ...]]] = {}
        self._suggestions: tuple[Suggestion, ...] = ()

    @classmethod
    def of(cls, room: Room, max_objects: int) -> Desk:
        """Return the desk of a room; a new volume clears it away."""
        return room.extra.setdefault(_DESK, cls(room, max_objects))

    def perform(
        self, call: messages.Call, batches: Iterable[tuple[Prompt, ...]] | None = None
    ) -> Answer:
        """Do what a request asks for.

        Args:
            call: The request.
            batches: Prompts of a `prompt.add` in place of its own, a step of the log each.

        Raises:
            FastSAM3DError: It cannot be done; the study is as it was.
        """
        study = self._room.study
        if isinstance(call, messages.PromptAdd):
            given = [self._prompts(call.prompts)] if batches is None else batches
            outcome = _add_prompts(study, call.object, given)
        else:
            outcome = _OPERATIONS[type(call)](self, study, call)
        masks = self._changes(study, outcome)
        return Answer(
            done={"type": "done", "result": outcome.result, **self._summary(study)},
            masks=masks,
            encode_ms=sum(prediction.encode_ms for prediction in outcome.predictions),
            click_ms=sum(prediction.click_ms for prediction in outcome.predictions),
        )

    def describe(self, study: Study) -> dict[str, Any]:
        """Return the whole study, prompts and steps included."""
        summary = self._summary(study)
        for plain, item in zip(summary["objects"], study.objects, strict=True):
            plain["prompts"] = [
                {"id": entry.id, **prompt_to_plain(entry.prompt, _without_runs)}
                for entry in item.log.entries
            ]
            plain["steps"] = [step_to_plain(step) for step in item.steps]
        return summary

    def _summary(self, study: Study) -> dict[str, Any]:
        self._refresh(study)
        return {
            "objects": [self._object(item) for item in study.objects],
            "can_undo": study.can_undo,
            "can_redo": study.can_redo,
            "overlap": study.state.overlap,
        }

    def _object(self, item: StudyObject) -> dict[str, Any]:
        shown = self._shown[item.id]
        return {
            "id": item.id,
            "name": item.name,
            "colour": list(item.colour),
            "locked": item.is_locked,
            "num_prompts": len(item.log),
            "quality": item.quality,
            "volume_ml": shown.volume_ml,
            "version": shown.version,
            "box": _box(shown.mask.region),
        }

    def _refresh(self, study: Study) -> list[int]:
        """Bring what is known up to date; return the objects that look different now."""
        ml = voxel_ml(self._room.volume.geometry)
        state = study.state
        changed: list[int] = []
        known: dict[int, Shown] = {}
        for item in state.objects:
            mask, old = state.shown[item.id], self._shown.get(item.id)
            if old is not None and _is_same(old.mask, mask):
                known[item.id] = old
                continue
            if old is not None or not mask.is_empty:
                self._version += 1
                changed.append(item.id)
            version = self._version if old is not None or not mask.is_empty else 0
            known[item.id] = Shown(mask, version, mask.num_voxels * ml)
        self._shown = known
        return changed

    def _changes(self, study: Study, outcome: _Outcome) -> tuple[MaskFrame, ...]:
        changed = self._refresh(study)
        wanted = dict.fromkeys((*changed, *outcome.resend))
        if outcome.predictions and outcome.object is not None:
            wanted[outcome.object] = None
        return tuple(self._frame(study.state.find(key), outcome) for key in wanted)

    def _frame(self, item: StudyObject, outcome: _Outcome) -> MaskFrame:
        shown = self._shown[item.id]
        own = outcome.predictions if item.id == outcome.object else []
        header: dict[str, Any] = {
            "type": "mask",
            "object": item.id,
            "version": shown.version,
            "box": _box(shown.mask.region),
            "shape": list(self._room.volume.shape),
            "encoding": "runs",
            "quality": item.quality,
            "encode_ms": sum(prediction.encode_ms for prediction in own),
            "click_ms": sum(prediction.click_ms for prediction in own),
            "roi": _box(own[-1].roi if own else EMPTY_REGION),
            "spacing_mm": own[-1].spacing_mm if own else 0.0,
            "warnings": list(own[-1].warnings) if own else [],
        }
        return header, encode_runs(shown.mask.array)

    # Operations

    def _prompts(self, given: Iterable[Any]) -> tuple[Prompt, ...]:
        shape = self._room.volume.shape
        return tuple(messages.to_prompt(message, shape) for message in given)

    def add_object(self, study: Study, call: messages.ObjectAdd) -> _Outcome:
        """Add an object."""
        self._check_place(study)
        return _Outcome({"object": study.add_object(call.name, colour=_colour(call.colour))})

    def _check_place(self, study: Study) -> None:
        if len(study.objects) >= self._max_objects:
            text = f"A session holds at most {self._max_objects} objects; delete one first."
            raise SessionStateError(text)

    def describe_object(self, study: Study, call: messages.ObjectDescribe) -> _Outcome:
        """Rename or recolour an object."""
        study.describe(call.object, name=call.name, colour=_colour(call.colour))
        return _Outcome()

    def object_verb(self, study: Study, call: messages.ObjectVerb) -> _Outcome:
        """Do something to an object that needs no further words."""
        key = call.object
        if call.type == "candidates":
            return _Outcome({"candidates": self._find_candidates(study, key)})
        if call.type == "statistics":
            return _Outcome(asdict(study.statistics(key)))
        if call.type in {"prompt.undo", "prompt.redo"}:
            step = study.undo_prompt if call.type == "prompt.undo" else study.redo_prompt
            return _Outcome(object=key, predictions=[step(key)])
        verbs = {
            "object.delete": study.delete,
            "object.lock": study.lock,
            "object.unlock": study.unlock,
        }
        verbs[call.type](key)
        return _Outcome()

    def move_object(self, study: Study, call: messages.ObjectMove) -> _Outcome:
        """Move an object in the list."""
        study.move(call.object, call.position)
        return _Outcome()

    def merge_objects(self, study: Study, call: messages.ObjectMerge) -> _Outcome:
        """Make one object of several."""
        study.merge(call.object, *call.others)
        return _Outcome()

    def split_object(self, study: Study, call: messages.ObjectSplit) -> _Outcome:
        """Make a part an object of its own."""
        (point,) = self._prompts([call.point])
        new = study.split(call.object, point, name=call.name)  # pyright: ignore[reportArgumentType]
        return _Outcome({"object": new})

    def set_prompts(self, study: Study, call: messages.PromptSetCall) -> _Outcome:
        """Replace all prompts of an object."""
        prediction = study.set_prompts(call.object, *self._prompts(call.prompts))
        ids = [entry.id for entry in study.log(call.object).entries]
        return _Outcome({"prompts": ids}, call.object, [prediction])

    def edit_prompt(self, study: Study, call: messages.PromptEdit) -> _Outcome:
        """Replace one prompt."""
        (prompt,) = self._prompts([call.prompt])
        prediction = study.edit_prompt(call.object, call.id, prompt)
        return _Outcome(object=call.object, predictions=[prediction])

    def remove_prompts(self, study: Study, call: messages.PromptRemove) -> _Outcome:
        """Take prompts back."""
        prediction = study.remove_prompt(call.object, *call.ids)
        return _Outcome(object=call.object, predictions=[prediction])

    def set_steps(self, study: Study, call: messages.StepsSet) -> _Outcome:
        """Choose clean-up steps."""
        steps = [step_from_plain(step.model_dump()) for step in call.steps]
        prediction = study.set_steps(call.object, *steps)
        return _Outcome(object=call.object, predictions=[prediction])

    def choose_candidate(self, study: Study, call: messages.CandidateChoose) -> _Outcome:
        """Make a candidate the answer."""
        if call.object not in self._candidates or not self._is_current(study, call.object):
            self._find_candidates(study, call.object)
        _, found = self._candidates[call.object]
        if call.index >= len(found):
            text = f"There are {len(found)} candidates, got index {call.index}; count from 0."
            raise PromptError(text)
        prediction = study.choose(call.object, found[call.index])
        return _Outcome(object=call.object, predictions=[prediction])

    def _is_current(self, study: Study, key: int) -> bool:
        return self._candidates[key][0] == study.log(key)

    def _find_candidates(self, study: Study, key: int) -> list[dict[str, Any]]:
        """Return the candidates of an object as a client is told, and remember them."""
        found = study.candidates(key)
        self._candidates = {key: (study.log(key), found)}
        ml = voxel_ml(self._room.volume.geometry)
        return [
            {
                "index": index,
                "kind": candidate.kind,
                "quality": candidate.quality,
                **_mask_to_plain(candidate.mask, ml),
            }
            for index, candidate in enumerate(found)
        ]

    def suggest(self, study: Study, call: messages.Suggest) -> _Outcome:
        """Look for objects, and remember what was found."""
        deadline = time.monotonic() + call.seconds
        policy = SuggestPolicy(max_suggestions=call.max_suggestions)
        if call.spacing_mm is not None:
            policy = replace(policy, spacings_mm=(call.spacing_mm,))
        # The engine is everybody's: what takes longer is given up, and so is what nobody awaits.
        self._suggestions = study.suggest(
            policy, is_cancelled=lambda: self._room.is_closed or time.monotonic() > deadline
        )
        ml = voxel_ml(self._room.volume.geometry)
        found = [
            {
                "index": index,
                "quality": one.quality,
                "stability": one.stability,
                "point": prompt_to_plain(one.point),
                **_mask_to_plain(one.mask, ml),
            }
            for index, one in enumerate(self._suggestions)
        ]
        return _Outcome({"suggestions": found, "is_complete": time.monotonic() <= deadline})

    def accept_suggestion(self, study: Study, call: messages.SuggestionAccept) -> _Outcome:
        """Make a suggestion an object."""
        self._check_place(study)
        if call.index >= len(self._suggestions):
            text = f"There are {len(self._suggestions)} suggestions, got index {call.index}."
            raise PromptError(f"{text} Ask with suggest first, and count from 0.")
        return _Outcome({"object": study.accept(self._suggestions[call.index], name=call.name)})

    def map_uncertainty(self, study: Study, call: messages.Uncertainty) -> _Outcome:
        """Say how sure an answer is, voxel by voxel."""
        found = study.uncertainty(call.object, samples=call.samples, jitter_mm=call.jitter_mm)
        point = found.suggest_point()
        levels = np.rint(255 * found.probability).astype(np.uint8)
        result = {
            "stability": found.stability,
            "box": _box(found.region),
            "encoding": "u8",
            "payload": base64.b64encode(levels.tobytes()).decode(),
            "point": None if point is None else prompt_to_plain(point),
        }
        return _Outcome(result)

    def set_overlap(self, study: Study, call: messages.OverlapSet) -> _Outcome:
        """Choose who owns voxels."""
        study.set_overlap(call.overlap)
        return _Outcome()

    def get_masks(self, study: Study, call: messages.MasksGet) -> _Outcome:
        """Send masks again."""
        ids = [item.id for item in study.objects] if call.objects is None else call.objects
        return _Outcome(resend=tuple(study.state.find(key).id for key in ids))

    def study_verb(self, study: Study, call: messages.StudyVerb) -> _Outcome:
        """Undo, redo or describe."""
        if call.type == "study.get":
            return _Outcome(self.describe(study))
        (study.undo if call.type == "undo" else study.redo)()
        return _Outcome()


_OPERATIONS: Final[dict[type[messages.Call], Callable[[Desk, Study, Any], _Outcome]]] = {
    messages.ObjectAdd: Desk.add_object,
    messages.ObjectDescribe: Desk.describe_object,
    messages.ObjectVerb: Desk.object_verb,
    messages.ObjectMove: Desk.move_object,
    messages.ObjectMerge: Desk.merge_objects,
    messages.ObjectSplit: Desk.split_object,
    messages.PromptSetCall: Desk.set_prompts,
    messages.PromptEdit: Desk.edit_prompt,
    messages.PromptRemove: Desk.remove_prompts,
    messages.CandidateChoose: Desk.choose_candidate,
    messages.Suggest: Desk.suggest,
    messages.SuggestionAccept: Desk.accept_suggestion,
    messages.Uncertainty: Desk.map_uncertainty,
    messages.StepsSet: Desk.set_steps,
    messages.OverlapSet: Desk.set_overlap,
    messages.MasksGet: Desk.get_masks,
    messages.StudyVerb: Desk.study_verb,
}


def _add_prompts(study: Study, key: int, batches: Iterable[tuple[Prompt, ...]]) -> _Outcome:
    outcome = _Outcome(object=key)
    for prompts in batches:
        if len(study.log(key)) + len(prompts) > MAX_PROMPTS:
            raise PromptError(f"An object takes at most {MAX_PROMPTS} prompts here; add another.")
        known = {entry.id for entry in study.log(key).entries}
        outcome.predictions.append(study.add(key, *prompts))
        new = [entry.id for entry in study.log(key).entries if entry.id not in known]
        outcome.result["prompts"] = new
    return outcome


def _is_same(old: ObjectMask, new: ObjectMask) -> bool:
    """Whether a mask need not be sent again; masks of other boxes are sent without looking."""
    return old is new or (old.region == new.region and np.array_equal(old.array, new.array))


def _mask_to_plain(mask: ObjectMask, ml: float) -> dict[str, Any]:
    """Return a mask that is no object's yet, as JSON holds it."""
    return {
        "volume_ml": mask.num_voxels * ml,
        "box": _box(mask.region),
        "encoding": "runs",
        "payload": base64.b64encode(encode_runs(mask.array)).decode(),
    }


def _colour(given: list[int] | None) -> tuple[int, int, int] | None:
    return None if given is None else (given[0], given[1], given[2])


def _box(region: Region) -> list[list[int]]:
    return [[low, high] for low, high in zip(region.start, region.stop, strict=True)]


def _without_runs(prompt: MaskPrompt) -> dict[str, Any]:
    return {"box": _box(prompt.region), "shape": list(prompt.geometry.shape)}
