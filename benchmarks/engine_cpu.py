"""Time and agreement of the CPU engines on crops of real cases, interleaved in one run.

    python benchmarks/engine_cpu.py CASES_DIR PACK.npz --output benchmarks/engine_cpu.json

CASES_DIR holds `NAME/image.nii.gz` and `NAME/label.nii.gz`; the first click is the deepest voxel of
the labels. PACK, a training pack, calibrates the int8 encoder; it holds no evaluation case.
"""

from __future__ import annotations

import argparse
import datetime as dt
import json
import os
import platform
import shlex
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.ndimage import distance_transform_edt

from fastsam3d.io import read_volume
from fastsam3d.model.onnx_export import export_onnx
from fastsam3d.model.registry import load_card, load_model
from fastsam3d.preprocess.intensity import normalise
from fastsam3d.preprocess.pipeline import prepare_rois
from fastsam3d.preprocess.roi import Roi
from fastsam3d.session.engine import GraphEngine, OnnxRuntimeGraph, available_engines
from fastsam3d.train.pack import load_pack


def read_crops(folder: Path, count: int) -> list[torch.Tensor]:
    """Cut normalised ROIs around the deepest labelled voxel of some cases."""
    names = sorted(path.parent for path in folder.glob("*/label.nii.gz"))
    crops: list[torch.Tensor] = []
    for case in names[:: max(1, len(names) // count)][:count]:
        volume = read_volume(case / "image.nii.gz")
        inside = read_volume(case / "label.nii.gz").array > 0
        depth = distance_transform_edt(np.pad(inside, 1))[1:-1, 1:-1, 1:-1]
        deepest = np.unravel_index(depth.argmax(), depth.shape)
        roi = Roi.around(deepest, volume.geometry, 1.5)
        crops.append(prepare_rois(volume, [roi], normalisation="roi_percentile_zscore"))
    return crops


def calibration_crops(pack: Path, count: int) -> list[np.ndarray]:
    """Cut normalised ROIs out of the middle of training images."""
    crops: list[np.ndarray] = []
    for case in load_pack(pack):
        if case.image is None or case.levels is None or len(crops) == count:
            continue
        image = torch.from_numpy(case.levels[case.image])
        grid = torch.zeros(128, 128, 128)
        sides = [min(128, n) for n in image.shape]
        box = tuple(
            slice((n - s) // 2, (n - s) // 2 + s) for n, s in zip(image.shape, sides, strict=True)
        )
        place = tuple(slice((128 - s) // 2, (128 - s) // 2 + s) for s in sides)
        grid[place] = image[box]
        valid = torch.zeros(128, 128, 128, dtype=torch.bool)
        valid[place] = True
        ready = normalise(grid[None, None], valid[None, None], method="roi_percentile_zscore")
        crops.append(ready.reshape(1, 1, 128, 128, 128).numpy())
    return crops


def quantised(encoder: Path, crops: list[np.ndarray]) -> dict[str, Path]:
    """Write int8 encoders beside the float32 one."""
    from onnxruntime import quantization as q  # noqa: PLC0415 (an optional package)

    class Reader(q.CalibrationDataReader):
        def __init__(self) -> None:
            self.rest = iter(crops)

        def get_next(self) -> dict[str, np.ndarray] | None:
            crop = next(self.rest, None)
            return None if crop is None else {"image": crop}

    made = {kind: encoder.with_name(f"{kind}.onnx") for kind in ("int8 dynamic", "int8 static")}
    q.quantize_dynamic(encoder, made["int8 dynamic"], op_types_to_quantize=["MatMul"])
    q.quantize_static(
        encoder,
        made["int8 static"],
        Reader(),
        per_channel=True,
        reduce_range=True,
        op_types_to_quantize=["MatMul", "Conv"],
    )
    return made


def build(model: Any, folder: Path, pack: Path | None, threads: int) -> dict[str, Any]:
    """Return every engine that is installed, by name."""
    card = load_card("hr_s")
    files = export_onnx(model, folder, preprocessing=card.preprocessing, weights_sha256=card.sha256)
    engines: dict[str, Any] = {"torch": model}
    if "onnx" in available_engines():
        decoder = OnnxRuntimeGraph(files.decoder, threads)
        engines["onnx"] = GraphEngine(model, OnnxRuntimeGraph(files.encoder, threads), decoder)
        if pack is not None:
            for name, path in quantised(files.encoder, calibration_crops(pack, 2)).items():
                engines[name] = GraphEngine(model, OnnxRuntimeGraph(path, threads), decoder)
    return engines


@torch.inference_mode()
def play(engine: Any, image: torch.Tensor) -> tuple[float, float, torch.Tensor]:
    """Return encode and second-click seconds, and the second click's mask."""
    first, both = torch.full((1, 1, 3), 64.0), torch.tensor([[[64.0, 64, 64], [40, 60, 70]]])
    start = time.perf_counter()
    embedding = engine.encode_image(image)
    encode = time.perf_counter() - start
    logits, _ = engine.decode_masks(embedding, first, torch.ones(1, 1))
    start = time.perf_counter()
    logits, _ = engine.decode_masks(embedding, both, torch.tensor([[1.0, 0.0]]), mask_logits=logits)
    return encode, time.perf_counter() - start, logits > 0


def dice(a: torch.Tensor, b: torch.Tensor) -> float:
    """Return the Dice of two masks; 1 where both are empty."""
    total = int(a.sum() + b.sum())
    return 2 * int((a & b).sum()) / total if total else 1.0


def main() -> None:
    """Measure and write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("cases", type=Path)
    parser.add_argument("pack", type=Path, nargs="?")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--crops", type=int, default=6)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--output", type=Path, required=True)
    words = parser.parse_args()
    torch.set_num_threads(words.threads)
    load_before = os.getloadavg()[0]
    crops = read_crops(words.cases, words.crops)
    encode: dict[str, list[float]] = {}
    click: dict[str, list[float]] = {}
    agreement: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory() as folder:
        engines = build(load_model("hr_s"), Path(folder), words.pack, words.threads)
        for engine in engines.values():
            play(engine, crops[0])  # warm
        for number in range(words.rounds):
            for image in crops:
                masks: dict[str, torch.Tensor] = {}
                for name, engine in engines.items():
                    seconds, more, masks[name] = play(engine, image)
                    encode.setdefault(name, []).append(1000 * seconds)
                    click.setdefault(name, []).append(1000 * more)
                if number == 0:
                    for name, mask in masks.items():
                        agreement.setdefault(name, []).append(dice(mask, masks["torch"]))
    rows = {
        name: {
            "encode_ms": round(statistics.median(encode[name]), 1),
            "click_ms": round(statistics.median(click[name]), 1),
            "encode_over_torch": round(
                statistics.median(encode[name]) / statistics.median(encode["torch"]), 3
            ),
            "click_over_torch": round(
                statistics.median(click[name]) / statistics.median(click["torch"]), 3
            ),
            "dice_with_torch_mean": round(statistics.mean(agreement[name]), 5),
            "dice_with_torch_worst": round(min(agreement[name]), 5),
        }
        for name in engines
    }
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"],  # noqa: S607
        capture_output=True,
        text=True,
        check=False,
    )
    facts = {
        "command": shlex.join(["python", "benchmarks/engine_cpu.py", *sys.argv[1:]]),
        "commit": commit.stdout.strip(),
        "date": dt.datetime.now(dt.UTC).isoformat(timespec="seconds"),
        "device": platform.processor() or platform.machine(),
        "threads": words.threads,
        "load_average_before": round(load_before, 2),
        "torch": torch.__version__,
        "python": sys.version.split()[0],
        "model": "hr_s",
        "crops": len(crops),
        "engines": rows,
    }
    words.output.write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
