"""What the user gives: points, boxes, scribbles, lassos and masks, each with its frame."""

from fastsam3d.prompts.drawn import Lasso, Scribble, SliceBox
from fastsam3d.prompts.frames import Frame
from fastsam3d.prompts.log import LogEntry, PromptLog
from fastsam3d.prompts.painted import Painted
from fastsam3d.prompts.prompt_set import Prompt, PromptSet
from fastsam3d.prompts.types import Box, MaskPrompt, Point

__all__ = [
    "Box",
    "Frame",
    "Lasso",
    "LogEntry",
    "MaskPrompt",
    "Painted",
    "Point",
    "Prompt",
    "PromptLog",
    "PromptSet",
    "Scribble",
    "SliceBox",
]
