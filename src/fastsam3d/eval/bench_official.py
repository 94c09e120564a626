"""The published SAM-Med3D and FastSAM3D modules, imported from a local checkout, for timing only.

Nothing of theirs is copied: their three modules are imported from the path as they are, past the
packages' own ``__init__`` files, which load unrelated programs. Weights are random. Sizes are those
of their 128-voxel registry entry and of FastSAM3D's student in its validation script.

Source: SAM-Med3D f3de1fa and FastSAM3D 226dfb5 (both Apache-2.0), read for these facts.
"""

from __future__ import annotations

import importlib
import inspect
import sys
from functools import partial
from types import ModuleType
from typing import TYPE_CHECKING, Any, cast

import torch

from fastsam3d.errors import ConfigError
from fastsam3d.eval.bench_worker import DecodingContender

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor

IMAGE_SIZE = 128
SLICE_SIZE = 1024  # side that 2-D SAM brings every slice to
_PACKAGE = "segment_anything"
_TEACHER: dict[str, Any] = {
    "depth": 12,
    "num_heads": 12,
    "global_attn_indexes": [2, 5, 8, 11],
    "window_size": 14,
}
_STUDENT: dict[str, Any] = {
    "depth": 6,
    "num_heads": 6,
    "global_attn_indexes": [2, 5, 8, 11],
    "window_size": 0,
    "skip_layer": 2,
}


class OfficialContender(DecodingContender):
    """The published network of a checkout: FastSAM3D's student, or SAM-Med3D.

    Args:
        checkout: Folder that holds their ``segment_anything`` package.
        device: Where to compute.

    Raises:
        ConfigError: The folder is no such checkout, or a module that it imports is missing.
    """

    weights = "random"
    image_size = IMAGE_SIZE

    def __init__(self, checkout: Path, device: str) -> None:
        encoder, prompts, decoder = import_official(checkout)
        self.label = "official:fastsam3d_6l" if is_student(encoder) else "official:sam_med3d_b"
        cast("Any", torch).manual_seed(0)  # torch's stub leaves the seed untyped
        self._encoder = encoder(
            **(_STUDENT if is_student(encoder) else _TEACHER),
            embed_dim=768,
            img_size=IMAGE_SIZE,
            mlp_ratio=4,
            norm_layer=partial(torch.nn.LayerNorm, eps=1e-6),
            patch_size=16,
            qkv_bias=True,
            use_rel_pos=True,
            out_chans=384,
        )
        grid = (IMAGE_SIZE // 16,) * 3
        self._prompts = prompts(
            embed_dim=384,
            image_embedding_size=grid,
            input_image_size=(IMAGE_SIZE,) * 3,
            mask_in_chans=16,
        )
        self._decoder = decoder(
            num_multimask_outputs=3,
            transformer_dim=384,
            iou_head_depth=3,
            iou_head_hidden_dim=256,
        )
        parts = [self._encoder, self._prompts, self._decoder]
        self.module = torch.nn.ModuleList(parts).eval().to(device)

    def encode(self, image: Tensor) -> Tensor:
        """Embed an ROI (1, 1, S, S, S)."""
        found: Any = self._encoder(image)
        # FastSAM3D returns all stages; the neck's output is the last.
        return found if isinstance(found, torch.Tensor) else found[-1]

    def decode(
        self, embedding: Tensor, points: Tensor, labels: Tensor, mask_logits: Tensor | None
    ) -> Tensor:
        """Return logits (1, 1, 32, 32, 32) for points (1, N, 3) and the logits before."""
        sparse, dense = self._prompts(points=[points, labels], boxes=None, masks=mask_logits)
        masks, _ = self._decoder(
            image_embeddings=embedding,
            image_pe=self._prompts.get_dense_pe(),
            sparse_prompt_embeddings=sparse,
            dense_prompt_embeddings=dense,
            multimask_output=False,
        )
        return masks


class SliceContender(DecodingContender):
    """The published 2-D SAM with its ViT-B on the middle slice of the ROI.

    A volume of 128 slices asks it 128 times, so its times stand for one 128th of an answer.

    Args:
        checkout: Folder of facebookresearch/segment-anything.
        device: Where to compute.

    Raises:
        ConfigError: The folder is no such checkout, or a module that it imports is missing.

    Source: facebookresearch/segment-anything dca509f (Apache-2.0), sizes of its ViT-B.
    """

    label = "official:sam_vit_b one slice"
    weights = "random"
    image_size = IMAGE_SIZE

    def __init__(self, checkout: Path, device: str) -> None:
        names = ("image_encoder", "prompt_encoder", "mask_decoder", "transformer")
        encoder, prompts, decoder, transformer = import_modules(checkout, names)
        cast("Any", torch).manual_seed(0)  # torch's stub leaves the seed untyped
        width, grid = 256, (SLICE_SIZE // 16,) * 2
        self._encoder = encoder.ImageEncoderViT(
            **_TEACHER,
            embed_dim=768,
            img_size=SLICE_SIZE,
            mlp_ratio=4,
            norm_layer=partial(torch.nn.LayerNorm, eps=1e-6),
            patch_size=16,
            qkv_bias=True,
            use_rel_pos=True,
            out_chans=width,
        )
        self._prompts = prompts.PromptEncoder(
            embed_dim=width,
            image_embedding_size=grid,
            input_image_size=(SLICE_SIZE,) * 2,
            mask_in_chans=16,
        )
        two_way = transformer.TwoWayTransformer(
            depth=2, embedding_dim=width, mlp_dim=2048, num_heads=8
        )
        self._decoder = decoder.MaskDecoder(transformer_dim=width, transformer=two_way)
        parts = [self._encoder, self._prompts, self._decoder]
        self.module = torch.nn.ModuleList(parts).eval().to(device)

    def encode(self, image: Tensor) -> Tensor:
        """Embed the middle slice of an ROI (1, 1, S, S, S)."""
        one = image[:, :, image.shape[2] // 2]
        size = (SLICE_SIZE,) * 2
        scaled = torch.nn.functional.interpolate(one, size=size, mode="bilinear")
        return self._encoder(scaled.expand(-1, 3, -1, -1))

    def decode(
        self, embedding: Tensor, points: Tensor, labels: Tensor, mask_logits: Tensor | None
    ) -> Tensor:
        """Return logits (1, 1, 256, 256) for points (1, N, 3) and the logits before."""
        on_slice = points[..., 1:] * (SLICE_SIZE / IMAGE_SIZE)
        sparse, dense = self._prompts(points=(on_slice, labels), boxes=None, masks=mask_logits)
        masks, _ = self._decoder(
            image_embeddings=embedding,
            image_pe=self._prompts.get_dense_pe(),
            sparse_prompt_embeddings=sparse,
            dense_prompt_embeddings=dense,
            multimask_output=False,
        )
        return masks


def find_contender(checkout: Path, device: str) -> OfficialContender | SliceContender:
    """Return what a checkout publishes: SAM-Med3D, FastSAM3D, or 2-D SAM.

    Raises:
        ConfigError: It is none of them, or a module that it imports is missing.
    """
    folder = checkout / _PACKAGE / "modeling"
    is_flat = not (folder / "image_encoder3D.py").is_file()
    if is_flat and (folder / "image_encoder.py").is_file():
        return SliceContender(checkout, device)
    return OfficialContender(checkout, device)


def is_student(encoder: Any) -> bool:
    """Whether an encoder class is that of FastSAM3D, which can leave attention out."""
    return "skip_layer" in inspect.signature(encoder).parameters


def import_official(checkout: Path) -> tuple[Any, Any, Any]:
    """Import image encoder, prompt encoder and mask decoder of a checkout.

    Their package takes the place of any other of its name in this process: call it in a process
    of its own.

    Raises:
        ConfigError: The folder is no such checkout, or a module that it imports is missing.
    """
    folder = checkout / _PACKAGE / "modeling"
    if not (folder / "image_encoder3D.py").is_file():
        raise ConfigError(
            f"{checkout} holds no {_PACKAGE}/modeling/image_encoder3D.py; give a checkout of "
            "SAM-Med3D or FastSAM3D."
        )
    names = ("image_encoder3D", "prompt_encoder3D", "mask_decoder3D")
    encoder, prompts, decoder = import_modules(checkout, names)
    try:
        found = encoder.ImageEncoderViT3D, prompts.PromptEncoder3D, decoder.MaskDecoder3D
    except AttributeError as error:
        raise ConfigError(
            f"The published code in {checkout} is of another version ({error}); check out "
            "SAM-Med3D f3de1fa or FastSAM3D 226dfb5."
        ) from error
    return found


def import_modules(checkout: Path, names: tuple[str, ...]) -> list[Any]:
    """Import modules of a checkout's ``segment_anything.modeling``, past its ``__init__`` files.

    Raises:
        ConfigError: A module that they import is missing.
    """
    folder = checkout / _PACKAGE / "modeling"
    for name, path in ((_PACKAGE, folder.parent), (f"{_PACKAGE}.modeling", folder)):
        package = ModuleType(name)
        package.__path__ = [str(path)]
        sys.modules[name] = package
    try:
        return [importlib.import_module(f"{_PACKAGE}.modeling.{name}") for name in names]
    except ImportError as error:
        raise ConfigError(
            f"The published code in {checkout} could not be imported ({error}); install what it "
            "asks for."
        ) from error
