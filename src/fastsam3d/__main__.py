"""``python -m fastsam3d`` is the same as the ``fastsam3d`` command."""

import sys

from fastsam3d.cli.start import run

if __name__ == "__main__":
    sys.exit(run())
