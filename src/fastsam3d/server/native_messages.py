"""What clients may ask for, as types: strict, bounded, and what OpenAPI describes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Final, Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from fastsam3d.errors import PromptError
from fastsam3d.prompts.frames import MAX_VERTICES
from fastsam3d.prompts.plain import prompt_from_plain
from fastsam3d.server.errors import invalid_request

if TYPE_CHECKING:
    from fastsam3d.prompts import Prompt

MAX_PROMPTS_AT_ONCE: Final = 256
MAX_RUNS: Final = 4_000_000
MAX_ID: Final = 2**53
_ID_LIMIT: Final = 2**31

FrameName = Literal["voxel", "RAS", "LPS"]
Vector = Annotated[list[float], Field(min_length=3, max_length=3)]
Path = Annotated[list[Vector], Field(min_length=1, max_length=MAX_VERTICES)]
Axis = Annotated[int, Field(ge=0, le=2)]
ObjectId = Annotated[int, Field(ge=1, le=_ID_LIMIT)]
PromptId = Annotated[int, Field(ge=1, le=_ID_LIMIT)]
Name = Annotated[str, Field(min_length=1, max_length=200)]
Channel = Annotated[int, Field(ge=0, le=255)]
ColourList = Annotated[list[Channel], Field(min_length=3, max_length=3)]
Extent = Annotated[int, Field(ge=1, le=65_535)]


class Strict(BaseModel):
    """A message that holds what it says and nothing else."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True, allow_inf_nan=False)


class PointPrompt(Strict):
    """A click."""

    type: Literal["point"]
    frame: FrameName
    at: Vector
    positive: bool = True


class BoxPrompt(Strict):
    """A box around the object; half-open in voxels, between voxel centres in millimetres."""

    type: Literal["box"]
    frame: FrameName
    start: Vector
    stop: Vector


class SliceBoxPrompt(Strict):
    """A box on one slice, across `axis`."""

    type: Literal["slice_box"]
    frame: FrameName
    start: Vector
    stop: Vector
    axis: Axis


class ScribblePrompt(Strict):
    """A brush stroke; on a slice across `axis`, or in 3-D without."""

    type: Literal["scribble"]
    frame: FrameName
    path: Path
    positive: bool = True
    radius_mm: Annotated[float, Field(ge=0, le=500)] = 0.0
    axis: Axis | None = None


class LassoPrompt(Strict):
    """An outline on a slice across `axis`."""

    type: Literal["lasso"]
    frame: FrameName
    outline: Path
    axis: Axis
    positive: bool = True


class MaskPromptMessage(Strict):
    """A mask to go on from, or the `answer` as it is, on the volume's grid.

    Runs have i fastest, background first.
    """

    type: Literal["mask"]
    answer: bool = False
    shape: Annotated[list[Extent], Field(min_length=3, max_length=3)]
    affine: Annotated[list[Annotated[list[float], Field(min_length=4, max_length=4)]],
                      Field(min_length=4, max_length=4)]  # fmt: skip
    runs: Annotated[list[Annotated[int, Field(ge=0, le=MAX_ID)]], Field(max_length=MAX_RUNS)]


class PaintedPrompt(Strict):
    """Painted voxels: a stroke, or an area of the slice across `lasso_axis`."""

    type: Literal["painted"]
    mask: MaskPromptMessage
    positive: bool = True
    lasso_axis: Axis | None = None


PromptMessage = Annotated[
    PointPrompt
    | BoxPrompt
    | SliceBoxPrompt
    | ScribblePrompt
    | LassoPrompt
    | MaskPromptMessage
    | PaintedPrompt,
    Field(discriminator="type"),
]
Prompts = Annotated[list[PromptMessage], Field(min_length=1, max_length=MAX_PROMPTS_AT_ONCE)]


class SmoothStep(Strict):
    """Round edges off."""

    kind: Literal["smooth"]
    radius_mm: Annotated[float, Field(gt=0, le=50)]
    method: Literal["median", "gaussian"] = "median"


class FillHolesStep(Strict):
    """Fill what is enclosed, in 3-D or slice by slice across `axis`."""

    kind: Literal["fill_holes"]
    axis: Axis | None = None


class StepPoint(Strict):
    """Where a step applies."""

    position: Vector
    frame: FrameName
    positive: bool = True


class KeepComponentStep(Strict):
    """Keep the connected part at a point, or the largest."""

    kind: Literal["keep_component"]
    point: StepPoint | None = None


class RemoveSmallStep(Strict):
    """Remove parts smaller than so many millilitres."""

    kind: Literal["remove_small"]
    min_ml: Annotated[float, Field(gt=0, le=1e6)]


StepMessage = Annotated[
    SmoothStep | FillHolesStep | KeepComponentStep | RemoveSmallStep, Field(discriminator="kind")
]


class Call(Strict):
    """A request; `seq` comes back in its answers."""

    seq: Annotated[int, Field(ge=0, le=MAX_ID)] = 0


class ObjectCall(Call):
    """A request about one object."""

    object: ObjectId


class ObjectAdd(Call):
    """Add an empty object."""

    type: Literal["object.add"]
    name: Name | None = None
    colour: ColourList | None = None


class ObjectDescribe(ObjectCall):
    """Rename or recolour an object."""

    type: Literal["object.describe"]
    name: Name | None = None
    colour: ColourList | None = None


class ObjectVerb(ObjectCall):
    """Delete, lock or unlock an object, or take its latest prompt step back or forth."""

    type: Literal[
        "object.delete", "object.lock", "object.unlock", "prompt.undo", "prompt.redo",
        "statistics", "candidates",
    ]  # fmt: skip


class ObjectMove(ObjectCall):
    """Move an object in the list."""

    type: Literal["object.move"]
    position: Annotated[int, Field(ge=0, le=_ID_LIMIT)]


class ObjectMerge(ObjectCall):
    """Make one object of several."""

    type: Literal["object.merge"]
    others: Annotated[list[ObjectId], Field(min_length=1, max_length=256)]


class ObjectSplit(ObjectCall):
    """Make the connected part at a point an object of its own."""

    type: Literal["object.split"]
    point: PointPrompt
    name: Name | None = None


class PromptAdd(ObjectCall):
    """Give prompts."""

    type: Literal["prompt.add"]
    prompts: Prompts


class PromptSetCall(ObjectCall):
    """Replace all prompts."""

    type: Literal["prompt.set"]
    prompts: Annotated[list[PromptMessage], Field(max_length=MAX_PROMPTS_AT_ONCE)]


class PromptEdit(ObjectCall):
    """Replace one prompt in its place."""

    type: Literal["prompt.edit"]
    id: PromptId
    prompt: PromptMessage


class PromptRemove(ObjectCall):
    """Take prompts back as if they had never been given."""

    type: Literal["prompt.remove"]
    ids: Annotated[list[PromptId], Field(min_length=1, max_length=10_000)]


class CandidateChoose(ObjectCall):
    """Choose one of the candidates for the latest prompt."""

    type: Literal["candidate.choose"]
    index: Annotated[int, Field(ge=0, le=16)]


class Suggest(Call):
    """Look for objects everywhere, for at most so many seconds."""

    type: Literal["suggest"]
    seconds: Annotated[float, Field(ge=0.1, le=60)] = 10.0
    spacing_mm: Annotated[float, Field(ge=0.1, le=20)] | None = None
    max_suggestions: Annotated[int, Field(ge=1, le=50)] = 20


class SuggestionAccept(Call):
    """Make one of the latest suggestions an object."""

    type: Literal["suggestion.accept"]
    index: Annotated[int, Field(ge=0, le=50)]
    name: Name | None = None


class Uncertainty(ObjectCall):
    """Ask again from places nearby, so many times."""

    type: Literal["uncertainty"]
    samples: Annotated[int, Field(ge=2, le=16)] = 8
    jitter_mm: Annotated[float, Field(gt=0, le=20)] = 2.0


class StepsSet(ObjectCall):
    """Choose the clean-up steps of an object."""

    type: Literal["steps.set"]
    steps: Annotated[list[StepMessage], Field(max_length=16)]


class OverlapSet(Call):
    """Choose who owns a voxel that several objects claim."""

    type: Literal["overlap.set"]
    overlap: Literal["last_wins", "first_wins", "allow"]


class MasksGet(Call):
    """Send masks as they are; of all objects by default."""

    type: Literal["masks.get"]
    objects: Annotated[list[ObjectId], Field(max_length=1000)] | None = None


class StudyVerb(Call):
    """Take the latest change of any kind back or forth, or describe everything."""

    type: Literal["undo", "redo", "study.get"]


class Cancel(Call):
    """Take back a request that has not begun."""

    type: Literal["cancel"]


AnyCall = Annotated[
    ObjectAdd | ObjectDescribe | ObjectVerb | ObjectMove | ObjectMerge | ObjectSplit | PromptAdd
    | PromptSetCall | PromptEdit | PromptRemove | CandidateChoose | Suggest
    | SuggestionAccept | Uncertainty | StepsSet | OverlapSet | MasksGet | StudyVerb | Cancel,
    Field(discriminator="type"),
]  # fmt: skip
_CALLS: Final[TypeAdapter[Any]] = TypeAdapter(AnyCall)


class Hello(Strict):
    """The first message of a WebSocket."""

    type: Literal["hello"]
    lease: Annotated[str, Field(max_length=128)]
    key: Annotated[str, Field(max_length=1024)] | None = None


def read_call(text: str | bytes) -> Any:
    """Return the request that a text message holds.

    Raises:
        ApiError: 422 ``invalid_request``.
    """
    try:
        return _CALLS.validate_json(text)
    except ValidationError as error:
        problems: Any = error.errors(include_url=False, include_context=False, include_input=False)
        raise invalid_request(problems) from None


def to_prompt(message: PromptMessage, shape: tuple[int, int, int]) -> Prompt:
    """Return the prompt that a message describes.

    Args:
        message: From a client.
        shape: Of the volume; masks of other grids are refused before they are unpacked.

    Raises:
        PromptError: It is no possible prompt.
    """
    mask = message.mask if isinstance(message, PaintedPrompt) else message
    if isinstance(mask, MaskPromptMessage) and tuple(mask.shape) != shape:
        text = f"Mask prompt has shape {tuple(mask.shape)} and the volume {shape}; resample it."
        raise PromptError(text)
    return prompt_from_plain(message.model_dump())
