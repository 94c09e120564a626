"""What bounds an encoder on a CPU: its time beside products of its own sizes, and in other engines.

    python benchmarks/cpu_floor.py --model fastsam3d_6l --threads 2

One run, everything in turn: the encoder in eager float32, with int8 linear layers (PyTorch,
dynamic), in onnxruntime in float32 and with int8 products (dynamic), and products of matrices in
float32, a large one and one for each shape of the encoder's linear layers. Weights are random,
which changes no time; what int8 does to answers cannot be told from them.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from fastsam3d.eval.provenance import cpu_name, git_commit
from fastsam3d.model.card import Preprocessing
from fastsam3d.model.onnx_export import export_onnx
from fastsam3d.model.registry import create_model
from fastsam3d.session.engine import OnnxRuntimeGraph

HERE = Path(__file__).parent
LARGE = 2048
Run = Callable[[], object]


def engines(model: Any, folder: Path, image: torch.Tensor, threads: int) -> dict[str, Run]:
    """Return the encoder in everything that can run it, by name."""
    from onnxruntime.quantization import quantize_dynamic  # noqa: PLC0415 (an extra)

    preprocessing = Preprocessing(
        normalisation="foreground_zscore", image_size=128, spacings_mm=(1.5,)
    )
    files = export_onnx(model, folder, preprocessing=preprocessing, weights_sha256="0" * 64)
    small = folder / "int8.onnx"
    quantize_dynamic(files.encoder, small, op_types_to_quantize=["MatMul"])
    graphs = {name: OnnxRuntimeGraph(p, threads) for name, p in ((0, files.encoder), (1, small))}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch calls its own quantisation deprecated
        int8 = torch.ao.quantization.quantize_dynamic(model, {nn.Linear}, torch.qint8)
    given = {"image": image.numpy()}
    return {
        "torch float32": lambda: model.encode_image(image),
        "torch int8 dynamic": lambda: int8.encode_image(image),
        "onnxruntime float32": lambda: graphs[0].run(given),
        "onnxruntime int8 dynamic": lambda: graphs[1].run(given),
    }


def linear_shapes(model: Any, image: torch.Tensor) -> Counter[tuple[int, int, int]]:
    """Return rows, inputs and outputs of every linear layer that an encode calls."""
    found: Counter[tuple[int, int, int]] = Counter()

    def note(layer: nn.Module, given: tuple[torch.Tensor, ...], _: object) -> None:
        weight = layer.get_parameter("weight")
        found[given[0].numel() // weight.shape[1], weight.shape[1], weight.shape[0]] += 1

    hooks = [m.register_forward_hook(note) for m in model.modules() if isinstance(m, nn.Linear)]
    model.encode_image(image)
    for hook in hooks:
        hook.remove()
    return found


def products(shapes: list[tuple[int, int, int]]) -> dict[str, Run]:
    """Return products of matrices by name: rows x inputs x outputs."""
    runs: dict[str, Run] = {}
    for rows, inputs, outputs in shapes:
        a, b = torch.randn(rows, inputs), torch.randn(outputs, inputs)
        runs[f"{rows} x {inputs} x {outputs}"] = lambda a=a, b=b: nn.functional.linear(a, b)
    return runs


def timed(runs: dict[str, Run], rounds: int) -> dict[str, dict[str, float]]:
    """Return median wall and processor time in ms, all in turn, after one round not counted."""
    samples: dict[str, list[tuple[float, float]]] = {name: [] for name in runs}
    for number in range(rounds + 1):
        for name, run in runs.items():
            wall, cpu = time.perf_counter(), time.process_time()
            run()
            now = (time.perf_counter() - wall, time.process_time() - cpu)
            if number:
                samples[name].append(now)
    return {
        name: {
            "wall_ms": round(1e3 * median(wall for wall, _ in found), 3),
            "cpu_ms": round(1e3 * median(cpu for _, cpu in found), 3),
        }
        for name, found in samples.items()
    }


@torch.inference_mode()
def main() -> None:
    """Measure and write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="fastsam3d_6l")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--output", type=Path, default=HERE / "cpu_floor.json")
    words = parser.parse_args()
    torch.set_num_threads(words.threads)
    load_before = os.getloadavg()[0]
    model, image = create_model(words.model).eval(), torch.randn(1, 1, 128, 128, 128)
    with FlopCounterMode(display=False) as counter:
        model.encode_image(image)
    flops = counter.get_total_flops()
    shapes = linear_shapes(model, image)
    with tempfile.TemporaryDirectory(prefix="fastsam3d-bench-") as folder:
        runs = engines(model, Path(folder), image, words.threads)
        runs |= products([(LARGE,) * 3, *shapes])
        times = timed(runs, words.rounds)
    large = times[f"{LARGE} x {LARGE} x {LARGE}"]
    linear_flops = sum(2 * a * b * c * count for (a, b, c), count in shapes.items())
    floor = {key: flops * large[key] / (2 * LARGE**3) for key in large}
    linear = {
        key: sum(times[f"{a} x {b} x {c}"][key] * count for (a, b, c), count in shapes.items())
        for key in large
    }
    eager = times["torch float32"]
    record = {
        "command": "python benchmarks/cpu_floor.py " + " ".join(sys.argv[1:]),
        "commit": git_commit(HERE),
        "device": cpu_name(),
        "features": torch.backends.cpu.get_cpu_capability(),
        "threads": words.threads,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "load_average_before": load_before,
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "model": words.model,
        "encode_flops": flops,
        "linear_flops": linear_flops,
        "linear_layers": [[*shape, count] for shape, count in shapes.items()],
        "floor_ms": floor,
        "linear_layers_alone_ms": linear,
        "encode_over_floor": {key: eager[key] / floor[key] for key in floor},
        "encode_over_torch_float32": {
            name: {key: times[name][key] / eager[key] for key in eager}
            for name in times
            if " x " not in name
        },
        "gflop_per_cpu_s": {
            name: round(2e-6 * _size(name) / found["cpu_ms"], 1)
            for name, found in times.items()
            if " x " in name
        },
        "times": times,
    }
    words.output.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    print(json.dumps({k: v for k, v in record.items() if k != "times"}, indent=1))


def _size(name: str) -> int:
    rows, inputs, outputs = (int(part) for part in name.split(" x "))
    return rows * inputs * outputs


if __name__ == "__main__":
    main()
