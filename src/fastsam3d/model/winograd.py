"""Convolutions with kernel 3 for half the arithmetic, on a CPU without gradients.

Along the first axis, four neighbouring outputs of a kernel of three take six products instead of
twelve, after sums of the inputs and before sums of the results; along the other two axes the
library's 2-D convolution does what it always does. At the sizes of the decoder the library's 3-D
convolution already runs at the speed of large products of matrices, so fewer products are what is
left to gain.

Source: F(4, 3) of Lavin and Gray, "Fast algorithms for convolutional neural networks"
    (arXiv 1509.09308).

Shape legend: B batch, C input channels, O output channels, I J K grid axes, M tiles of four planes.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from fastsam3d.model.inference_ops import is_by_rows

TILE = 4  # outputs along I that are made together
# Smaller inputs do not repay the additional calls. Up to some 2^18 the library takes its plain way,
# at a fifth of the speed: boxes around small objects have such sizes.
MIN_ELEMENTS = 2**14
# One of the six sums then has at most a megabyte, and they stay in the cache together.
CHUNK_ELEMENTS = 2**18
# What the products multiply by, from the kernel's three planes.
KERNEL_SUMS = (
    (1 / 4, 0.0, 0.0),
    (-1 / 6, -1 / 6, -1 / 6),
    (-1 / 6, 1 / 6, -1 / 6),
    (1 / 24, 1 / 12, 1 / 6),
    (1 / 24, -1 / 12, 1 / 6),
    (0.0, 0.0, 1.0),
)


class CubeConv(nn.Conv3d):
    """Convolution with kernel 3 and padding 1; arguments and names are those of Conv3d.

    Where it takes the short way, results differ from the library's by rounding: some 1e-6 of the
    largest.
    """

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 - the name is Conv3d's
        """Return (B, O, I, J, K)."""
        if input[0].numel() < MIN_ELEMENTS or not is_by_rows(input):
            return super().forward(input)
        return convolve(input, self.weight, self.bias)


def convolve(x_BCIJK: Tensor, weight_OC333: Tensor, bias_O: Tensor | None) -> Tensor:
    """Return ``conv3d(x, weight, bias, padding=1)``, channels last.

    Args:
        x_BCIJK: Any grid; fastest with channels last.
        weight_OC333: Kernel.
        bias_O: Added to every voxel, or None.
    """
    rows_BIJKC = x_BCIJK.permute(0, 2, 3, 4, 1)
    batch, num_planes, *sides, _ = rows_BIJKC.shape
    kernels = _kernels(weight_OC333)
    out = x_BCIJK.new_empty(batch, num_planes, *sides, weight_OC333.shape[0])
    per_chunk = TILE * max(1, CHUNK_ELEMENTS // rows_BIJKC[0, 0].numel())
    for rows_IJKC, place in zip(rows_BIJKC, out, strict=True):
        for first in range(0, num_planes, per_chunk):
            planes = _with_neighbours(rows_IJKC, first, per_chunk)
            _convolve_tiles(planes, kernels, bias_O, place[first : first + per_chunk])
    return out.permute(0, 4, 1, 2, 3)


def _kernels(weight_OC333: Tensor) -> list[Tensor]:
    """Return the six 2-D kernels (O, C, 3, 3), channels last."""
    planes = weight_OC333.permute(2, 0, 3, 4, 1)
    sums = torch.tensor(KERNEL_SUMS, dtype=planes.dtype) @ planes.reshape(3, -1)
    return [each.permute(0, 3, 1, 2) for each in sums.view(6, *planes.shape[1:])]


def _with_neighbours(rows_IJKC: Tensor, first: int, count: int) -> Tensor:
    """Return planes of whole tiles from `first` and one more on either side, zero beyond the grid.

    As many as there are are returned, but no more than `count` and two.
    """
    num_planes = rows_IJKC.shape[0]
    stop = min(first + count, num_planes)
    stop += (first - stop) % TILE
    low, high = max(first - 1, 0), min(stop + 1, num_planes)
    missing = (low - (first - 1), stop + 1 - high)
    inside = rows_IJKC[low:high]
    return functional.pad(inside, (0, 0, 0, 0, 0, 0, *missing)) if any(missing) else inside


def _convolve_tiles(
    planes_IJKC: Tensor, kernels: list[Tensor], bias_O: Tensor | None, out_IJKO: Tensor
) -> None:
    """Fill `out_IJKO` from the planes that `_with_neighbours` returned for it."""
    products: list[Tensor] = []
    for number, (inputs, kernel) in enumerate(zip(_sums(planes_IJKC), kernels, strict=True)):
        # The second product counts once in every output, and so does the bias with it.
        bias = bias_O if number == 1 else None
        made = functional.conv2d(inputs.permute(0, 3, 1, 2), kernel, bias, padding=1)
        products.append(made.permute(0, 2, 3, 1))
    zeroth, first, second, third, fourth, fifth = products
    even, odd = first + second, first.sub_(second)
    far_even, far_odd = third + fourth, third.sub_(fourth)
    results = (
        zeroth.add_(even).add_(far_even),
        torch.add(odd, far_odd, alpha=2),
        even.add_(far_even, alpha=4),
        odd.add_(far_odd, alpha=8).add_(fifth),
    )
    for number, result in enumerate(results):
        place = out_IJKO[number::TILE]
        place.copy_(result[: len(place)])  # the last tile may reach beyond the grid


def _sums(planes_IJKC: Tensor) -> tuple[Tensor, ...]:
    """Return the six sums (M, J, K, C) of each tile's six planes."""
    stop = len(planes_IJKC) - 2
    d0, d1, d2, d3, d4, d5 = (planes_IJKC[n : n + stop : TILE] for n in range(6))
    even, odd = torch.add(d4, d2, alpha=-4), torch.add(d3, d1, alpha=-4)
    far_even, far_odd = d4 - d2, d3 - d1
    return (
        torch.add(d4, d2, alpha=-5).add_(d0, alpha=4),
        even + odd,
        even.sub_(odd),
        torch.add(far_even, far_odd, alpha=2),
        far_even.sub_(far_odd, alpha=2),
        torch.add(d5, d3, alpha=-5).add_(d1, alpha=4),
    )
