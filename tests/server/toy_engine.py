"""An engine of toy size in a process of its own, which goes wrong when a file tells it to."""

import os
import signal
import time
from pathlib import Path

from fastsam3d.server.engine_child import Engine
from fastsam3d.server.engine_process import EngineProcess
from fastsam3d.server.host import ModelFacts, ModelHost
from fastsam3d.session import Predictor
from tests.session.phantoms import BrightModel

TARGET = "tests.server.toy_engine:create"


class FragileModel(BrightModel):
    """Does once, instead of decoding, what the file's text says."""

    def __init__(self, orders):
        super().__init__()
        self.orders = orders

    def decode_masks(self, *args, **options):
        if self.orders.exists():
            order = self.orders.read_text()
            self.orders.unlink()
            if order == "hang":
                time.sleep(60)
            if order == "memory":
                raise MemoryError("no memory left")
            if order == "bug":
                raise ValueError("a bug")
            os.kill(os.getpid(), signal.Signals[order])
        return super().decode_masks(*args, **options)


def create(options):
    return Engine(FragileModel(Path(options["orders"])))


def toy_engine(orders, **options):
    return EngineProcess(TARGET, {"orders": str(orders)}, **options)


def isolated_host(settings, orders):
    """A host of the toy model in a process of its own."""
    engine = toy_engine(orders, timeout_s=settings.predict_timeout_s)
    facts = ModelFacts(name="toy", id="0" * 64, license="Apache-2.0")
    return ModelHost(Predictor(engine), facts, settings)
