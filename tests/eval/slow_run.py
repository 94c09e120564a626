"""An evaluation of toy cases that takes its time, to be killed in the middle.

Run as `python -m tests.eval.slow_run PACK OUTPUT JOBS SECONDS_PER_CLICK`.
"""

import functools
import sys
import time
from pathlib import Path

from fastsam3d.eval.baselines import BallSegmenter
from fastsam3d.eval.evaluation import EvaluationOptions, Outcome, evaluate
from fastsam3d.eval.protocol import InteractionProtocol
from fastsam3d.prompts import Point
from fastsam3d.segmenter import Prediction


class SlowBall(BallSegmenter):
    def __init__(self, seconds: float) -> None:
        super().__init__(3.0)
        self.seconds = seconds

    def add_point(self, point: Point) -> Prediction:  # type: ignore[override]
        time.sleep(self.seconds)
        return super().add_point(point)


def run(pack: Path, output: Path, *, jobs: int = 1, seconds: float = 0.0) -> Outcome:
    protocol = InteractionProtocol(num_clicks=3, placement="jitter", seeds=(0, 1))
    options = EvaluationOptions(cases=pack, model="slow ball", protocol=protocol)
    make = functools.partial(SlowBall, seconds)
    return evaluate(options, output, jobs=jobs, segmenter=make, command=["toy", "run"])


if __name__ == "__main__":
    pack, output, jobs, seconds = sys.argv[1:]
    run(Path(pack), Path(output), jobs=int(jobs), seconds=float(seconds))
