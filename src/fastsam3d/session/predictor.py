"""The stateless engine: embed ROIs, decode prompts. No history, no files, no decisions.

Shape legend: B ROIs, N points, M mask candidates, S side of the model's logits, I J K ROI axes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import numpy as np
import torch
from torch.nn import functional

from fastsam3d.errors import CheckpointError
from fastsam3d.model.card import Preprocessing
from fastsam3d.preprocess.pipeline import prepare_rois

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray
    from torch import Tensor

    from fastsam3d.model.embedding import ImageEmbedding
    from fastsam3d.preprocess.roi import Roi
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
        embedding: The model's embedding, a batch of one that shares no memory with others.
        is_blank: Whether the scan is constant in the ROI, so that nothing can be found in it.
    """

    embedding: ImageEmbedding
    is_blank: bool


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
        """Cut, normalise and encode ROIs in one batch, in their order."""
        images = prepare_rois(
            volume, rois, normalisation=self.preprocessing.normalisation, device=self.device
        )
        is_blank = (images == 0).flatten(1).all(1).cpu().numpy()
        embedding = self.model.encode_image(images)
        return tuple(EncodedRoi(_own(embedding, n), bool(is_blank[n])) for n in range(len(rois)))

    @torch.inference_mode()
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
        points, labels = self._point_tensors(prompts)
        box = None
        if prompts.box is not None:
            box = torch.as_tensor(prompts.box[None], dtype=torch.float32, device=self.device)
        logits_1MSSS, quality_1M = self.model.decode_masks(
            encoded.embedding,
            points,
            labels,
            boxes=box,
            mask_logits=None if mask_logits_SSS is None else mask_logits_SSS[None, None],
            multimask=multimask,
        )
        best = int(quality_1M[0].argmax())
        prompt_logits = logits_1MSSS[:, best : best + 1].float()
        quality = float(quality_1M[0, best])
        if not (bool(prompt_logits.isfinite().all()) and np.isfinite(quality)):
            message = (
                f"Model {self.model_id} returned logits that are not finite; its weights are "
                "damaged, get them again."
            )
            raise CheckpointError(message)
        logits = prompt_logits
        if prompt_logits.shape[-1] != self.image_size:
            logits = functional.interpolate(
                prompt_logits, size=(self.image_size,) * 3, mode="trilinear"
            )
        return DecodedMask(logits[0, 0], prompt_logits[0, 0], quality)

    def _point_tensors(self, prompts: RoiPrompts) -> tuple[Tensor, Tensor]:
        points, positive = prompts.points, prompts.is_positive
        if not len(points):
            # A padding point: official decoders cannot do without any.
            points, labels = np.zeros((1, 3)), np.array([-1])
        else:
            labels = positive.astype(np.int64)
        return (
            torch.as_tensor(points[None], dtype=torch.float32, device=self.device),
            torch.as_tensor(labels[None], dtype=torch.int64, device=self.device),
        )


def _own(embedding: ImageEmbedding, index: int) -> ImageEmbedding:
    """Return one item of a batch as a copy, so that keeping it does not keep the others."""
    if embedding.batch_size == 1:
        return embedding
    part = embedding.select(index)
    return type(part)(
        part.tokens.clone(), tuple(skip.clone() for skip in part.skips), part.image_size
    )
