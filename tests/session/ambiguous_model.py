"""A fake model that knows what a click may mean, and takes batches as the real ones do."""

import numpy as np
import torch

from fastsam3d.session import Predictor, ScalePolicy, Session
from fastsam3d.volume import Geometry, Volume
from tests.session.phantoms import SIZE, BrightModel

SIDE = 40
CENTRE = (20, 20, 20)
# Radii in mm of three structures inside each other, and how bright each is.
CORE, BODY, SHELL = (6.0, 1000), (10.0, 600), (15.0, 300)
QUALITIES = (0.5, 0.7, 0.6)
POLICY = ScalePolicy(spacings_mm=(1.5,), max_growths=0)


class NestedModel(BrightModel):
    """Answers with the structure of middle brightness; its candidates are that, core and shell."""

    def decode_masks(
        self, embedding, points, labels, *, boxes=None, mask_logits=None, multimask=False
    ):
        rows = []
        for n in range(len(points)):
            logits, quality = super().decode_masks(
                embedding.select(n),
                points[n : n + 1],
                labels[n : n + 1],
                boxes=None if boxes is None else boxes[n : n + 1],
                mask_logits=None if mask_logits is None else mask_logits[n : n + 1],
            )
            if multimask:
                spread = embedding.tokens[n].max() - embedding.tokens[n].min()
                offsets = (-0.3 * spread, 0.0 * spread, 0.35 * spread)
                logits = torch.cat([logits + offset for offset in offsets], 1)
                quality = torch.tensor([QUALITIES])
            rows.append((logits, quality))
        return torch.cat([row[0] for row in rows]), torch.cat([row[1] for row in rows])


class FollowingModel(NestedModel):
    """As `NestedModel`, but a mask prompt says which of the three structures is meant."""

    def decode_masks(self, embedding, points, labels, *, mask_logits=None, **options):
        options["multimask"], is_many = True, options.get("multimask", False)
        # No balls around clicks: every edge is a structure's own.
        logits, quality = super().decode_masks(embedding, points, labels * 0 - 1, **options)
        if is_many:
            return logits, quality
        meant = 1
        if mask_logits is not None:
            known = mask_logits[0, 0] > -5.5
            wanted = mask_logits[0, 0] > 0
            shared = [int(((one > 0) & wanted).sum()) for one in logits[0]]
            either = [int((((one > 0) & known) | wanted).sum()) for one in logits[0]]
            meant = max(range(3), key=lambda n: shared[n] / max(1, either[n]))
        return logits[:, meant : meant + 1], quality[:, meant : meant + 1]


class HesitantModel(NestedModel):
    """As `NestedModel`, but less sure of what is far from its first point."""

    def decode_masks(self, embedding, points, labels, **options):
        logits, quality = super().decode_masks(embedding, points, labels, **options)
        axis = torch.arange(SIZE)
        grid = torch.stack(torch.meshgrid(axis, axis, axis, indexing="ij"), -1).float()
        distance = (grid - points[:, :1, None, None]).norm(dim=-1)
        return 4 * logits - 0.3 * distance[:, None], quality


def nested_volume(levels=(CORE, BODY, SHELL), centre=CENTRE, side=SIDE, seed=0):
    geometry = Geometry((side,) * 3, np.eye(4))
    index = np.moveaxis(np.indices(geometry.shape), 0, -1)
    distance = np.linalg.norm(index - np.asarray(centre), axis=-1)
    array = np.zeros(geometry.shape)
    for radius, brightness in sorted(levels, reverse=True):
        array = np.where(distance <= radius, brightness, array)
    noise = np.random.default_rng(seed).normal(0, 5, array.shape)
    return Volume((array + noise).astype(np.float32), geometry)


def nested_session(model=None, volume=None):
    session = Session(Predictor(NestedModel() if model is None else model), policy=POLICY)
    session.set_volume(nested_volume() if volume is None else volume)
    return session
