"""Segmenters that a model must beat, and one that takes the image away from a model.

Each answers from the volume and the prompts alone and is a `fastsam3d.segmenter.Segmenter`.
Make them by name with `fastsam3d.eval.segmenters.create_segmenter`.
"""

from fastsam3d.eval.baselines.ball import BallSegmenter
from fastsam3d.eval.baselines.blind import BlindModel
from fastsam3d.eval.baselines.growing import RegionGrowing
from fastsam3d.eval.baselines.walker import RandomWalker
from fastsam3d.eval.baselines.watershed import WatershedBasin

__all__ = ["BallSegmenter", "BlindModel", "RandomWalker", "RegionGrowing", "WatershedBasin"]
