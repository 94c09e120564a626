"""Small weights files: int8 matrices with one scale per output channel, float16 for the rest.

Quantisation is for storage only; `dequantise` gives float32 tensors back before the model sees
them. The rounding error of an int8 weight is at most half its channel's scale.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from fastsam3d.errors import CheckpointError

# Below this many elements a float16 copy costs little and keeps more precision.
MIN_QUANTISED_ELEMENTS = 4096
SCALE_SUFFIX = ":scale"
_INT8_MAX = 127
_FLOAT16_MAX = torch.finfo(torch.float16).max


def quantise(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Compress a float state dict for storage.

    Tensors named ``*weight`` with two or more axes and more than `MIN_QUANTISED_ELEMENTS` elements
    become int8 with a float32 entry ``<name>:scale`` of one scale per index of the first axis
    (output channels; input channels for transposed convolutions). Other floating tensors become
    float16, or stay float32 where float16 would overflow; other types are kept.

    Args:
        state: Finite tensors by name.

    Returns:
        Tensors for `dequantise`, on the CPU and contiguous.

    Raises:
        CheckpointError: A tensor holds NaN or infinity.
    """
    stored: dict[str, Tensor] = {}
    for name, value in state.items():
        tensor = value.detach().cpu()
        if not tensor.is_floating_point():
            stored[name] = tensor.contiguous()
            continue
        if not tensor.isfinite().all():
            msg = f"Tensor {name} holds NaN or infinity; train or convert the weights again."
            raise CheckpointError(msg)
        if _is_quantised(name, tensor):
            stored[name], stored[name + SCALE_SUFFIX] = _to_int8(tensor.float())
        else:
            fits = tensor.numel() == 0 or tensor.abs().max() <= _FLOAT16_MAX
            stored[name] = tensor.to(torch.float16 if fits else torch.float32).contiguous()
    return stored


def dequantise(stored: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the float32 state dict of `quantise` output.

    Raises:
        CheckpointError: Scales are missing, left over or of the wrong shape.
    """
    scales = {name: stored[name] for name in stored if name.endswith(SCALE_SUFFIX)}
    state: dict[str, Tensor] = {}
    for name, tensor in stored.items():
        if name.endswith(SCALE_SUFFIX):
            continue
        if tensor.dtype == torch.int8:
            scale = scales.pop(name + SCALE_SUFFIX, None)
            if scale is None or tensor.ndim == 0 or scale.shape != tensor.shape[:1]:
                msg = f"Quantised tensor {name} lacks its scales; fetch the weights again."
                raise CheckpointError(msg)
            # In place: large temporaries cost more here than the arithmetic.
            state[name] = tensor.float().mul_(scale.view(-1, *([1] * (tensor.ndim - 1))))
        else:
            state[name] = tensor.float() if tensor.is_floating_point() else tensor
    if scales:
        msg = f"Scales without a quantised tensor: {sorted(scales)[:3]}; fetch the weights again."
        raise CheckpointError(msg)
    return state


def _is_quantised(name: str, tensor: Tensor) -> bool:
    is_matrix = tensor.ndim >= 2 and tensor.numel() > MIN_QUANTISED_ELEMENTS
    return is_matrix and name.endswith("weight")


def _to_int8(tensor: Tensor) -> tuple[Tensor, Tensor]:
    scale = tensor.flatten(1).abs().amax(dim=1) / _INT8_MAX
    # A channel of zeros needs some scale; any gives zeros back.
    scale = torch.where(scale > 0, scale, torch.ones_like(scale))
    steps = (tensor / scale.view(-1, *([1] * (tensor.ndim - 1)))).round()
    return steps.clamp(-_INT8_MAX, _INT8_MAX).to(torch.int8), scale
