"""A fixed-class network as a segmenter: what automatic segmentation does with a click.

`python -m fastsam3d.eval.baselines.unet train CASES OUT` trains a small MONAI U-Net on the labelled
cases of a folder; ``unet:OUT.safetensors`` is then a segmenter. The network labels the whole scan
once; a click selects the component of the class that it predicts there. A structure that was not in
its training has no class, and a click on it finds what the network takes it for, or nothing.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from fastsam3d.errors import CheckpointError, ConfigError
from fastsam3d.eval.baselines.base import Baseline, Clicks, LocalMask
from fastsam3d.volume import Region

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from fastsam3d.volume import Volume

UNET_FORMAT = 1
OVERLAP = 0.25
LOW_PERCENTILE, HIGH_PERCENTILE = 0.5, 99.5


@dataclass(frozen=True, kw_only=True)
class UnetConfig:
    """What is needed to build the network and to feed it; stored beside the weights.

    Attributes:
        classes: Label values in the order of the output channels after background.
        names: What the labels are called, as far as known.
        spacing_mm: Isotropic voxel side that the network works at.
        patch: Side of the patches in voxels, a multiple of 8.
        channels: Widths of the levels, finest first.

    Raises:
        ConfigError: A value is impossible.
    """

    classes: tuple[int, ...]
    names: tuple[str, ...] = ()
    spacing_mm: float = 1.5
    patch: int = 48
    channels: tuple[int, ...] = (16, 32, 64, 128)

    def __post_init__(self) -> None:
        """Check the values."""
        for name in ("classes", "names", "channels"):
            object.__setattr__(self, name, tuple(getattr(self, name)))
        step = 2 ** (len(self.channels) - 1)
        if not self.classes or self.spacing_mm <= 0 or self.patch <= 0 or self.patch % step:
            raise ConfigError(
                f"A U-Net needs classes, a positive spacing and a patch that {step} divides, got "
                f"{self}."
            )


class UnetSegmenter(Baseline):
    """Answers clicks from the class map of a network.

    The mask is the union of the components that were clicked as object. Clicks on background change
    nothing: what such a network got wrong cannot be corrected by pointing at it.

    Args:
        network: Maps (B, 1, S, S, S) to class logits (B, 1 + classes, S, S, S).
        config: How to feed it.
        device: Where it is.
    """

    def __init__(self, network: Any, config: UnetConfig, *, device: str = "cpu") -> None:
        super().__init__()
        self.config = config
        self._network = network
        self._device = device
        # A list, so that copies of this segmenter share the map whichever of them makes it.
        self._classes: list[NDArray[np.uint8]] = []

    def set_volume(self, volume: Volume) -> None:
        """Start anew on a volume, without prompts; it is labelled at the first click."""
        super().set_volume(volume)
        self._classes = []

    def _segment(self, volume: Volume, clicks: Clicks) -> LocalMask:
        begin = time.perf_counter()
        is_new = not self._classes
        if is_new:
            self._classes.append(self._label(volume))
        encode_ms = 1e3 * (time.perf_counter() - begin) if is_new else 0.0
        mask = np.zeros(volume.shape, dtype=np.bool_)
        for voxel in clicks.positive:
            mask |= _component(self._classes[0], tuple(voxel))
        if clicks.box is not None:
            outside = np.ones_like(mask)
            outside[clicks.box.slices] = False
            mask[outside] = False
        known = ", ".join(self.config.names) or str(self.config.classes)
        whole = Region((0, 0, 0), volume.shape)
        warning = f"The fixed-class network finds none of its classes there ({known})."
        return LocalMask(
            region=whole,
            array=mask,
            looked=whole,
            spacing_mm=self.config.spacing_mm,
            encode_ms=encode_ms,
            warnings=() if mask.any() else (warning,),
        )

    def _label(self, volume: Volume) -> NDArray[np.uint8]:
        """Return the class map (I, J, K) of a volume, 0 = background, else 1 + class index."""
        import torch  # noqa: PLC0415 - late, as all heavy imports here
        from monai import inferers  # noqa: PLC0415

        image = cast("Any", torch).from_numpy(to_network(volume, self.config.spacing_mm))
        with torch.inference_mode():
            logits = cast("Any", inferers).sliding_window_inference(
                image[None, None].to(self._device),
                roi_size=(self.config.patch,) * 3,
                sw_batch_size=1,
                predictor=self._network,
                overlap=OVERLAP,
                mode="gaussian",
            )
            labels: NDArray[np.uint8] = logits[0].argmax(0).to(torch.uint8).cpu().numpy()
        return from_network(labels, volume, self.config.spacing_mm)


def to_network(volume: Volume, spacing_mm: float) -> NDArray[np.float32]:
    """Resample a volume to isotropic voxels and normalise it: bulk to mean 0, deviation 1."""
    from scipy import ndimage  # noqa: PLC0415 - late, as all heavy imports here

    array = volume.array.astype(np.float32)
    low, high = (float(v) for v in np.percentile(array, [LOW_PERCENTILE, HIGH_PERCENTILE]))
    array = array.clip(low, high)
    array = (array - float(array.mean())) / max(float(array.std()), 1e-6)
    steps = [spacing_mm / side for side in volume.geometry.spacing]
    return cast("Any", ndimage).affine_transform(
        array,
        np.array(steps),
        offset=[0.5 * step - 0.5 for step in steps],
        output_shape=network_shape(volume, spacing_mm),
        order=1,
        mode="nearest",
    )


def from_network(labels: NDArray[np.uint8], volume: Volume, spacing_mm: float) -> NDArray[np.uint8]:
    """Return labels of the network's grid on the volume's own, by the nearest voxel."""
    index = [
        np.clip(((np.arange(count) + 0.5) * side / spacing_mm).astype(int), 0, length - 1)
        for count, side, length in zip(
            volume.shape, volume.geometry.spacing, labels.shape, strict=True
        )
    ]
    return labels[np.ix_(*index)]


def network_shape(volume: Volume, spacing_mm: float) -> tuple[int, int, int]:
    """Return the shape of a volume in the network's voxels."""
    i, j, k = (
        max(1, round(count * side / spacing_mm))
        for count, side in zip(volume.shape, volume.geometry.spacing, strict=True)
    )
    return (i, j, k)


def build_unet(config: UnetConfig) -> Any:
    """Build the network with random weights.

    Raises:
        ConfigError: MONAI is not installed.
    """
    try:
        from monai.networks import nets  # noqa: PLC0415 - takes seconds
    except ImportError as error:
        message = 'The U-Net needs MONAI; run pip install "fastsam3d[eval]".'
        raise ConfigError(message) from error
    return cast("Any", nets).UNet(
        spatial_dims=3,
        in_channels=1,
        out_channels=1 + len(config.classes),
        channels=config.channels,
        strides=(2,) * (len(config.channels) - 1),
        num_res_units=1,
    )


def save_unet(network: Any, config: UnetConfig, path: Path, facts: dict[str, Any]) -> None:
    """Write weights as ``path`` (.safetensors) and config and facts as .json beside it."""
    from safetensors import torch as safe  # noqa: PLC0415 - loads torch

    state = {
        name: value.detach().cpu().contiguous() for name, value in network.state_dict().items()
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    cast("Any", safe).save_file(state, path)
    content = {"format": UNET_FORMAT, "config": asdict(config), "training": facts}
    path.with_suffix(".json").write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def load_unet(path: Path, device: str = "cpu") -> UnetSegmenter:
    """Make a segmenter of what `save_unet` wrote.

    Raises:
        CheckpointError: A file is missing, damaged or of another format.
        ConfigError: MONAI is not installed.
    """
    from safetensors import SafetensorError  # noqa: PLC0415
    from safetensors import torch as safe  # noqa: PLC0415 - loads torch

    from fastsam3d.session.session import choose_device  # noqa: PLC0415 - loads torch

    chosen = str(choose_device(cast("Any", device)))
    try:
        config = _read_config(path)
        network = build_unet(config)
        network.load_state_dict(cast("Any", safe).load_file(path, device=chosen))
    except (OSError, ValueError, KeyError, TypeError, RuntimeError, SafetensorError) as error:
        raise CheckpointError(
            f"{path} is no U-Net of this package with its JSON beside it; train one with "
            "python -m fastsam3d.eval.baselines.unet train."
        ) from error
    return UnetSegmenter(network.eval().to(chosen), config, device=chosen)


def _read_config(path: Path) -> UnetConfig:
    content = json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))
    if content["format"] != UNET_FORMAT:
        raise ValueError(content["format"])
    return UnetConfig(**content["config"])


def _component(labels: NDArray[np.uint8], voxel: tuple[int, ...]) -> NDArray[np.bool_]:
    """Return the component of the class at a voxel that holds it; empty on background."""
    from scipy import ndimage  # noqa: PLC0415 - late, as all heavy imports here

    if not labels[voxel]:
        return np.zeros(labels.shape, dtype=np.bool_)
    parts = cast("Any", ndimage).label(labels == labels[voxel], np.ones((3, 3, 3)))[0]
    return np.asarray(parts == parts[voxel])


def main(arguments: Sequence[str] | None = None) -> int:
    """Train a U-Net; see ``--help``."""
    from fastsam3d.eval.baselines.unet_train import TrainOptions, train_unet  # noqa: PLC0415

    parser = argparse.ArgumentParser(
        prog="python -m fastsam3d.eval.baselines.unet", description=__doc__
    )
    train = parser.add_subparsers(dest="command", required=True).add_parser("train")
    train.add_argument("cases", type=Path, nargs="+", help="case folders, or folders of them")
    train.add_argument("output", type=Path, help="the .safetensors to write")
    train.add_argument("--names", default="", help='what labels are called: "1=liver; 2=spleen"')
    train.add_argument("--spacing-mm", type=float, default=UnetConfig.spacing_mm)
    train.add_argument("--patch", type=int, default=UnetConfig.patch)
    train.add_argument("--steps", type=int, default=TrainOptions.steps)
    train.add_argument("--minutes", type=float, default=TrainOptions.minutes)
    train.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    train.add_argument("--seed", type=int, default=0)
    options = vars(parser.parse_args(arguments))
    del options["command"]
    facts = train_unet(options.pop("cases"), options.pop("output"), TrainOptions(**options))
    sys.stdout.write(json.dumps(facts) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
