"""Agreement of sparse attention with its float64 reference on random grids.

Outputs and gradients of every path, float32 and bfloat16, beside the error of torch's own dense
attention on the same tensors.
"""

from __future__ import annotations

import random
import statistics
import time
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn import functional

from fastsam3d.model.sparse_attention import RelativeBias, sparse_attention
from fastsam3d.model.sparse_attention_pattern import SparsePattern

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sparse_attention import Bench


def random_pattern(rng: random.Random) -> tuple[str, SparsePattern]:
    """Draw one of the kinds of pattern."""
    kinds = {
        "dilated": SparsePattern.dilated,
        "shifted": lambda: SparsePattern.dilated().shifted(),
        "axial": SparsePattern.axial,
        "window": lambda: SparsePattern.window(rng.randint(2, 7)),
        "whole": lambda: SparsePattern.dilated(((rng.randint(2, 6), 1), (0, rng.randint(2, 3)))),
    }
    name = rng.choice(list(kinds))
    return name, kinds[name]()


def check_paths(bench: Bench) -> dict[str, Any]:
    """Compare outputs and gradients with the float64 reference on random grids."""
    rng = random.Random(0)  # noqa: S311
    torch.manual_seed(0)  # pyright: ignore[reportUnknownMemberType]
    paths = ("sdpa", "triton") if bench.is_cuda else ("sdpa",)
    stop = min(time.monotonic() + bench.options.check_seconds, bench.stop_at - 15)
    rows: list[dict[str, Any]] = []
    for number in range(bench.options.checks):
        if time.monotonic() > stop:
            break
        grid = tuple(rng.randint(1, 13) for _ in range(3)) if number else (16, 16, 16)
        name, pattern = random_pattern(rng) if number else ("dilated", SparsePattern.dilated())
        channels = rng.choice((64, 64, 20))
        shape = (rng.choice((1, 2)), 2, grid[0] * grid[1] * grid[2], channels)
        with_bias = number % 3 == 2
        for dtype in (torch.float32, torch.bfloat16):
            base = [torch.randn(shape, device=bench.device).to(dtype) for _ in range(4)]
            bias = _random_bias(grid, bench.device) if with_bias else None
            truth = _run(base, torch.float64, grid, pattern, bias, "reference")
            yard = _errors(_run_dense(base, dtype), _run_dense(base, torch.float64))
            for path in paths:
                found = bench.attempt(
                    f"check {path} {dtype} {name} {grid} {shape} bias={with_bias}",
                    lambda p=path: _run(base, dtype, grid, pattern, bias, p),  # noqa: B023
                )
                if found is not None:
                    rows.append(
                        {"path": path, "dtype": str(dtype)[6:], "pattern": name, "grid": grid}
                        | {"shape": shape, "bias": with_bias}
                        | {"error": _errors(found, truth), "dense_error": yard}
                    )
    return _summarise(rows)


def _random_bias(grid: Sequence[int], device: torch.device) -> RelativeBias:
    tables = [torch.randn(2, 2 * size + 3, device=device) for size in grid]
    return RelativeBias(*tables)


def _run(
    base: Sequence[Tensor],
    dtype: torch.dtype,
    grid: Any,
    pattern: SparsePattern,
    bias: RelativeBias | None,
    path: Any,
) -> list[Tensor]:
    """Return the output and the gradients of q, k, v and the bias tables."""
    leaves = [x.to(dtype).requires_grad_() for x in base[:3]]
    tables: list[Tensor] = []
    if bias is not None:
        wide = torch.float64 if dtype == torch.float64 else torch.float32
        tables = [table.to(wide).requires_grad_() for table in bias]
    biases = RelativeBias(*tables) if tables else None
    out = sparse_attention(*leaves, grid=grid, pattern=pattern, bias=biases, path=path)
    return [out.detach(), *torch.autograd.grad(out, [*leaves, *tables], base[3].to(out.dtype))]


def _run_dense(base: Sequence[Tensor], dtype: torch.dtype) -> list[Tensor]:
    leaves = [x.to(dtype).requires_grad_() for x in base[:3]]
    out = functional.scaled_dot_product_attention(leaves[0], leaves[1], leaves[2])
    return [out.detach(), *torch.autograd.grad(out, leaves, base[3].to(dtype))]


def _errors(found: Sequence[Tensor], truth: Sequence[Tensor]) -> dict[str, float]:
    """Return root-mean-square errors over the size of the truth, and the largest error."""
    gaps = [(a.double() - b.double()) for a, b in zip(found, truth, strict=True)]
    parts = [_norm(gap) / _norm(b.double()) for gap, b in zip(gaps[:4], truth, strict=False)]
    # Where groups hold one token the bias has no gradient: errors are then absolute.
    tables = sum(float(b.square().sum()) for b in truth[4:]) ** 0.5
    table_gaps = sum(float(gap.square().sum()) for gap in gaps[4:]) ** 0.5
    return {
        "output": parts[0],
        "gradient": max(parts[1:4]),
        "bias_gradient": table_gaps / max(tables, 1.0),
        "largest_output": float(gaps[0].abs().max()),
        "largest_gradient": max(float(gap.abs().max()) for gap in gaps[1:4]),
        "is_finite": float(all(bool(x.isfinite().all()) for x in found)),
    }


def _norm(x: Tensor) -> float:
    return float(x.square().sum().sqrt())


def _summarise(rows: list[dict[str, Any]]) -> dict[str, Any]:
    summary: dict[str, Any] = {"num_cases": len(rows)}
    for path in ("sdpa", "triton"):
        for dtype in ("float32", "bfloat16"):
            some = [row for row in rows if row["path"] == path and row["dtype"] == dtype]
            if not some:
                continue
            worst = {key: max(row["error"][key] for row in some) for key in some[0]["error"]}
            worst["is_finite"] = min(row["error"]["is_finite"] for row in some)
            ratio = {
                key: max(row["error"][key] / max(row["dense_error"][key], 1e-9) for row in some)
                for key in ("output", "gradient")
            }
            median = {
                key: statistics.median(
                    row["error"][key] / max(row["dense_error"][key], 1e-9) for row in some
                )
                for key in ("output", "gradient")
            }
            summary[f"{path} {dtype}"] = {
                "cases": len(some),
                "worst": worst,
                "over_dense_worst": ratio,
                "over_dense_median": median,
            }
    return summary | {"rows": rows}
