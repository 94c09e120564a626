"""Both families under one training task; the official one as a session will use it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch.nn import functional

from fastsam3d.model.embedding import ImageEmbedding
from fastsam3d.model.hr_decoder import Prompts
from fastsam3d.model.sam_med3d import SamMed3D
from fastsam3d.train.bank import TrainingBank
from fastsam3d.train.config import architecture_of, recipe
from fastsam3d.train.families import family_of, upsample
from fastsam3d.train.loop import Trainer
from fastsam3d.train.muon import is_muon_parameter
from fastsam3d.train.overrides import override
from fastsam3d.train.state import load_state
from tests.train.distil_toys import HR_STUDENT, HR_TEACHER, ONE_ROI, SAM_STUDENT, SAM_TEACHER, build
from tests.train.toy import SIZE, toy_case


def prompts(num: int, previous: torch.Tensor) -> Prompts:
    points = torch.tensor([[[16.0, 9, 20], [3, 4, 5], [0, 0, 0]]]).repeat(num, 1, 1)
    labels = torch.tensor([[1.0, 0, -1]]).repeat(num, 1)
    return Prompts(points, labels, torch.zeros(num, 6), previous)


def official() -> SamMed3D:
    model = build(SAM_TEACHER, 2)
    assert isinstance(model, SamMed3D)
    return model


@pytest.mark.parametrize("config", [HR_STUDENT, HR_TEACHER, SAM_STUDENT, SAM_TEACHER])
def test_traces_end_in_the_encoding_and_may_be_cut_short(config: object) -> None:
    family = family_of(build(config, 0))  # type: ignore[arg-type]
    image = torch.randn(1, 1, SIZE, SIZE, SIZE)
    with torch.no_grad():
        whole, first, parts = family.trace(image), family.trace(image, 1), family.encode(image)
        layers = family.model.forward_intermediates(image)
    assert all(torch.equal(a, b) for a, b in zip(whole.parts, parts, strict=True))
    assert all(torch.equal(a, b) for a, b in zip(whole.blocks, layers, strict=True))
    assert len(whole.blocks) == family.model.config.depth
    assert len(first.blocks) == 1
    assert torch.equal(first.blocks[0], whole.blocks[0])
    assert first.parts == ()


def test_official_decoder_answers_as_in_a_session() -> None:
    model = official()
    family = family_of(model)
    previous = torch.randn(2, 1, 8, 8, 8)
    previous[0] = 0  # the first target has no mask before
    shown = family.prompts(prompts(2, previous), 2)
    with torch.no_grad():
        (tokens,) = family.encode(torch.randn(2, 1, SIZE, SIZE, SIZE))
        logits, quality, rough = family.decode((tokens,), shown, True)
        for row, mask in ((0, None), (1, previous[1:])):
            points, labels = shown.points_BN3[row : row + 1], shown.labels_BN[row : row + 1]
            embedding = ImageEmbedding(tokens[row : row + 1], (), SIZE)
            for multimask, masks in ((False, slice(0, 1)), (True, slice(1, 4))):
                low, score = model.decode_masks(
                    embedding, points, labels, mask_logits=mask, multimask=multimask
                )
                full = functional.interpolate(low, scale_factor=4, mode="trilinear")
                torch.testing.assert_close(logits[row : row + 1, masks], full)
                torch.testing.assert_close(quality[row : row + 1, masks], score)
                if not multimask:
                    torch.testing.assert_close(rough[row : row + 1], low)


def test_a_box_without_a_click_becomes_a_click_at_its_centre() -> None:
    given = prompts(2, torch.zeros(2, 1, 8, 8, 8))
    given.labels_BN[1, 0] = -1
    given = given._replace(boxes_B6=torch.tensor([[2.0, 4, 6, 5, 9, 13]]).repeat(2, 1))
    shown = family_of(official()).prompts(given, 1)
    assert shown.points_BN3.tolist() == [[[16, 9, 20]], [[3, 6, 9]]]
    assert shown.labels_BN.tolist() == [[1], [1]]


def test_upsampling_equals_the_library() -> None:
    x = torch.randn(2, 3, 4, 4, 4)
    torch.testing.assert_close(
        upsample(x), functional.interpolate(x, scale_factor=4, mode="trilinear")
    )


def test_embeddings_and_edge_layers_of_official_models_stay_with_adamw() -> None:
    names = dict(official().named_parameters())
    adam = {n for n, p in names.items() if p.ndim >= 2 and not is_muon_parameter(n, p)}
    assert {
        "image_encoder.pos_embed",
        "image_encoder.patch_embed.proj.weight",
        "image_encoder.blocks.0.attn.rel_pos_d",
        "mask_decoder.mask_tokens.weight",
        "prompt_encoder.point_embeddings.0.weight",
        "prompt_encoder.no_mask_embed.weight",
        "mask_decoder.output_hypernetworks_mlps.3.layers.2.weight",
        "mask_decoder.iou_prediction_head.layers.2.weight",
    } <= adam
    assert not any("attn.qkv" in n or "mlp.lin" in n or "neck" in n for n in adam)


def test_official_teacher_trains_on_our_data_and_keeps_its_frequencies(tmp_path: Path) -> None:
    settings = (*ONE_ROI, "model=sam_med3d_b", "num_steps=1", "prompts.round_shares=0,0,1")
    config = override(recipe("debug"), settings)
    bank = TrainingBank([toy_case(0)], device="cpu")
    trainer = Trainer(official(), bank, config, output=tmp_path)
    before = [p.detach().clone() for p in trainer.parameters]
    trainer.fit()
    still = [
        n
        for n, a, b in zip(trainer.names, before, trainer.parameters, strict=True)
        if torch.equal(a, b)
    ]
    assert still == []
    name = "prompt_encoder.pe_layer.positional_encoding_gaussian_matrix"
    exported, _ = load_state(tmp_path / "averaged")
    assert set(exported) == set(trainer.model.state_dict())
    assert torch.equal(exported[name], trainer.model.state_dict()[name])
    assert exported[name].dtype == torch.float32
    again = Trainer(build(SAM_TEACHER, 9), bank, config, output=tmp_path)  # type: ignore[arg-type]
    again.resume(tmp_path / "checkpoint")
    assert torch.equal(again.model.state_dict()[name], exported[name])


def test_recipe_and_depth_decide_the_architecture() -> None:
    config = override(recipe("compat_teacher"), ("depth=4",))
    architecture = architecture_of(config.to_dict())
    assert (architecture.name, architecture.depth, architecture.image_size) == (
        "sam_med3d_b",
        4,
        128,
    )
    assert architecture_of(recipe("default").to_dict()).depth == 8
