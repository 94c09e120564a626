"""The stateless engine: embed ROIs, decode prompts. No history, no files, no decisions.

Shape legend: B ROIs, P prompt sets, C channels of the volume, N points, M mask candidates, S side
of the model's logits, I J K ROI axes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, cast

import numpy as np
import torch
from torch.nn import functional

from fastsam3d.errors import CheckpointError
from fastsam3d.model.card import Preprocessing
from fastsam3d.preprocess.pipeline import prepare_rois
from fastsam3d.session.channels import MultiVolume, channels_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray
    from torch import Tensor

    from fastsam3d.model.embedding import ImageEmbedding
    from fastsam3d.preprocess.roi import Roi
    from fastsam3d.session.channels import Combination
    from fastsam3d.volume import Volume


DEFAULT_SPACINGS_MM = (0.75, 1.5, 3.0)


class RoiConfig(Protocol):
    """What the predictor reads of a model's config."""

    @property
    def name(self) -> str:
        """Name of the variant."""
        ...

    @property
    def image_size(self) -> int:
        """Side of the ROI in voxels."""
        ...

    @property
    def logits_size(self) -> int:
        """Side of the cube of logits that the model returns and takes as mask prompt."""
        ...


class PromptableModel(Protocol):
    """What the predictor needs of a model; every variant of `fastsam3d.model` has it."""

    @property
    def config(self) -> RoiConfig:
        """The model's config."""
        ...

    def encode_image(self, image: Tensor) -> ImageEmbedding:
        """Embed ROIs, shape (B, 1, I, J, K)."""
        ...

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
        """Return logits (B, M, S, S, S) and predicted quality (B, M)."""
        ...


@dataclass(frozen=True, eq=False)
class EncodedRoi:
    """Embedding of one ROI.

    Attributes:
        embedding: The model's embedding, a batch of one that shares no memory with others; of a
            `MultiVolume`, one item for each channel that is not constant in the ROI.
        is_blank: Whether the scan is constant in the ROI, so that nothing can be found in it.
        combination: How the channels' masks become one.
    """

    embedding: ImageEmbedding
    is_blank: bool
    combination: Combination = "logits"


@dataclass(frozen=True, eq=False)
class RoiPrompts:
    """Prompts in the frame of an ROI (voxel centres at integers).

    Attributes:
        points: Coordinates of the clicks inside the ROI, shape (N, 3); N may be 0.
        is_positive: Their signs, shape (N,).
        box: i0 j0 k0 i1 j1 k1, half-open, or None.
    """

    points: NDArray[np.float64]
    is_positive: NDArray[np.bool_]
    box: NDArray[np.float64] | None = None


@dataclass(frozen=True, eq=False)
class DecodedMask:
    """The model's answer in the frame of an ROI.

    Attributes:
        logits: At the ROI's resolution, float32.
        prompt_logits: As the model made them, to be fed back as mask prompt.
        quality: Predicted IoU.
    """

    logits: Tensor
    prompt_logits: Tensor
    quality: float


class Predictor:
    """Runs one model on ROIs; any number of sessions on one thread may share it.

    Args:
        model: In evaluation mode, on `device`.
        preprocessing: What the model's weights card says; by default as our own variants want it.
        device: Where the model is.
        model_id: Tells embeddings of different weights apart; the variant's name by default.
    """

    def __init__(
        self,
        model: PromptableModel,
        preprocessing: Preprocessing | None = None,
        *,
        device: torch.device | str = "cpu",
        model_id: str | None = None,
    ) -> None:
        self.model = model
        if preprocessing is None:
            preprocessing = Preprocessing(
                normalisation="roi_percentile_zscore",
                image_size=model.config.image_size,
                spacings_mm=DEFAULT_SPACINGS_MM,
            )
        self.preprocessing = preprocessing
        self.device = torch.device(device)
        self.model_id = model.config.name if model_id is None else model_id

    @property
    def image_size(self) -> int:
        """Side of the ROI in voxels."""
        return self.preprocessing.image_size

    @property
    def logits_size(self) -> int:
        """Side of the cube of logits of a mask prompt."""
        return self.model.config.logits_size

    @torch.inference_mode()
    def embed(self, volume: Volume, rois: Sequence[Roi]) -> tuple[EncodedRoi, ...]:
        """Cut, normalise and encode ROIs, in their order; on an accelerator in one batch.

        Of a `MultiVolume` all channels are encoded, one batch for each ROI.
        """
        if isinstance(volume, MultiVolume):
            return tuple(self._embed_channels(volume, roi) for roi in rois)
        # A CPU gains no time by a batch but pays for it in memory, and one by one an embedding
        # does not depend, by rounding, on what else was wanted with it.
        batches = [[roi] for roi in rois] if self.device.type == "cpu" else [list(rois)]
        return tuple(encoded for batch in batches for encoded in self._embed_batch(volume, batch))

    def _embed_batch(self, volume: Volume, rois: Sequence[Roi]) -> list[EncodedRoi]:
        images, is_blank = self._images(volume, rois)
        embedding = self.model.encode_image(images)
        return [EncodedRoi(_own(embedding, n), bool(is_blank[n])) for n in range(len(rois))]

    def _embed_channels(self, volume: MultiVolume, roi: Roi) -> EncodedRoi:
        parts = [self._images(channel, [roi]) for channel in channels_of(volume)]
        seen = [images for images, is_blank in parts if not is_blank[0]]
        # A constant channel has nothing to say; one is kept where all are constant.
        images = torch.cat(seen or [parts[0][0]])
        return EncodedRoi(self.model.encode_image(images), not seen, volume.combination)

    def _images(self, volume: Volume, rois: Sequence[Roi]) -> tuple[Tensor, NDArray[np.bool_]]:
        images = prepare_rois(
            volume,
            rois,
            normalisation=self.preprocessing.normalisation,
            device=self.device,
            ct_window_hu=self.preprocessing.ct_window_hu,
        )
        return images, (images == 0).flatten(1).all(1).cpu().numpy()

    def decode(
        self,
        encoded: EncodedRoi,
        prompts: RoiPrompts,
        *,
        mask_logits_SSS: Tensor | None = None,
        multimask: bool = False,
    ) -> DecodedMask:
        """Decode one set of prompts.

        Args:
            encoded: Embedding of the ROI.
            prompts: What the user gave, in the frame of the ROI.
            mask_logits_SSS: Mask prompt, or None.
            multimask: Ask for several candidates and return that of the best predicted quality.

        Raises:
            CheckpointError: The model returned logits that are not finite.
        """
        found = self.decode_all(
            encoded, prompts, mask_logits_SSS=mask_logits_SSS, multimask=multimask
        )
        return max(found, key=lambda mask: mask.quality)

    def decode_all(
        self,
        encoded: EncodedRoi,
        prompts: RoiPrompts,
        *,
        mask_logits_SSS: Tensor | None = None,
        multimask: bool = True,
    ) -> tuple[DecodedMask, ...]:
        """Decode one set of prompts to all masks that the model has for it, in its own order.

        Args:
            encoded: As `decode`.
            prompts: As `decode`.
            mask_logits_SSS: As `decode`.
            multimask: Whether to ask for several.

        Raises:
            CheckpointError: The model returned logits that are not finite.
        """
        logits_1MSSS, quality_1M = self._decode(
            encoded, [prompts], mask_logits_SSS, multimask=multimask
        )
        full_1MIJK = self._at_roi_resolution(logits_1MSSS)
        return tuple(
            DecodedMask(full_1MIJK[0, n], logits_1MSSS[0, n], float(quality_1M[0, n]))
            for n in range(quality_1M.shape[1])
        )

    def decode_batch(
        self,
        encoded: EncodedRoi,
        prompt_sets: Sequence[RoiPrompts],
        *,
        mask_logits_SSS: Tensor | None = None,
    ) -> Tensor:
        """Decode many sets of prompts about one ROI at once.

        Args:
            encoded: As `decode`.
            prompt_sets: All with the same number of points, and all or none with a box.
            mask_logits_SSS: Mask prompt of all of them, or None.

        Returns:
            Logits at the ROI's resolution, float32, shape (P, I, J, K).

        Raises:
            CheckpointError: The model returned logits that are not finite.
        """
        logits_P1SSS, _ = self._decode(encoded, prompt_sets, mask_logits_SSS, multimask=False)
        return self._at_roi_resolution(logits_P1SSS)[:, 0]

    def decode_each(
        self, encoded: EncodedRoi, prompt_sets: Sequence[RoiPrompts]
    ) -> tuple[DecodedMask, ...]:
        """Decode many sets of prompts about one ROI at once, each to a mask of its own.

        Args:
            encoded: As `decode`.
            prompt_sets: As `decode_batch`.

        Raises:
            CheckpointError: The model returned logits that are not finite.
        """
        logits_P1SSS, quality_P1 = self._decode(encoded, prompt_sets, None, multimask=False)
        full_P1IJK = self._at_roi_resolution(logits_P1SSS)
        return tuple(
            DecodedMask(full_P1IJK[n, 0], logits_P1SSS[n, 0], float(quality_P1[n, 0]))
            for n in range(len(prompt_sets))
        )

    @torch.inference_mode()
    def _decode(
        self,
        encoded: EncodedRoi,
        prompt_sets: Sequence[RoiPrompts],
        mask_logits_SSS: Tensor | None,
        *,
        multimask: bool,
    ) -> tuple[Tensor, Tensor]:
        """Return float32 logits (P, M, S, S, S) and quality (P, M), channels combined."""
        num_sets, num_channels = len(prompt_sets), encoded.embedding.batch_size
        points, labels, boxes = (
            None if part is None else part.repeat_interleave(num_channels, 0)
            for part in self._prompt_tensors(prompt_sets)
        )
        mask = None
        if mask_logits_SSS is not None:
            mask = mask_logits_SSS.expand(num_sets * num_channels, 1, -1, -1, -1)
        logits, quality = self.model.decode_masks(
            encoded.embedding.tile(num_sets),
            cast("Tensor", points),
            cast("Tensor", labels),
            boxes=boxes,
            mask_logits=mask,
            multimask=multimask,
        )
        logits, quality = logits.float(), quality.float()
        if num_channels > 1:
            by_channel = (num_sets, num_channels)
            logits = _combined(logits.reshape(*by_channel, *logits.shape[1:]), encoded.combination)
            quality = quality.reshape(*by_channel, -1).mean(1)
        if not _all_finite(logits, quality):
            message = (
                f"Model {self.model_id} returned logits that are not finite; its weights are "
                "damaged, get them again."
            )
            raise CheckpointError(message)
        return logits, quality

    def _at_roi_resolution(self, logits_PMSSS: Tensor) -> Tensor:
        if logits_PMSSS.shape[-1] == self.image_size:
            return logits_PMSSS
        size = (self.image_size,) * 3
        return functional.interpolate(logits_PMSSS, size=size, mode="trilinear")

    def _prompt_tensors(
        self, prompt_sets: Sequence[RoiPrompts]
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """Return points (P, N, 3), labels (P, N) and boxes (P, 6)."""
        points = np.stack([prompts.points for prompts in prompt_sets])
        labels = np.stack([prompts.is_positive for prompts in prompt_sets]).astype(np.int64)
        # An engine may want prompts in host memory, to bring all of them over in one copy.
        device: torch.device = getattr(self.model, "prompt_device", self.device)
        if not points.shape[1]:
            # A padding point: official decoders cannot do without any.
            points, labels = np.zeros((len(points), 1, 3)), np.full((len(points), 1), -1)
        boxes = [prompts.box for prompts in prompt_sets if prompts.box is not None]
        return (
            torch.as_tensor(points, dtype=torch.float32, device=device),
            torch.as_tensor(labels, dtype=torch.int64, device=device),
            torch.as_tensor(np.stack(boxes), dtype=torch.float32, device=device) if boxes else None,
        )


def _own(embedding: ImageEmbedding, index: int) -> ImageEmbedding:
    """Return one item of a batch as a copy, so that keeping it does not keep the others."""
    if embedding.batch_size == 1:
        return embedding
    part = embedding.select(index)
    return type(part)(
        part.tokens.clone(), tuple(skip.clone() for skip in part.skips), part.image_size
    )


def _all_finite(logits: Tensor, quality: Tensor) -> bool:
    # A sum is finite only where every term is: one pass, and no tensor of booleans. Only very
    # large terms have none although they are finite.
    if bool((logits.sum() + quality.sum()).isfinite()):
        return True
    return bool(logits.isfinite().all() & quality.isfinite().all())


def _combined(logits_PCMSSS: Tensor, combination: Combination) -> Tensor:
    """Return the mean over channels as logits (P, M, S, S, S)."""
    if combination == "logits":
        return logits_PCMSSS.mean(1)
    # As a logit again, which is what masks are cut from and later rounds are fed.
    return torch.logit(logits_PCMSSS.sigmoid().mean(1), eps=1e-6)
