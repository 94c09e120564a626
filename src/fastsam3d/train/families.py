"""The two model families as training sees them: encode, decode, remember, compare layers.

Each family has its own prompt for the mask before: `hr` models read probabilities at half
resolution, official models their own low-resolution logits.

Shape legend: B ROIs, N prompt sets, T tokens, C channels, M masks, S ROI side, L = S/4.
"""

from __future__ import annotations

from itertools import islice
from typing import NamedTuple, Protocol, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from fastsam3d.model.hr import HighResSam3D
from fastsam3d.model.hr_decoder import Prompts
from fastsam3d.model.prompt_encoder import PromptEmbeddings
from fastsam3d.model.sam_med3d import SamMed3D

# What a remembered mask says where it comes from the simulated user instead of a decoder.
PRIOR_LOGIT = 6.0

Model = HighResSam3D | SamMed3D
Parts = tuple[Tensor, ...]


class Trace(NamedTuple):
    """Features of a batch of ROIs.

    Attributes:
        blocks: Trunk tokens (B, T, C) after each block that was computed.
        parts: What `Family.decode` reads, the image embedding (B, C, I, J, K) first; empty where
            the trunk was cut short.
    """

    blocks: list[Tensor]
    parts: Parts


class Family(Protocol):
    """What training needs to know of a model.

    Attributes:
        model: The network.
        block_prefix: Of the parameter names of the trunk's blocks, before their number.
        prompt_prefixes: Of the parameters that turn prompts into features.
        skip_prefixes: Of the encoder's parameters whose outputs the decoder reads directly.
        has_fixed_prompts: Prompts have one shape, so that compiling the decoder pays.
    """

    model: Model
    block_prefix: str
    prompt_prefixes: tuple[str, ...]
    skip_prefixes: tuple[str, ...]
    has_fixed_prompts: bool

    def encode(self, image: Tensor) -> Parts:
        """Encode ROIs (B, 1, S, S, S)."""
        ...

    def trace(self, image: Tensor, num_blocks: int | None = None) -> Trace:
        """Return features after the first blocks, or after all with the embedding."""
        ...

    def decode(
        self, parts: Parts, prompts: Prompts, multimask: bool
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return logits (N, M, S, S, S), quality (N, M), settled logits (N, 1, L, L, L).

        Logits may be those of a central box of the ROI, with a side of its own.
        """
        ...

    def prompts(self, prompts: Prompts, count: int) -> Prompts:
        """Return what the decoder is shown once `count` clicks have been made."""
        ...

    def memory(self, shown: Tensor, rough: Tensor) -> Tensor:
        """Return the next mask prompt from the mask in -1..1 (N, 1, S/2, ...) and its logits."""
        ...

    def prior(self, mask: Tensor) -> Tensor:
        """Return the mask prompt of a given mask in -1..1 (0: none), (N, 1, S/2, S/2, S/2)."""
        ...


class HighResFamily:
    """`hr` variants; the decoder takes a fixed number of points, of which some are padding."""

    has_fixed_prompts = True
    block_prefix = "encoder.trunk.blocks."
    prompt_prefixes: tuple[str, ...] = (
        "decoder.prompt_pyramid.",
        "decoder.position.",
        "decoder.kinds.",
    )
    # The last norm feeds the trunk only, but torch 2.13 crashes on CPUs in the backward pass of a
    # channels-last group norm whose weights have a gradient and whose input has none.
    skip_prefixes: tuple[str, ...] = (
        *(f"encoder.{name}." for name in ("stem", "norm1", "down2", "res2", "down4", "res4")),
        *(f"encoder.{name}." for name in ("down8", "res8", "down16.norm")),
        *(f"encoder.{name}." for name in ("skip8", "skip4", "skip2")),
    )

    def __init__(self, model: HighResSam3D, fine_side: int | None = None) -> None:
        self.model: Model = model
        self._net, self._fine_side = model, fine_side

    def encode(self, image: Tensor) -> Parts:
        """See `Family`."""
        return self._net.encoder(image)

    def trace(self, image: Tensor, num_blocks: int | None = None) -> Trace:
        """See `Family`."""
        return Trace(*self._net.encoder.trace(image, num_blocks))

    def decode(
        self, parts: Parts, prompts: Prompts, multimask: bool
    ) -> tuple[Tensor, Tensor, Tensor]:
        """See `Family`."""
        return self._net.decoder(parts, prompts, multimask=multimask, fine_side=self._fine_side)

    def prompts(self, prompts: Prompts, count: int) -> Prompts:
        """See `Family`."""
        del count  # padding has no effect here, and one shape is compiled once
        return prompts

    def memory(self, shown: Tensor, rough: Tensor) -> Tensor:
        """See `Family`."""
        del rough
        return shown

    def prior(self, mask: Tensor) -> Tensor:
        """See `Family`."""
        return mask


class OfficialFamily:
    """SAM-Med3D and FastSAM3D: all points so far, and the low-resolution logits before."""

    has_fixed_prompts = False
    block_prefix = "image_encoder.blocks."
    prompt_prefixes: tuple[str, ...] = ("prompt_encoder.",)
    skip_prefixes: tuple[str, ...] = ()

    def __init__(self, model: SamMed3D) -> None:
        self.model: Model = model
        self._net = model

    def encode(self, image: Tensor) -> Parts:
        """See `Family`."""
        return (self._net.image_encoder(image),)

    def trace(self, image: Tensor, num_blocks: int | None = None) -> Trace:
        """See `Family`."""
        encoder = self._net.image_encoder
        grids = list(islice(encoder.iterate_blocks(image), num_blocks))
        parts: Parts = ()
        if num_blocks is None:
            parts = (encoder.neck(grids[-1].permute(0, 4, 1, 2, 3)),)
        return Trace([grid.flatten(1, 3) for grid in grids], parts)

    def decode(
        self, parts: Parts, prompts: Prompts, multimask: bool
    ) -> tuple[Tensor, Tensor, Tensor]:
        """See `Family`."""
        net = self._net
        points, labels, _, previous = prompts
        embedded = net.prompt_encoder(points, labels, None, previous)
        without = net.prompt_encoder(points, labels, None, None).dense
        has_mask = previous.flatten(1).any(1)[:, None, None, None, None]
        embedded = PromptEmbeddings(embedded.sparse, torch.where(has_mask, embedded.dense, without))
        grid_pe = net.prompt_encoder.encode_grid()
        rough, quality = net.mask_decoder(parts[0], grid_pe, embedded, multimask=False)
        logits = rough
        if multimask:
            others, other_quality = net.mask_decoder(parts[0], grid_pe, embedded, multimask=True)
            logits = torch.cat((rough, others), 1)
            quality = torch.cat((quality, other_quality), 1)
        return upsample(logits), quality, rough

    def prompts(self, prompts: Prompts, count: int) -> Prompts:
        """See `Family`."""
        # Official decoders attend to padding, and a session gives them none: no spare points, and
        # a box, which they know as a point at its centre, only where nothing was clicked.
        points, labels = prompts.points_BN3[:, :count].clone(), prompts.labels_BN[:, :count].clone()
        start, stop = prompts.boxes_B6.chunk(2, dim=1)
        is_box = (stop > start).all(1) & (labels[:, 0] < 0)
        points[:, 0] = torch.where(is_box[:, None], (start + stop - 1) / 2, points[:, 0])
        labels[:, 0] = torch.where(is_box, 1.0, labels[:, 0])
        return prompts._replace(points_BN3=points, labels_BN=labels)

    def memory(self, shown: Tensor, rough: Tensor) -> Tensor:
        """See `Family`."""
        del shown
        return rough.float()

    def prior(self, mask: Tensor) -> Tensor:
        """See `Family`."""
        return PRIOR_LOGIT * functional.avg_pool3d(mask, 2)


def family_of(model: nn.Module, fine_side: int | None = None) -> Family:
    """Return the view of a model that training uses.

    Args:
        model: The network.
        fine_side: Side of the central box in which `hr` models decode their finest stage, or None
            for everywhere; official models have none.
    """
    if isinstance(model, HighResSam3D):
        return HighResFamily(model, fine_side)
    return OfficialFamily(cast("SamMed3D", model))


def upsample(x_BCLLL: Tensor) -> Tensor:
    """Interpolate as ``interpolate(scale_factor=4, mode="trilinear")``, one axis at a time.

    As matrix products: the library call's gradient scatters atomically, slowly and in any order.
    """
    side = x_BCLLL.shape[-1]
    line = functional.interpolate(
        torch.eye(side, device=x_BCLLL.device)[None], scale_factor=4, mode="linear"
    )[0].to(x_BCLLL.dtype)
    for _ in range(3):
        x_BCLLL = (x_BCLLL @ line).permute(0, 1, 4, 2, 3)  # three turns restore the axes
    return x_BCLLL
