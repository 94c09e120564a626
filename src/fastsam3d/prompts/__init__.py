"""What the user gives: points, boxes and masks, each with its frame."""

from fastsam3d.prompts.prompt_set import Prompt, PromptSet
from fastsam3d.prompts.types import Box, Frame, MaskPrompt, Point

__all__ = ["Box", "Frame", "MaskPrompt", "Point", "Prompt", "PromptSet"]
