"""What children of a server may do instead of answering; run in processes of their own."""

import os
import signal
import time
from pathlib import Path

import numpy as np

from fastsam3d.errors import CheckpointError, GeometryError
from fastsam3d.server.read_child import Reader


class BadReader(Reader):
    """Does what the name of the file says; reads any other."""

    def answer(self, request, arrays):
        name = os.path.basename(request["path"])  # noqa: PTH119
        if name == "segfault":
            os.kill(os.getpid(), signal.SIGSEGV)
        if name == "hang":
            time.sleep(60)
        if name == "busy":
            self._allow_cpu()
            while True:
                pass
        if name == "greedy":
            np.ones(2**30, np.uint8)
        if name == "refused":
            raise GeometryError("Affine must be regular, got zeros; correct it.")
        if name == "bug":
            raise ValueError("a bug")
        return super().answer(request, arrays)


def bad_reader(options):
    return BadReader(**options)


class LightEngine:
    """Says that it has encoded; starts without torch, if the weights are there."""

    def __init__(self, weights):
        if not Path(weights).exists():
            raise CheckpointError("The weights are gone; get them again.")
        self.facts = {"name": "light", "image_size": 32, "logits_size": 32}

    def answer(self, request, arrays):
        del request, arrays
        part = {"shape": [1, 1, 1, 1, 1], "dtype": "float32"}
        return {"number": 1, "parts": [part], "image_size": 32}, ()


def light_engine(options):
    return LightEngine(**options)


def never_starts(_options):
    raise GeometryError("It cannot start; change it.")


def dies_at_start(_options):
    os._exit(3)
