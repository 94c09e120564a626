"""Embeddings on disk: what was encoded once, in any session, is read back instead.

Off by default: embeddings are made of patients' images and stay on disk as long as the folder does.

An entry is found by the content of what the encoder sees (the cut and normalised ROI), the weights
and the software, so it does not matter in which file, session or process the ROI came up, and a
large volume costs no more than a small one. Its file is called after its key and the checksum of
its bytes: what was damaged, or cut off, does not match its name, is deleted and made again. Files
appear whole under their name, so any number of processes may share a folder, and may be killed.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import time
import uuid
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, cast

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save

import fastsam3d
from fastsam3d.errors import ConfigError
from fastsam3d.model.embedding import ImageEmbedding
from fastsam3d.session.predictor import Predictor

if TYPE_CHECKING:
    from torch import Tensor

    from fastsam3d.session.predictor import PromptableModel, RoiConfig

DEFAULT_DISK_BYTES: Final = 8 * 2**30
"""About eighty float32 embeddings of `hr_s`."""
_FORMAT: Final = 1
_SUFFIX: Final = ".safetensors"
_PART_SUFFIX: Final = ".part"
_SIZE_NAME: Final = "image_size"
_DEAD_PART_S: Final = 3600.0
"""A file that has been under way for longer than this was left by a killed process."""
_MAX_WAITING: Final = 4
"""Embeddings that wait for the disk in memory; of a disk that is slower some are not kept."""
_log = logging.getLogger(__name__)
# Writing takes a third of the time of encoding, and nobody waits for it but the end of the process.
_writer = ThreadPoolExecutor(1, "fastsam3d-disk-cache")


class DiskCache:
    """A bounded folder of embeddings, least recently used out first; for any number of processes.

    Trouble with the folder after the constructor costs time only: it is logged and the embedding
    is made again.

    Args:
        folder: Made if it does not exist, readable by its owner alone.
        max_bytes: Bound of all files; while an entry is written, one more.

    Raises:
        ConfigError: The folder cannot be made, or `max_bytes` is not positive.
    """

    def __init__(self, folder: Path, max_bytes: int = DEFAULT_DISK_BYTES) -> None:
        if max_bytes < 1:
            message = f"Disk cache must hold at least 1 byte, got {max_bytes}; give e.g. 2**33."
            raise ConfigError(message)
        self.folder, self.max_bytes = Path(folder), max_bytes
        try:
            self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as error:
            message = f"Cache folder {folder} cannot be made ({error.strerror}); choose another."
            raise ConfigError(message) from error
        self._waiting: set[Future[None]] = set()

    def get(self, key: str) -> ImageEmbedding | None:
        """Return an embedding on the CPU and mark it as just used; None without a sound one."""
        for path in self.folder.glob(f"{key}-*{_SUFFIX}"):
            try:
                data = path.read_bytes()
                if _file_name(key, data) == path.name:
                    os.utime(path)
                    return _unpacked(data)
            except (OSError, SafetensorError, ValueError) as error:
                _log.info("Entry %s cannot be used: %s", path.name, error)
            # Of no use to anyone; another process may have deleted it first.
            with contextlib.suppress(OSError):
                path.unlink()
        return None

    def put(self, key: str, embedding: ImageEmbedding) -> None:
        """Keep an embedding soon, at the cost of those not used for longest; see `flush`."""
        self._waiting = {future for future in self._waiting if not future.done()}
        if len(self._waiting) < _MAX_WAITING:
            self._waiting.add(_writer.submit(self._write, key, embedding.to("cpu")))

    def flush(self) -> None:
        """Wait until everything is on disk."""
        for future in self._waiting:
            future.result()

    def _write(self, key: str, embedding: ImageEmbedding) -> None:
        data = _packed(embedding)
        if len(data) > self.max_bytes:
            return
        part = self.folder / f"{uuid.uuid4().hex}{_PART_SUFFIX}"
        try:
            with os.fdopen(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as raw:
                raw.write(data)
            part.replace(self.folder / _file_name(key, data))
            self._evict()
        except OSError as error:
            _log.warning("An embedding could not be kept in %s: %s", self.folder, error)
            with contextlib.suppress(OSError):
                part.unlink()

    def _evict(self) -> None:
        """Delete what is too much, oldest first, and what killed processes left."""
        found: list[tuple[float, int, Path]] = []
        for path in self.folder.iterdir():
            with contextlib.suppress(OSError):  # deleted meanwhile by another process
                status = path.stat()
                if path.suffix == _SUFFIX:
                    found.append((status.st_mtime, status.st_size, path))
                elif path.suffix == _PART_SUFFIX and time.time() - status.st_mtime > _DEAD_PART_S:
                    path.unlink()
        excess = sum(size for _, size, _ in found) - self.max_bytes
        for _, size, path in sorted(found):
            if excess <= 0:
                break
            with contextlib.suppress(OSError):
                path.unlink()
            excess -= size


class StoredEncoder:
    """A model whose embeddings are looked up on disk first; has the interface of a model.

    Args:
        model: What encodes and decodes.
        cache: Where embeddings are kept.
        model_id: Tells the weights apart.
    """

    def __init__(self, model: PromptableModel, cache: DiskCache, model_id: str) -> None:
        self.model, self.cache = model, cache
        self._facts = (_FORMAT, fastsam3d.__version__, torch.__version__, model_id)

    @property
    def config(self) -> RoiConfig:
        """The model's config."""
        return self.model.config

    def encode_image(self, image: Tensor) -> ImageEmbedding:
        """Embed ROIs, shape (B, 1, I, J, K), encoding in one batch those that are not on disk."""
        keys = [self._key(one) for one in image]
        found = [self.cache.get(key) for key in keys]
        missing = [n for n, embedding in enumerate(found) if embedding is None]
        if missing:
            made = self.model.encode_image(image[missing] if len(missing) < len(keys) else image)
            if len(keys) == 1:
                self.cache.put(keys[0], made)
                return made
            for n, number in enumerate(missing):
                found[number] = made.select(n)
                self.cache.put(keys[number], made.select(n))
        whole = [embedding.to(image.device) for embedding in found if embedding is not None]
        return _joined(whole)

    def decode_masks(
        self, embedding: ImageEmbedding, points: Tensor, labels: Tensor, **options: Any
    ) -> tuple[Tensor, Tensor]:
        """Return logits (B, M, S, S, S) and predicted quality (B, M), as the model does."""
        return self.model.decode_masks(embedding, points, labels, **options)

    def _key(self, roi_1IJK: Tensor) -> str:
        # Rounding may depend on all of these; an embedding from disk is the one made here.
        facts = (
            *self._facts,
            type(self.model).__name__,
            roi_1IJK.device.type,
            torch.get_num_threads(),
            str(roi_1IJK.dtype),
            tuple(roi_1IJK.shape),
        )
        digest = hashlib.blake2b(repr(facts).encode(), digest_size=20)
        digest.update(cast("Any", roi_1IJK.detach().cpu().contiguous()).numpy().data)
        return digest.hexdigest()


def with_disk_cache(
    predictor: Predictor, folder: Path, max_bytes: int = DEFAULT_DISK_BYTES
) -> Predictor:
    """Return a predictor with the same answers that keeps its embeddings on disk.

    Args:
        predictor: Shared, not changed.
        folder: See `DiskCache`.
        max_bytes: See `DiskCache`.

    Raises:
        ConfigError: As `DiskCache`.
    """
    stored = StoredEncoder(predictor.model, DiskCache(folder, max_bytes), predictor.model_id)
    return Predictor(
        stored, predictor.preprocessing, device=predictor.device, model_id=predictor.model_id
    )


def _file_name(key: str, data: bytes) -> str:
    return f"{key}-{hashlib.sha256(data).hexdigest()}{_SUFFIX}"


def _packed(embedding: ImageEmbedding) -> bytes:
    """Return a safetensors file; names tell number and memory order of the tensors."""
    tensors = {_SIZE_NAME: torch.tensor(embedding.image_size)}
    for number, tensor in enumerate((embedding.tokens, *embedding.skips)):
        # Kept in its memory order, since later arithmetic may round by it.
        order = sorted(range(tensor.ndim), key=lambda axis: -tensor.stride(axis))
        name = f"{number}.{''.join(map(str, order))}"
        tensors[name] = tensor.detach().permute(order).contiguous()
    return save(tensors)


def _unpacked(data: bytes) -> ImageEmbedding:
    stored = load(data)
    image_size = int(stored.pop(_SIZE_NAME))
    tensors: list[Tensor] = []
    for name in sorted(stored, key=lambda name: int(name.split(".")[0])):
        order = [int(axis) for axis in name.split(".")[1]]
        tensors.append(stored[name].permute([order.index(axis) for axis in range(len(order))]))
    return ImageEmbedding(tensors[0], tuple(tensors[1:]), image_size)


def _joined(parts: list[ImageEmbedding]) -> ImageEmbedding:
    if len(parts) == 1:
        return parts[0]
    skips = tuple(torch.cat(each) for each in zip(*(part.skips for part in parts), strict=True))
    return ImageEmbedding(torch.cat([part.tokens for part in parts]), skips, parts[0].image_size)
