"""The training loop: render, step, log, save; on one device or on several processes.

Each process renders its own ROIs; gradients are averaged, so all processes hold the same weights.
"""

from __future__ import annotations

import functools
import json
import math
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from fastsam3d.train import foreach
from fastsam3d.train.bank import TrainingBank
from fastsam3d.train.config import RunConfig, rate_factor
from fastsam3d.train.drawing import BatchDrawer, DrawnBatch
from fastsam3d.train.families import Model, family_of
from fastsam3d.train.feed import drawn_ahead
from fastsam3d.train.muon import Muon, is_muon_parameter
from fastsam3d.train.rendering import Renderer, TrainingBatch, Wrap
from fastsam3d.train.state import load_state, save_state
from fastsam3d.train.task import Losses, Moment, SegmentationTask, Task

CHECKPOINT = "checkpoint"
AVERAGED = "averaged"
BUDGET_MARGIN = 0.97

# From the model, the run, how to compile, and whether to compute in bfloat16.
TaskFactory = Callable[[Model, RunConfig, Wrap | None, bool], Task]


class Trainer:
    """One run of one process.

    Args:
        model: Model to train, on the bank's device.
        bank: Training cases.
        config: The run.
        output: Folder for log, resolved config and checkpoints (written by rank 0).
        rank, world_size: Of this process.
        facts: Further facts for the record, such as the hash of the training data.
        make_task: Makes what is minimised; prompted segmentation by default.
    """

    def __init__(
        self,
        model: Model,
        bank: TrainingBank,
        config: RunConfig,
        *,
        output: Path,
        rank: int = 0,
        world_size: int = 1,
        facts: dict[str, Any] | None = None,
        make_task: TaskFactory | None = None,
    ) -> None:
        self.model, self.bank, self.config, self.output = model, bank, config, output
        self.rank, self.world_size, self.facts = rank, world_size, dict(facts or {})
        self.device = next(model.parameters()).device
        on_cuda = self.device.type == "cuda"
        compiles = config.compile and on_cuda
        self.records_graphs = compiles and config.compile_mode == "reduce-overhead"
        if on_cuda and config.time_convolutions:
            torch.backends.cudnn.benchmark = True
        wrap = functools.partial(_compile, config=config) if compiles else None
        self.task = (make_task or _segmentation)(model, config, wrap, on_cuda)
        self.renderer = Renderer(bank, config.generator, compile_with=wrap)
        named = self.task.named_parameters()
        self.names, self.parameters = [n for n, _ in named], [p for _, p in named]
        self.ema = [p.detach().clone() for p in self.parameters]
        self.muon = Muon(
            [p for n, p in named if is_muon_parameter(n, p)],
            lr=config.muon_rate,
            weight_decay=config.weight_decay,
            replays=compiles and config.replay_muon,
        )
        self.optimisers: list[torch.optim.Optimizer] = [
            self.muon,
            torch.optim.AdamW(
                [p for n, p in named if not is_muon_parameter(n, p)],
                lr=config.adam_rate,
                betas=(0.9, 0.95),
                weight_decay=config.weight_decay,
                fused=(on_cuda and config.fuse_adam) or None,
            ),
        ]
        self.peaks = (config.muon_rate, config.adam_rate)
        self.step = 0
        self.num_steps = config.num_steps
        self.num_skipped = torch.zeros((), device=self.device)

    def fit(self) -> None:
        """Train to the end of the run; saves a checkpoint at the end."""
        config = self.config
        if self.rank == 0:
            self.output.mkdir(parents=True, exist_ok=True)
            record = {"config": config.to_dict(), "facts": self.facts}
            (self.output / "run.json").write_text(json.dumps(record, indent=1), encoding="utf-8")
        on_cuda = self.device.type == "cuda"
        batches = drawn_ahead(
            self.draw_for_step,
            self.step,
            workers=config.draw_workers if on_cuda else 0,
            pin=on_cuda,
        )
        started = calibrated = time.perf_counter()
        window = _Window()
        while self.num_steps is None or self.step < self.num_steps:
            losses = self.train_step(next(batches), self.num_rounds(self.step))
            self.step += 1
            window.add(losses)
            if self.num_steps is None:
                calibrated = self._calibrate(started, calibrated)
            if self.step % config.log_every == 0:
                self._log(window, time.perf_counter() - started)
                window = _Window()
            if self.step % config.save_every == 0:
                self.save()
                self.export()  # a machine that is taken away loses little
        self.save()
        self.export()

    def num_rounds(self, step: int) -> int:
        """Return how many corrective clicks precede the trained round; equal on all processes."""
        shares = np.asarray(self.config.prompts.round_shares)
        rng = np.random.default_rng((self.config.seed, step))
        return int(rng.choice(len(shares), p=shares / shares.sum()))

    def train_step(self, drawn: DrawnBatch, num_rounds: int) -> Losses:
        """Render a batch and learn from it; returns the losses of the task."""
        self._seed_device()
        if self.records_graphs:
            torch.compiler.cudagraph_mark_step_begin()  # what earlier steps returned is done with
        with torch.no_grad():
            batch = self.renderer.render(drawn.to(self.device))
        return self.learn(batch, num_rounds)

    def learn(self, batch: TrainingBatch, num_rounds: int) -> Losses:
        """Do one optimiser step; a non-finite gradient changes nothing and is counted."""
        moment = Moment(self.step, self.num_steps, num_rounds)
        losses = self.task(batch, moment)
        losses["loss"].backward()  # pyright: ignore[reportUnknownMemberType]
        grads = [p.grad for p in self.parameters if p.grad is not None]
        if self.world_size > 1:
            _average(grads, self.world_size)
        norm = foreach.norm(grads)
        is_finite = torch.isfinite(norm)
        scale = torch.where(is_finite, (self.config.clip / norm.clamp(min=1e-6)).clamp(max=1), 0.0)
        for grad in grads:
            grad.nan_to_num_(0.0, 0.0, 0.0)
        foreach.mul_(grads, scale)
        self.num_skipped += ~is_finite
        self.muon.gate = is_finite.float()
        factor = rate_factor(self.step, self.num_steps, self.config) * self.task.rate(moment)
        for optimiser, peak in zip(self.optimisers, self.peaks, strict=True):
            for group in optimiser.param_groups:
                group["lr"] = peak * factor
            optimiser.step()
            optimiser.zero_grad(set_to_none=True)
        decay = min(self.config.ema, (1 + self.step) / (10 + self.step))
        foreach.lerp_(self.ema, [p.detach() for p in self.parameters], 1 - decay)
        return {name: value.detach().clone() for name, value in losses.items()}

    def ema_state(self) -> dict[str, Tensor]:
        """Return the averaged weights by parameter name."""
        return dict(zip(self.names, self.ema, strict=True))

    def save(self) -> None:
        """Write the whole state; only rank 0 writes."""
        if self.rank:
            return
        tensors = {
            f"model.{n}": p.detach() for n, p in zip(self.names, self.parameters, strict=True)
        }
        tensors |= {f"ema.{n}": p for n, p in self.ema_state().items()}
        tensors |= {f"buffer.{n}": b for n, b in self._buffers().items()}
        for index, optimiser in enumerate(self.optimisers):
            for number, state in optimiser.state_dict()["state"].items():
                for kind, value in state.items():
                    tensors[f"opt{index}.{number}.{kind}"] = torch.as_tensor(value)
        facts = {"step": self.step, "num_steps": self.num_steps, "config": self.config.to_dict()}
        save_state(self.output / CHECKPOINT, tensors, facts | self.facts)

    def export(self) -> None:
        """Write the model's averaged weights alone, as float16; only rank 0 writes."""
        if self.rank == 0:
            own = {name for name, _ in self.model.named_parameters()}
            tensors = {name: p.half() for name, p in self.ema_state().items() if name in own}
            tensors |= self._buffers()  # position frequencies would not survive half precision
            facts = {"step": self.step, "config": self.config.to_dict()}
            save_state(self.output / AVERAGED, tensors, facts | self.facts)

    def resume(self, folder: Path) -> None:
        """Continue from a checkpoint of the same config: the loss curve goes on as if unbroken.

        Raises:
            CheckpointError: The checkpoint is missing or damaged.
        """
        tensors, facts = load_state(folder)
        with torch.no_grad():
            for name, parameter, average in zip(self.names, self.parameters, self.ema, strict=True):
                parameter.copy_(tensors[f"model.{name}"])
                average.copy_(tensors[f"ema.{name}"])
            for name, buffer in self._buffers().items():
                buffer.copy_(tensors[f"buffer.{name}"])
        for index, optimiser in enumerate(self.optimisers):
            owners = [p for group in optimiser.param_groups for p in group["params"]]
            state: dict[int, dict[str, Tensor]] = {}
            for key, value in tensors.items():
                if key.startswith(f"opt{index}."):
                    _, number, kind = key.split(".")
                    laid_out = _laid_out_like(value, owners[int(number)])
                    state.setdefault(int(number), {})[kind] = laid_out
            optimiser.load_state_dict(optimiser.state_dict() | {"state": state})
        self.step, self.num_steps = int(facts["step"]), facts["num_steps"]

    def _buffers(self) -> dict[str, Tensor]:
        """Return the model's weights that are not trained, such as random frequencies."""
        trained = {name for name, _ in self.model.named_parameters()}
        return {n: t for n, t in self.model.state_dict().items() if n not in trained}

    def draw_for_step(self, step: int) -> DrawnBatch:
        """Draw the batch of one step; depends on nothing but seed, step and rank."""
        seed = hash((self.config.seed, step, self.rank)) & 0x7FFFFFFF
        return BatchDrawer(self.bank, self.config.generator, seed=seed).draw()

    def _seed_device(self) -> None:
        seed = (self.config.seed * 1_000_003 + self.step) * 64 + self.rank
        torch.manual_seed(seed)  # pyright: ignore[reportUnknownMemberType]

    def _calibrate(self, started: float, calibrated: float) -> float:
        """Fix the number of steps once the step time is known."""
        config = self.config
        if self.step == config.calibration_steps // 2:
            synchronise(self.device)
            return time.perf_counter()
        if self.step < config.calibration_steps:
            return calibrated
        synchronise(self.device)
        now = time.perf_counter()
        seconds = (now - calibrated) / (config.calibration_steps - config.calibration_steps // 2)
        left = BUDGET_MARGIN * (60 * config.minutes - (now - started)) / seconds
        count = torch.tensor(self.step + max(1, math.floor(left)), device=self.device)
        if self.world_size > 1:
            dist.broadcast(count, 0)
        self.num_steps = int(count)
        return calibrated

    def _log(self, window: _Window, seconds: float) -> None:
        if self.rank:
            return
        rate = rate_factor(self.step, self.num_steps, self.config)
        line = {
            "step": self.step,
            "num_steps": self.num_steps,
            "seconds": round(seconds, 2),
            "rois": self.step * self.config.generator.batch_size * self.world_size,
            "rate": round(rate, 4),
            "skipped": int(self.num_skipped),
            **window.means(),
        }
        with (self.output / "log.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")


class _Window:
    """Means of the losses since the last log line, kept on the device until asked for."""

    def __init__(self) -> None:
        self.values: defaultdict[str, list[Tensor]] = defaultdict(list)

    def add(self, losses: Losses) -> None:
        for name, value in losses.items():
            self.values[name].append(value)

    def means(self) -> dict[str, float]:
        return {n: round(float(torch.stack(v).mean()), 5) for n, v in self.values.items()}


def _segmentation(
    model: Model, config: RunConfig, compile_with: Wrap | None, autocast: bool
) -> Task:
    family = family_of(model, config.fine_side)
    return SegmentationTask(family, config, compile_with=compile_with, autocast=autocast)


def _compile(function: Callable[..., Any], *, config: RunConfig) -> Callable[..., Any]:
    options: dict[str, Any] = {
        "realize_reads_threshold": config.inlined_reads,
        # That of 2-D convolutions; without a gradient it turns the grids of 3-D ones round.
        "layout_optimization": False,
    }
    if config.compile_mode != "default":
        from torch import _inductor  # noqa: PLC0415 (loads the compiler)

        options |= cast("Any", _inductor).list_mode_options(config.compile_mode)
    return cast("Any", torch).compile(function, dynamic=False, options=options)


def _laid_out_like(value: Tensor, parameter: Tensor) -> Tensor:
    """Return state of an optimiser with the strides of what it belongs to; files keep none."""
    return torch.empty_like(parameter).copy_(value) if value.ndim else value


def _average(grads: list[Tensor], world_size: int) -> None:
    flat = torch.cat([grad.flatten() for grad in grads])
    dist.all_reduce(flat)  # pyright: ignore[reportUnknownMemberType]
    flat /= world_size
    parts = torch.split(flat, [grad.numel() for grad in grads])
    foreach.copy_(grads, [part.view_as(g) for part, g in zip(parts, grads, strict=True)])


def synchronise(device: torch.device) -> None:
    """Wait until a CUDA device has done what it was asked to do."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
