"""Check and time sparse attention on one GPU, against dense attention, in one run.

``python benchmarks/sparse_attention.py --output sparse.json [--official FASTSAM3D_CHECKOUT]``

Parts, each recorded as soon as it is done, with its error where it fails: time and memory by grid
size, the published module at its own pattern, agreement with the float64 reference on random grids,
whole encoders, and one size through `torch.compile`. Times are medians of CUDA events. ``--parts``
and ``--methods`` take some of it; the ablation of the paper is

``--parts times --methods "dense math" dense "dense cudnn" "dilated sdpa" "dilated triton"``

"dense math" forms all scores in memory, and so does "dilated sdpa" within its groups (on a GPU);
"dense", "dense cudnn" and "dilated triton" are flash attention. Beyond ``--math-limit`` tokens per
axis all scores do not fit.
Runs on a CPU too (``--device cpu``), where it only shows that it works.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import platform
import shlex
import statistics
import subprocess
import sys
import time
import traceback
import types
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from sparse_attention_checks import check_paths
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel

from fastsam3d.model.registry import create_model
from fastsam3d.model.sparse_attention import sparse_attention
from fastsam3d.model.sparse_attention_pattern import Branch, SparsePattern

HEADS, CHANNELS = 12, 64
SIZES = (8, 16, 24, 32, 48, 64)
PARTS = ("times", "summary", "official", "checks", "encoders", "compiled")
DILATED, WINDOW, AXIAL = SparsePattern.dilated(), SparsePattern.window(8), SparsePattern.axial()
OFFICIAL_FILE = "segment_anything/modeling/image_encoder3D_dilatedattention.py"
OFFICIAL_STRIDE = 64


class Bench:
    """What is measured so far, the device and the time that is left."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        self.device = torch.device(options.device)
        self.is_cuda = self.device.type == "cuda"
        self.stop_at = time.monotonic() + options.seconds
        self.result: dict[str, Any] = {
            "command": shlex.join(["python", *sys.argv]),
            "device": torch.cuda.get_device_name() if self.is_cuda else platform.processor(),
            "torch": torch.__version__,
            "triton": _version("triton"),
            "python": platform.python_version(),
            "commit": options.commit or _commit(),
            "date": datetime.now(UTC).isoformat(timespec="seconds"),
            "heads": HEADS,
            "head_dim": CHANNELS,
            "errors": {},
        }

    def has_time(self, seconds: float) -> bool:
        """Return whether a step of this length still fits."""
        return time.monotonic() + seconds < self.stop_at

    def save(self) -> None:
        """Write what there is."""
        self.options.output.parent.mkdir(parents=True, exist_ok=True)
        self.options.output.write_text(json.dumps(self.result, indent=1) + "\n")

    def part(self, name: str, work: Callable[[], Any]) -> None:
        """Run one part, keep its result or its error, and write the file."""
        start = time.monotonic()
        value = self.attempt(name, work)
        if value is not None:
            self.result[name] = value
        self.result.setdefault("part_s", {})[name] = round(time.monotonic() - start, 1)
        print(name, json.dumps(value)[:400], flush=True)
        self.save()

    def attempt(self, name: str, work: Callable[[], Any]) -> Any:
        """Return the work's result, or None after noting its error."""
        try:
            return work()
        except Exception as error:  # noqa: BLE001 - one failing path must not lose the others
            self.result["errors"][name] = f"{error!r}"[:600]
            print(f"{name}: {traceback.format_exc(limit=-3)}", file=sys.stderr, flush=True)
            if self.is_cuda:
                torch.cuda.empty_cache()
            return None

    def milliseconds(self, function: Callable[[], Any], *, seconds: float = 0.2) -> float:
        """Return the median time of a call after warm-up."""
        function()
        first = self._once(function)
        repeats = max(3, min(30, int(1e3 * seconds / max(first, 1e-3))))
        return statistics.median(self._once(function) for _ in range(repeats))

    def _once(self, function: Callable[[], Any]) -> float:
        if not self.is_cuda:
            start = time.perf_counter()
            function()
            return 1e3 * (time.perf_counter() - start)
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        function()
        end.record()
        end.synchronize()
        return begin.elapsed_time(end)

    def peak_mib(self, function: Callable[[], Any]) -> float | None:
        """Return the memory that a call takes beyond what was there before."""
        if not self.is_cuda:
            return None
        torch.cuda.synchronize()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        function()
        torch.cuda.synchronize()
        return round((torch.cuda.max_memory_allocated() - before) / 2**20, 2)


Method = Callable[[Tensor, Tensor, Tensor], Tensor]


def methods(side: int, bench: Bench) -> dict[str, Method]:
    """Return what is timed at a grid of `side` tokens per axis, dense last."""
    grid = (side, side, side)

    def sparse(pattern: SparsePattern, path: Any) -> Method:
        return lambda q, k, v: sparse_attention(q, k, v, grid=grid, pattern=pattern, path=path)

    found: dict[str, Method] = {"dilated sdpa": sparse(DILATED, "sdpa")}
    if bench.is_cuda:
        found = {"dilated triton": sparse(DILATED, "triton")} | found
        found["window8 triton"] = sparse(WINDOW, "triton")
        found["axial triton"] = sparse(AXIAL, "triton")
    found["window8 sdpa"] = sparse(WINDOW, "sdpa")
    if side <= bench.options.dense_limit:
        found["dense"] = functional.scaled_dot_product_attention
        if bench.is_cuda:
            found["dense cudnn"] = _dense_cudnn
    if side <= min(bench.options.math_limit, bench.options.dense_limit):
        found["dense math"] = _dense_math
    wanted = bench.options.methods
    return {name: found[name] for name in found if wanted is None or name in wanted}


def _dense_math(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    with sdpa_kernel(SDPBackend.MATH):
        return functional.scaled_dot_product_attention(q, k, v)


def _dense_cudnn(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    with sdpa_kernel(SDPBackend.CUDNN_ATTENTION):
        return functional.scaled_dot_product_attention(q, k, v)


def leaves_of(side: int, bench: Bench, dtype: torch.dtype) -> list[Tensor]:
    """Return q, k, v and an output gradient, laid out as a projection leaves them."""
    shape = (1, side**3, HEADS, CHANNELS)
    return [
        torch.randn(shape, device=bench.device, dtype=dtype).transpose(1, 2).requires_grad_(i < 3)
        for i in range(4)
    ]


def time_sizes(bench: Bench) -> list[dict[str, Any]]:
    """Time forward alone and forward with backward at every grid size."""
    rows: list[dict[str, Any]] = []
    for side in bench.options.sizes:
        inputs = leaves_of(side, bench, torch.bfloat16)
        for name, method in methods(side, bench).items():
            if not bench.has_time(3.0):
                bench.result["errors"][f"time {name} {side}"] = "no time left"
                continue
            row = bench.attempt(
                f"time {name} {side}",
                lambda m=method, x=inputs: measure(m, x, bench),
            )
            if row is not None:
                rows.append({"method": name, "side": side, "tokens": side**3} | row)
                bench.result["times"] = rows
                bench.save()
                print(rows[-1], flush=True)
    return rows


def measure(method: Method, inputs: Sequence[Tensor], bench: Bench) -> dict[str, Any]:
    """Return times and memory of one method; memory is beyond q, k, v and the output gradient."""
    leaves, grad = inputs[:3], inputs[3]

    def forward() -> Tensor:
        with torch.no_grad():
            return method(*leaves)

    def both() -> tuple[Tensor, ...]:
        return torch.autograd.grad(method(*leaves), leaves, grad)

    return {
        "forward_ms": round(bench.milliseconds(forward), 4),
        "forward_backward_ms": round(bench.milliseconds(both), 4),
        "forward_peak_mib": bench.peak_mib(forward),
        "forward_backward_peak_mib": bench.peak_mib(both),
    }


def summarise_times(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Return speed over the better dense kernel, and memory per token, by size."""
    table = {(row["method"], row["side"]): row for row in rows}
    found: dict[str, Any] = {}
    for (method, side), row in table.items():
        if method.startswith("dense"):
            continue
        dense = [table[d, side] for d in ("dense", "dense cudnn") if (d, side) in table]
        entry: dict[str, Any] = {}
        for key in ("forward_ms", "forward_backward_ms"):
            if dense:
                entry[f"faster_{key[:-3]}"] = round(min(d[key] for d in dense) / row[key], 2)
        peak = row["forward_backward_peak_mib"]
        if peak is not None:
            entry["bytes_per_token"] = round(peak * 2**20 / row["tokens"])
        found.setdefault(method, {})[str(side)] = entry
    return found


def time_compiled(bench: Bench) -> dict[str, Any]:
    """Run the default pattern inside `torch.compile` and compare with the plain call."""
    side = 16
    inputs = leaves_of(side, bench, torch.bfloat16)
    grid, path = (side, side, side), "triton" if bench.is_cuda else "sdpa"

    def plain(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return sparse_attention(q, k, v, grid=grid, pattern=DILATED, path=path)

    compiled = torch.compile(plain)  # pyright: ignore[reportUnknownMemberType]
    row = measure(compiled, inputs, bench)
    gap = (compiled(*inputs[:3]) - plain(*inputs[:3])).detach().abs().max()
    return row | {"side": side, "largest_difference": float(gap)}


def time_encoders(bench: Bench) -> list[dict[str, Any]]:
    """Time a whole encoder on inputs that give 8, 16 and 24 tokens per axis."""
    rows: list[dict[str, Any]] = []
    for size in bench.options.encoder_sizes:
        for attention in ("dense", "dilated"):
            if not bench.has_time(6.0):
                bench.result["errors"][f"encoder {size} {attention}"] = "no time left"
                continue
            row = bench.attempt(
                f"encoder {size} {attention}",
                lambda s=size, a=attention: _time_encoder(bench, s, a),
            )
            if row is not None:
                rows.append(row)
                bench.result["encoders"] = rows
                bench.save()
    return rows


def _time_encoder(bench: Bench, size: int, attention: str) -> dict[str, Any]:
    name = bench.options.encoder
    model = create_model(name, image_size=size, attention=attention).to(bench.device).eval()
    image = torch.randn(1, 1, size, size, size, device=bench.device)

    def encode() -> None:
        with torch.no_grad(), torch.autocast(bench.device.type, dtype=torch.bfloat16):
            model.encode_image(image)

    return {
        "model": name,
        "image_size": size,
        "tokens_per_axis": model.config.grid_size,
        "attention": attention,
        "encode_ms": round(bench.milliseconds(encode), 3),
        "encode_peak_mib": bench.peak_mib(encode),
    }


def time_official(bench: Bench) -> dict[str, Any]:
    """Time the published attention module beside ours at its own pattern.

    The module takes every 64th token of the row-major sequence as one segment. Where the grid's
    side divides 64 this is one branch over the whole grid with dilation (1, 64 / side, side); ours
    computes the same groups and returns tokens to their places, which the published one does not.
    Without ``flash_attn`` its one call is served by torch's own flash attention.
    """
    module, kernel = load_official(bench.options.official)
    rows: list[dict[str, Any]] = []
    for side in (s for s in bench.options.sizes if s >= 8 and OFFICIAL_STRIDE % s == 0):
        grid = (side, side, side)
        branch = Branch(segment=(0, 0, 0), dilation=(1, OFFICIAL_STRIDE // side, side))
        pattern = SparsePattern(branches=(branch,))
        theirs = module.Attention(HEADS * CHANNELS, num_heads=HEADS).to(bench.device)
        ours = OursAtEqualPattern(theirs, grid, pattern)
        x = torch.randn(1, *grid, HEADS * CHANNELS, device=bench.device)
        for part in ("module", "attention alone"):
            if part == "attention alone":
                theirs.qkv, theirs.proj = nn.Identity(), nn.Identity()
                ours.qkv, ours.proj = theirs.qkv, theirs.proj
                x = torch.randn(1, *grid, 3 * HEADS * CHANNELS, device=bench.device)
            row: dict[str, Any] = {"side": side, "part": part}
            for name, net in (("published", theirs), ("ours", ours)):
                row |= _time_module(bench, name, net, x)
            row["largest_difference"] = _compare_official(theirs, ours, x)
            rows.append(row)
    return {"flash_attn": kernel, "rows": rows}


class OursAtEqualPattern(nn.Module):
    """Our attention with the published module's projections and precision."""

    def __init__(self, theirs: Any, grid: Any, pattern: SparsePattern) -> None:
        super().__init__()
        self.qkv, self.proj = theirs.qkv, theirs.proj
        self.grid, self.pattern = grid, pattern

    def forward(self, x: Tensor) -> Tensor:
        """Return mixed tokens on the grid, (B, D, H, W, C)."""
        qkv = self.qkv(x).flatten(1, 3).half().unflatten(-1, (3, HEADS, CHANNELS))
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        mixed = sparse_attention(q, k, v, grid=self.grid, pattern=self.pattern)
        return self.proj(mixed.transpose(1, 2).flatten(2).float().unflatten(1, self.grid))


def _time_module(bench: Bench, name: str, net: nn.Module, x: Tensor) -> dict[str, Any]:
    x = x.requires_grad_()

    def forward() -> None:
        with torch.no_grad():
            net(x)

    def both() -> None:
        net(x).sum().backward()
        net.zero_grad()
        x.grad = None

    forward_ms = bench.milliseconds(forward, seconds=0.2)
    both_ms = bench.milliseconds(both, seconds=0.2)
    return {f"{name}_forward_ms": forward_ms, f"{name}_forward_backward_ms": both_ms}


@torch.no_grad()
def _compare_official(theirs: nn.Module, ours: nn.Module, x: Tensor) -> float | None:
    """Return the largest difference once the published order is undone (attention alone)."""
    if not isinstance(ours.proj, nn.Identity):
        return None
    found, expected = theirs(x).flatten(1, 3), ours(x).flatten(1, 3)
    order = torch.arange(found.shape[1], device=x.device).view(-1, OFFICIAL_STRIDE).T.flatten()
    return float((found - expected[:, order]).abs().max())


def load_official(checkout: Path) -> tuple[Any, str]:
    """Import the published attention file alone; stand in for packages that are not installed."""
    kernel = "installed"
    if importlib.util.find_spec("torchsummary") is None:
        sys.modules["torchsummary"] = types.ModuleType("torchsummary")
        sys.modules["torchsummary"].summary = None  # pyright: ignore[reportAttributeAccessIssue]
    if importlib.util.find_spec("flash_attn") is None:
        kernel = "not installed: its call is served by torch's scaled_dot_product_attention"
        stand_in = types.ModuleType("flash_attn")
        stand_in.flash_attn_func = None  # pyright: ignore[reportAttributeAccessIssue]
        stand_in.flash_attn_qkvpacked_func = _packed  # pyright: ignore[reportAttributeAccessIssue]
        sys.modules["flash_attn"] = stand_in
    path = checkout if checkout.suffix == ".py" else checkout / OFFICIAL_FILE
    spec = importlib.util.spec_from_file_location("published_attention", path)
    if spec is None or spec.loader is None:
        msg = f"{path} cannot be imported; give a FastSAM3D checkout or the file itself."
        raise ImportError(msg)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module, kernel


def _packed(qkv: Tensor, **_: Any) -> Tensor:
    q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)
    is_cuda = qkv.is_cuda
    with sdpa_kernel(SDPBackend.FLASH_ATTENTION) if is_cuda else nullcontext():
        return functional.scaled_dot_product_attention(q, k, v).transpose(1, 2)


def _version(name: str) -> str | None:
    try:
        return str(importlib.import_module(name).__version__)
    except ImportError:
        return None


def _commit() -> str | None:
    try:
        found = subprocess.run(
            ["git", "rev-parse", "--short", "HEAD"],  # noqa: S607
            capture_output=True, text=True, check=True,
        )  # fmt: skip
    except (OSError, subprocess.CalledProcessError):
        return None
    return found.stdout.strip()


def read_options() -> argparse.Namespace:
    """Return the command line's options."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--official", type=Path, help="FastSAM3D checkout, or the module's file")
    parser.add_argument("--commit", help="what is measured, where there is no git checkout")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--seconds", type=float, default=100.0, help="no new step after this long")
    parser.add_argument("--checks", type=int, default=40, help="random grids to check")
    parser.add_argument("--check-seconds", type=float, default=35.0)
    parser.add_argument("--sizes", type=int, nargs="*", default=SIZES, help="tokens per axis")
    parser.add_argument("--dense-limit", type=int, default=48, help="largest grid for dense")
    parser.add_argument("--math-limit", type=int, default=24, help="the same with all scores")
    parser.add_argument("--methods", nargs="+", help="what to time; all by default")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--encoder", default="hr_b")
    parser.add_argument("--encoder-sizes", type=int, nargs="*", default=(128, 256, 384))
    return parser.parse_args()


def main() -> int:
    """Run the benchmark."""
    bench = Bench(read_options())
    bench.save()
    work: dict[str, Callable[[], Any]] = {
        "times": lambda: time_sizes(bench),
        "summary": lambda: summarise_times(bench.result.get("times", [])),
        "official": lambda: time_official(bench),
        "checks": lambda: check_paths(bench),
        "encoders": lambda: time_encoders(bench),
        "compiled": lambda: time_compiled(bench),
    }
    for name in PARTS:
        is_possible = name != "official" or bench.options.official is not None
        if name in bench.options.parts and is_possible:
            bench.part(name, work[name])
    return 0


if __name__ == "__main__":
    sys.exit(main())
