"""The model in a process of its own, with the interface of a model; see `engine_child`.

A crash, a hang or the system's choice of what to end for want of memory takes the child alone. Who
asked is told, the child starts again at once, and embeddings that went with it are computed again
when they are next needed: volumes, prompts and answers live in the server.
"""

from __future__ import annotations

import logging
import weakref
from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch

from fastsam3d.errors import EngineCrashedError, FastSAM3DError
from fastsam3d.model.embedding import ImageEmbedding
from fastsam3d.server.child import Child, ChildDiedError

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray
    from torch import Tensor

logger = logging.getLogger(__name__)

TARGET = "fastsam3d.server.engine_child:create"


@dataclass(frozen=True)
class RemoteConfig:
    """What a predictor asks of a model's config.

    Attributes:
        name: Name of the variant.
        image_size: Side of the ROI in voxels.
        logits_size: Side of the cube of logits.
    """

    name: str
    image_size: int
    logits_size: int


@dataclass(frozen=True, eq=False)
class _Held:
    """An embedding in the child; while someone has it here, it stays there."""

    child: Child
    number: int


@dataclass(frozen=True, eq=False, kw_only=True)
class HeldEmbedding(ImageEmbedding):
    """An embedding that is elsewhere: its tensors have shapes and types, no values.

    Attributes:
        held: Which one.
        count: How many times in a row, see `tile`.
    """

    held: _Held
    count: int = 1

    def tile(self, count: int) -> ImageEmbedding:
        """Return the whole batch `count` times in a row; no values are copied."""
        tiled = super().tile(count)
        held, times = self.held, self.count * count
        return HeldEmbedding(
            tokens=tiled.tokens,
            skips=tiled.skips,
            image_size=self.image_size,
            held=held,
            count=times,
        )


@dataclass
class _Losses:
    """What happened to former children."""

    restarts: int = 0
    is_down: bool = False
    listeners: list[Callable[[], None]] = field(default_factory=list["Callable[[], None]"])


class EngineProcess:
    """A `PromptableModel` whose work is done in a child process; for one thread.

    Args:
        target: What answers in the child, see `child.Child`; makes an `engine_child.Engine`.
        options: For the target.
        timeout_s: A child that needs longer for one pass is ended.

    Raises:
        FastSAM3DError: The model cannot be loaded.
        EngineCrashedError: The child ended as it started.
    """

    def __init__(self, target: str, options: dict[str, Any], *, timeout_s: float = 120.0) -> None:
        self._target, self._options = target, options
        self._child = Child(target, options)
        self._timeout_s = timeout_s
        self._free: deque[tuple[Child, int]] = deque()
        self._losses = _Losses()
        self._is_closed = False
        try:
            self.config = RemoteConfig(**self._child.facts)
        except ChildDiedError as error:
            self._child.close()
            raise _crashed(error) from error
        except FastSAM3DError:
            self._child.close()
            raise

    @property
    def pid(self) -> int:
        """Process id of the child; another one after each restart."""
        return self._child.pid

    @property
    def restarts(self) -> int:
        """How often a child was started to take the place of another."""
        return self._losses.restarts

    @property
    def is_down(self) -> bool:
        """Whether the latest child did not start."""
        return self._losses.is_down

    def on_loss(self, listener: Callable[[], None]) -> None:
        """Call something when embeddings were lost, in the thread that finds out."""
        self._losses.listeners.append(listener)

    def tend(self) -> None:
        """Start the child again if it has ended, and let it forget what nobody needs.

        Waits for the start if the one before failed.
        """
        if not self._child.is_alive:
            self._replace("ended while it was idle")
            return
        try:
            if self._losses.is_down and self._child.facts:
                self._losses.is_down = False
            elif self._free:
                self._child.tell({"free": self._freed()})
        except ChildDiedError as error:
            self._replace(error.why)
        except FastSAM3DError:
            logger.exception("The engine cannot be started; trying again in a while.")

    def encode_image(self, image: Tensor) -> ImageEmbedding:
        """Embed ROIs, shape (B, 1, I, J, K).

        Raises:
            EngineCrashedError: The child ended.
        """
        told, _ = self._ask({"free": self._freed()}, {"image": image})
        tokens, *skips = (
            torch.empty(part["shape"], dtype=getattr(torch, part["dtype"]), device="meta")
            for part in told["parts"]
        )
        held = _Held(self._child, told["number"])
        weakref.finalize(held, self._free.append, (held.child, held.number))
        return HeldEmbedding(
            tokens=tokens, skips=tuple(skips), image_size=told["image_size"], held=held
        )

    def decode_masks(
        self,
        embedding: ImageEmbedding,
        points: Tensor,
        labels: Tensor,
        *,
        boxes: Tensor | None = None,
        mask_logits: Tensor | None = None,
        multimask: bool = False,
    ) -> tuple[Tensor, Tensor]:
        """Return logits (B, M, S, S, S) and predicted quality (B, M), float32.

        Raises:
            EngineCrashedError: The child ended, now or since the embedding was made.
        """
        given = cast("HeldEmbedding", embedding)
        if given.held.child is not self._child:
            raise _crashed(None)
        if mask_logits is not None and mask_logits.stride(0) == 0:
            mask_logits = mask_logits[:1]  # The child repeats it as well as we could.
        tensors = {
            "points": points, "labels": labels, "boxes": boxes, "mask_logits": mask_logits,
        }  # fmt: skip
        known = {name: value for name, value in tensors.items() if value is not None}
        request = {
            "decode": given.held.number,
            "count": given.count,
            "multimask": multimask,
            "names": list(known),
            "free": self._freed(),
        }
        _, (logits, quality) = self._ask(request, known)
        # Copies: the memory between the processes is used again by the next request.
        return _tensor(logits.copy()), _tensor(quality.copy())

    def close(self) -> None:
        """End the child, for good."""
        self._is_closed = True
        self._child.close()

    def _ask(
        self, request: dict[str, Any], tensors: dict[str, Tensor]
    ) -> tuple[dict[str, Any], list[NDArray[Any]]]:
        arrays = [cast("Any", tensor.contiguous()).numpy() for tensor in tensors.values()]
        try:
            answer = self._child.call(request, arrays, timeout_s=self._timeout_s)
        except ChildDiedError as error:
            self._replace(error.why)
            raise _crashed(error) from error
        except FastSAM3DError:
            self._losses.is_down = not self._child.has_started
            raise
        self._losses.is_down = False
        return answer

    def _replace(self, why: str) -> None:
        """Start another child, without waiting for it."""
        logger.error("The engine's process %s; starting it again.", why)
        was_starting = not self._child.has_started
        self._child.close()
        if self._is_closed:
            return
        self._child = Child(self._target, self._options)
        self._losses.restarts += 1
        self._losses.is_down = was_starting
        for listener in self._losses.listeners:
            listener()

    def _freed(self) -> list[int]:
        """Return the embeddings of the present child that nobody needs any more."""
        numbers: list[int] = []
        while self._free:
            child, number = self._free.popleft()
            if child is self._child:
                numbers.append(number)
        return numbers


def _crashed(error: ChildDiedError | None) -> EngineCrashedError:
    why = "was started anew" if error is None else error.why
    message = (
        f"The engine's process {why} within this request; it is starting again, nothing that you "
        "made is lost: ask again."
    )
    return EngineCrashedError(message)


def _tensor(value: NDArray[np.float32]) -> Tensor:
    return cast("Tensor", cast("Any", torch).from_numpy(value))
