"""Where a run may begin: weights files, names and earlier runs, of one architecture."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from fastsam3d.errors import CheckpointError, ConfigError
from fastsam3d.model.card import Preprocessing, WeightsCard
from fastsam3d.model.checkpoint import save_checkpoint
from fastsam3d.model.config import MODEL_CONFIGS, ModelConfig
from fastsam3d.train.config import RunConfig, recipe
from fastsam3d.train.launch import (
    POSITION,
    Process,
    build_trainer,
    resized_position,
    trainable_architecture,
    training_device,
)
from fastsam3d.train.loop import Trainer
from fastsam3d.train.overrides import override
from tests.train.toy import TOY, toy_case, toy_model

CPU = Process(device=torch.device("cpu"))


@pytest.fixture(autouse=True)
def tiny_world(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(MODEL_CONFIGS, "hr_s", replace(TOY, image_size=128))
    monkeypatch.setattr("fastsam3d.train.launch.load_pack", lambda _: [toy_case(0)])
    monkeypatch.setattr("fastsam3d.train.launch.read_index", lambda _: {"sha256": "0" * 64})


def start(output: Path, weights: str | Path, config: RunConfig | None = None) -> Trainer:
    return build_trainer(
        config or recipe("debug"), CPU, pack=Path("toy.npz"), output=output, start_from=weights
    )


def card(architecture: ModelConfig) -> WeightsCard:
    return WeightsCard(
        name="toy",
        architecture=architecture,
        preprocessing=Preprocessing(
            normalisation="roi_percentile_zscore",
            image_size=architecture.image_size,
            spacings_mm=(1.0,),
        ),
        licence="Apache-2.0",
        training_data=(),
        sha256="0" * 64,
        created="2026-11-22",
    )


def test_weights_file_becomes_the_model_and_its_average(tmp_path: Path) -> None:
    model = toy_model(seed=3)
    save_checkpoint(model.state_dict(), tmp_path / "toy.safetensors", card(TOY))
    trainer = start(tmp_path / "run", tmp_path / "toy.safetensors")
    for ours, average, given in zip(
        trainer.parameters, trainer.ema, model.parameters(), strict=True
    ):
        assert torch.equal(ours, given)
        assert torch.equal(average, given)


def test_weights_of_another_roi_size_begin_with_their_positions_spread_over_the_new_grid(
    tmp_path: Path,
) -> None:
    given = toy_model(seed=3)
    save_checkpoint(given.state_dict(), tmp_path / "toy.safetensors", card(TOY))
    config = override(recipe("debug"), ("generator.size=64", "attention=dilated:2/1,0/2"))
    model = start(tmp_path / "run", tmp_path / "toy.safetensors", config).model
    assert (model.config.grid_size, model.config.attention) == (4, "dilated:2/1,0/2")
    before, after = (dict(m.named_parameters())[POSITION] for m in (given, model))
    assert torch.equal(after, resized_position(before, 4))
    others = {n: p for n, p in given.named_parameters() if n != POSITION}
    assert all(torch.equal(model.get_parameter(name), p) for name, p in others.items())


def test_positions_on_a_finer_grid_lie_between_their_neighbours() -> None:
    line = torch.arange(2.0).repeat_interleave(4)  # 0 in the first half of axis i, 1 in the other
    finer = resized_position(line[None, :, None], 4).reshape(4, 4, 4)
    assert torch.allclose(finer[:, 0, 0], torch.tensor([0.0, 0.25, 0.75, 1.0]))
    assert torch.equal(finer, finer[:, :1, :1].expand(4, 4, 4))
    assert resized_position(line[None, :, None], 2).flatten().equal(line)


def test_weights_of_another_depth_are_refused(tmp_path: Path) -> None:
    save_checkpoint(toy_model().state_dict(), tmp_path / "toy.safetensors", card(TOY))
    with pytest.raises(CheckpointError, match="does not fit its architecture"):
        start(
            tmp_path / "run", tmp_path / "toy.safetensors", override(recipe("debug"), ("depth=3",))
        )


@pytest.mark.parametrize(
    ("lacking", "message"),
    [
        ({"supervoxels": ()}, r"no supervoxels; set generator\.share_supervoxel=0"),
        ({"labels": None}, r"no label maps; set generator\.num_painted=0"),
        ({"image": None, "levels": None}, r"no images with labels; set"),
    ],
)
def test_a_recipe_that_the_pack_cannot_serve_is_refused(
    lacking: dict[str, object], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    case = replace(toy_case(0), **lacking)  # type: ignore[arg-type]
    monkeypatch.setattr("fastsam3d.train.launch.load_pack", lambda _: [case])
    with pytest.raises(ConfigError, match=message):
        build_trainer(recipe("debug"), CPU, pack=Path("toy.npz"), output=tmp_path)


def test_bones_take_a_pack_in_which_some_were_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = override(recipe("debug"), ("generator.share_anatomy=0.5",))
    monkeypatch.setattr("fastsam3d.train.launch.load_pack", lambda _: [toy_case(0)])
    with pytest.raises(ConfigError, match=r"air spaces of CT; set generator\.share_anatomy=0"):
        build_trainer(config, CPU, pack=Path("toy.npz"), output=tmp_path)
    found = replace(toy_case(0), anatomy=toy_case(1).supervoxels[0], labels=None)
    monkeypatch.setattr("fastsam3d.train.launch.load_pack", lambda _: [found])
    config = override(config, ("generator.share_anatomy=1", "generator.num_painted=0"))
    build_trainer(config, CPU, pack=Path("toy.npz"), output=tmp_path)


def test_painting_supervoxels_takes_a_pack_that_has_some(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = override(
        recipe("debug"), ("generator.share_supervoxel=0", "generator.share_painted_supervoxel=0.5")
    )
    case = replace(toy_case(0), supervoxels=())
    monkeypatch.setattr("fastsam3d.train.launch.load_pack", lambda _: [case])
    with pytest.raises(ConfigError, match="share_painted_supervoxel=0, or take another pack"):
        build_trainer(config, CPU, pack=Path("toy.npz"), output=tmp_path)


def test_only_registered_architectures_of_our_family_are_trained() -> None:
    official = card(replace(TOY, family="sam_med3d"))
    with pytest.raises(ConfigError, match=r"x\.safetensors is of family 'sam_med3d'"):
        trainable_architecture(official, Path("x.safetensors"))
    with pytest.raises(ConfigError, match="differs from the registered architecture 'hr_s'"):
        trainable_architecture(card(replace(TOY, depth=2)), Path("x.safetensors"))


def test_a_device_that_is_not_there_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert training_device("auto") == torch.device("cpu")
    with pytest.raises(ConfigError, match="torch sees none; use --device cpu"):
        training_device("cuda")
