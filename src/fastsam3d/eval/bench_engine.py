"""The fixed-shape engine as a contender of the benchmark; needs scipy besides torch and numpy."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final

import torch

from fastsam3d.errors import ConfigError
from fastsam3d.eval.bench_worker import DecodingContender, OwnContender, phantom_roi
from fastsam3d.session.fixed_shape import FixedShapeConfig, FixedShapeEngine

if TYPE_CHECKING:
    from torch import Tensor

# As it is by default; with every kernel timed before one is chosen; and without compiling.
_CONFIGS: Final = {
    "cuda_graph": FixedShapeConfig(),
    "cuda_graph_autotune": FixedShapeConfig(compile_mode="max-autotune-no-cudagraphs"),
    "cuda_graph_plain": FixedShapeConfig(is_compiled=False),
}
ENGINES: Final = tuple(_CONFIGS)


class EngineContender(DecodingContender):
    """A model of this package in the fixed-shape engine, compiled and recorded when it is made.

    Args:
        name: Name or path of the model, then ``@`` and one of `ENGINES`.
        device: "cuda"; on a CPU the same buffers are run eagerly.

    Raises:
        ConfigError: There is no such engine.
        ModelNotFoundError: Nothing has that name, or no file is there.
        CheckpointError: The weights are damaged.
    """

    def __init__(self, name: str, device: str) -> None:
        base, _, kind = name.rpartition("@")
        if kind not in ENGINES:
            raise ConfigError(f"Engine must be one of {', '.join(ENGINES)}, got {kind!r}.")
        self._own = OwnContender(base, device)
        self.label, self.weights = name, self._own.weights
        self.module, self.image_size = self._own.module, self._own.image_size
        config = _CONFIGS[kind]
        if device == "cpu":
            config = replace(config, is_compiled=False, is_captured=False)
        self.engine = FixedShapeEngine(self.module, config)
        self.dtype = self.engine.options.dtype
        self.prompt_device: torch.device | None = self.engine.prompt_device
        image = phantom_roi(self.image_size).to(device)
        points = torch.full((1, 1, 3), self.image_size / 2)
        labels = torch.ones(1, 1)
        embedding = self.encode(image)
        logits, _ = self.click(embedding, points, labels, None)
        self.click(embedding, points, labels, logits)

    def counted(self) -> OwnContender:
        """Return the eager model: a replayed graph makes no calls that can be counted."""
        return self._own

    def encode(self, image: Tensor) -> Any:
        """Embed an ROI (1, 1, S, S, S)."""
        return self.engine.encode_image(image)

    def decode(
        self, embedding: Any, points: Tensor, labels: Tensor, mask_logits: Tensor | None
    ) -> Tensor:
        """Return logits (1, 1, L, L, L) for points (1, N, 3) and the logits before."""
        return self.engine.decode_masks(embedding, points, labels, mask_logits=mask_logits)[0]

    def click(
        self, embedding: Any, points: Tensor, labels: Tensor, mask_logits: Tensor | None
    ) -> tuple[Tensor, Any]:
        """Return logits on the device, and the mask as bits in host memory with its bounds."""
        answer = self.engine.answer(embedding, points, labels, mask_logits=mask_logits)
        return answer.logits, answer
