"""One function on buffers that stay where they are: compiled, recorded once, replayed."""

from __future__ import annotations

import warnings
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Literal, cast

import torch

if TYPE_CHECKING:
    from collections.abc import Callable, Generator

    from torch import Tensor

CompileMode = Literal["default", "max-autotune-no-cudagraphs"]

_WARM_UPS = 3  # a graph may be captured once the kernels of its library calls are chosen
# Engines and kinds of prompts share code objects, and each needs a compilation of its own.
_MOST_COMPILATIONS = 64


class Replay:
    """A function of buffers, run on the same memory every time.

    Args:
        function: Takes the buffers by name and returns tensors; it never waits for the device.
        buffers: Stay where they are; what they hold is taken anew by every run.
        compile_mode: Of torch.compile; None runs the function as it is. If compiling fails, a
            warning says why and the function is run as it is.
        is_captured: Record a CUDA graph.
    """

    def __init__(
        self,
        function: Callable[..., tuple[Tensor, ...]],
        buffers: dict[str, Tensor],
        *,
        compile_mode: CompileMode | None,
        is_captured: bool,
    ) -> None:
        self._buffers = buffers
        self._function = self._compiled(function, compile_mode) if compile_mode else function
        with _chosen_convolutions():
            self._graph = self._capture() if is_captured else None

    @property
    def outputs(self) -> tuple[Tensor, ...]:
        """Where every run leaves its outputs; empty if nothing is captured."""
        return () if self._graph is None else self._graph[1]

    def run(self) -> tuple[Tensor, ...]:
        """Return the outputs for what the buffers hold now; the next run overwrites them."""
        if self._graph is None:
            return self._function(**self._buffers)
        graph, outputs = self._graph
        graph.replay()
        return outputs

    def _compiled(
        self, function: Callable[..., tuple[Tensor, ...]], mode: CompileMode
    ) -> Callable[..., tuple[Tensor, ...]]:
        compiled = cast("Any", torch).compile(function, dynamic=False, fullgraph=True, mode=mode)
        try:
            with (
                _kept_layouts(),
                cast("Any", torch)._dynamo.config.patch(recompile_limit=_MOST_COMPILATIONS),
                _chosen_convolutions(),
            ):
                compiled(**self._buffers)
        except Exception as error:  # noqa: BLE001 - compilers fail in any way; the answer is the same
            warnings.warn(f"Running without torch.compile, which failed: {error}", stacklevel=2)
            return function
        return compiled

    def _capture(self) -> tuple[torch.cuda.CUDAGraph, tuple[Tensor, ...]]:
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(_WARM_UPS):
                self._function(**self._buffers)
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        # Other threads may go on using the device meanwhile.
        with torch.cuda.graph(graph, capture_error_mode="thread_local"):
            outputs = self._function(**self._buffers)
        return graph, outputs


@contextmanager
def _kept_layouts() -> Generator[None]:
    """Keep channels last, as the weights have them: a compiler chooses for two dimensions."""
    import torch._inductor.config as settings  # noqa: PLC0415 - loads the compiler

    with cast("Any", settings).patch(layout_optimization=False):
        yield


@contextmanager
def _chosen_convolutions() -> Generator[None]:
    """Let cuDNN time its kernels of each convolution: the shapes never change."""
    backend = cast("Any", torch.backends.cudnn)
    before = backend.benchmark
    backend.benchmark = True
    try:
        yield
    finally:
        backend.benchmark = before
