"""Models by name through their sessions: options, and official checkpoints end to end."""

from pathlib import Path

import numpy as np
import pytest
import torch

from fastsam3d.errors import ConfigError, ModelNotFoundError
from fastsam3d.eval.baselines import BlindModel
from fastsam3d.eval.segmenters import create_segmenter
from fastsam3d.model.config import ModelConfig
from fastsam3d.model.convert import convert_official
from fastsam3d.model.registry import build_model
from fastsam3d.segmenter import Segmenter
from fastsam3d.session import Session
from fastsam3d.session.mirrors import MirroredModel
from tests.cli.weights import write_toy_weights
from tests.model.tiny import TINY_STUDENT, TINY_TEACHER
from tests.session.phantoms import ball_volume

CENTRE = (30, 30, 30)


@pytest.fixture
def toy(tmp_path: Path) -> Path:
    return write_toy_weights(tmp_path / "toy.safetensors")


def test_a_model_comes_with_its_session(toy: Path) -> None:
    segmenter = create_segmenter(toy)
    assert isinstance(segmenter, Session)
    assert isinstance(segmenter, Segmenter)
    assert segmenter.policy.spacings_mm == (1.0, 2.0)


def test_a_given_spacing_is_kept_whatever_the_object(toy: Path) -> None:
    segmenter = create_segmenter(str(toy), spacing_mm=0.4)
    segmenter.set_volume(ball_volume())
    assert segmenter.add_point(CENTRE).spacing_mm == pytest.approx(0.4)
    assert segmenter.add_point((35, 30, 30)).spacing_mm == pytest.approx(0.4)


def test_mirror_images_are_seen_and_named_apart(toy: Path) -> None:
    plain, mirrored = create_segmenter(toy), create_segmenter(toy, mirrors=2)
    assert isinstance(plain, Session)
    assert isinstance(mirrored, Session)
    model = mirrored.predictor.model
    assert isinstance(model, MirroredModel)
    assert model.images == ((), (0,))
    assert mirrored.predictor.model_id != plain.predictor.model_id
    for segmenter in (plain, mirrored):
        segmenter.set_volume(ball_volume())
    assert mirrored.add_point(CENTRE).mask.array.shape == plain.add_point(CENTRE).mask.array.shape


def test_a_blind_model_answers_from_clicks_alone(toy: Path) -> None:
    segmenter = create_segmenter(toy, zero_image=True, spacing_mm=1.0)
    assert isinstance(segmenter, Session)
    assert isinstance(segmenter.predictor.model, BlindModel)
    masks = []
    for radius in (5.0, 12.0):
        segmenter.set_volume(ball_volume(radius_mm=radius))
        masks.append(segmenter.add_point(CENTRE).mask.array)
    assert np.array_equal(*masks)


@pytest.mark.parametrize("config", [TINY_TEACHER, TINY_STUDENT], ids=lambda c: c.name)
def test_an_official_checkpoint_runs_from_its_file_to_a_mask(
    config: ModelConfig, tmp_path: Path
) -> None:
    torch.manual_seed(2)
    torch.save({"model_state_dict": build_model(config).state_dict()}, tmp_path / "official.pth")
    out = tmp_path / "converted.safetensors"
    card = convert_official(tmp_path / "official.pth", out, variants=(config,))
    segmenter = create_segmenter(out)
    assert isinstance(segmenter, Session)
    volume = ball_volume()
    segmenter.set_volume(volume)
    prediction = segmenter.add_point(CENTRE)

    assert card.preprocessing.normalisation == "foreground_zscore"
    assert segmenter.predictor.preprocessing == card.preprocessing
    assert prediction.mask.shape == volume.shape
    assert prediction.spacing_mm >= min(card.preprocessing.spacings_mm)
    assert np.isfinite(prediction.predicted_quality)
    assert segmenter.add_point((34, 30, 30), positive=False).mask.shape == volume.shape


def test_what_is_neither_baseline_nor_model_is_refused() -> None:
    with pytest.raises(ModelNotFoundError, match="hr_s"):
        create_segmenter("hr_z")
    with pytest.raises(ConfigError, match="sam2d:random"):
        create_segmenter("sam2d")
