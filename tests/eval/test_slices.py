"""A 2-D model carried through a volume: order of slices, prompts, stopping; SAM at toy size."""

from pathlib import Path

import numpy as np
import pytest

from fastsam3d.errors import CheckpointError
from fastsam3d.eval.baselines.sam2d import HuggingFaceSam, create_sam2d
from fastsam3d.eval.baselines.slices import (
    MAX_EMBEDDINGS,
    SliceBySlice,
    SlicePrompts,
    slice_axis,
    with_slice_before,
)
from fastsam3d.prompts import Box
from fastsam3d.volume import Geometry, Volume
from tests.session.phantoms import ball_truth, dice

SHAPE, SPACING, CENTRE_MM = (30, 28, 12), (1.0, 1.0, 3.0), (15.0, 14.0, 18.0)


class ThresholdSam:
    """Marks bright pixels in the box less those clicked as background; remembers its calls."""

    def __init__(self, quality: float = 0.9) -> None:
        self.warnings = ("made up",)
        self.quality = quality
        self.encoded = 0
        self.asked: list[SlicePrompts] = []

    def encode(self, image):
        self.encoded += 1
        return image

    def decode(self, embedding, shape, prompts):
        assert embedding.shape == shape
        self.asked.append(prompts)
        mask = embedding > 0.5
        if prompts.box is not None:
            r0, c0, r1, c1 = (round(v) for v in prompts.box)
            kept = np.zeros_like(mask)
            kept[max(r0, 0) : r1 + 1, max(c0, 0) : c1 + 1] = True
            mask &= kept
        for (row, column), is_positive in zip(prompts.points, prompts.is_positive, strict=True):
            if not is_positive:
                mask[int(row) - 2 : int(row) + 3, int(column) - 2 : int(column) + 3] = False
        return mask, self.quality


def ball() -> Volume:
    geometry = Geometry(SHAPE, np.diag([*SPACING, 1.0]))
    return Volume((ball_truth(geometry, CENTRE_MM) * 900).astype(np.int16), geometry)


def make(model: ThresholdSam, **options) -> SliceBySlice:
    segmenter = SliceBySlice(model, **options)
    segmenter.set_volume(ball())
    return segmenter


def test_a_click_on_one_slice_is_carried_to_the_ends_of_the_object() -> None:
    model = ThresholdSam()
    prediction = make(model).add_point((15, 14, 6))
    truth = ball_truth(ball().geometry, CENTRE_MM)

    assert dice(prediction.mask.array, truth) > 0.9
    assert prediction.predicted_quality == pytest.approx(0.9)
    assert prediction.warnings == ("made up",)
    assert prediction.encode_ms > 0
    assert model.asked[0].box is None
    assert all(prompts.box is not None for prompts in model.asked[1:])


def test_slices_lie_across_the_largest_spacing_else_across_head_feet() -> None:
    assert slice_axis(ball()) == 2
    cube = np.zeros((4, 4, 4), np.uint8)
    thick = Volume(cube, Geometry(cube.shape, np.diag([5.0, 1.0, 1.0, 1.0])))
    assert slice_axis(thick) == 0
    affine = np.array([[1, 0, 0, 0], [0, 0, 1, 0], [0, 1, 0, 0], [0, 0, 0, 1.0]])
    assert slice_axis(Volume(cube, Geometry(cube.shape, affine))) == 1


def test_embeddings_are_reused_by_later_clicks_and_bounded() -> None:
    model = ThresholdSam()
    segmenter = make(model)
    segmenter.add_point((15, 14, 6))
    before = model.encoded
    again = segmenter.add_point((15, 16, 6))

    assert model.encoded == before <= MAX_EMBEDDINGS
    assert again.encode_ms == 0.0


def test_a_negative_click_counts_on_its_slice() -> None:
    segmenter = make(ThresholdSam())
    assert segmenter.add_point((15, 14, 6)).mask.array[18, 14, 7]
    assert not segmenter.add_point((18, 14, 7), positive=False).mask.array[18, 14, 7]


def test_a_slice_that_the_model_doubts_ends_the_object() -> None:
    model = ThresholdSam(quality=0.2)
    mask = make(model).add_point((15, 14, 6)).mask.array
    assert np.flatnonzero(mask.any(axis=(0, 1))).tolist() == [6]
    assert len(model.asked) == 3


def test_for_time_a_fixed_number_of_slices_is_asked_whatever_the_masks() -> None:
    model = ThresholdSam(quality=0.0)
    make(model, max_slices=2, is_for_time=True).add_point((15, 14, 6))
    assert len(model.asked) == 5


def test_a_box_bounds_the_slices() -> None:
    model = ThresholdSam()
    mask = make(model).add_box(Box.voxel((8, 8, 5), (24, 24, 8))).mask.array
    assert np.flatnonzero(mask.any(axis=(0, 1))).tolist() == [5, 6, 7]
    assert model.asked[0].box == (8.0, 8.0, 23.0, 23.0)


def test_the_neighbour_is_asked_with_box_and_deepest_point() -> None:
    before = np.zeros((20, 30), bool)
    before[4:15, 10:13] = True
    none = SlicePrompts(points=np.zeros((0, 2)), is_positive=np.zeros(0, bool))
    prompts = with_slice_before(none, before)

    assert prompts.box == pytest.approx((4 - 0.55, 10 - 0.15, 14 + 0.55, 12 + 0.15))
    assert prompts.points[0, 1] == 11
    assert before[tuple(prompts.points[0].astype(int))]
    assert prompts.is_positive.tolist() == [True]


@pytest.fixture(scope="module")
def toy_sam():
    transformers = pytest.importorskip("transformers")
    part = {"hidden_size": 16, "image_size": 64, "patch_size": 16}
    config = transformers.SamConfig(
        vision_config={
            **part,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
            "output_channels": 16,
            "num_pos_feats": 8,
            "window_size": 2,
            "mlp_dim": 16,
        },
        prompt_encoder_config={**part, "mask_input_channels": 4},
        mask_decoder_config={
            "hidden_size": 16,
            "num_attention_heads": 2,
            "mlp_dim": 16,
            "iou_head_hidden_dim": 16,
        },
    )
    return transformers.SamModel(config).eval()


def test_sam_sees_coordinates_as_columns_and_rows_of_its_square(toy_sam) -> None:
    given: dict = {}

    def record(_module, _args, named) -> None:
        given.update(named)

    hook = toy_sam.register_forward_pre_hook(record, with_kwargs=True)
    sam = HuggingFaceSam(toy_sam)
    embedding = sam.encode(np.random.default_rng(0).random((20, 32), np.float32))
    prompts = SlicePrompts(
        points=np.array([[3.0, 10.0]]), is_positive=np.array([True]), box=(2.0, 4.0, 9.0, 15.0)
    )
    mask, quality = sam.decode(embedding, (20, 32), prompts)
    hook.remove()

    assert embedding.shape[-2:] == (4, 4)
    assert mask.shape == (20, 32)
    assert np.isfinite(quality)
    assert given["input_points"].flatten().tolist() == [20.5, 6.5]
    assert given["input_boxes"].flatten().tolist() == [8.0, 4.0, 32.0, 20.0]


def test_sam_comes_from_the_users_folder(toy_sam, tmp_path: Path) -> None:
    toy_sam.save_pretrained(tmp_path)
    segmenter = create_sam2d(str(tmp_path))
    segmenter.set_volume(ball())
    prediction = segmenter.add_point((15, 14, 6))

    assert prediction.warnings == ()
    assert prediction.mask.shape == SHAPE
    with pytest.raises(CheckpointError, match=r"config.json and model\.safetensors"):
        create_sam2d(str(tmp_path / "nowhere"))
