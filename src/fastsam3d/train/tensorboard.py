"""TensorBoard files from a run's log: while it runs, or later with ``python -m`` this module.

``python -m fastsam3d.train.tensorboard RUN`` serves runs of machines without tensorboard. Needs the
``train`` extra; the training loop does not.
"""

from __future__ import annotations

import argparse
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fastsam3d.errors import ConfigError, FastSAM3DError
from fastsam3d.train.runlog import LOG_FILE, LogLine, Throughput, read_log

if TYPE_CHECKING:
    from types import TracebackType

FOLDER = "tensorboard"
# Where the reader finds a quantity; the others of a line are not curves.
TAGS = {
    "loss": "train/loss",
    "dice_loss": "train/mask_loss",
    "iou": "train/iou",
    "quality_error": "train/quality_error",
    "rate": "run/rate",
    "skipped": "run/skipped_steps",
}
THROUGHPUT_TAG = "run/rois_per_second"


def is_available() -> bool:
    """Return whether tensorboard is installed, without importing it."""
    return find_spec("tensorboard") is not None


class EventWriter:
    """Write log lines as TensorBoard scalars; use as a context manager.

    Steps that a resumed run repeats replace the earlier ones.

    Args:
        run: Folder of the run; events go to ``RUN/tensorboard``.

    Raises:
        ConfigError: tensorboard is not installed.
    """

    def __init__(self, run: Path) -> None:
        if not is_available():
            msg = (
                "TensorBoard files need the tensorboard package; "
                "install it with: pip install 'fastsam3d[train]'."
            )
            raise ConfigError(msg)
        self._folder = run / FOLDER
        self._writer: Any = None
        self._throughput = Throughput()

    def __enter__(self) -> EventWriter:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._writer is not None:
            self._writer.close()

    def __call__(self, line: LogLine) -> None:
        """Write one line."""
        step = int(line["step"])
        if self._writer is None:
            from torch.utils.tensorboard.writer import SummaryWriter  # noqa: PLC0415 - an extra

            self._writer = SummaryWriter(str(self._folder), purge_step=step)
        for name, tag in TAGS.items():
            if name in line:
                self._writer.add_scalar(tag, line[name], step)
        rate = self._throughput.update(line)
        if rate is not None:
            self._writer.add_scalar(THROUGHPUT_TAG, rate, step)


def write_events(run: Path) -> int:
    """Write the whole log of a run as TensorBoard scalars.

    Args:
        run: Folder of the run.

    Returns:
        The number of log lines written.

    Raises:
        ConfigError: tensorboard is not installed, or the run has no log.
    """
    lines = read_log(run / LOG_FILE)
    if not lines:
        raise ConfigError(f"{run} has no line in {LOG_FILE}; give the folder of a training run.")
    with EventWriter(run) as write:
        for line in lines:
            write(line)
    return len(lines)


def main(arguments: list[str] | None = None) -> int:
    """Convert the log of a run; see ``--help``."""
    parser = argparse.ArgumentParser(
        prog="python -m fastsam3d.train.tensorboard", description=__doc__
    )
    parser.add_argument("run", type=Path, help="folder of a training run")
    options = parser.parse_args(arguments)
    try:
        count = write_events(options.run)
    except FastSAM3DError as error:
        sys.stderr.write(f"{error}\n")
        return 1
    sys.stdout.write(f"{count} lines; look with: tensorboard --logdir {options.run}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
