"""Embeddings at hand: least recently used out first, bounded by bytes."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from typing import TYPE_CHECKING

from fastsam3d.errors import ConfigError

if TYPE_CHECKING:
    from fastsam3d.preprocess.roi import Roi
    from fastsam3d.session.predictor import EncodedRoi

# About eight float32 embeddings of `hr_s`.
DEFAULT_MAX_BYTES = 1024**3


@dataclass(frozen=True)
class EmbeddingKey:
    """What an embedding depends on.

    Attributes:
        volume_id: One volume of one process.
        roi: What was cut.
        model_id: Which weights.
    """

    volume_id: int
    roi: Roi
    model_id: str


class EmbeddingCache:
    """A bounded map of embeddings; not for several threads at once.

    Args:
        max_bytes: Bound of the memory of all embeddings; 0 keeps none.

    Raises:
        ConfigError: `max_bytes` is negative.
    """

    def __init__(self, max_bytes: int = DEFAULT_MAX_BYTES) -> None:
        if max_bytes < 0:
            message = f"Cache must hold at least 0 bytes, got {max_bytes}; give e.g. 2**30."
            raise ConfigError(message)
        self.max_bytes = max_bytes
        self._entries: OrderedDict[EmbeddingKey, EncodedRoi] = OrderedDict()

    def __len__(self) -> int:
        """Return the number of embeddings."""
        return len(self._entries)

    @property
    def num_bytes(self) -> int:
        """Memory held by all embeddings."""
        return sum(entry.embedding.num_bytes for entry in self._entries.values())

    def get(self, key: EmbeddingKey) -> EncodedRoi | None:
        """Return an embedding and mark it as just used; None when it is not at hand."""
        if key in self._entries:
            self._entries.move_to_end(key)
        return self._entries.get(key)

    def put(self, key: EmbeddingKey, encoded: EncodedRoi) -> None:
        """Keep an embedding, at the cost of those not used for longest."""
        self._entries[key] = encoded
        self._entries.move_to_end(key)
        while self._entries and self.num_bytes > self.max_bytes:
            self._entries.popitem(last=False)

    def clear(self) -> None:
        """Forget all embeddings."""
        self._entries.clear()
