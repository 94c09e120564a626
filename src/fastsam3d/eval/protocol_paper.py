"""The protocol "paper": what the published scripts of SAM-Med3D and FastSAM3D measure.

An ORACLE UPPER BOUND, kept for comparison only: the volume is cut to a cube of 128 voxels of
1.5 mm around the centre of the truth, so that the truth decides where to look and how large the
object may appear; parts of the object outside are not scored; and after n clicks the best of the n
results counts, which a user cannot know. The first click is a random voxel of the structure, later
ones are uniform in the mistakes. Scores are taken in the cube.

Two things differ from the scripts: clicks go to a segmenter as they do everywhere else, so that a
model sees all clicks so far (the scripts pass the newest one), and a session may look at a part of
the cube (with voxels of 1.5 mm).

Source: validation.py of github.com/arcadelab/FastSAM3D (commit 4c83a88) with its
utils/data_loader.py and utils/click_method.py (function get_next_click3D_torch_2), and
github.com/uni-medical/SAM-Med3D.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import numpy as np

from fastsam3d.eval.boxed import BoxedMask
from fastsam3d.eval.protocol import user_rng
from fastsam3d.eval.runner import play_clicks
from fastsam3d.eval.scoring import PlayedTarget, TargetScorer, result_row
from fastsam3d.prompts import Point
from fastsam3d.prompts.simulate import next_click
from fastsam3d.volume import Geometry, Region, Volume

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator

    from fastsam3d.eval.cases import EvalCase
    from fastsam3d.eval.protocol import InteractionProtocol, Target
    from fastsam3d.eval.results import ResultRow
    from fastsam3d.eval.runner import Clicker, ClickSegmenter
    from fastsam3d.preprocess.roi import Roi

CROP_SPACING_MM = 1.5
CROP_SIZE = 128


@dataclass(frozen=True, eq=False, kw_only=True)
class TruthCrop:
    """The cube around a truth.

    Attributes:
        volume: Float32, (128, 128, 128), axes nearest to RAS; 0 outside of the scan.
        truth: The structure in it, never empty.
        roi: Where it lies in the case's volume.
        geometry: Of the case's volume.
    """

    volume: Volume = field(repr=False)
    truth: BoxedMask = field(repr=False)
    roi: Roi
    geometry: Geometry

    def in_case(self, click: Point) -> Point:
        """Return a click in the cube as the nearest voxel of the case's volume."""
        from fastsam3d.preprocess.roi import roi_to_voxel  # noqa: PLC0415 - loads torch

        at = np.rint(roi_to_voxel(click.position, self.geometry, self.roi))
        last = np.asarray(self.geometry.shape) - 1
        return Point.voxel(np.clip(at, 0, last).tolist(), positive=click.positive)


def crop_around(volume: Volume, truth: BoxedMask, *, size: int = CROP_SIZE) -> TruthCrop:
    """Cut the cube around the middle of a structure's box.

    Args:
        volume: The scan.
        truth: The structure on its grid.
        size: Side of the cube in voxels.
    """
    from fastsam3d.preprocess.roi import Roi, cut_roi, roi_to_voxel  # noqa: PLC0415 - loads torch

    middle = (np.add(truth.region.start, truth.region.stop) - 1) / 2
    roi = Roi.around(middle, volume.geometry, CROP_SPACING_MM, size)
    image, is_scan = (part[0, 0].numpy() for part in cut_roi(volume.array, volume.geometry, roi))
    share = cut_roi(truth.whole().view(np.uint8), volume.geometry, roi)[0][0, 0].numpy()
    share = np.where(is_scan, share, 0.0)
    # A structure thinner than the cube's voxels keeps those that hold most of it.
    inside = share >= min(0.5, float(share.max()))
    corners = volume.geometry.voxel_to_world(
        roi_to_voxel(np.concatenate([np.zeros((1, 3)), np.eye(3)]), volume.geometry, roi)
    )
    affine = np.eye(4)
    affine[:3, :3] = (corners[1:] - corners[0]).T
    affine[:3, 3] = corners[0]
    cube = Volume(
        np.where(is_scan, image, np.float32(0)), Geometry(image.shape, affine), volume.modality
    )
    mask = BoxedMask.of(cube.shape, Region((0, 0, 0), cube.shape), inside)
    return TruthCrop(volume=cube, truth=mask, roi=roi, geometry=volume.geometry)


def play_case(
    segmenter: ClickSegmenter,
    case: EvalCase,
    protocol: InteractionProtocol,
    *,
    done: Collection[tuple[int, int, int]] = (),
) -> Iterator[list[PlayedTarget]]:
    """Play all targets of a case that are not done, each in its own cube.

    Args:
        segmenter: Gets the cube and points.
        case: Volume and truth.
        protocol: Targets, number of clicks and seeds.
        done: Label, component and seed of targets to leave out.

    Yields:
        One target at a time; row n holds the best result of the clicks 1 to n.
    """
    for target in protocol.targets(case):
        pending = [s for s in protocol.seeds if (target.label, target.component, s) not in done]
        if not pending:
            continue
        crop = crop_around(case.volume, target.truth)
        segmenter.set_volume(crop.volume)
        scorer = TargetScorer(crop.truth, crop.volume.geometry.spacing)
        for seed in pending:
            segmenter.reset()
            yield [_play_target(segmenter, case, target, crop, protocol, seed=seed, scorer=scorer)]


def _play_target(
    segmenter: ClickSegmenter,
    case: EvalCase,
    target: Target,
    crop: TruthCrop,
    protocol: InteractionProtocol,
    *,
    seed: int,
    scorer: TargetScorer,
) -> PlayedTarget:
    clicker = _random_clicker(crop, user_rng(seed, case, target))
    states = list(play_clicks(segmenter, crop.truth, clicker, num_clicks=protocol.num_clicks))
    rows: list[ResultRow] = []
    best, best_mask = None, states[0].mask
    for state in states:
        click = None if state.click is None else crop.in_case(state.click)
        row = result_row(case, target, seed, replace(state, click=click), scorer=scorer)
        if best is None or row.dice > best.dice:
            best, best_mask = row, state.mask
        rows.append(_with_scores(row, best))
    return PlayedTarget(
        rows=rows,
        volume=crop.volume,
        truth=crop.truth,
        mask=best_mask,
        clicks=tuple(state.click for state in states if state.click is not None),
    )


def _random_clicker(crop: TruthCrop, rng: np.random.Generator) -> Clicker:
    spacing = crop.volume.geometry.spacing
    return lambda mask, truth: next_click(mask, truth, spacing, placement="uniform", rng=rng)


def _with_scores(row: ResultRow, best: ResultRow) -> ResultRow:
    return replace(
        row,
        dice=best.dice,
        nsd_1mm=best.nsd_1mm,
        nsd_2mm=best.nsd_2mm,
        hd95_mm=best.hd95_mm,
        mask_ml=best.mask_ml,
        quality=best.quality,
    )
