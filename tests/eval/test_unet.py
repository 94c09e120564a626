"""A fixed-class network: trained on one structure, asked about that one and about another."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from fastsam3d.errors import CheckpointError, ConfigError, DatasetError
from fastsam3d.eval.baselines import unet
from fastsam3d.eval.baselines.unet_train import (
    TrainCase,
    TrainOptions,
    draw_patch,
    find_cases,
    train_unet,
)
from fastsam3d.eval.segmenters import create_segmenter
from fastsam3d.io import write_mask, write_volume
from fastsam3d.volume import Geometry, Volume
from tests.session.phantoms import ball_truth, dice

SEEN, UNSEEN = (9.0, 12.0, 12.0), (25.0, 12.0, 12.0)


def scan(spacing=(1.0, 1.0, 1.5)) -> tuple[Volume, np.ndarray, np.ndarray]:
    """A bright ball that will be labelled, and a dark one that will not."""
    shape = tuple(round(mm / side) for mm, side in zip((34, 24, 24), spacing, strict=True))
    geometry = Geometry(shape, np.diag([*spacing, 1.0]))
    bright, dark = (ball_truth(geometry, centre, 6.0) for centre in (SEEN, UNSEEN))
    noise = np.random.default_rng(0).normal(0, 20, shape)
    array = (500 * bright - 500 * dark + noise).astype(np.int16)
    return Volume(array, geometry), bright, dark


class ThresholdNet:
    """Class 1 where the normalised image is bright; stands for a trained network."""

    def __call__(self, image):
        return torch.cat([torch.zeros_like(image) + 1.0, image], dim=1)


@pytest.fixture
def segmenter() -> unet.UnetSegmenter:
    pytest.importorskip("monai")
    config = unet.UnetConfig(classes=(3,), names=("bright",), spacing_mm=1.0, patch=16)
    found = unet.UnetSegmenter(ThresholdNet(), config)
    found.set_volume(scan()[0])
    return found


def test_a_click_selects_the_component_of_the_predicted_class(segmenter) -> None:
    prediction = segmenter.add_point((9, 12, 8))
    assert dice(prediction.mask.array, scan()[1]) > 0.9
    assert prediction.encode_ms > 0
    assert prediction.warnings == ()
    assert segmenter.add_point((10, 12, 8)).encode_ms == 0.0
    kept = segmenter.add_point((9, 13, 8), positive=False)
    assert np.array_equal(kept.mask.array, prediction.mask.array)


def test_a_structure_without_a_class_is_not_found_and_the_user_is_told(segmenter) -> None:
    prediction = segmenter.add_point((25, 12, 8))
    assert not prediction.mask.array.any()
    assert "bright" in prediction.warnings[0]


def test_the_networks_grid_and_the_scans_agree(segmenter) -> None:
    volume, bright, _ = scan(spacing=(0.5, 1.0, 3.0))
    segmenter.set_volume(volume)
    assert unet.network_shape(volume, 1.0) == (34, 24, 24)
    assert unet.to_network(volume, 1.0).shape == (34, 24, 24)
    assert dice(segmenter.add_point((18, 12, 4)).mask.array, bright) > 0.8


def test_patches_hold_their_class_and_are_padded_outside_of_the_scan() -> None:
    labels = np.zeros((10, 10, 10), np.uint8)
    labels[4, 5, 6] = 7
    case = TrainCase(np.where(labels, 5.0, 0.0).astype(np.float32), labels)
    config = unet.UnetConfig(classes=(7,), patch=16)
    rng = np.random.default_rng(0)
    drawn = [draw_patch(case, config, rng) for _ in range(20)]

    assert {image.shape for image, _ in drawn} == {(16, 16, 16)}
    assert sum(classes.max() for _, classes in drawn) >= 10
    assert all(np.array_equal(image == 5.0, classes == 1) for image, classes in drawn)


def test_training_writes_a_network_that_can_be_asked(tmp_path: Path, capsys) -> None:
    pytest.importorskip("monai")
    volume, bright, _ = scan()
    folder = tmp_path / "cases" / "a"
    folder.mkdir(parents=True)
    write_volume(volume, folder / "image.nii.gz")
    write_mask(volume.new_mask(bright.astype(np.uint8) * 3), folder / "label.nii.gz")
    out = tmp_path / "net.safetensors"
    words = ["train", str(tmp_path / "cases"), str(out), "--names", "3=bright", "--patch", "16"]
    assert unet.main([*words, "--steps", "3", "--spacing-mm", "2"]) == 0
    facts = json.loads(capsys.readouterr().out)

    assert (facts["cases"], facts["steps"], facts["classes"]) == (1, 3, {"3": "bright"})
    segmenter = create_segmenter(f"unet:{out}")
    segmenter.set_volume(volume)
    assert segmenter.add_point((9, 12, 8)).mask.shape == volume.shape


def test_wrong_files_and_options_are_refused_with_a_sentence(tmp_path: Path) -> None:
    pytest.importorskip("monai")
    with pytest.raises(ConfigError, match="unet:PATH"):
        create_segmenter("unet")
    with pytest.raises(CheckpointError, match="no U-Net"):
        create_segmenter(f"unet:{tmp_path / 'none.safetensors'}")
    with pytest.raises(ConfigError, match="patch that 8 divides"):
        unet.UnetConfig(classes=(1,), patch=20)
    with pytest.raises(DatasetError, match=r"No case with image\.nii\.gz"):
        find_cases([tmp_path])
    with pytest.raises(DatasetError, match="No case"):
        train_unet([tmp_path], tmp_path / "out.safetensors", TrainOptions())
