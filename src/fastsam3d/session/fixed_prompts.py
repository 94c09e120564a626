"""The prompts of one click in buffers that stay where they are.

Each copy to the device costs a launch, so points, labels and box travel side by side.

Shape legend: N slots for points, L side of the logits.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple, cast

import torch
from torch import Tensor

if TYPE_CHECKING:
    from numpy.typing import NDArray

_BOX_VALUES = 6
# Others are made float32 first.
_NUMPY_DTYPES = (torch.float32, torch.float64, torch.int64, torch.int32, torch.bool)


class Fence:
    """Lets the host wait for what was queued on a device, and for nothing twice.

    Args:
        device: On a CPU there is nothing to wait for.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._event = torch.cuda.Event() if device.type == "cuda" else None
        self._is_closed = False

    def close(self) -> None:
        """Let `wait` wait for all that is queued by now."""
        if self._event is not None:
            self._event.record(torch.cuda.current_stream(self._device))
            self._is_closed = True

    def wait(self) -> None:
        """Return when it is done."""
        if self._is_closed:
            cast("torch.cuda.Event", self._event).synchronize()
            self._is_closed = False


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
        fence: Closed by the owner when a click is queued: until it is done the device may read
            host memory, which `fill` writes.
        device: Where the buffers are.
    """

    def __init__(
        self, count: int, *, empty_label: int, side: int, fence: Fence, device: torch.device
    ) -> None:
        self._fence = fence
        neutral = torch.zeros(1, 4 * count + _BOX_VALUES + 1)
        slots_of(neutral, count).labels.fill_(empty_label)
        self.packed = neutral.to(device)
        self.mask_logits = torch.zeros(1, 1, side, side, side, device=device)
        self._is_neutral = True
        self._kept: tuple[Tensor, int] | None = None
        is_cuda = device.type == "cuda"
        # On a CPU the host's buffer is the buffer itself.
        self._host = neutral.pin_memory() if is_cuda else self.packed
        self._array = _array(self._host)
        self._arrays = tuple(_array(part) for part in slots_of(self._host, count))
        self._neutral_array = self._array.copy()
        self._neutral = slots_of(self.packed.clone(), count)
        self._has_box = torch.ones_like(self._neutral.has_box)

    def fill(
        self,
        points: Tensor,
        labels: Tensor,
        boxes: Tensor | None,
        mask_logits: Tensor | None,
        *,
        reads_mask: bool = True,
    ) -> None:
        """Take one prompt set of at most N points; arguments as `decode_masks` has them.

        Args:
            points: At most N.
            labels: Of the points.
            boxes: One, or None.
            mask_logits: Mask prompt, or None.
            reads_mask: False if whatever `mask_logits` holds is not looked at.
        """
        # First what the device can do while the host is busy with the rest.
        if reads_mask:
            self._fill_mask(mask_logits)
        given = [part for part in (points, labels, boxes) if part is not None]
        if any(part.device.type != "cpu" for part in given):
            self._fill_on_device(points, labels, boxes)
            return
        self._fence.wait()
        self._fill_from_host(points, labels, boxes)
        if self._host is not self.packed:
            self.packed.copy_(self._host, non_blocking=True)

    def keep(self, logits: Tensor) -> Tensor:
        """Return a copy of the answer's logits that costs nothing when it is the next mask prompt.

        The next click mostly has it. What is kept is compared by address and by its count of
        changes, so a copy that its owner has changed is taken as it is then.

        Args:
            logits: Shape (1, 1, L, L, L), float32.
        """
        with torch.inference_mode(mode=False):  # other tensors do not count their changes
            copy = torch.empty_like(logits, memory_format=torch.contiguous_format).copy_(logits)
        self.mask_logits.copy_(logits)
        self._is_neutral, self._kept = False, (copy, copy._version)
        return copy

    def _fill_mask(self, mask_logits: Tensor | None) -> None:
        if mask_logits is None:
            if not self._is_neutral:
                self.mask_logits.zero_()
            self._is_neutral, self._kept = True, None
        elif not self._is_kept(mask_logits):
            self.mask_logits.copy_(mask_logits, non_blocking=True)
            self._is_neutral, self._kept = False, None

    def _is_kept(self, mask_logits: Tensor) -> bool:
        if self._kept is None or mask_logits.is_inference():
            return False
        kept, version = self._kept
        return (
            mask_logits.data_ptr() == kept.data_ptr()
            and mask_logits.shape == kept.shape
            and mask_logits.dtype == kept.dtype
            and mask_logits.is_contiguous()
            and mask_logits._version == version
        )

    def _fill_from_host(self, points: Tensor, labels: Tensor, boxes: Tensor | None) -> None:
        # Few calls: each of them delays the answer.
        all_points, all_labels, box, has_box = self._arrays
        count = points.shape[1]
        self._array[:] = self._neutral_array
        all_points[:count] = _array(points)
        all_labels[:count] = _array(labels)
        if boxes is not None:
            box[:], has_box[:] = _array(boxes), 1

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


def _array(part: Tensor) -> NDArray[Any]:
    """Return the only item of a batch as an array, which may share its memory."""
    known = part if part.dtype in _NUMPY_DTYPES else part.float()
    return cast("Any", known.detach()).numpy()[0]
