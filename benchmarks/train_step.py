"""Time the parts of a training step on one GPU and check its kernels against the references.

``python benchmarks/train_step.py --pack pack/train_pack.npz --output train_step.json``
"""

from __future__ import annotations

import argparse
import functools
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn import functional

from fastsam3d.model.config import MODEL_CONFIGS
from fastsam3d.model.hr import HighResSam3D
from fastsam3d.train.bank import TrainingBank
from fastsam3d.train.config import recipe
from fastsam3d.train.drawing import BatchDrawer
from fastsam3d.train.loop import Trainer
from fastsam3d.train.pack import load_pack
from fastsam3d.train.shapes import draw_shapes, fill_labels, fill_labels_reference


def milliseconds(function: Callable[[], Any], *, repeats: int = 10) -> float:
    """Return the median time of a call, synchronised, after two warm-up calls."""
    for _ in range(2):
        function()
    times: list[float] = []
    for _ in range(repeats):
        torch.cuda.synchronize()
        start = time.perf_counter()
        function()
        torch.cuda.synchronize()
        times.append(1e3 * (time.perf_counter() - start))
    return sorted(times)[len(times) // 2]


def check_kernels(config: Any) -> dict[str, float]:
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
    return {
        "shapes_kernel_differs": float((fast != slow).float().mean()),
        "bf16_conv3d_error": float((rough - exact).norm() / exact.norm()),
    }


def main() -> int:
    """Run the benchmark."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--pack", type=Path, required=True)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--eager", action="store_true")
    options = parser.parse_args()
    config = recipe("default")
    torch.manual_seed(0)
    torch.backends.cuda.matmul.allow_tf32 = True
    result: dict[str, Any] = {"device": torch.cuda.get_device_name(), "torch": torch.__version__}
    result |= check_kernels(config)
    print(result, flush=True)
    start = time.perf_counter()
    bank = TrainingBank(load_pack(options.pack), device="cuda")
    result["load_s"] = time.perf_counter() - start
    start = time.perf_counter()
    drawn_cpu = BatchDrawer(bank, config.generator, seed=0).draw()
    result["draw_ms"] = 1e3 * (time.perf_counter() - start)
    drawn = drawn_cpu.to("cuda")
    model = HighResSam3D(MODEL_CONFIGS["hr_s"]).to("cuda", memory_format=torch.channels_last_3d)
    trainer = Trainer(model, bank, config, output=options.output.parent / "bench_run")
    start = time.perf_counter()
    with torch.no_grad():
        batch = trainer.renderer.render(drawn)
    torch.cuda.synchronize()
    result["render_compile_s"] = time.perf_counter() - start
    print(result, flush=True)
    start = time.perf_counter()
    trainer.train_step(drawn_cpu, 1)
    torch.cuda.synchronize()
    result["step_compile_s"] = time.perf_counter() - start
    print(result, flush=True)
    with torch.no_grad():
        result["render_ms"] = milliseconds(lambda: trainer.renderer.render(drawn))
        result["encode_ms"] = milliseconds(lambda: trainer.task.encode(batch.image))
    for rounds in (0, 1, 3):
        step = functools.partial(trainer.train_step, drawn_cpu, rounds)
        result[f"step_{rounds}_ms"] = milliseconds(step)
    grads = [torch.randn_like(p) for p in trainer.parameters]

    def optimise() -> None:
        for parameter, grad in zip(trainer.parameters, grads, strict=True):
            parameter.grad = grad
        for optimiser in trainer.optimisers:
            optimiser.step()

    result["optimiser_ms"] = milliseconds(optimise)
    result["peak_gib"] = torch.cuda.max_memory_allocated() / 2**30
    result["rois_per_step"] = config.generator.batch_size
    options.output.write_text(json.dumps(result, indent=1))
    print(json.dumps(result, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
