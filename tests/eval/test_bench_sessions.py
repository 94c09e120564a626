"""Sessions that share a model: each on a volume of its own, timed, and compared with it alone."""

import numpy as np
import pytest

from fastsam3d.eval import bench_sessions
from fastsam3d.eval.bench_sessions import TURNS, own_click, own_volume, time_sessions
from fastsam3d.session import Predictor
from tests.session.phantoms import BrightModel, fake_predictor


@pytest.fixture(autouse=True)
def _small_volumes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench_sessions, "_own_shape", lambda n: (48 + 4 * n, 48, 48))


class ForgetfulModel(BrightModel):
    """Answers every click on the image that it encoded last, whoever clicks."""

    def encode_image(self, image):
        self.last = super().encode_image(image)
        return self.last

    def decode_masks(self, embedding, points, labels, **options):
        del embedding
        return super().decode_masks(self.last, points, labels, **options)


def test_every_session_has_a_volume_and_clicks_of_its_own() -> None:
    volumes = [own_volume(n) for n in range(3)]
    assert len({volume.shape for volume in volumes}) == 3
    near = [volume.array[:40, :40, :40] for volume in volumes]
    assert not np.array_equal(near[0], near[1])
    clicks = [own_click(1, turn) for turn in range(TURNS)]
    assert [click.positive for click in clicks].count(False) == 1
    for click in (click for click in clicks if click.positive):
        i, j, k = (round(index) for index in click.position)
        assert volumes[1].array[i - 1 : i + 2, j - 1 : j + 2, k].mean() > 180


def test_sessions_that_share_a_model_are_timed_and_answer_as_alone() -> None:
    one, three = time_sessions(fake_predictor(), (1, 3), 2)
    assert (one["sessions"], three["sessions"]) == (1, 3)
    assert (one["answers"], three["answers"]) == (2 * TURNS, 2 * 3 * TURNS)
    assert one["mismatches"] == three["mismatches"] == 0
    for row in (one, three):
        assert len(row["samples"]) == 2
        assert min(row["later_cpu_ms"], row["later_ms"], row["first_ms"]) > 0
    assert len(three["samples"][0]["first_ms"]) == 3
    assert len(three["samples"][0]["later_ms"]) == 3 * (TURNS - 1)
    assert three["turn_ms"] > three["later_ms"]


def test_a_model_that_mixes_sessions_up_is_found_out() -> None:
    one, three = time_sessions(Predictor(ForgetfulModel()), (1, 3), 1)
    assert one["mismatches"] == 0
    assert three["mismatches"] > 0


def test_no_sessions_take_no_time() -> None:
    assert time_sessions(fake_predictor(), (), 1) == []
