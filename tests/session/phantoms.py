"""A fake model that sees only what is in the ROI, and volumes on which its answer is known."""

from dataclasses import dataclass

import numpy as np
import torch

from fastsam3d.model.embedding import ImageEmbedding
from fastsam3d.session import Predictor
from fastsam3d.volume import Geometry, Volume

SIZE = 32


@dataclass(frozen=True)
class FakeConfig:
    name: str = "fake"
    image_size: int = SIZE
    logits_size: int = SIZE


class BrightModel:
    """Finds what is brighter than the middle of the ROI's range; clicks paint small balls."""

    def __init__(self, logits_size: int = SIZE, quality: float = 0.8) -> None:
        self.config = FakeConfig(logits_size=logits_size)
        self.quality = quality
        self.encoded: list[int] = []
        self.decoded: list[dict[str, object]] = []

    def encode_image(self, image):
        self.encoded.append(image.shape[0])
        return ImageEmbedding(image.clone(), (), SIZE)

    def decode_masks(
        self, embedding, points, labels, *, boxes=None, mask_logits=None, multimask=False
    ):
        self.decoded.append(
            {"points": points, "labels": labels, "boxes": boxes, "mask": mask_logits}
        )
        image = embedding.tokens[0, 0]
        logits = image - (image.min() + image.max()) / 2
        axis = torch.arange(SIZE)
        grid = torch.stack(torch.meshgrid(axis, axis, axis, indexing="ij"), -1)
        for point, label in zip(points[0], labels[0], strict=True):
            if label >= 0:
                ball = (grid - point).norm(dim=-1) < 2.2
                logits = torch.where(ball, 3.0 if label else -3.0, logits)
        if self.config.logits_size != SIZE:
            step = SIZE // self.config.logits_size
            logits = torch.nn.functional.avg_pool3d(logits[None], step)[0]
        if mask_logits is not None:
            assert mask_logits.shape[-1] == self.config.logits_size
            logits = logits + 0.01 * mask_logits[0, 0].tanh()
        count = 3 if multimask else 1
        return logits.expand(1, count, -1, -1, -1), torch.full((1, count), self.quality)


def fake_predictor(**options):
    return Predictor(BrightModel(**options))


def ball_volume(
    *, shape=(60, 60, 60), spacing=(1.0, 1.0, 1.0), centre_mm=(30.2, 29.7, 30.4), radius_mm=9.3
):
    """Return a bright ball on a dark, slightly uneven background."""
    geometry = Geometry(shape, np.diag([*spacing, 1.0]))
    distance = np.linalg.norm(_world(geometry) - centre_mm, axis=-1)
    # A soft edge of 2 mm, so that the half-way surface is defined below a voxel.
    array = 1000 / (1 + np.exp((distance - radius_mm) / 0.5)) + 0.01 * _world(geometry)[..., 0]
    return Volume(array.astype(np.float32), geometry)


def ball_truth(geometry, centre_mm=(30.2, 29.7, 30.4), radius_mm=9.3):
    return np.linalg.norm(_world(geometry) - centre_mm, axis=-1) < radius_mm


def dice(a, b):
    return 2 * np.count_nonzero((a > 0) & (b > 0)) / (np.count_nonzero(a) + np.count_nonzero(b))


def _world(geometry):
    return geometry.voxel_to_world(np.moveaxis(np.indices(geometry.shape), 0, -1))
