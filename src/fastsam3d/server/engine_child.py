"""Runs the model in a child process, which may crash without the sessions in the server.

Embeddings stay here, under numbers; the parent says when it no longer needs one.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

import torch

from fastsam3d.session import Session

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray
    from torch import Tensor

    from fastsam3d.model.embedding import ImageEmbedding
    from fastsam3d.session.predictor import PromptableModel


def create(options: dict[str, Any]) -> Engine:
    """Load a model.

    Args:
        options: ``model`` and ``device`` as `Session.from_pretrained`; ``threads``, or None for
            torch's choice.

    Raises:
        FastSAM3DError: As `Session.from_pretrained`.
    """
    if options["threads"] is not None:
        torch.set_num_threads(options["threads"])
    predictor = Session.from_pretrained(options["model"], device=options["device"]).predictor
    return Engine(predictor.model, predictor.device)


class Engine:
    """A `child_main.Handler` that encodes and decodes.

    Args:
        model: Does the work.
        device: Where it is.
    """

    def __init__(self, model: PromptableModel, device: torch.device | str = "cpu") -> None:
        self._model = model
        self._device = torch.device(device)
        self._held: dict[int, ImageEmbedding] = {}
        self._last = 0
        config = model.config
        self.facts: dict[str, Any] = {
            "name": config.name,
            "image_size": config.image_size,
            "logits_size": config.logits_size,
        }

    @torch.inference_mode()
    def answer(
        self, request: dict[str, Any], arrays: Sequence[NDArray[Any]]
    ) -> tuple[dict[str, Any], Sequence[NDArray[Any]]]:
        """Encode the one array, or decode prompts on an embedding."""
        self.notice(request)
        tensors = [self._tensor(array) for array in arrays]
        if "decode" not in request:
            return self._encode(tensors[0]), ()
        return {}, self._decode(request, dict(zip(request["names"], tensors, strict=True)))

    def notice(self, request: dict[str, Any]) -> None:
        """Forget embeddings that the parent needs no more."""
        for number in request["free"]:
            self._held.pop(number, None)

    def _encode(self, image: Tensor) -> dict[str, Any]:
        found = self._model.encode_image(image)
        self._last += 1
        self._held[self._last] = found
        parts = [
            {"shape": list(part.shape), "dtype": str(part.dtype).removeprefix("torch.")}
            for part in (found.tokens, *found.skips)
        ]
        return {"number": self._last, "parts": parts, "image_size": found.image_size}

    def _decode(self, request: dict[str, Any], given: dict[str, Tensor]) -> list[NDArray[Any]]:
        embedding = self._held[request["decode"]].tile(request["count"])
        mask = given.get("mask_logits")
        if mask is not None and len(mask) != embedding.batch_size:
            mask = mask.expand(embedding.batch_size, -1, -1, -1, -1)
        logits, quality = self._model.decode_masks(
            embedding,
            given["points"],
            given["labels"],
            boxes=given.get("boxes"),
            mask_logits=mask,
            multimask=request["multimask"],
        )
        return [_array(logits), _array(quality)]

    def _tensor(self, array: NDArray[Any]) -> Tensor:
        return cast("Tensor", cast("Any", torch).from_numpy(array)).to(self._device)


def _array(value: Tensor) -> NDArray[Any]:
    return cast("Any", value.float().cpu()).numpy()
