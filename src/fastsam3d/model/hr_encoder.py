"""Image encoder of the high-resolution variants: convolutional pyramid, then a transformer trunk.

Shape legend: B batch, C channels, I J K grid axes, T tokens.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from fastsam3d.model.config import ModelConfig
from fastsam3d.model.hr_layers import (
    NORM_GROUPS,
    Downsample,
    ResidualConv,
    Trunk,
    space_to_depth,
)
from fastsam3d.model.inference_ops import GridNorm, PointwiseConv

# Separable weights of the small neighbourhood around the ROI centre whose mean intensity sets
# the soft windows: one noisy voxel must not decide, one organ boundary should not either.
CENTRE_WEIGHTS = (1.0, 2.0, 1.0)


class FocusWindows(nn.Module):
    """Add soft intensity windows around the intensity at the ROI centre as further channels.

    The ROI is centred on the first click, so these channels show contrast around the tissue that
    the user pointed at, on CT and MR alike, without knowing the modality.
    """

    weights: Tensor

    def __init__(self, widths: tuple[float, ...]) -> None:
        super().__init__()
        self.widths = widths
        line = torch.tensor(CENTRE_WEIGHTS)
        cube = torch.einsum("i,j,k->ijk", line, line, line)
        self.register_buffer("weights", cube / cube.sum(), persistent=False)

    def forward(self, image_B1IJK: Tensor) -> Tensor:
        """Return (B, 1 + len(widths), I, J, K): the image and tanh((image - centre) / width)."""
        start = image_B1IJK.shape[-1] // 2 - 1
        box = slice(start, start + len(CENTRE_WEIGHTS))
        centre = (image_B1IJK[:, :, box, box, box] * self.weights).sum((2, 3, 4), keepdim=True)
        offset = image_B1IJK - centre
        return torch.cat([image_B1IJK, *(torch.tanh(offset / w) for w in self.widths)], dim=1)


class PyramidEncoder(nn.Module):
    """ROI to image tokens and skip features, see `ModelConfig` and `HighResConfig` for sizes."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        highres = config.highres
        full, half, quarter, eighth = highres.stem_channels
        deep, mid, fine = highres.decoder_channels
        self.grid_size = config.grid_size
        self.focus = FocusWindows(highres.focus_widths)
        # The full-resolution features live on the half grid, eight voxels side by side in the
        # channels: thin channels at full resolution starve matrix units and caches alike.
        inputs = 8 * (1 + len(highres.focus_widths))
        self.stem = nn.Conv3d(inputs, 8 * full, 2)
        self.norm1 = GridNorm(NORM_GROUPS, 8 * full)
        self.down2 = PointwiseConv(8 * full, half, 1)
        self.res2 = ResidualConv(half)
        self.down4 = Downsample(half, quarter)
        self.res4 = nn.Sequential(ResidualConv(quarter), ResidualConv(quarter))
        self.down8 = Downsample(quarter, eighth)
        self.res8 = nn.Sequential(ResidualConv(eighth), ResidualConv(eighth))
        self.down16 = Downsample(eighth, config.embed_dim)
        self.trunk = Trunk(config)
        self.norm = nn.LayerNorm(config.embed_dim)
        self.neck = nn.Linear(config.embed_dim, config.out_dim)
        # Skip projections depend on the image only, so they run once per ROI, not once per click.
        self.skip8 = PointwiseConv(eighth, deep, 1)
        self.skip4 = PointwiseConv(quarter, mid, 1)
        self.skip2 = PointwiseConv(half, fine, 1)

    def forward(self, image_B1IJK: Tensor) -> tuple[Tensor, ...]:
        """Encode ROIs.

        Args:
            image_B1IJK: Normalised intensities, shape (B, 1, S, S, S).

        Returns:
            Tokens (B, out_dim, S/16, S/16, S/16), the skips at 1/8, 1/4 and 1/2 of the ROI
            resolution, and the full-resolution skip as (B, 8 * C, S/2, S/2, S/2), see
            `space_to_depth`.
        """
        pyramid, tokens_BTC = self._pyramid(image_B1IJK)
        return self._finish(pyramid, self.trunk(tokens_BTC))

    def intermediates(self, image_B1IJK: Tensor) -> list[Tensor]:
        """Return the trunk tokens (B, T, C) after every block."""
        return self.trunk.intermediates(self._pyramid(image_B1IJK)[1])

    def trace(
        self, image_B1IJK: Tensor, num_blocks: int | None = None
    ) -> tuple[list[Tensor], tuple[Tensor, ...]]:
        """Return trunk tokens (B, T, C) after each block and, after all of them, the encoding.

        Args:
            image_B1IJK: As in `forward`.
            num_blocks: Stop after so many; then the encoding is empty.
        """
        pyramid, tokens_BTC = self._pyramid(image_B1IJK)
        outputs = self.trunk.intermediates(tokens_BTC, num_blocks)
        return outputs, self._finish(pyramid, outputs[-1]) if num_blocks is None else ()

    def _pyramid(self, image_B1IJK: Tensor) -> tuple[tuple[Tensor, ...], Tensor]:
        # One voxel of padding lets the 2^3 kernel on the half grid see [2n - 1, 2n + 2] at 2n.
        # No name for the input in between: each has 26 MiB, which the stem then need not find anew.
        full = self.stem(space_to_depth(functional.pad(self.focus(image_B1IJK), (1,) * 6)))
        half = self.res2(self.norm1.activated_conv(full, self.down2))
        quarter = self.res4(self.down4(half))
        eighth = self.res8(self.down8(quarter))
        tokens = self.down16(eighth).flatten(2).transpose(1, 2)
        return (full, half, quarter, eighth), tokens

    def _finish(self, pyramid: tuple[Tensor, ...], tokens_BTC: Tensor) -> tuple[Tensor, ...]:
        full, half, quarter, eighth = pyramid
        tokens = self.neck(self.norm(tokens_BTC)).transpose(1, 2)
        side = self.grid_size
        tokens = tokens.reshape(*tokens.shape[:2], side, side, side)
        skips = (self.skip8(eighth), self.skip4(quarter), self.skip2(half), full)
        return (tokens, *skips)
