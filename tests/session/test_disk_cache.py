"""Embeddings on disk: the answers of a session without them, whatever happens to the folder."""

import os
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from fastsam3d.errors import ConfigError
from fastsam3d.model.embedding import ImageEmbedding
from fastsam3d.preprocess.roi import Roi
from fastsam3d.session import Predictor, Session
from fastsam3d.session.disk_cache import DiskCache, with_disk_cache
from tests.session.phantoms import BrightModel, ball_volume

CLICK = (30, 30, 30)


def embedding(seed: int = 0, *, side: int = 4) -> ImageEmbedding:
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randn(1, 3, side, side, side, generator=generator)
    skip = torch.randn(1, 2, 5, 6, 7, generator=generator, dtype=torch.float64).bfloat16()
    return ImageEmbedding(tokens, (skip.to(memory_format=torch.channels_last_3d),), 32)


def assert_equal(found: ImageEmbedding | None, expected: ImageEmbedding) -> None:
    assert found is not None
    assert found.image_size == expected.image_size
    pairs = zip((found.tokens, *found.skips), (expected.tokens, *expected.skips), strict=True)
    for one, other in pairs:
        assert one.dtype == other.dtype
        assert one.stride() == other.stride()
        assert torch.equal(one, other)


def kept(cache: DiskCache, key: str, value: ImageEmbedding) -> Path:
    cache.put(key, value)
    cache.flush()
    (path,) = cache.folder.glob(f"{key}-*")
    return path


def test_values_types_and_memory_order_come_back(tmp_path):
    kept(DiskCache(tmp_path), "a", embedding())
    assert_equal(DiskCache(tmp_path).get("a"), embedding())
    assert DiskCache(tmp_path).get("b") is None


def test_the_folder_is_for_its_owner_alone(tmp_path):
    path = kept(DiskCache(tmp_path / "new"), "a", embedding())
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700


@pytest.mark.parametrize("damage", ["flip", "cut", "empty", "other content"])
def test_damaged_entries_are_deleted_and_made_again(tmp_path, damage):
    cache = DiskCache(tmp_path)
    path = kept(cache, "a", embedding())
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    other = kept(cache, "b", embedding(1)).read_bytes()
    path.write_bytes({"flip": data, "cut": data[:-9], "empty": b"", "other content": other}[damage])
    assert cache.get("a") is None
    assert not path.exists()
    kept(cache, "a", embedding())
    assert_equal(cache.get("a"), embedding())


def test_the_least_recently_used_goes_first(tmp_path):
    size = kept(DiskCache(tmp_path), "a", embedding()).stat().st_size
    cache = DiskCache(tmp_path, max_bytes=2 * size + 10)
    second = kept(cache, "b", embedding(1))
    os.utime(second, (1, 1))
    assert cache.get("a") is not None
    kept(cache, "c", embedding(2))
    assert cache.get("b") is None
    assert cache.get("a") is not None
    assert sum(path.stat().st_size for path in tmp_path.iterdir()) <= cache.max_bytes


def test_what_exceeds_the_bound_by_itself_is_not_kept(tmp_path):
    cache = DiskCache(tmp_path, max_bytes=100)
    cache.put("a", embedding())
    cache.flush()
    assert not list(tmp_path.iterdir())


def test_a_folder_that_vanishes_costs_time_only(tmp_path):
    cache = DiskCache(tmp_path / "gone")
    cache.folder.rmdir()
    cache.put("a", embedding())
    cache.flush()
    assert cache.get("a") is None


def test_impossible_folders_and_bounds_are_refused(tmp_path):
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(ConfigError, match="cannot be made"):
        DiskCache(tmp_path / "file" / "folder")
    with pytest.raises(ConfigError, match="at least 1 byte"):
        DiskCache(tmp_path, max_bytes=0)


def test_two_writers_of_one_entry_leave_a_sound_one(tmp_path):
    caches = [DiskCache(tmp_path) for _ in range(2)]
    for cache in caches:
        cache.put("a", embedding())
    for cache in caches:
        cache.flush()
    assert len(list(tmp_path.iterdir())) == 1
    assert_equal(caches[0].get("a"), embedding())


WRITER = """
import sys, torch
from pathlib import Path
from fastsam3d.session.disk_cache import DiskCache
from tests.session.test_disk_cache import embedding
cache = DiskCache(Path(sys.argv[1]))
print("ready", flush=True)
while True:
    cache.put("a", embedding(side=64))
    cache.flush()
"""


def test_a_killed_writer_leaves_nothing_that_is_read(tmp_path):
    writer = subprocess.Popen(
        [sys.executable, "-c", WRITER, str(tmp_path)], stdout=subprocess.PIPE, text=True
    )
    assert writer.stdout is not None
    writer.stdout.readline()
    for _ in range(200):
        if list(tmp_path.glob("*.part")):
            break
        time.sleep(0.005)
    os.kill(writer.pid, signal.SIGKILL)
    writer.communicate()
    cache = DiskCache(tmp_path)
    left = [path for path in tmp_path.iterdir() if path.suffix == ".part"]
    for path in left:
        os.utime(path, (1, 1))
    found = cache.get("a")
    assert found is None or torch.equal(found.tokens, embedding(side=64).tokens)
    kept(cache, "b", embedding())
    assert not list(tmp_path.glob("*.part"))


def test_a_session_answers_alike_with_an_empty_and_a_full_cache(tmp_path):
    answers, encoded = [], []
    for folder in (None, tmp_path, tmp_path):
        model = BrightModel()
        session = Session(Predictor(model), disk_cache=folder)
        session.set_volume(ball_volume())
        session.add_point(CLICK)
        answers.append(session.add_point((33, 30, 30), positive=False))
        encoded.append(len(model.encoded))
        if folder is not None:
            session.predictor.model.cache.flush()
    assert encoded[0] == encoded[1] > 0 == encoded[2]
    for answer in answers[1:]:
        assert answer.region == answers[0].region
        assert (answer.region_mask == answers[0].region_mask).all()
        assert answer.predicted_quality == answers[0].predicted_quality


def test_entries_depend_on_content_and_weights_and_not_on_where_it_lies(tmp_path):
    volume, roi = ball_volume(), Roi((30.0, 30.0, 30.0), 1.0, 32)
    counts = []
    for model_id, other in (("a", volume), ("a", ball_volume()), ("b", volume)):
        model = BrightModel()
        predictor = with_disk_cache(Predictor(model, model_id=model_id), tmp_path)
        predictor.embed(other, [roi])
        predictor.model.cache.flush()
        counts.append(len(model.encoded))
    assert counts == [1, 0, 1]
    darker = ball_volume(radius_mm=5.0)
    assert model.encoded == [1]
    predictor.embed(darker, [roi])
    assert model.encoded == [1, 1]


def test_part_of_a_batch_may_be_on_disk(tmp_path):
    model = BrightModel()
    stored = with_disk_cache(Predictor(model), tmp_path).model
    images = torch.randn(3, 1, 32, 32, 32, generator=torch.Generator().manual_seed(0))
    stored.encode_image(images[1:2])
    stored.cache.flush()
    assert torch.equal(stored.encode_image(images).tokens, images)
    assert model.encoded == [1, 2]
