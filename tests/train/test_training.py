"""Clicks, losses, optimiser, and the loop: resumable to the same curve."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch.nn import functional

from fastsam3d.errors import CheckpointError, ConfigError
from fastsam3d.train import loop
from fastsam3d.train.bank import TrainingBank
from fastsam3d.train.clicks import corrupted_masks, erosion_depth, jittered_boxes, next_clicks
from fastsam3d.train.config import PromptConfig, RunConfig, rate_factor, recipe
from fastsam3d.train.loop import CHECKPOINT, Trainer
from fastsam3d.train.losses import boundary_weights, mask_losses
from fastsam3d.train.muon import Muon, is_muon_parameter, orthogonalise
from fastsam3d.train.state import load_state, save_state
from tests.train.toy import toy_case, toy_model


def ball(side: int = 16, radius: float = 5.0, centre: float = 8.0) -> torch.Tensor:
    axis = torch.arange(side) - centre
    return (axis[:, None, None] ** 2 + axis[:, None] ** 2 + axis**2 < radius**2)[None]


def test_depth_counts_erosions_and_sees_the_border() -> None:
    cube = torch.zeros(1, 9, 9, 9, dtype=torch.bool)
    cube[:, 2:7, 2:7, 2:7] = True
    assert erosion_depth(cube)[0, 4, 4, 4] == 3
    assert erosion_depth(cube)[0, 2, 4, 4] == 1
    assert erosion_depth(torch.ones(1, 5, 5, 5, dtype=torch.bool))[0, 2, 2, 2] == 3


def test_depth_is_that_of_erosions_one_after_another() -> None:
    torch.manual_seed(0)
    for share in (0.5, 0.9, 0.999, 0.9999):
        region = torch.rand(2, 19, 20, 21) < share
        current = functional.pad(region.float()[:, None], (1,) * 6)
        survived = torch.zeros_like(current)
        for _ in range(8):
            survived += current
            current = -functional.max_pool3d(-current, 3, stride=1, padding=1)
        assert torch.equal(erosion_depth(region), survived[:, 0, 1:-1, 1:-1, 1:-1])


def test_clicks_fall_into_the_error_with_the_right_sign() -> None:
    torch.manual_seed(0)
    target, mask = ball(centre=5.0).repeat(50, 1, 1, 1), ball(centre=9.0).repeat(50, 1, 1, 1)
    points, labels = next_clicks(mask, target)
    cell = (points // 2).long()
    picked = torch.arange(50), cell[:, 0], cell[:, 1], cell[:, 2]
    assert (mask[picked] != target[picked]).all()
    assert torch.equal(labels, target[picked].float())


def test_perfect_mask_gets_a_padding_click() -> None:
    _, labels = next_clicks(ball(), ball())
    assert labels.tolist() == [-1.0]


def test_first_clicks_prefer_the_centre() -> None:
    torch.manual_seed(0)
    target = ball().repeat(200, 1, 1, 1)
    points, _ = next_clicks(torch.zeros_like(target), target)
    distance = (points - 16).norm(dim=1)
    assert distance.median() < 5
    assert distance.max() > 6


def test_boxes_cover_the_target_within_the_jitter() -> None:
    torch.manual_seed(0)
    target = torch.zeros(1, 16, 16, 16, dtype=torch.bool)
    target[:, 2:6, 4:12, 8:9] = True
    exact = jittered_boxes(target, jitter=0.0)
    assert exact.tolist() == [[4, 8, 16, 12, 24, 18]]
    loose = jittered_boxes(target, jitter=0.1)
    assert ((loose - exact).abs() <= 0.1 * torch.tensor([8.0, 16, 2, 8, 16, 2]) + 1e-4).all()
    assert jittered_boxes(torch.zeros_like(target)).abs().max() == 0


def test_corrupted_masks_differ_but_overlap() -> None:
    torch.manual_seed(0)
    target = ball().repeat(20, 1, 1, 1)
    wrong = corrupted_masks(target)
    assert (wrong != target).flatten(1).any(1).float().mean() > 0.7
    assert (wrong & target).any()


def test_corrupted_masks_lie_between_the_shrunk_and_the_grown_target() -> None:
    torch.manual_seed(0)
    target = ball().repeat(40, 1, 1, 1)
    grid = target[:, None].float()
    grown = functional.max_pool3d(grid, 5, stride=1, padding=2)[:, 0] > 0
    shrunk = -functional.max_pool3d(-grid, 3, stride=1, padding=1)[:, 0] > 0
    wrong = corrupted_masks(target)
    assert not (wrong & ~grown).any()
    for whole in (grown, shrunk, target):
        assert (wrong == whole).flatten(1).all(1).any()


def test_perfect_logits_cost_nothing_and_inverted_ones_much() -> None:
    target = ball()
    weights = boundary_weights(target)
    sure = torch.where(target, 20.0, -20.0)[:, None]
    loss, iou = mask_losses(torch.cat((sure, -sure), 1), target, weights)
    assert loss[0, 0] < 1e-3
    assert loss[0, 1] > 10
    assert iou.tolist() == [[1.0, 0.0]]


def test_band_weights_mark_two_voxels_around_the_surface() -> None:
    target = torch.zeros(1, 12, 12, 12, dtype=torch.bool)
    target[:, 3:9, 3:9, 3:9] = True
    weights = boundary_weights(target)
    assert weights[0, 3, 6, 6] == weights[0, 1, 6, 6] == 5
    assert weights[0, 0, 6, 6] == weights[0, 5, 5, 5] == 1


def test_orthogonalise_evens_out_singular_values() -> None:
    torch.manual_seed(0)
    for shape in ((3, 8, 20), (2, 20, 8)):
        values = torch.linalg.svdvals(orthogonalise(torch.randn(shape)))
        assert 0.4 < values.min() < values.max() < 1.4


def test_muon_batches_shapes_without_mixing_parameters() -> None:
    torch.manual_seed(0)
    weights = [torch.nn.Parameter(torch.randn(6, 4)) for _ in range(2)]
    weights.append(torch.nn.Parameter(torch.randn(6, 1, 2, 2, 1)))
    grads = [torch.randn_like(w) for w in weights]
    alone = [torch.nn.Parameter(w.detach().clone()) for w in weights]
    for parameters in (weights, *([p] for p in alone)):
        for parameter in parameters:
            index = next(i for i, w in enumerate((*weights, *alone)) if w is parameter) % 3
            parameter.grad = grads[index].clone()
        Muon(parameters).step()
    for together, single in zip(weights, alone, strict=True):
        torch.testing.assert_close(together, single)


def test_muon_learns_the_same_whatever_the_order_of_a_kernel_in_memory() -> None:
    torch.manual_seed(0)
    start, grads = torch.randn(6, 4, 3, 3, 3), torch.randn(2, 6, 4, 3, 3, 3)
    found: list[torch.Tensor] = []
    for layout in (torch.contiguous_format, torch.channels_last_3d):
        weight = torch.nn.Parameter(start.clone(memory_format=layout))
        optimiser = Muon([weight], lr=0.1)
        for grad in grads:
            weight.grad = grad.clone(memory_format=layout)
            optimiser.step()
        assert weight.is_contiguous(memory_format=layout)
        found.append(weight.detach())
    torch.testing.assert_close(found[0], found[1])


def test_first_and_last_layers_stay_with_adamw() -> None:
    names = dict(toy_model().named_parameters())
    adam = {n for n, p in names.items() if p.ndim >= 2 and not is_muon_parameter(n, p)}
    assert {"encoder.stem.weight", "decoder.hyper.2.weight", "decoder.kinds.weight"} <= adam
    assert is_muon_parameter("encoder.res2.conv.weight", names["encoder.res2.conv.weight"])


@pytest.fixture(scope="module")
def bank() -> TrainingBank:
    return TrainingBank([toy_case(0), toy_case(2, has_image=False)], device="cpu")


def trainer(bank: TrainingBank, output: Path, **changes: object) -> Trainer:
    generator = replace(recipe("debug").generator, num_shapes=1, num_painted=1, num_real=1)
    config = replace(recipe("debug"), generator=generator, **changes)  # type: ignore[arg-type]
    return Trainer(toy_model(), bank, config, output=output)


def curve(folder: Path) -> list[float]:
    lines = (folder / "log.jsonl").read_text().splitlines()
    return [json.loads(line)["loss"] for line in lines]


def test_compiling_leaves_the_layout_of_convolutions_alone(
    bank: TrainingBank, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[dict[str, object]] = []

    def note(function: object, **how: object) -> object:
        asked.append(how)
        return function

    monkeypatch.setattr(torch, "compile", note)
    config = replace(recipe("debug"), compile=True, inlined_reads=6)
    trainer(bank, tmp_path)
    assert not asked  # nothing is compiled on a CPU
    loop._compile(len, config=config)
    assert asked == [
        {
            "dynamic": False,
            "options": {"realize_reads_threshold": 6, "layout_optimization": False},
        }
    ]


def test_interrupted_run_equals_an_unbroken_one(bank: TrainingBank, tmp_path: Path) -> None:
    whole = trainer(bank, tmp_path / "whole")
    whole.fit()
    first = trainer(bank, tmp_path / "broken")
    first.num_steps = 2  # the schedule is that of four steps up to here: warm-up
    for _ in range(2):
        first.train_step(first.draw_for_step(first.step), first.num_rounds(first.step))
        first.step += 1
    first.num_steps = 4
    first.save()
    second = trainer(bank, tmp_path / "broken")
    second.resume(tmp_path / "broken" / CHECKPOINT)
    second.fit()
    assert curve(tmp_path / "broken") == curve(tmp_path / "whole")[2:]
    for ours, theirs in zip(second.parameters, whole.parameters, strict=True):
        assert torch.equal(ours, theirs)
    for ours, theirs in zip(second.ema, whole.ema, strict=True):
        assert torch.equal(ours, theirs)


def test_resumed_state_lies_in_memory_as_the_weights_do(bank: TrainingBank, tmp_path: Path) -> None:
    first = trainer(bank, tmp_path)
    first.model.to(memory_format=torch.channels_last_3d)
    first.train_step(first.draw_for_step(0), 0)
    first.save()
    second = trainer(bank, tmp_path)
    second.model.to(memory_format=torch.channels_last_3d)
    second.resume(tmp_path / CHECKPOINT)
    for optimiser in second.optimisers:
        for weight, state in optimiser.state.items():
            grids = [value for value in state.values() if value.ndim]
            assert {grid.stride() for grid in grids} <= {weight.stride()}
    second.train_step(second.draw_for_step(1), 0)


def test_run_leaves_its_config_and_averaged_weights(bank: TrainingBank, tmp_path: Path) -> None:
    run = trainer(bank, tmp_path, num_steps=1)
    run.fit()
    assert json.loads((tmp_path / "run.json").read_text())["config"]["num_steps"] == 1
    tensors, facts = load_state(tmp_path / "averaged")
    assert set(tensors) == {name for name, _ in run.model.named_parameters()}
    assert facts["step"] == 1


def test_non_finite_gradient_changes_nothing(bank: TrainingBank, tmp_path: Path) -> None:
    run = trainer(bank, tmp_path, weight_decay=0.0)
    before = [p.detach().clone() for p in run.parameters]
    drawn = run.draw_for_step(0)
    drawn.axis_matrices[:] = torch.nan
    run.train_step(drawn, 0)
    assert int(run.num_skipped) == 1
    assert all(torch.equal(a, b) for a, b in zip(before, run.parameters, strict=True))


def test_rates_warm_up_hold_and_fall_to_zero() -> None:
    config = RunConfig(num_steps=1000, warmup_steps=100, decay_share=0.2)
    factors = [rate_factor(step, 1000, config) for step in (0, 99, 500, 799, 900, 1000)]
    assert factors == pytest.approx([0.01, 1, 1, 1, 0.5, 0])
    assert rate_factor(5000, None, config) == 1


def test_bad_configs_say_what_to_do() -> None:
    with pytest.raises(ConfigError, match="num_steps or positive minutes"):
        RunConfig(minutes=0)
    with pytest.raises(ConfigError, match="compile_mode must be one of default, reduce-overhead"):
        RunConfig(compile_mode="fast")
    with pytest.raises(ConfigError, match="8 entries at most"):
        PromptConfig(round_shares=(0.1,) * 10)
    with pytest.raises(ConfigError, match="must be one of debug, default"):
        recipe("fast")


def test_state_splits_large_tensors_and_finds_damage(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fastsam3d.train.state.PIECE_BYTES", 8192)
    tensors = {"a": torch.randn(70, 100), "b": torch.arange(5), "c": torch.tensor(2.5)}
    save_state(tmp_path / "x", tensors, {"step": 3})
    pieces = sorted((tmp_path / "x").glob("piece-*"))
    assert len(pieces) >= 3
    loaded, facts = load_state(tmp_path / "x")
    assert facts == {"step": 3}
    assert all(torch.equal(loaded[name], tensors[name]) for name in tensors)
    pieces[1].write_bytes(pieces[1].read_bytes()[:-1])
    with pytest.raises(CheckpointError, match=r"piece-01\.safetensors is missing or damaged"):
        load_state(tmp_path / "x")
    with pytest.raises(CheckpointError, match="No checkpoint was found"):
        load_state(tmp_path / "y")
