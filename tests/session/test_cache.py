"""The embedding cache: exact keys, bounded bytes."""

import pytest
import torch

from fastsam3d.errors import ConfigError
from fastsam3d.model.embedding import ImageEmbedding
from fastsam3d.preprocess.roi import Roi
from fastsam3d.session.cache import EmbeddingCache, EmbeddingKey
from fastsam3d.session.predictor import EncodedRoi


def key(n, model_id="m"):
    return EmbeddingKey(0, Roi((float(n), 0.0, 0.0), 1.0), model_id)


def encoded(num_floats=25):
    return EncodedRoi(ImageEmbedding(torch.zeros(num_floats)), is_blank=False)


def test_embeddings_are_found_by_volume_roi_and_model():
    cache, entry = EmbeddingCache(), encoded()
    cache.put(key(1), entry)
    assert cache.get(key(1)) is entry
    assert cache.get(key(2)) is None
    assert cache.get(key(1, "other")) is None
    assert cache.get(EmbeddingKey(1, key(1).roi, "m")) is None


def test_the_least_recently_used_goes_first():
    cache = EmbeddingCache(max_bytes=200)
    cache.put(key(1), encoded())
    cache.put(key(2), encoded())
    cache.get(key(1))
    cache.put(key(3), encoded())
    assert cache.num_bytes == 200
    assert cache.get(key(2)) is None
    assert cache.get(key(1)) is not None


def test_what_exceeds_the_bound_by_itself_is_not_kept():
    cache = EmbeddingCache(max_bytes=99)
    cache.put(key(1), encoded())
    assert len(cache) == 0


def test_a_negative_bound_is_refused():
    with pytest.raises(ConfigError, match="at least 0 bytes"):
        EmbeddingCache(-1)
