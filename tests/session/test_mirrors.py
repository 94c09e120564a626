"""Averaging over mirror images: what a model that knows left from right says of both."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from fastsam3d.errors import ConfigError
from fastsam3d.model.config import HR_S, SAM_MED3D_B
from fastsam3d.model.registry import build_model
from fastsam3d.session import Session
from fastsam3d.session.mirrors import MIRRORS, MirroredModel
from fastsam3d.session.predictor import Predictor
from tests.session.phantoms import BrightModel, ball_truth, ball_volume, dice

SIDE = 32


def tiny(config, **sizes):
    torch.manual_seed(1)
    small = replace(
        config, image_size=SIDE, embed_dim=48, depth=1, num_heads=2, out_dim=48, **sizes
    )
    return build_model(small).eval()


MODELS = {
    "hr": lambda: tiny(HR_S, highres=replace(HR_S.highres, decoder_channels=(32, 16, 8))),
    "sam_med3d": lambda: tiny(SAM_MED3D_B),
}


def prompts(generator, size):
    points = torch.rand(2, 3, 3, generator=generator) * (SIDE - 1)
    labels = torch.tensor([[1, 0, 1], [1, 1, -1]])
    boxes = torch.tensor([[3.0, 5, 7, 20, 22, 30], [1, 2, 3, 9, 10, 11]])
    return points, labels, boxes, torch.randn(2, 1, size, size, size, generator=generator)


@pytest.mark.parametrize("in_batch", [True, False])
@pytest.mark.parametrize("count", [2, 4, 8])
@pytest.mark.parametrize("kind", sorted(MODELS))
@torch.inference_mode()
def test_the_answer_is_the_mean_of_what_the_model_says_of_each_image(kind, count, in_batch):
    model, generator = MODELS[kind](), torch.Generator().manual_seed(2)
    image = torch.randn(2, 1, SIDE, SIDE, SIDE, generator=generator)
    points, labels, boxes, mask = prompts(generator, model.config.logits_size)
    wanted = []
    for axes in MIRRORS[count]:
        dims, (p, b) = [axis + 2 for axis in axes], (points.clone(), boxes.clone())
        for axis in axes:
            p[..., axis] = SIDE - 1 - points[..., axis]
            b[:, axis], b[:, axis + 3] = SIDE - boxes[:, axis + 3], SIDE - boxes[:, axis]
        logits, quality = model.decode_masks(
            model.encode_image(image.flip(dims)),
            p,
            labels,
            boxes=b,
            mask_logits=mask.flip(dims),
            multimask=True,
        )
        wanted.append((logits.flip(dims), quality))
    mirrored = MirroredModel(model, count, in_batch=in_batch)
    logits, quality = mirrored.decode_masks(
        mirrored.encode_image(image), points, labels, boxes=boxes, mask_logits=mask, multimask=True
    )
    torch.testing.assert_close(
        logits, torch.stack([w[0] for w in wanted]).mean(0), rtol=1e-4, atol=1e-4
    )
    torch.testing.assert_close(
        quality, torch.stack([w[1] for w in wanted]).mean(0), rtol=1e-4, atol=1e-4
    )


@pytest.mark.parametrize("kind", sorted(MODELS))
@torch.inference_mode()
def test_a_mirrored_roi_gets_the_mirrored_answer(kind):
    mirrored, generator = MirroredModel(MODELS[kind](), 8), torch.Generator().manual_seed(3)
    image = torch.randn(1, 1, SIDE, SIDE, SIDE, generator=generator)
    points = torch.rand(1, 2, 3, generator=generator) * (SIDE - 1)
    labels = torch.ones(1, 2, dtype=torch.int64)
    there = points.clone()
    there[..., 1] = SIDE - 1 - points[..., 1]
    one, _ = mirrored.decode_masks(mirrored.encode_image(image), points, labels)
    other, _ = mirrored.decode_masks(mirrored.encode_image(image.flip(3)), there, labels)
    torch.testing.assert_close(one, other.flip(3), rtol=1e-4, atol=1e-4)


class Batched(BrightModel):
    """The fake model, one item after the other."""

    def decode_masks(
        self, embedding, points, labels, *, boxes=None, mask_logits=None, multimask=False
    ):
        found = [
            super(Batched, self).decode_masks(
                embedding.select(n),
                points[n : n + 1],
                labels[n : n + 1],
                boxes=None if boxes is None else boxes[n : n + 1],
                mask_logits=None if mask_logits is None else mask_logits[n : n + 1],
                multimask=multimask,
            )
            for n in range(len(points))
        ]
        return torch.cat([f[0] for f in found]), torch.cat([f[1] for f in found])


def test_a_session_answers_in_the_frame_of_the_volume():
    volume = ball_volume()
    session = Session(Predictor(MirroredModel(Batched(), 4)))
    session.set_volume(volume)
    first = session.add_point((30, 30, 30)).mask.array
    assert dice(first, ball_truth(volume.geometry)) > 0.97
    session.add_point((30, 30, 38))
    session.undo()
    np.testing.assert_array_equal(session.prediction.mask.array, first)


def test_only_full_sets_of_mirrors_are_taken():
    with pytest.raises(ConfigError, match="must be 1, 2, 4 or 8, got 3"):
        MirroredModel(BrightModel(), 3)
