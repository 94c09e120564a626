"""One contender of the benchmark in a process of its own: `python -m fastsam3d.eval.bench_worker`.

A fresh process makes the first call honestly cold, keeps memory figures apart and lets published
code be imported that shares module names with other code. The parent (`fastsam3d.eval.bench`)
sends one word per line and gets one JSON object per line. Needs torch and numpy only, unless a
whole session is timed.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
import time
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol, TextIO, cast

import torch
from torch.nn import functional
from torch.utils.flop_counter import FlopCounterMode

from fastsam3d.errors import ConfigError, FastSAM3DError, ModelNotFoundError
from fastsam3d.model.registry import bundled_weights, create_model, find_config, load_model
from fastsam3d.model.window_attention import WindowAttention

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from torch import Tensor

    from fastsam3d.model.embedding import ImageEmbedding
    from fastsam3d.model.registry import Model

Precision = Literal["float32", "tf32", "bfloat16"]
REFERENCE_SUFFIX = "@reference"
ENGINE_MARK = "@cuda_graph"
COPY_BYTES = {"cpu": 1 << 26, "cuda": 1 << 31}
CLICKS_PER_PASS = 3
# Side of the square matrices whose product tells what the device can do.
GEMM_SIDE = {"cpu": 1024, "cuda": 8192}


@dataclass(frozen=True, kw_only=True)
class WorkerSpec:
    """What one worker shall run.

    Attributes:
        name: Model name, or path of weights; ``NAME@reference`` takes the padded attention that
            the published releases run. Empty with `official`.
        official: Checkout of the published code; None for a model of this package.
        device: "cpu" or "cuda".
        precision: "float32" (no TF32), "tf32", or "bfloat16" by autocast.
        threads: Of the CPU; 0 leaves torch's choice.
        image: A scan for the times of a whole session; empty for none.
        point: First click in that scan, voxel i, j, k.
    """

    name: str = ""
    official: str | None = None
    device: str = "cpu"
    precision: Precision = "float32"
    threads: int = 0
    image: str = ""
    point: tuple[int, int, int] = (0, 0, 0)


Samples = dict[str, list[float]]
"""Milliseconds per quantity: ``encode`` (ROI on the device to its embedding), ``click`` (one more
click with all points so far and the logits before, to the mask at the ROI's resolution on the
device), ``end_to_end`` (ROI in host memory to the first click's mask in host memory) and ``gemm``
(a large product of matrices in the same precision) and ``copy`` (of `COPY_BYTES` on the device); on
a CPU also the processor time of each, with
``_cpu`` appended."""


class Contender(Protocol):
    """A model behind the two calls that are timed."""

    label: str
    image_size: int
    weights: str
    dtype: torch.dtype
    prompt_device: torch.device | None
    """Where a session would hand over prompts; None for the device itself."""

    @property
    def module(self) -> torch.nn.Module:
        """The network, whose parameters are counted."""
        ...

    def counted(self) -> Any:
        """Return what makes the same answer by calls that can be counted."""
        ...

    def encode(self, image: Tensor) -> Any:
        """Embed an ROI (1, 1, S, S, S)."""
        ...

    def decode(
        self, embedding: Any, points: Tensor, labels: Tensor, mask_logits: Tensor | None
    ) -> Tensor:
        """Return logits (1, 1, L, L, L) for points (1, N, 3) and the logits before."""
        ...

    def click(
        self, embedding: Any, points: Tensor, labels: Tensor, mask_logits: Tensor | None
    ) -> tuple[Tensor, Any]:
        """Return the same logits and the mask at the resolution of the ROI."""
        ...


class DecodingContender:
    """The mask of a click from the logits, as published programs make it."""

    image_size: int
    dtype = torch.float32
    prompt_device: torch.device | None = None

    def counted(self) -> Any:
        """Return what makes the same answer by calls that can be counted."""
        return self

    def decode(
        self, embedding: Any, points: Tensor, labels: Tensor, mask_logits: Tensor | None
    ) -> Tensor:
        """Return logits (1, 1, L, L, L) for points (1, N, 3) and the logits before."""
        raise NotImplementedError

    def click(
        self, embedding: Any, points: Tensor, labels: Tensor, mask_logits: Tensor | None
    ) -> tuple[Tensor, Any]:
        """Return the same logits and the mask at the resolution of the ROI."""
        logits = self.decode(embedding, points, labels, mask_logits)
        shown = logits
        if logits.shape[-1] != self.image_size:
            size = (self.image_size,) * (logits.ndim - 2)
            mode = "trilinear" if len(size) == 3 else "bilinear"
            shown = functional.interpolate(logits, size=size, mode=mode)
        return logits, shown > 0


class OwnContender(DecodingContender):
    """A model of this package.

    Args:
        name: As `WorkerSpec.name`.
        device: Where to compute.

    Raises:
        ModelNotFoundError: Nothing has that name, or no file is there.
        CheckpointError: The weights are damaged.
        ConfigError: The padded reference of a model that has none.
    """

    def __init__(self, name: str, device: str) -> None:
        base = name.removesuffix(REFERENCE_SUFFIX)
        self.label = name
        self.module, self.weights = _own_model(base, device)
        self.image_size = self.module.config.image_size
        if base != name:
            blocks = [m for m in self.module.modules() if isinstance(m, WindowAttention)]
            if not blocks:
                raise ConfigError(
                    f"{name}: only the compatible models have a padded reference; drop "
                    f"{REFERENCE_SUFFIX}."
                )
            for block in blocks:
                block.path = "reference"

    def encode(self, image: Tensor) -> Any:
        """Embed an ROI (1, 1, S, S, S)."""
        return self.module.encode_image(image)

    def decode(
        self, embedding: Any, points: Tensor, labels: Tensor, mask_logits: Tensor | None
    ) -> Tensor:
        """Return logits (1, 1, L, L, L) for points (1, N, 3) and the logits before."""
        return self.module.decode_masks(embedding, points, labels, mask_logits=mask_logits)[0]


class Bench:
    """Times passes of one contender.

    Args:
        contender: In evaluation mode, on `device`.
        device: Where it is.
        precision: As `WorkerSpec.precision`.
    """

    def __init__(
        self, contender: Contender, *, device: str = "cpu", precision: Precision = "float32"
    ) -> None:
        self.contender = contender
        self.device = torch.device(device)
        self.precision = precision
        size = contender.image_size
        self._image = phantom_roi(size)
        steps = torch.arange(CLICKS_PER_PASS + 1, device=self.device, dtype=torch.float32)
        points = (size // 2 + steps)[None, :, None].expand(1, -1, 3).contiguous()
        labels = torch.ones(1, CLICKS_PER_PASS + 1, device=self.device)
        at = contender.prompt_device or self.device
        self._points, self._labels = points.to(at), labels.to(at)
        self._peak_bytes: int | None = None

    @cached_property
    def _matrix(self) -> Tensor:
        side = GEMM_SIDE[self.device.type]
        return torch.rand(side, side, device=self.device).to(self.contender.dtype)

    @cached_property
    def _halves(self) -> Tensor:
        half = COPY_BYTES[self.device.type] // 2
        return torch.ones(2, half, dtype=torch.uint8, device=self.device)

    def run_pass(self) -> Samples:
        """Encode one ROI, answer a first click and `CLICKS_PER_PASS` more, multiply matrices."""
        samples: Samples = {}
        with torch.inference_mode(), self._autocast():
            begin = self._now()
            image = self._image.to(self.device)
            copied = self._now()
            embedding = self.contender.encode(image)
            self._keep(samples, "encode", copied)
            logits, mask = self._click(embedding, 1, None)
            if isinstance(mask, torch.Tensor):
                mask.cpu()
            self._keep(samples, "end_to_end", begin)
            for count in range(2, CLICKS_PER_PASS + 2):
                start = self._now()
                logits, _ = self._click(embedding, count, logits)
                self._keep(samples, "click", start)
            if self._peak_bytes is None and self.device.type == "cuda":
                self._peak_bytes = torch.cuda.max_memory_allocated(self.device)
            # Made only now: they are no part of what the model needs.
            matrix, (target, source) = self._matrix, self._halves
            start = self._now()
            torch.mm(matrix, matrix)
            self._keep(samples, "gemm", start)
            start = self._now()
            target.copy_(source)
            self._keep(samples, "copy", start)
        return samples

    def facts(self) -> dict[str, Any]:
        """Return parameters and FLOPs (two per multiply-add) of encoder and of one click."""
        # The counter's hooks trip over parameters that await a gradient.
        self.contender.module.requires_grad_(requires_grad=False)
        with torch.inference_mode(), self._autocast():
            image = self._image.to(self.device)
            # The counter sees calls of torch, not what a graph replays.
            counted = self.contender.counted()
            embedding, encode_flops = _count_flops(lambda: counted.encode(image))
            points, labels = (part[:, :2].to(self.device) for part in (self._points, self._labels))
            logits = counted.decode(embedding, points[:, :1], labels[:, :1], None)
            _, click_flops = _count_flops(lambda: counted.decode(embedding, points, labels, logits))
        moved = self._moved_bytes(embedding, logits)
        return {
            "weights": self.contender.weights,
            "image_size": self.contender.image_size,
            "parameters": sum(p.numel() for p in self.contender.module.parameters()),
            "encode_flops": encode_flops,
            "click_flops": click_flops,
            "gemm_flops": 2 * len(self._matrix) ** 3,
            "copy_bytes": COPY_BYTES[self.device.type],
            **moved,
        }

    def _moved_bytes(self, embedding: Tensor | ImageEmbedding, logits: Tensor) -> dict[str, int]:
        """Return what must pass through memory at least: weights, input and output once each."""
        width = self._matrix.element_size() if self.precision != "bfloat16" else 2
        encoder = sum(p.numel() for p in next(self.contender.module.children()).parameters())
        everything = sum(p.numel() for p in self.contender.module.parameters())
        is_plain = isinstance(embedding, torch.Tensor)
        held = (embedding,) if is_plain else (embedding.tokens, *embedding.skips)
        embedded = sum(part.numel() for part in held)
        mask = 5 * self._image.numel()
        return {
            "encode_bytes": width * (encoder + embedded) + 4 * self._image.numel(),
            "click_bytes": width * (everything - encoder + embedded) + 4 * logits.numel() + mask,
        }

    def cold(self) -> dict[str, Any]:
        """Run the first pass and watch the memory meanwhile."""
        is_cuda = self.device.type == "cuda"
        if is_cuda:
            torch.cuda.reset_peak_memory_stats(self.device)
        before = 0 if is_cuda else _restart_peak_rss()
        samples = self.run_pass()
        if is_cuda:
            peak = self._peak_bytes
        else:
            peak = None if before is None else max(0, _status_bytes("VmHWM") - before)
        return {"samples": samples, "peak_memory_bytes": peak}

    def _click(self, embedding: Any, count: int, before: Tensor | None) -> tuple[Tensor, Any]:
        points, labels = self._points[:, :count], self._labels[:, :count]
        return self.contender.click(embedding, points, labels, before)

    def _autocast(self) -> contextlib.AbstractContextManager[Any]:
        if self.precision == "bfloat16":
            return torch.autocast(self.device.type, dtype=torch.bfloat16)
        return contextlib.nullcontext()

    def _now(self) -> tuple[float, float]:
        """Return wall and processor time in ms, with the device idle."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return 1e3 * time.perf_counter(), 1e3 * time.process_time()

    def _keep(self, samples: Samples, quantity: str, since: tuple[float, float]) -> None:
        wall, cpu = (now - then for now, then in zip(self._now(), since, strict=True))
        samples.setdefault(quantity, []).append(wall)
        if self.device.type == "cpu":
            # Waiting for a busy machine costs no processor time, which makes ratios steadier.
            samples.setdefault(f"{quantity}_cpu", []).append(cpu)


def phantom_roi(size: int) -> Tensor:
    """Return a normalised ROI (1, 1, S, S, S): a bright ball of 0.4 S across in noise.

    Our decoder's time depends on the object's size on a CPU; that of all others on nothing.
    """
    noise = torch.randn(1, 1, size, size, size, generator=torch.Generator().manual_seed(0))
    squared = (torch.arange(size) - size / 2) ** 2
    distance = (squared[:, None, None] + squared[:, None] + squared).sqrt()
    return 0.3 * noise + 2.0 * (distance < 0.2 * size)


def time_session(spec: WorkerSpec) -> Iterator[Samples]:
    """Yield times of a whole session on a scan, in ms: set the volume, click, click again.

    Raises:
        FastSAM3DError: The scan, the click or the weights are wrong.
    """
    # A whole session wants scipy and an image reader, which a lean machine lacks.
    from fastsam3d.io import read_volume  # noqa: PLC0415
    from fastsam3d.session import Session  # noqa: PLC0415

    volume = read_volume(Path(spec.image))
    session = Session.from_pretrained(spec.name, device=cast("Any", spec.device))
    i, j, k = spec.point
    while True:
        session.set_volume(volume)
        begin = time.perf_counter()
        session.add_point((i, j, k))
        first = time.perf_counter()
        session.add_point((min(i + 2, volume.shape[0] - 1), j, k))
        second = time.perf_counter()
        yield {
            "session_first_click": [1e3 * (first - begin)],
            "session_click": [1e3 * (second - first)],
        }


def serve(spec: WorkerSpec, requests: TextIO, replies: TextIO) -> None:
    """Answer requests, one word per line: ``cold``, ``pass``, ``facts`` or ``session``.

    A typed error is answered as ``{"error": sentence}`` and ends the service.
    """
    try:
        _prepare_torch(spec)
        contender = _contender(spec)
        actions = _actions(spec, contender)
        _reply(replies, {"label": contender.label})
        for line in requests:
            _reply(replies, actions[line.strip()]())
    except FastSAM3DError as error:
        _reply(replies, {"error": str(error)})


def _actions(spec: WorkerSpec, contender: Contender) -> dict[str, Callable[[], dict[str, Any]]]:
    bench = Bench(contender, device=spec.device, precision=spec.precision)
    session = time_session(spec)
    return {
        "cold": bench.cold,
        "pass": bench.run_pass,
        "facts": bench.facts,
        "session": lambda: next(session),
    }


def _contender(spec: WorkerSpec) -> Contender:
    if spec.official is None:
        if ENGINE_MARK in spec.name:
            from fastsam3d.eval.bench_engine import EngineContender  # noqa: PLC0415 - wants scipy

            return EngineContender(spec.name, spec.device)
        return OwnContender(spec.name, spec.device)
    from fastsam3d.eval import bench_official  # noqa: PLC0415 - rarely wanted

    return bench_official.find_contender(Path(spec.official), spec.device)


def _own_model(name: str, device: str) -> tuple[Model, str]:
    try:
        find_config(name)
    except ModelNotFoundError:
        return load_model(name, device=device), "file"
    if bundled_weights(name) is not None:
        return load_model(name, device=device), "shipped"
    cast("Any", torch).manual_seed(0)  # torch's stub leaves the seed untyped
    return create_model(name).eval().to(device), "random"


def _prepare_torch(spec: WorkerSpec) -> None:
    if spec.device == "cuda" and not torch.cuda.is_available():
        raise ConfigError("CUDA was asked for but torch sees no such device; use --device cpu.")
    if spec.threads:
        torch.set_num_threads(spec.threads)
    is_tf32 = spec.precision == "tf32"
    torch.set_float32_matmul_precision("high" if is_tf32 else "highest")
    torch.backends.cudnn.allow_tf32 = is_tf32


def _count_flops(work: Callable[[], Any]) -> tuple[Any, int]:
    with FlopCounterMode(display=False) as counter:
        result = work()
    return result, counter.get_total_flops()


def _restart_peak_rss() -> int | None:
    """Restart the kernel's record of this process's peak memory; return the memory now."""
    try:
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    except OSError:
        return None  # not Linux, or not allowed
    return _status_bytes("VmRSS")


def _status_bytes(key: str) -> int:
    text = Path("/proc/self/status").read_text(encoding="ascii")
    line = next(row for row in text.splitlines() if row.startswith(f"{key}:"))
    return 1024 * int(line.split()[1])


def _reply(stream: TextIO, content: dict[str, Any]) -> None:
    stream.write(json.dumps(content) + "\n")
    stream.flush()


def main() -> int:
    """Serve the spec given as JSON in the only argument."""
    spec = WorkerSpec(**json.loads(sys.argv[1]))
    # Published code prints while it runs: only replies may reach the parent's pipe.
    replies = os.fdopen(os.dup(sys.stdout.fileno()), "w", encoding="utf-8")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    with contextlib.suppress(BrokenPipeError):  # the parent was stopped
        serve(spec, sys.stdin, replies)
    return 0


if __name__ == "__main__":
    sys.exit(main())
