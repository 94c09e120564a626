"""When each part of a student learns: which layers, then the neck, then the decoder.

Pure functions of the step, so that a resumed run and every process of a run agree. Layers are
counted from 1, as in the paper.

Source: FastSAM3D (arXiv 2403.09827): student layer i learns from teacher layer 2i, the loss is the
mean over the k layers that are active, and k grows.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple

from fastsam3d.errors import ConfigError

StageKind = Literal["layers", "neck", "decoder"]


class LayerPair(NamedTuple):
    """A student layer and the teacher layer it imitates, both counted from 1."""

    student: int
    teacher: int


@dataclass(frozen=True, kw_only=True)
class StagePlan:
    """Shape of a distillation run.

    Attributes:
        num_steps: Steps of the whole run.
        student_depth, teacher_depth: Trunk blocks.
        layers_share: Share of the steps in which layers imitate layers.
        neck_share: Share, after those, in which the image embedding is imitated. The rest of the
            run has the mask decoder in the loop.
        is_progressive: Layers join one after the other; otherwise all are active from the start.
    """

    num_steps: int
    student_depth: int
    teacher_depth: int
    layers_share: float = 0.3
    neck_share: float = 0.1
    is_progressive: bool = True

    def __post_init__(self) -> None:
        shares = (self.layers_share, self.neck_share)
        if min(shares) < 0 or sum(shares) > 1:
            msg = (
                f"layers_share and neck_share must be positive and at most 1 together, got "
                f"{self.layers_share} and {self.neck_share}; lower one of them."
            )
            raise ConfigError(msg)
        if not 1 <= self.student_depth <= self.teacher_depth:
            msg = (
                f"The student has {self.student_depth} trunk blocks and its teacher "
                f"{self.teacher_depth}; take a deeper teacher or set depth to fewer blocks."
            )
            raise ConfigError(msg)


@dataclass(frozen=True, kw_only=True)
class Stage:
    """What is learnt at one step.

    Attributes:
        kind: ``layers``, ``neck`` or ``decoder``.
        pairs: Layers whose features are compared; all of them after the first stage.
    """

    kind: StageKind
    pairs: tuple[LayerPair, ...]


def layer_pairs(student_depth: int, teacher_depth: int) -> tuple[LayerPair, ...]:
    """Spread the student's layers evenly over the teacher's, rounding up.

    The last layers always meet; 12 to 6 gives 2i, 12 to 8 gives 2, 3, 5, 6, 8, 9, 11, 12.
    """
    return tuple(
        LayerPair(layer, -(-layer * teacher_depth // student_depth))
        for layer in range(1, student_depth + 1)
    )


def stage_at(step: int, plan: StagePlan) -> Stage:
    """Return what is learnt at a step.

    Args:
        step: Steps done so far, 0 for the first.
        plan: Of the run.
    """
    pairs = layer_pairs(plan.student_depth, plan.teacher_depth)
    layer_steps = round(plan.layers_share * plan.num_steps)
    neck_steps = round((plan.layers_share + plan.neck_share) * plan.num_steps) - layer_steps
    if step < layer_steps:
        active = len(pairs) if not plan.is_progressive else 1 + step * len(pairs) // layer_steps
        return Stage(kind="layers", pairs=pairs[:active])
    return Stage(kind="neck" if step < layer_steps + neck_steps else "decoder", pairs=pairs)


def stage_spans(plan: StagePlan) -> list[tuple[int, int, Stage]]:
    """Return the stages of a run in order, as (first step, number of steps, stage)."""
    spans: list[tuple[int, int, Stage]] = []
    for step in range(plan.num_steps):
        stage = stage_at(step, plan)
        if spans and spans[-1][2] == stage:
            first, count, _ = spans[-1]
            spans[-1] = (first, count + 1, stage)
        else:
            spans.append((step, 1, stage))
    return spans
