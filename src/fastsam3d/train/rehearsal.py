"""How many steps fit into some minutes, when a run's stages cost differently.

A step costs several times as much with the decoder in the loop as in the first stage of a
distillation, so the first steps do not tell how long a run will take.
"""

from __future__ import annotations

import bisect
import itertools
import math
import time
from dataclasses import dataclass

import torch
import torch.distributed as dist

from fastsam3d.train.distill_schedule import stage_spans
from fastsam3d.train.distill_task import DistillTask, stage_plan
from fastsam3d.train.launch import Process
from fastsam3d.train.loop import BUDGET_MARGIN, Trainer, synchronise

# A rehearsal plans as if for so many steps, and times a few in the middle of each stage.
REHEARSED_STEPS = 1000
UNTIMED, TIMED = 3, 8


@dataclass(frozen=True, kw_only=True)
class Timing:
    """What a step costs in one stage.

    Attributes:
        label: Stage and number of active layers.
        share: Of the run's steps.
        seconds: Per step.
    """

    label: str
    share: float
    seconds: float


def rehearse(trainer: Trainer) -> list[Timing]:
    """Time a few steps of every stage, compile what is to be compiled, and undo all of it.

    Args:
        trainer: Before its first step.
    """
    weights = [p.detach().clone() for p in (*trainer.parameters, *trainer.ema)]
    timings: list[Timing] = []
    trainer.num_steps = REHEARSED_STEPS
    for label, first, count in _spans(trainer):
        trainer.step = first + count // 2
        seconds = _seconds_per_step(trainer)
        timings.append(Timing(label=label, share=count / REHEARSED_STEPS, seconds=seconds))
    with torch.no_grad():
        for tensor, kept in zip((*trainer.parameters, *trainer.ema), weights, strict=True):
            tensor.copy_(kept)
    for optimiser in trainer.optimisers:
        optimiser.state.clear()
    trainer.num_skipped.zero_()
    trainer.step, trainer.num_steps = 0, None
    return timings


def steps_for_minutes(timings: list[Timing], minutes: float, process: Process) -> int:
    """Return how many steps fit, the same number in every process.

    Args:
        timings: From `rehearse`.
        minutes: Wall clock of the loop, without the rehearsal.
        process: This process.
    """
    mean = sum(t.share * t.seconds for t in timings)
    count = torch.tensor(
        max(1, math.floor(BUDGET_MARGIN * 60 * minutes / mean)), device=process.device
    )
    if process.world_size > 1:
        dist.broadcast(count, 0)
    return int(count)


def _spans(trainer: Trainer) -> list[tuple[str, int, int]]:
    """Return label, first step and number of steps of every stage."""
    task = trainer.task
    if not isinstance(task, DistillTask):
        return [("scratch", 0, REHEARSED_STEPS)]
    plan = stage_plan(task.distill, task.student, task.teacher, REHEARSED_STEPS)
    return [
        (f"layers{len(stage.pairs)}" if stage.kind == "layers" else stage.kind, first, count)
        for first, count, stage in stage_spans(plan)
    ]


def _seconds_per_step(trainer: Trainer) -> float:
    """Time steps here; a slower drawing thread would be waited for."""
    start = time.perf_counter()
    drawn = trainer.draw_for_step(trainer.step)
    drawing = time.perf_counter() - start
    # Numbers of corrective clicks as frequent as in the run, so that few steps tell its mean.
    shares = list(itertools.accumulate(trainer.config.prompts.round_shares))
    rounds = [bisect.bisect_left(shares, (n + 0.5) / TIMED * shares[-1]) for n in range(TIMED)]
    for num_rounds in rounds[-UNTIMED:]:
        trainer.train_step(drawn, num_rounds)
    synchronise(trainer.device)
    start = time.perf_counter()
    for num_rounds in rounds:
        trainer.train_step(drawn, num_rounds)
    synchronise(trainer.device)
    return max(drawing, (time.perf_counter() - start) / TIMED)
