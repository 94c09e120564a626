"""A program that is killed in the middle of its work loses at most the prompt it was at."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from fastsam3d.session import Study
from tests.session.test_study_file import VOLUME, make_session

WORK = """
import sys
from fastsam3d.prompts import Point
from fastsam3d.session import Study
from tests.session.test_study_file import VOLUME, make_session
study = Study(make_session(), VOLUME, autosave=sys.argv[1])
ball = study.add_object()
for n in range(1000):
    study.add(ball, Point.voxel((8 + n % 8, 12, 12), positive=n % 3 != 2))
    print(n + 1, flush=True)
"""


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="no SIGKILL on this system")
def test_a_killed_program_loses_at_most_the_latest_prompt(tmp_path: Path) -> None:
    path, root = tmp_path / "a.study", Path(__file__).parent.parent.parent
    command = [sys.executable, "-c", WORK, str(path)]
    environment = {**os.environ, "PYTHONPATH": f"{root / 'src'}{os.pathsep}{root}"}
    with subprocess.Popen(command, stdout=subprocess.PIPE, env=environment, text=True) as worker:
        assert worker.stdout is not None
        told = [int(worker.stdout.readline()) for _ in range(5)]
        worker.send_signal(signal.SIGKILL)
        told += [int(line) for line in worker.stdout if line.endswith("\n")]
    assert worker.returncode == -signal.SIGKILL
    study = Study.load(path, make_session(), VOLUME)
    (item,) = study.objects
    assert told[-1] <= len(item.log) <= told[-1] + 1
    assert study.replay() == ()
