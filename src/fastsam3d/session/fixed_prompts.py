"""The prompts of one click in buffers that stay where they are.

Each copy to the device costs a launch, so points, labels and box travel side by side.

Shape legend: N slots for points, L side of the logits.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple, cast

import torch
from torch import Tensor

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

_BOX_VALUES = 6


class Slots(NamedTuple):
    """The buffer's parts as views.

    Attributes:
        points: Coordinates, (1, N, 3).
        labels: As `decode_masks` has them, or the label that stands for an empty slot, (1, N).
        boxes: All zero where there is none, (1, 6).
        has_box: 1 where a box was given, even an empty one, else 0; (1, 1).
    """

    points: Tensor
    labels: Tensor
    boxes: Tensor
    has_box: Tensor


def slots_of(packed: Tensor, count: int) -> Slots:
    """Return the parts of the buffer of `count` slots for points."""
    widths = (3 * count, count, _BOX_VALUES, 1)
    parts = cast("tuple[Tensor, ...]", cast("Any", packed).split(widths, dim=1))
    points, labels, boxes, has_box = parts
    return Slots(points.view(1, count, 3), labels, boxes, has_box)


class ClickBuffers:
    """What changes from click to click, on the device.

    Attributes:
        packed: Points, labels and box, float32, see `slots_of`.
        mask_logits: Mask prompt, (1, 1, L, L, L) float32, zero where there is none.

    Args:
        count: Slots for points.
        empty_label: Of a slot that holds no point.
        side: L.
        device: Where the buffers are.
        is_uploaded: `fill` leaves prompts on the device; else it leaves them in host memory, and
            what reads them calls `upload` first and `mark` after.
    """

    def __init__(
        self,
        count: int,
        *,
        empty_label: int,
        side: int,
        device: torch.device,
        is_uploaded: bool = True,
    ) -> None:
        self._is_uploaded = is_uploaded
        self._count, self._empty_label = count, empty_label
        neutral = torch.zeros(1, 4 * count + _BOX_VALUES + 1)
        slots_of(neutral, count).labels.fill_(empty_label)
        self.packed = neutral.to(device)
        self.mask_logits = torch.zeros(1, 1, side, side, side, device=device)
        self._is_mask_set = False
        is_cuda = device.type == "cuda"
        # On a CPU the host's buffer is the buffer itself.
        self._host = neutral.pin_memory() if is_cuda else self.packed
        self._arrays = tuple(
            cast("NDArray[np.float32]", cast("Any", part).numpy()[0])
            for part in slots_of(self._host, count)
        )
        self._copied = torch.cuda.Event() if is_cuda else None
        self._neutral = slots_of(self.packed.clone(), count)
        self._has_box = torch.ones_like(self._neutral.has_box)

    def fill(
        self, points: Tensor, labels: Tensor, boxes: Tensor | None, mask_logits: Tensor | None
    ) -> None:
        """Take one prompt set of at most N points; arguments as `decode_masks` has them."""
        # First what the device can do while the host is busy with the rest.
        if mask_logits is not None:
            self.mask_logits.copy_(mask_logits, non_blocking=True)
        elif self._is_mask_set:
            self.mask_logits.zero_()
        self._is_mask_set = mask_logits is not None
        given = [part for part in (points, labels, boxes) if part is not None]
        if any(part.device.type != "cpu" for part in given):
            self._fill_on_device(points, labels, boxes)
            return
        self._fill_from_host(points, labels, boxes)
        if self._is_uploaded:
            self.upload()
            self.mark()

    def upload(self) -> None:
        """Copy what `fill` left in host memory to the device."""
        if self._copied is not None:
            self.packed.copy_(self._host, non_blocking=True)

    def mark(self) -> None:
        """Let the next `fill` wait until all that is queued by now has read host memory."""
        if self._copied is not None:
            self._copied.record(torch.cuda.current_stream(self.packed.device))

    def _fill_from_host(self, points: Tensor, labels: Tensor, boxes: Tensor | None) -> None:
        if self._copied is not None:
            self._copied.synchronize()  # the copy of the click before has read the host's buffer
        all_points, all_labels, box, has_box = self._arrays
        count = points.shape[1]
        all_points[:count], all_points[count:] = _array(points), 0
        all_labels[:count], all_labels[count:] = _array(labels), self._empty_label
        box[:] = 0 if boxes is None else _array(boxes)
        has_box[:] = boxes is not None

    def _fill_on_device(self, points: Tensor, labels: Tensor, boxes: Tensor | None) -> None:
        count, neutral = points.shape[1], self._neutral
        parts = (
            points,
            neutral.points[:, count:],
            labels,
            neutral.labels[:, count:],
            *((neutral.boxes, neutral.has_box) if boxes is None else (boxes, self._has_box)),
        )
        flat = [part.to(self.packed).flatten(1) for part in parts]
        torch.cat(flat, dim=1, out=self.packed)
        if not self._is_uploaded:
            # By the device: a host that read them would wait for all that is queued, as an encoder.
            self._host.copy_(self.packed, non_blocking=True)


def _array(part: Tensor) -> NDArray[np.float32]:
    return cast("NDArray[np.float32]", cast("Any", part[0].float()).numpy(force=True))
