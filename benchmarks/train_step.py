"""Time a training step on one GPU: all of it, and each thing that makes it fast taken away in turn.

``python benchmarks/train_step.py --pack pack/train_pack.npz --output train_step.json``

An arm is the step as it is, but for one thing; every arm starts from the same weights and sees the
same batches, so its losses say whether it computes the same. ``--arms`` chooses, ``--seconds`` ends
the list early, ``--set`` changes the run's config for all arms. The file is written after each arm.
"""

from __future__ import annotations

import argparse
import functools
import json
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional
from torch.profiler import ProfilerActivity, profile

from fastsam3d.model import hr_decoder, hr_layers, inference_ops
from fastsam3d.model.registry import build_model
from fastsam3d.train import clicks, loop
from fastsam3d.train.bank import TrainingBank
from fastsam3d.train.config import RECIPES, RunConfig, architecture_of, recipe
from fastsam3d.train.drawing import DrawnBatch
from fastsam3d.train.launch import training_device
from fastsam3d.train.loop import Trainer, synchronise
from fastsam3d.train.overrides import override
from fastsam3d.train.pack import load_pack
from fastsam3d.train.shapes import draw_shapes, fill_labels, fill_labels_reference
from fastsam3d.train.task import Answer, SegmentationTask

NUM_STEPS = 16  # timed without waiting in between; as many batches are drawn before
NUM_PROFILED = 4
NUM_KERNELS = 60


@dataclass(frozen=True, kw_only=True)
class Arm:
    """One way to make the step.

    Attributes:
        changes: Fields of the config.
        patches: What takes the place of which attribute of what; compiled stages notice.
        is_compiled_anew: The compiled stages of the step as it is do not serve.
    """

    changes: dict[str, Any] = field(default_factory=dict)
    patches: tuple[tuple[Any, str, Any], ...] = ()
    is_compiled_anew: bool = False


def pooled_depth(region: Tensor, *, steps: int = clicks.NUM_EROSIONS) -> Tensor:
    """Return `clicks.erosion_depth` by pooling, as it was."""
    current = functional.pad(region.half()[:, None], (1,) * 6)
    depth = torch.zeros_like(current)
    for _ in range(steps):
        depth = depth + current
        current = -functional.max_pool3d(-current, 3, stride=1, padding=1)
    return depth[:, 0, 1:-1, 1:-1, 1:-1].float()


plain_rounds = SegmentationTask.rounds


def rounds_repeated(
    self: SegmentationTask, batch: Any, parts: Any, *rest: Any, **words: Any
) -> list[Answer]:
    """Answer as `SegmentationTask.rounds`, the encoding repeated before, as it was."""
    count = batch.targets.shape[1]
    repeated = tuple(p.repeat_interleave(count, 0) for p in parts)
    return plain_rounds(self, batch, repeated, *rest, **words)


def compile_as_it_comes(function: Callable[..., Any], *, config: RunConfig) -> Any:
    """Compile a stage with the compiler's own settings."""
    del config
    return torch.compile(function, dynamic=False)


def _never() -> bool:
    return False


CHANNELS_FIRST = tuple((m, "is_recorded", _never) for m in (inference_ops, hr_layers, hr_decoder))
OUTSIDE = ((SegmentationTask, "rounds", rounds_repeated),)
POOLED = ((clicks, "erosion_depth", pooled_depth),)
AS_IT_COMES = ((loop, "_compile", compile_as_it_comes),)
PLAIN = {"replay_muon": False, "fuse_adam": False}
ARMS = {
    "now": Arm(),
    "timed convolutions": Arm(changes={"time_convolutions": True}),
    "Muon asked one by one": Arm(changes={"replay_muon": False}),
    "AdamW in many kernels": Arm(changes={"fuse_adam": False}),
    "erosions by pooling": Arm(patches=POOLED),
    "repeated outside": Arm(patches=OUTSIDE),
    "channels first": Arm(patches=CHANNELS_FIRST),
    "normalised grids stored": Arm(changes={"inlined_reads": 4}, is_compiled_anew=True),
    "finest stage in the central box": Arm(changes={"fine_side": 96}, is_compiled_anew=True),
    "two rounds learnt from": Arm(changes={"trained_rounds": 2}),
    "compiled as it comes": Arm(patches=AS_IT_COMES, is_compiled_anew=True),
    "before": Arm(
        changes=PLAIN,
        patches=(*CHANNELS_FIRST, *OUTSIDE, *POOLED, *AS_IT_COMES),
        is_compiled_anew=True,
    ),
    "CUDA graphs": Arm(changes={"compile_mode": "reduce-overhead"}, is_compiled_anew=True),
}
DEFAULT_ARMS = ("now", "timed convolutions", "Muon asked one by one", "AdamW in many kernels")
DEFAULT_ARMS = (*DEFAULT_ARMS, "before")


def milliseconds(function: Callable[[], Any], device: torch.device, *, repeats: int = 10) -> float:
    """Return the median time of a call, synchronised, after two warm-up calls."""
    for _ in range(2):
        function()
    times: list[float] = []
    for _ in range(repeats):
        synchronise(device)
        start = time.perf_counter()
        function()
        synchronise(device)
        times.append(1e3 * (time.perf_counter() - start))
    return sorted(times)[len(times) // 2]


def check_kernels(config: RunConfig) -> dict[str, float]:
    """Compare the shapes kernel and a bf16 conv3d with their references."""
    shapes = draw_shapes(np.random.default_rng(0), 4, config.generator.shapes)
    base = torch.zeros(4, 64, 64, 64, dtype=torch.int16, device="cuda")
    base[:, 20:40, 20:40, 20:40] = 7
    fields = torch.randn(4, 12, 12, 12, 12, device="cuda")
    zoom = torch.rand(4, device="cuda")
    warp = 0.05 * torch.randn(4, 3, 9, 9, 9, device="cuda")
    prims = torch.from_numpy(shapes.primitives).cuda()
    fast = fill_labels(base, fields, zoom, warp, prims)
    slow = fill_labels_reference(base, fields, zoom, warp, prims)
    x = torch.randn(2, 32, 32, 32, 32, device="cuda")
    w = torch.randn(32, 32, 3, 3, 3, device="cuda")
    exact = functional.conv3d(x.cpu(), w.cpu(), padding=1)
    x16 = x.bfloat16().to(memory_format=torch.channels_last_3d)
    rough = functional.conv3d(x16, w.bfloat16(), padding=1).float().cpu()
    region = torch.rand(4, 64, 64, 64, device="cuda") < 0.9995
    depth = torch.compile(clicks.erosion_depth)(region)
    return {
        "shapes_kernel_differs": float((fast != slow).float().mean()),
        "bf16_conv3d_error": float((rough - exact).norm() / exact.norm()),
        "erosion_depth_differs": float((depth != pooled_depth(region)).float().mean()),
    }


class Bench:
    """The bank, the batches and the step as it is, whose compiled stages other arms share."""

    def __init__(self, pack: Path, config: RunConfig, output: Path, device: torch.device) -> None:
        self.config, self.output = config, output
        self.device = device
        self.bank = TrainingBank(load_pack(pack), device=device)
        self.shared: Trainer | None = None
        self.drawn: list[DrawnBatch] = []

    def run(self, arm: Arm) -> dict[str, Any]:
        """Return the figures of one arm."""
        before = torch.backends.cudnn.benchmark
        with ExitStack() as patches:
            for module, name, value in arm.patches:
                patches.enter_context(mock.patch.object(module, name, value))
            try:
                return self._measure(self._trainer(arm))
            finally:
                torch.backends.cudnn.benchmark = before

    def _trainer(self, arm: Arm) -> Trainer:
        config = replace(self.config, **arm.changes)
        torch.manual_seed(config.seed)
        model = build_model(architecture_of(config.to_dict())).to(self.device)
        shared = None if arm.is_compiled_anew else self.shared
        if shared is None:
            trainer = Trainer(model, self.bank, config, output=self.output.parent)
            trainer.renderer = self.shared.renderer if self.shared else trainer.renderer
        else:
            shared.model.load_state_dict(model.state_dict())
            trainer = Trainer(
                shared.model,
                self.bank,
                config,
                output=self.output.parent,
                make_task=lambda *_: shared.task,
            )
            trainer.renderer = shared.renderer
        if self.shared is None:
            self.shared = trainer
            self.drawn = [trainer.draw_for_step(step) for step in range(NUM_STEPS)]
            if self.device.type == "cuda":
                self.drawn = [drawn.pin_memory() for drawn in self.drawn]
        return trainer

    def _measure(self, trainer: Trainer) -> dict[str, Any]:
        result: dict[str, Any] = {}
        start = time.perf_counter()
        # The second loss also tells whether the weights were updated alike.
        losses = [self._step(trainer, step, rounds) for step, rounds in enumerate((0, 1))]
        result["losses"] = [float(loss["loss"]) for loss in losses]
        result["first_two_steps_s"] = time.perf_counter() - start
        for step in range(2, NUM_STEPS):
            self._step(trainer, step)
        synchronise(self.device)
        start = time.perf_counter()
        for step in range(NUM_STEPS):
            self._step(trainer, step)
        result["host_ms"] = 1e3 * (time.perf_counter() - start) / NUM_STEPS
        synchronise(self.device)
        result["step_ms"] = 1e3 * (time.perf_counter() - start) / NUM_STEPS
        result["skipped"] = int(trainer.num_skipped)
        if self.device.type == "cpu":
            return result
        result["peak_gib"] = torch.cuda.max_memory_allocated() / 2**30
        torch.cuda.reset_peak_memory_stats()
        return result | self._profile(trainer)

    def _step(self, trainer: Trainer, step: int, rounds: int | None = None) -> Any:
        trainer.step = step
        rounds = trainer.num_rounds(step) if rounds is None else rounds
        return trainer.train_step(self.drawn[step], rounds)

    def _profile(self, trainer: Trainer) -> dict[str, Any]:
        """Return kernels per step by their time, of one round each."""
        with profile(activities=[ProfilerActivity.CUDA]) as found:
            for step in range(NUM_PROFILED):
                self._step(trainer, step, 1)
            torch.cuda.synchronize()
        rows = [
            (row.key, row.self_device_time_total / 1e3 / NUM_PROFILED, row.count / NUM_PROFILED)
            for row in found.key_averages()
            if row.self_device_time_total
        ]
        rows.sort(key=lambda row: -row[1])
        return {
            "kernels_ms": sum(row[1] for row in rows),
            "launches": sum(row[2] for row in rows),
            "kernels": [[name[:90], round(ms, 3), count] for name, ms, count in rows[:NUM_KERNELS]],
        }

    def parts(self) -> dict[str, float]:
        """Return the times of the parts of the step as it is."""
        trainer = self._trainer(ARMS["now"])
        drawn = self.drawn[0].to(trainer.device)
        with torch.no_grad():
            image = trainer.renderer.render(drawn).image
            result = {
                "render_ms": milliseconds(lambda: trainer.renderer.render(drawn), self.device),
                "encode_ms": milliseconds(lambda: trainer.task.encode(image), self.device),
            }
        for rounds in (0, 1, 3):
            step = functools.partial(self._step, trainer, 0, rounds)
            result[f"step_{rounds}_ms"] = milliseconds(step, self.device)
        grads = [torch.randn_like(p) for p in trainer.parameters]

        def optimise() -> None:
            for parameter, grad in zip(trainer.parameters, grads, strict=True):
                parameter.grad = grad
            for optimiser in trainer.optimisers:
                optimiser.step()

        result["optimiser_ms"] = milliseconds(optimise, self.device)
        for parameter in trainer.parameters:
            parameter.grad = None
        return result


def main() -> int:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pack", type=Path, required=True)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--recipe", choices=sorted(RECIPES), default="continue")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--arms", nargs="+", choices=sorted(ARMS), default=DEFAULT_ARMS)
    parser.add_argument("--device", default="cuda", help="cpu to try the benchmark itself")
    parser.add_argument("--seconds", type=float, default=240.0, help="start no arm after this")
    options = parser.parse_args()
    started = time.perf_counter()
    device = training_device(options.device)
    torch._dynamo.config.recompile_limit = 64  # arms share the code of their stages
    config = override(recipe(options.recipe), options.set)
    result: dict[str, Any] = {
        "command": " ".join(["python", *sys.argv]),
        "device": torch.cuda.get_device_name() if device.type == "cuda" else "cpu",
        "torch": torch.__version__,
        "cudnn": torch.backends.cudnn.version(),
        "rois_per_step": config.generator.batch_size,
        "set": options.set,
        "arms": {},
    }
    if device.type == "cuda":
        result |= check_kernels(config)
    bench = Bench(options.pack, config, options.output, device)
    result["load_s"] = time.perf_counter() - started
    for name in options.arms:
        if time.perf_counter() - started > options.seconds:
            break
        result["arms"][name] = bench.run(ARMS[name])
        if name == "now":
            result |= bench.parts()
        result["seconds"] = time.perf_counter() - started
        options.output.write_text(json.dumps(result, indent=1))
        shown = {k: v for k, v in result["arms"][name].items() if k != "kernels"}
        print(name, json.dumps(shown), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
