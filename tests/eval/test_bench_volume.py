"""Times of volumes: what is synthesised, what is measured, what is made of it."""

from pathlib import Path

import numpy as np
import pytest

from fastsam3d.errors import ConfigError
from fastsam3d.eval import bench_volume
from fastsam3d.eval.bench_phantom import ball_centres, synthesise
from fastsam3d.eval.bench_volume import VolumeBenchConfig
from fastsam3d.session import Session
from tests.cli.weights import write_toy_weights
from tests.session.phantoms import fake_predictor


@pytest.fixture
def session() -> Session:
    return Session(fake_predictor())


def test_volumes_of_all_sizes_are_the_same_around_the_click() -> None:
    small, large = synthesise((64, 64, 64)), synthesise((200, 70, 150))
    around = [
        volume.array[tuple(slice(side // 2 - 20, side // 2 + 20) for side in volume.shape)]
        for volume in (small, large)
    ]
    np.testing.assert_array_equal(*around)
    assert around[0][20, 20, 20] > around[0][0].mean() + 100
    assert large.array.dtype == np.int16
    assert large.array.flags.f_contiguous


def test_every_ball_is_bright_at_its_middle() -> None:
    volume = synthesise((128, 128, 40), objects=6)
    centres = ball_centres(volume.shape, 6)
    assert len(set(centres)) == 6
    for i, j, k in centres:
        assert volume.array[i - 2 : i + 3, j, k].mean() > 180


def test_each_size_is_timed_in_each_round(session: Session) -> None:
    config = VolumeBenchConfig(shapes=((48, 48, 48), (64, 48, 80)), rounds=2)
    rows = bench_volume.time_sizes(session, config)
    assert [len(row["samples"]) for row in rows] == [2, 2]
    for row in rows:
        assert 0 < row["encode_ms"] < row["first_ms"]
        assert len(row["samples"][0]["later_ms"]) == bench_volume.LATER_CLICKS
    assert min(bench_volume.spreads(rows).values()) >= 0


def test_the_spread_is_how_much_longer_the_slowest_size_takes() -> None:
    names = ("first_ms", "first_cpu_ms", "later_ms", "later_cpu_ms")
    rows = [dict.fromkeys(names, value) for value in (4.0, 5.0, 4.5)]
    assert bench_volume.spreads(rows) == pytest.approx(dict.fromkeys(names, 0.25))


def test_clicks_and_objects_are_counted(session: Session) -> None:
    assert [row["clicks"] for row in bench_volume.time_clicks(session, 3)] == [1, 2, 3]
    rows = bench_volume.time_objects(session, 2)
    assert [row["objects"] for row in rows] == [1, 2]
    assert min(row["first_ms"] for row in rows) > 0


def test_a_file_is_timed_through_the_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bench_volume, "compile_package", lambda: None)  # takes seconds
    weights = write_toy_weights(tmp_path / "toy.safetensors")
    config = VolumeBenchConfig(model=str(weights), file_shapes=((32, 32, 32),), rounds=1)
    (row,) = bench_volume.time_files(config, tmp_path)
    assert row["bytes"] == 2 * 32**3
    assert row["cpu_s"] > 0
    assert row["peak_bytes"] > 50 * 2**20
    assert row["rise_over_volume"] == 0
    missing = VolumeBenchConfig(model="no_such", file_shapes=((32, 32, 32),), rounds=1)
    with pytest.raises(ConfigError, match="no_such"):
        bench_volume.time_files(missing, tmp_path)


def test_packages_are_compiled_before_they_are_timed(tmp_path: Path) -> None:
    (tmp_path / "module.py").write_text("VALUE = 1\n")
    bench_volume.compile_package(tmp_path)
    assert list(tmp_path.glob("__pycache__/module.*.pyc"))


def test_impossible_runs_are_refused() -> None:
    with pytest.raises(ConfigError, match="at least 1"):
        VolumeBenchConfig(rounds=0)
    with pytest.raises(ConfigError, match="at least 1"):
        VolumeBenchConfig(sessions=(1, 0))
    with pytest.raises(ConfigError, match="8 voxels"):
        VolumeBenchConfig(shapes=((64, 64, 4),))
