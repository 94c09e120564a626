"""Official checkpoints of both releases convert; anything else is refused and runs nothing."""

from __future__ import annotations

import argparse
import collections
import pickle
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from fastsam3d.errors import CheckpointError, ModelNotFoundError
from fastsam3d.model.config import FASTSAM3D_6L, SAM_MED3D_B
from fastsam3d.model.convert import OFFICIAL_VARIANTS, convert_official
from fastsam3d.model.registry import build_model, load_model
from tests.model.tiny import TINY_STUDENT, TINY_TEACHER

VARIANTS = (TINY_TEACHER, TINY_STUDENT)
ENCODER = "image_encoder."


def encoder_only(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {n.removeprefix(ENCODER): t for n, t in state.items() if n.startswith(ENCODER)}


def with_training_state(state: dict[str, Tensor]) -> dict[str, object]:
    """What the training scripts of both releases save around the weights."""
    return {
        "epoch": 3,
        "model_state_dict": collections.OrderedDict(state),
        "optimizer_state_dict": {"state": {0: {"step": torch.tensor(3.0)}}, "param_groups": []},
        "lr_scheduler_state_dict": {"milestones": collections.Counter([120, 180])},
        "losses": [np.float64(0.5), 0.25],
        "dices": [np.float32(0.5)],
        "best_loss": np.inf,
        "args": argparse.Namespace(device=torch.device("cuda:0"), gpu_ids=[0, 1]),
        "used_datas": ["data/a"],
    }


def save(tmp_path: Path, content: object, **options: object) -> Path:
    path = tmp_path / "official.pth"
    torch.save(content, path, **options)
    return path


def convert(path: Path, **options: object) -> Path:
    out = path.with_name("converted.safetensors")
    convert_official(path, out, variants=VARIANTS, **options)
    return out


@pytest.mark.parametrize("wrapping", ["training", "bare", "parallel", "legacy", "half"])
def test_a_whole_model_converts(tmp_path: Path, wrapping: str) -> None:
    state = build_model(TINY_TEACHER).state_dict()
    content: object = state
    if wrapping == "training":
        content = with_training_state(state)
    elif wrapping == "parallel":
        content = {"model_state_dict": {f"module.{n}": t for n, t in state.items()}}
    elif wrapping == "half":
        content = {n: t.half() for n, t in state.items()}
    path = save(tmp_path, content, _use_new_zipfile_serialization=wrapping != "legacy")
    model = load_model(convert(path))
    assert model.config == TINY_TEACHER
    tolerance = 1e-3 if wrapping == "half" else 0.0
    for name, tensor in model.state_dict().items():
        assert tensor.dtype == torch.float32
        torch.testing.assert_close(tensor, state[name], rtol=tolerance, atol=tolerance)


def test_a_student_encoder_takes_its_decoder_from_a_whole_model(tmp_path: Path) -> None:
    student = build_model(TINY_STUDENT).state_dict()
    donor = build_model(TINY_TEACHER).state_dict()
    torch.save(with_training_state(donor), tmp_path / "donor.pth")
    path = save(tmp_path, with_training_state(encoder_only(student)))
    model = load_model(convert(path, decoder_from=tmp_path / "donor.pth"))
    assert model.config == TINY_STUDENT
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, (student if name.startswith(ENCODER) else donor)[name]), name


def test_a_student_encoder_alone_is_refused_with_the_remedy(tmp_path: Path) -> None:
    path = save(tmp_path, encoder_only(build_model(TINY_STUDENT).state_dict()))
    with pytest.raises(CheckpointError, match="image encoder of fastsam3d_6l alone; give the"):
        convert(path)


def test_a_decoder_of_another_width_is_refused(tmp_path: Path) -> None:
    donor = build_model(replace(TINY_TEACHER, out_dim=96)).state_dict()
    torch.save(donor, tmp_path / "donor.pth")
    path = save(tmp_path, encoder_only(build_model(TINY_STUDENT).state_dict()))
    with pytest.raises(CheckpointError, match=r"does not complete fastsam3d_6l: .* another shape"):
        convert(path, decoder_from=tmp_path / "donor.pth")


@pytest.mark.parametrize(("residual", "after_norm"), [("sam_med3d", False), ("fastsam3d", True)])
def test_the_residual_order_is_the_callers_word(
    tmp_path: Path, residual: str, after_norm: bool
) -> None:
    path = save(tmp_path, build_model(TINY_TEACHER).state_dict())
    model = load_model(convert(path, residual=residual))
    assert model.config.patch.residual_after_norm is after_norm


def test_force_variant_holds_the_file_to_one_variant(tmp_path: Path) -> None:
    path = save(tmp_path, build_model(TINY_TEACHER).state_dict())
    assert load_model(convert(path, force_variant="sam_med3d_b")).config == TINY_TEACHER
    with pytest.raises(CheckpointError, match="is none of fastsam3d_6l"):
        convert(path, force_variant="fastsam3d_6l")
    with pytest.raises(ModelNotFoundError, match="did you mean"):
        convert(path, force_variant="sam_med3d")


def test_what_differs_is_listed(tmp_path: Path) -> None:
    state = build_model(TINY_TEACHER).state_dict()
    del state["image_encoder.pos_embed"]
    state["image_encoder.extra"] = torch.zeros(1)
    state["image_encoder.neck.1.weight"] = torch.zeros(5)
    expected = (
        r"none of sam_med3d_b, fastsam3d_6l; the closest is sam_med3d_b \(model\): "
        r"1 missing \(image_encoder.pos_embed\); 1 unknown \(image_encoder.extra\); "
        r"1 of another shape \(image_encoder.neck.1.weight is \(5,\), not \(48,\)\)"
    )
    with pytest.raises(CheckpointError, match=expected):
        convert(save(tmp_path, state))


class _TouchOnLoad:
    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[object, tuple[Path]]:
        return Path.touch, (self.marker,)


@pytest.mark.parametrize("form", ["zip", "legacy", "bare pickle", "beside the weights"])
def test_a_malicious_pickle_runs_nothing(tmp_path: Path, form: str) -> None:
    marker = tmp_path / "ran"
    content: object = {"model_state_dict": _TouchOnLoad(marker)}
    if form == "beside the weights":
        state = build_model(TINY_TEACHER).state_dict()
        content = {"model_state_dict": state, "args": _TouchOnLoad(marker)}
    if form == "bare pickle":
        path = tmp_path / "official.pth"
        path.write_bytes(pickle.dumps(content))
    else:
        path = save(tmp_path, content, _use_new_zipfile_serialization=form != "legacy")
    with pytest.raises(CheckpointError, match="nothing of it was run"):
        convert(path)
    assert not marker.exists()
    assert [p.name for p in tmp_path.iterdir()] == ["official.pth"]


@pytest.mark.parametrize("share", [0.0, 0.01, 0.5, 0.999])
@pytest.mark.parametrize("legacy", [False, True])
def test_a_truncated_file_is_refused(tmp_path: Path, share: float, legacy: bool) -> None:
    state = build_model(TINY_TEACHER).state_dict()
    path = save(tmp_path, state, _use_new_zipfile_serialization=not legacy)
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])
    with pytest.raises(CheckpointError, match="damaged"):
        convert(path)
    assert not path.with_name("converted.safetensors").exists()


def test_an_absent_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"absent\.pth cannot be read"):
        convert(tmp_path / "absent.pth")


@pytest.mark.parametrize(
    "content", [{}, [1, 2], {"model_state_dict": {"a": 1}}, {1: torch.ones(1)}]
)
def test_files_without_a_state_dict_are_refused(tmp_path: Path, content: object) -> None:
    with pytest.raises(CheckpointError, match="holds no state dict"):
        convert(save(tmp_path, content))


@pytest.mark.parametrize("config", [SAM_MED3D_B, FASTSAM3D_6L], ids=lambda c: c.name)
def test_full_size_releases_are_recognised(tmp_path: Path, config: object) -> None:
    """Shapes of the real releases, one shared number as data; a stray entry stops the writing."""
    with torch.device("meta"):
        shapes = {n: t.shape for n, t in build_model(config).state_dict().items()}
    state = {name: torch.zeros(()).expand(shape) for name, shape in shapes.items()}
    state["stray"] = torch.zeros(1)
    path = save(tmp_path, state)
    with pytest.raises(CheckpointError, match=rf"closest is {config.name} \(model\): 1 unknown"):
        convert_official(path, tmp_path / "out.safetensors", variants=OFFICIAL_VARIANTS)
