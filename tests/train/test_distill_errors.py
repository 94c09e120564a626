"""Distance of students from their teacher: nought for a copy, told apart by layer."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from fastsam3d.model.config import MODEL_CONFIGS
from fastsam3d.train.distill_errors import alignment, layer_errors, main
from fastsam3d.train.families import family_of
from fastsam3d.train.state import save_state
from tests.train.distil_toys import HR_STUDENT, HR_TEACHER, SAM_TEACHER, build
from tests.train.toy import SIZE, toy_case


def test_a_copy_is_exact_up_to_the_layer_that_was_changed() -> None:
    teacher, student = build(SAM_TEACHER, 1), build(SAM_TEACHER, 1)
    with torch.no_grad():
        student.get_parameter("image_encoder.blocks.2.mlp.lin1.weight").mul_(-1)
    image = torch.randn(1, 1, SIZE, SIZE, SIZE)
    rows = layer_errors(family_of(student), family_of(teacher), [image])
    assert [row["name"] for row in rows] == ["layer1", "layer2", "layer3", "layer4", "neck"]
    assert [row["error"] == 0 for row in rows] == [True, True, False, False, False]
    assert [row["teacher_layer"] for row in rows] == [1, 2, 3, 4, None]


def test_alignment_forgives_rotation_scale_and_width() -> None:
    torch.manual_seed(0)
    teacher = torch.randn(1, 50, 6)
    turn = torch.linalg.qr(torch.randn(12, 6))[0].T
    assert alignment(3 * teacher @ turn, teacher) == pytest.approx(1, abs=1e-4)
    assert alignment(torch.randn(1, 50, 6), teacher) < 0.4


def test_command_writes_a_table_of_all_students(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = "fastsam3d.train.distill_errors"
    monkeypatch.setattr(f"{module}.load_pack", lambda _: [toy_case(0)])
    monkeypatch.setattr(f"{module}.read_index", lambda _: {"sha256": "0" * 64})
    for config in (HR_TEACHER, HR_STUDENT):
        monkeypatch.setitem(MODEL_CONFIGS, config.name, replace(config, image_size=128))
        facts = {"config": {"model": config.name, "generator": {"size": SIZE}}}
        save_state(tmp_path / config.name, dict(build(config, 0).state_dict()), facts)
    words = [str(tmp_path / "hr_s"), "--teacher", str(tmp_path / "hr_b"), "--pack", "toy.npz"]
    words += ["--output", str(tmp_path / "x.json"), "--recipe", "debug", "--device", "cpu"]
    assert main(words) == 0
    rows = next(iter(json.loads((tmp_path / "x.json").read_text())["students"].values()))["layers"]
    assert rows[0]["error"] is None  # 48 channels against 64
    assert 0 < rows[0]["alignment"] < 1
    assert rows[-1]["error"] > 0
    assert main([*words[:2], str(tmp_path), *words[3:]]) == 1
