r"""Whether the fixed-shape engine is right on a GPU, and what its kernels are: one log to read.

    python benchmarks/engine_gpu.py hr_s fastsam3d_6l --mode plain --output engine_gpu.json
    python benchmarks/engine_gpu.py hr_s --mode shipped --pack dev_pack.npz --output engine_gpu.json
    python benchmarks/engine_gpu.py hr_s sam_med3d_b fastsam3d_6l --mode shipped --single \
        --output engine_gpu_shipped.json

Of several modes, each model is run in all of them, and is named ``MODEL@MODE``. At last all take
turns, round by round: a host that is slow for a while then meets all of them. ``shipped`` is what
is run by default. ``encode_and_click`` begins with the ROI on the device and leaves the mask there;
``first_mask`` begins and ends in host memory. Clicks are typed on the host in both.

Against eager float32 of the same weights: every kind and number of prompts, batches, many sessions
in turn, and, with a pack of cases, masks of real crops. Then times, kernels, and the share of the
device's bfloat16 ceiling that the trunk reaches in a batch. A step that fails is recorded and the
next one runs. Needs torch, numpy and scipy; `fastsam3d bench` has the times for comparison.
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
import sys
import time
import traceback
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy import ndimage
from torch.utils.flop_counter import FlopCounterMode

from fastsam3d.eval.bench_worker import OwnContender, phantom_roi
from fastsam3d.eval.cases import load_cases
from fastsam3d.eval.protocol import InteractionProtocol
from fastsam3d.preprocess.pipeline import prepare_rois
from fastsam3d.preprocess.roi import Roi
from fastsam3d.session.fixed_replay import Replay
from fastsam3d.session.fixed_shape import FixedShapeConfig, FixedShapeEngine

MODES: dict[str, dict[str, Any]] = {
    "eager": {"is_compiled": False, "is_captured": False},
    "plain": {"is_compiled": False},
    "autotune": {"compile_mode": "max-autotune-no-cudagraphs"},
    "shipped": {},
}
IN_TURN = ("encode", "click_from_host", "encode_and_click", "first_mask")
BATCH = 16
BEGIN = time.monotonic()


def say(text: str) -> None:
    """Print a line with the seconds since the start."""
    print(f"[{time.monotonic() - BEGIN:6.1f} s] {text}", flush=True)


def timed(work: Callable[[], Any], repeats: int = 30) -> dict[str, float]:
    """Return wall times in ms, synchronised around every call."""
    for _ in range(3):
        work()
    times: list[float] = []
    for _ in range(repeats):
        torch.cuda.synchronize()
        start = time.perf_counter()
        work()
        torch.cuda.synchronize()
        times.append(1e3 * (time.perf_counter() - start))
    p50, p95 = (float(x) for x in np.percentile(times, [50, 95]))
    return {"p50_ms": p50, "p95_ms": p95, "fastest_ms": min(times)}


def on_device(work: Callable[[], Any], repeats: int = 30) -> float:
    """Return ms of one call when many are queued: the device's time, or the host's if longer."""
    work()
    start, stop = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    for _ in range(repeats):
        work()
    stop.record()
    torch.cuda.synchronize()
    return start.elapsed_time(stop) / repeats


def ceilings() -> dict[str, float]:
    """Return FLOP/s of a large bfloat16 product and bytes/s of a large copy."""
    a = torch.randn(8192, 8192, device="cuda").bfloat16()
    b = torch.randn(8192, 8192, device="cuda").bfloat16()
    source = torch.ones(1 << 30, dtype=torch.uint8, device="cuda")
    target = torch.empty_like(source)
    product = statistics.median(on_device(lambda: a @ b, 10) for _ in range(5))
    copied = statistics.median(on_device(lambda: target.copy_(source), 10) for _ in range(5))
    return {"gemm_tflops": 2 * 8192**3 / product / 1e9, "copy_tbs": 2 * (1 << 30) / copied / 1e9}


def dice(a: torch.Tensor, b: torch.Tensor) -> float:
    """Return the overlap of two masks, 1 where both are empty."""
    total = int(a.sum() + b.sum())
    return 1.0 if total == 0 else 2 * int((a & b).sum()) / total


class Checked:
    """One model with its engine."""

    def __init__(self, name: str, mode: str, *, has_candidates: bool = True) -> None:
        self.has_candidates = has_candidates
        self.name, self.model = name, OwnContender(name, "cuda").module
        self.model.requires_grad_(requires_grad=False)
        torch.compiler.reset()  # or code compiled for another mode would be taken
        self.engine = FixedShapeEngine(self.model, FixedShapeConfig(**MODES[mode]))
        self.size, self.side = self.model.config.image_size, self.model.config.logits_size
        generator = torch.Generator().manual_seed(1)
        balls = [phantom_roi(self.size).roll(shift, 2) for shift in (0, 5, -9)]
        noise = torch.randn(balls[0].shape, generator=generator)
        self.images = [(ball + 0.2 * noise).cuda() for ball in balls]
        self.random = generator

    def prompts(self, count: int, *, box: bool, mask: torch.Tensor | None) -> dict[str, Any]:
        """Return random clicks about the centre."""
        offset = torch.randn(1, count, 3, generator=self.random) * 0.08 * self.size
        labels = torch.randint(0, 2, (1, count), generator=self.random)
        labels[:, 0] = 1
        given = {"points": (self.size / 2 + offset).cuda(), "labels": labels.cuda()}
        if box:
            given["boxes"] = torch.tensor([[0.3, 0.3, 0.3, 0.7, 0.7, 0.7]]).cuda() * self.size
        if mask is not None:
            given["mask_logits"] = mask
        return given

    def compile(self) -> dict[str, Any]:
        """Record the graphs."""
        start = time.monotonic()
        embedding = self.engine.encode_image(self.images[0])
        encoder_s = time.monotonic() - start
        logits = self.engine.answer(embedding, **self.prompts(1, box=False, mask=None)).logits
        first_s = time.monotonic() - start - encoder_s
        self.engine.answer(embedding, **self.prompts(2, box=False, mask=logits))
        return {
            "encoder_s": encoder_s,
            "decoder_s": first_s,
            "all_s": time.monotonic() - start,
            "peak_gb": torch.cuda.max_memory_allocated() / 1e9,
        }

    @torch.inference_mode()
    def parity(self) -> dict[str, Any]:
        """Compare with eager float32 for every kind and number of prompts, and in a batch."""
        embeddings = [
            (self.model.encode_image(image), self.engine.encode_image(image))
            for image in self.images
        ]
        rows: list[tuple[float, float, str]] = []
        counts = (1, 2, 5, 16, 17)
        for number, (count, box, has_mask, multimask) in enumerate(
            itertools.product(
                counts, (False, True), (False, True), (False, True)[: 1 + self.has_candidates]
            )
        ):
            wanted_image, found_image = embeddings[number % len(embeddings)]
            mask = torch.randn(1, 1, *(self.side,) * 3, device="cuda") if has_mask else None
            given = self.prompts(count, box=box, mask=mask)
            wanted, _ = self.model.decode_masks(wanted_image, **given, multimask=multimask)
            found, _ = self.engine.decode_masks(found_image, **given, multimask=multimask)
            error = float((found - wanted).norm() / wanted.norm())
            what = f"{count} points, box {box}, mask {has_mask}, multimask {multimask}"
            rows.append((error, dice(found > 0, wanted > 0), what))
            if not multimask:
                answer = self.engine.answer(found_image, **given)
                self._assert_same_mask(answer, found)
        both = torch.cat(self.images)
        wanted = self.model.encode_image(both)
        found = self.engine.encode_image(both)
        batch = (found.tokens.float() - wanted.tokens).norm() / wanted.tokens.norm()
        worst = max(rows)
        return {
            "encoder_error": [
                float((b.tokens.float() - a.tokens).norm() / a.tokens.norm()) for a, b in embeddings
            ],
            "batch_encoder_error": float(batch),
            "worst_relative_error": worst[0],
            "worst_is": worst[2],
            "median_relative_error": statistics.median(row[0] for row in rows),
            "lowest_dice": min(row[1] for row in rows),
            "cases": len(rows),
        }

    def _assert_same_mask(self, answer: Any, logits: torch.Tensor) -> None:
        if logits.shape[-1] != self.size:
            size = (self.size,) * 3
            logits = torch.nn.functional.interpolate(logits, size=size, mode="trilinear")
        mask = (logits[0, 0] > 0).cpu().numpy()
        whole = np.unpackbits(answer.bits, axis=-1).astype(bool)
        differing = int((whole != mask).sum())
        if differing > 1e-4 * mask.size:
            raise AssertionError(f"bits differ from the logits' sign at {differing} voxels")
        box = tuple(slice(*bound) for bound in answer.bounds)
        if not (whole[box] == answer.mask).all() or whole.sum() != answer.mask.sum():
            raise AssertionError("bounds do not hold the mask")

    def sessions(self) -> dict[str, Any]:
        """Play a hundred sessions in turn; each answer must equal that of the session alone."""
        ways = [(image, count) for image in range(len(self.images)) for count in (1, 2, 3)]
        plays = [
            (way, self.prompts(ways[way][1], box=False, mask=None)) for way in range(len(ways))
        ]
        embedded = [self.engine.encode_image(image) for image in self.images]
        alone = [
            self.engine.decode_masks(embedded[ways[way][0]], **given)[0] for way, given in plays
        ]
        order = torch.randint(0, len(plays), (100,), generator=self.random).tolist()
        differing = 0
        for number in order:
            way, given = plays[number]
            found, _ = self.engine.decode_masks(embedded[ways[way][0]], **given)
            differing += not torch.equal(found, alone[number])
        if differing:
            raise AssertionError(f"{differing} of 100 answers differ from the session alone")
        return {"sessions": 100, "differing": differing}

    def works(self) -> dict[str, Callable[[], Any]]:
        """Return what is timed, by name."""
        image, engine = self.images[0], self.engine
        embedding = engine.encode_image(image)
        first = self.prompts(1, box=False, mask=None)
        logits = engine.answer(embedding, **first).logits
        later = self.prompts(3, box=False, mask=logits)
        host = image.cpu().pin_memory()
        # As a session has them: typed on the host, the logits before on the device.
        first_typed, typed = (
            {name: given[name].cpu() for name in ("points", "labels")} for given in (first, later)
        )
        typed["mask_logits"] = logits
        return {
            "encode": lambda: engine.encode_image(image),
            "click": lambda: engine.answer(embedding, **later),
            "click_from_host": lambda: engine.answer(embedding, **typed),
            "logits": lambda: engine.decode_masks(embedding, **later),
            # The mask, in bits too, is left on the device.
            "encode_and_click": lambda: engine.decode_masks(
                engine.encode_image(image), **first_typed
            ),
            "first_mask": lambda: engine.answer(engine.encode_image(host), **first_typed),
        }

    def times(self) -> dict[str, Any]:
        """Time encode, click and both, with synchronisation and queued."""
        works, engine = self.works(), self.engine
        # Launched and waited for before and after: how fast the host is meanwhile.
        small = torch.zeros(1, device="cuda")
        graphs = {
            "encode": engine._encoders[1][1],
            **{str(k): d for k, d in engine._decoders.items()},
        }
        return {
            "small_kernel": timed(lambda: small.add_(1)),
            **{name: timed(work) for name, work in works.items()},
            "small_kernel_after": timed(lambda: small.add_(1)),
            "encode_queued_ms": on_device(works["encode"]),
            "logits_queued_ms": on_device(works["logits"]),
            "graph_alone_ms": {
                name: on_device(replay._graph[0].replay)
                for name, replay in graphs.items()
                if replay is not None and replay._graph is not None
            },
        }

    def kernels(self) -> dict[str, Any]:
        """Profile encode and click: kernels by time."""
        image, engine = self.images[0], self.engine
        embedding = engine.encode_image(image)
        first = self.prompts(1, box=False, mask=None)
        logits = engine.answer(embedding, **first).logits
        later = self.prompts(3, box=False, mask=logits)
        return {
            "encode": _profile(lambda: engine.encode_image(image)),
            "click": _profile(lambda: engine.answer(embedding, **later)),
        }

    @torch.inference_mode()
    def trunk(self, limits: dict[str, float]) -> dict[str, Any]:
        """Time the trunk on a batch, compiled as a whole and replayed: a share of the ceiling."""
        blocks, x, tables, flops = self._trunk()
        whole = Replay(
            lambda x: (run_all(x, blocks, tables),),
            {"x": x},
            compile_mode=self.engine.options.compile_mode,
            is_captured=True,
        )
        found = share(on_device(whole.run, 20), flops, limits)
        return {**found, "kernels": _profile(whole.run)}

    @torch.inference_mode()
    def blocks(self, limits: dict[str, float]) -> dict[str, Any]:
        """Time the same with each block compiled and called by Python, and not compiled."""
        blocks, x, tables, flops = self._trunk()
        mode = self.engine.options.compile_mode
        compiled = [torch.compile(block, dynamic=False, mode=mode) for block in blocks]
        found = share(on_device(lambda: run_all(x, compiled, tables), 20), flops, limits)
        return {**found, "eager_ms": on_device(lambda: run_all(x, blocks, tables), 20)}

    def _trunk(self) -> tuple[Any, torch.Tensor, tuple[torch.Tensor, ...], int]:
        """Return the engine's blocks, their input and tables, and FLOPs of the same in float32."""
        encoder, own = next(self.engine._model.model.children()), next(self.model.children())
        config = self.model.config
        grid, width = config.grid_size, config.embed_dim
        x = torch.randn(BATCH, grid**3, width, device="cuda")
        tables: tuple[torch.Tensor, ...] = ()
        if config.family == "hr":
            encoder, own = encoder.trunk, own.trunk
            tables = (encoder.rope_cos, encoder.rope_sin)
        else:
            x = x.view(BATCH, grid, grid, grid, width)
        with FlopCounterMode(display=False) as counter:
            y = x
            for block in own.blocks:
                y = block(y, *tables)
        return encoder.blocks, x, tables, counter.get_total_flops()

    @torch.inference_mode()
    def crops(self, pack: Path, count: int) -> dict[str, Any]:
        """Compare masks of two clicks on real crops with those of eager float32."""
        found: list[float] = []
        errors: list[float] = []
        protocol = InteractionProtocol(num_clicks=1)
        cases = load_cases(pack)
        for case in cases[:: max(1, len(cases) // count)][:count]:
            target = protocol.targets(case)[0]
            inside = case.labels == target.label
            box = ndimage.find_objects(inside.astype(np.uint8))[0]
            depth = ndimage.distance_transform_edt(np.pad(inside[box], 1))[1:-1, 1:-1, 1:-1]
            at = np.unravel_index(depth.argmax(), depth.shape)
            voxel = [int(a) + part.start for a, part in zip(at, box, strict=True)]
            roi = Roi.around(voxel, case.volume.geometry, 1.5)
            image = prepare_rois(
                case.volume, [roi], normalisation="roi_percentile_zscore", device="cuda"
            )
            answers = [self._two_clicks(runner, image) for runner in (self.model, self.engine)]
            found.append(dice(*(logits > 0 for logits in answers)))
            errors.append(float((answers[1] - answers[0]).norm() / answers[0].norm()))
        return {
            "crops": len(found),
            "mean_dice": statistics.mean(found),
            "lowest_dice": min(found),
            "worst_relative_error": max(errors),
        }

    def _two_clicks(self, runner: Any, image: torch.Tensor) -> torch.Tensor:
        embedding = runner.encode_image(image)
        points = torch.full((1, 2, 3), self.size / 2, device="cuda")
        points[:, 1] += 6
        labels = torch.ones(1, 2, device="cuda")
        labels[:, 1] = 0
        logits, _ = runner.decode_masks(embedding, points[:, :1], labels[:, :1])
        logits, _ = runner.decode_masks(embedding, points, labels, mask_logits=logits)
        return logits


def in_turn(all_checked: dict[str, Checked], rounds: int) -> dict[str, Any]:
    """Time all engines in turn, round by round; return medians of the rounds' medians."""
    works = {name: checked.works() for name, checked in all_checked.items()}
    times: dict[str, dict[str, list[float]]] = {}
    for _ in range(rounds):
        for name, parts in works.items():
            for part in IN_TURN:
                found = times.setdefault(name, {}).setdefault(part, [])
                found.append(timed(parts[part], 10)["p50_ms"])
    return {
        name: {part: statistics.median(found) for part, found in parts.items()}
        for name, parts in times.items()
    }


def run_all(x: torch.Tensor, blocks: Any, tables: tuple[torch.Tensor, ...]) -> torch.Tensor:
    """Return tokens after all blocks, in the engine's precision."""
    with torch.autocast("cuda", torch.bfloat16, cache_enabled=False):
        for block in blocks:
            x = block(x, *tables)
    return x


def share(ms: float, flops: int, limits: dict[str, float]) -> dict[str, float]:
    """Return a time, its rate, and that over the rate of a large product."""
    rate = flops / ms / 1e9
    return {"batch": BATCH, "ms": ms, "tflops": rate, "share_of_gemm": rate / limits["gemm_tflops"]}


def _profile(work: Callable[[], Any], repeats: int = 5) -> dict[str, Any]:
    work()
    torch.cuda.synchronize()
    activities = [torch.profiler.ProfilerActivity.CUDA, torch.profiler.ProfilerActivity.CPU]
    with torch.profiler.profile(activities=activities) as profile:
        for _ in range(repeats):
            work()
        torch.cuda.synchronize()
    rows = [
        (event.self_device_time_total / repeats, event.count / repeats, event.key)
        for event in profile.key_averages()
        if event.self_device_time_total > 0 and event.device_type.name == "CUDA"
    ]
    rows.sort(reverse=True)
    return {
        "kernel_us": sum(row[0] for row in rows),
        "launches": sum(row[1] for row in rows),
        "top": [[round(us, 1), count, key[:110]] for us, count, key in rows[:24]],
    }


def main() -> int:
    """Run all steps; see ``--help``."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("models", nargs="+")
    parser.add_argument("--mode", nargs="+", choices=list(MODES), default=["plain"])
    parser.add_argument("--rounds", type=int, default=10, help="of all modes in turn, at last")
    parser.add_argument("--pack", type=Path)
    parser.add_argument("--crops", type=int, default=24)
    parser.add_argument("--commit", default="unknown")
    parser.add_argument("--steps", nargs="+", help="only these")
    parser.add_argument("--single", action="store_true", help="parity without candidates")
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    limits = ceilings()
    result: dict[str, Any] = {
        "command": " ".join(["python", *sys.argv]),
        "commit": options.commit,
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "device": torch.cuda.get_device_name(),
        "torch": torch.__version__,
        "mode": " ".join(options.mode),
        "ceilings": limits,
        "models": {},
    }
    say(f"{result['device']} torch {torch.__version__} {limits}")
    all_checked: dict[str, Checked] = {}
    for model, mode in itertools.product(options.models, options.mode):
        name = model if len(options.mode) == 1 else f"{model}@{mode}"
        checked = Checked(model, mode, has_candidates=not options.single)
        found: dict[str, Any] = {}
        result["models"][name], all_checked[name] = found, checked
        run_steps(name, checked, found, options, limits, lambda: save(result, options.output))
        if any("error" in step for step in found.values()):
            del all_checked[name]
    if len(all_checked) > 1 and (not options.steps or "times" in options.steps):
        result["in_turn"] = in_turn(all_checked, options.rounds)
        for name, found in result["in_turn"].items():
            print(f"    {name}: {_short(found)}", flush=True)
        save(result, options.output)
    return 0


def run_steps(
    name: str,
    checked: Checked,
    found: dict[str, Any],
    options: argparse.Namespace,
    limits: dict[str, float],
    save_all: Callable[[], None],
) -> None:
    """Run the steps that are asked for, print and keep what each finds."""
    steps: dict[str, Callable[[], Any]] = {
        "compile": checked.compile,
        "parity": checked.parity,
        "sessions": checked.sessions,
        "times": checked.times,
        "kernels": checked.kernels,
        "trunk": lambda: checked.trunk(limits),
        "blocks": lambda: checked.blocks(limits),
    }
    if options.pack is not None:
        steps["crops"] = lambda: checked.crops(options.pack, options.crops)
    for step, work in steps.items():
        if options.steps and step not in options.steps:
            continue
        try:
            found[step] = work()
            say(f"{name} {step} OK")
            for key, value in found[step].items():
                print(f"    {key}: {_short(value)}", flush=True)
        except Exception as error:  # noqa: BLE001 - the rest must still be measured
            found[step] = {"error": f"{type(error).__name__}: {error}"}
            say(f"{name} {step} FAILED\n{traceback.format_exc(limit=-6)}")
        save_all()


def save(result: dict[str, Any], path: Path | None) -> None:
    """Write what was found by now."""
    if path is not None:
        path.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


def _short(value: Any) -> str:
    if isinstance(value, dict) and "top" in value:
        lines = [f"{us:8.1f} us x {count:5.1f}  {key}" for us, count, key in value["top"]]
        head = f"{value['kernel_us']:.0f} us in {value['launches']:.0f} launches"
        return "\n        ".join([head, *lines])
    if isinstance(value, dict):
        return ", ".join(f"{key} {_short(part)}" for key, part in value.items())
    return f"{value:.4g}" if isinstance(value, float) else str(value)


if __name__ == "__main__":
    sys.exit(main())
