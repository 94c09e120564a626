"""SAM of the transformers library as a slice model; the user brings the weights, or time is all."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

import numpy as np

from fastsam3d.errors import CheckpointError, ConfigError
from fastsam3d.eval.baselines.slices import SliceBySlice

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from fastsam3d.eval.baselines.slices import SlicePrompts

RANDOM = "random"
RANDOM_WARNING = "2-D SAM has random weights: its masks mean nothing, only its time does."
RANDOM_SLICES = 2
"""Slices asked in either direction with random weights, which know no end of the object."""
MEAN, DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class HuggingFaceSam:
    """A ``transformers.SamModel`` behind the two calls of a slice model.

    Slices are shown as grey pictures, fitted into the model's square at the top left.

    Args:
        model: The network, in evaluation mode, on `device`.
        device: Where it is.
        warnings: Passed on with every answer.
    """

    def __init__(self, model: Any, *, device: str = "cpu", warnings: tuple[str, ...] = ()) -> None:
        self.warnings = warnings
        self._model = model
        self._device = device
        self._side = int(model.config.vision_config.image_size)

    def encode(self, image: NDArray[np.float32]) -> Any:
        """Embed a slice (R, C) with intensities of 0 to 1; the result is (1, C', R', C')."""
        import torch  # noqa: PLC0415 - late, as all heavy imports here
        from torch.nn import functional  # noqa: PLC0415

        _, (rows, columns) = self._fit(image.shape)
        grey = cast("Any", torch).from_numpy(np.ascontiguousarray(image))[None, None]
        fitted = functional.interpolate(grey, (rows, columns), mode="bilinear", antialias=True)
        mean, deviation = (torch.tensor(v)[None, :, None, None] for v in (MEAN, DEVIATION))
        picture = (fitted - mean) / deviation
        padded = functional.pad(picture, (0, self._side - columns, 0, self._side - rows))
        with torch.inference_mode():
            return self._model.get_image_embeddings(padded.to(self._device))

    def decode(
        self, embedding: Any, shape: tuple[int, int], prompts: SlicePrompts
    ) -> tuple[NDArray[np.bool_], float]:
        """Return a mask (R, C) and its predicted quality.

        A single click without a box is ambiguous: of three masks that of the best quality counts.
        """
        import torch  # noqa: PLC0415 - late, as all heavy imports here
        from torch.nn import functional  # noqa: PLC0415

        scale, (rows, columns) = self._fit(shape)
        given: dict[str, Any] = {}
        if len(prompts.points):
            # The network adds half a pixel itself.
            at = (prompts.points[:, ::-1] + 0.5) * scale - 0.5
            given["input_points"] = self._tensor(at.copy())[None, None]
            labels = cast("Any", torch).from_numpy(prompts.is_positive.astype(np.int64))
            given["input_labels"] = labels[None, None].to(self._device)
        if prompts.box is not None:
            r0, c0, r1, c1 = prompts.box
            given["input_boxes"] = self._tensor(
                np.array([[c0 * scale, r0 * scale, (c1 + 1) * scale, (r1 + 1) * scale]])
            )[None]
        is_ambiguous = prompts.box is None and len(prompts.points) == 1
        with torch.inference_mode():
            answer = self._model(image_embeddings=embedding, multimask_output=is_ambiguous, **given)
            best = int(answer.iou_scores[0, 0].argmax())
            logits = answer.pred_masks[0, 0, best][None, None].float()
            square = functional.interpolate(logits, (self._side,) * 2, mode="bilinear")
            fitted = square[..., :rows, :columns]
            mask = functional.interpolate(fitted, shape, mode="bilinear")[0, 0] > 0
        return mask.cpu().numpy(), float(answer.iou_scores[0, 0, best])

    def _fit(self, shape: tuple[int, ...]) -> tuple[float, tuple[int, int]]:
        scale = self._side / max(shape)
        return scale, (max(1, round(shape[0] * scale)), max(1, round(shape[1] * scale)))

    def _tensor(self, values: NDArray[np.float64]) -> Any:
        import torch  # noqa: PLC0415 - late, as all heavy imports here

        return cast("Any", torch).from_numpy(values.astype(np.float32)).to(self._device)


def create_sam2d(argument: str, device: str = "cpu") -> SliceBySlice:
    """Make a slice-by-slice SAM.

    Args:
        argument: Folder of a SAM in the format of transformers (config.json and
            model.safetensors), or "random" for a ViT-B with random weights: the word goes with
            its name into every record.
        device: Where to compute; "auto" takes CUDA if there is any.

    Raises:
        ConfigError: No argument, or transformers is not installed.
        CheckpointError: The folder holds no such model.
    """
    from fastsam3d.session.session import choose_device  # noqa: PLC0415 - loads torch

    if not argument:
        raise ConfigError("sam2d needs its weights; write sam2d:FOLDER, or sam2d:random for time.")
    chosen = str(choose_device(cast("Any", device)))
    try:
        from transformers import SamConfig, SamModel  # noqa: PLC0415 - takes seconds
    except ImportError as error:
        raise ConfigError(
            '2-D SAM needs transformers; run pip install "fastsam3d[eval]".'
        ) from error
    kind: Any = SamModel
    if argument == RANDOM:
        # The default spread of random weights, 1e-10, would time arithmetic on near-zeros.
        config = SamConfig(vision_config={"initializer_range": 0.02}, initializer_range=0.02)
        model = HuggingFaceSam(
            kind(config).eval().to(chosen), device=chosen, warnings=(RANDOM_WARNING,)
        )
        return SliceBySlice(model, max_slices=RANDOM_SLICES, is_for_time=True)
    try:
        network = kind.from_pretrained(argument, local_files_only=True, use_safetensors=True)
    except (OSError, ValueError) as error:
        raise CheckpointError(
            f"{argument} holds no SAM in the format of transformers; give a folder with "
            "config.json and model.safetensors."
        ) from error
    return SliceBySlice(HuggingFaceSam(network.eval().to(chosen), device=chosen))
