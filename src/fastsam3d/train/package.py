"""Turn a run's averaged weights into a weights file: ``python -m fastsam3d.train.package RUN OUT``.

The card gets the sources and licences of the training pack, so that nobody has to type them.
"""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from fastsam3d.errors import DatasetError, FastSAM3DError
from fastsam3d.model.card import Preprocessing, WeightsCard
from fastsam3d.model.checkpoint import save_checkpoint
from fastsam3d.train.config import SCRIBBLE_TAIL, architecture_of
from fastsam3d.train.degrade import FOCUS_HALF_WIDTH_HU
from fastsam3d.train.drawing import SESSION_SPACING_MM
from fastsam3d.train.loop import AVERAGED
from fastsam3d.train.pack import read_index
from fastsam3d.train.state import load_state

# One spacing: measured on the development cases, choosing among several by the quality that this
# short a training teaches the model is worse than always 1.1 mm (docs/training/log.md).
SPACINGS_MM = (SESSION_SPACING_MM,)
# Sources with share-alike terms are named with their licence in the card's list of training data.
WEIGHTS_LICENCE = "Apache-2.0"


def package(
    run: Path,
    output: Path,
    *,
    pack: Path,
    int8: bool = False,
    notes: str = "",
    name: str | None = None,
    licence: str = WEIGHTS_LICENCE,
    start: WeightsCard | None = None,
) -> WeightsCard:
    """Write the averaged weights of a run with their card.

    Args:
        run: Folder of a training run.
        output: Weights file, ``.safetensors``.
        pack: The training pack of the run, for sources and licences.
        int8: Store matrices as int8 with one scale per output channel.
        notes: Kept in the card.
        name: Of the weights; by default that of the variant.
        licence: Of the weights.
        start: Card of the weights that the run began with; its sources and spacings are kept.

    Returns:
        The card as written.

    Raises:
        CheckpointError: The run has no averaged weights, or the target cannot be written.
        DatasetError: The pack is missing, damaged or not the one that the run was trained on.
    """
    tensors, facts = load_state(run / AVERAGED)
    _check_pack(pack, facts)
    run_config = facts["config"]
    config = architecture_of(run_config)
    earlier = () if start is None else start.training_data
    card = WeightsCard(
        name=name or config.name,
        architecture=config,
        preprocessing=Preprocessing(
            normalisation="roi_percentile_zscore",
            image_size=config.image_size,
            spacings_mm=SPACINGS_MM if start is None else start.preprocessing.spacings_mm,
            scribble_points=_scribble_points(run_config, start),
            ct_window_hu=_ct_window(run_config, start),
        ),
        licence=licence,
        training_data=tuple(dict.fromkeys((*earlier, *training_sources(pack)))),
        sha256="0" * 64,
        created=datetime.now(UTC).date().isoformat(),
        quantisation="int8" if int8 else "none",
        notes=notes,
    )
    return save_checkpoint({name: value.float() for name, value in tensors.items()}, output, card)


def _scribble_points(config: dict[str, Any], start: WeightsCard | None) -> int:
    if config["prompts"].get("share_scribble"):
        return 1 + SCRIBBLE_TAIL
    return 1 if start is None else start.preprocessing.scribble_points


def _ct_window(config: dict[str, Any], start: WeightsCard | None) -> float | None:
    if start is not None:
        return start.preprocessing.ct_window_hu
    degrade = config["generator"]["degrade"]
    is_windowed = degrade["share_window"] or degrade.get("share_focus")  # older runs: no such field
    return FOCUS_HALF_WIDTH_HU if is_windowed else None


def training_sources(pack: Path) -> tuple[str, ...]:
    """Return one line per source of a pack: name, modality, cases, licence."""
    counts = Counter(
        (case["source"], case["modality"], case["licence"]) for case in read_index(pack)["cases"]
    )
    real = [
        f"{source} ({modality}): {count} cases, {licence}"
        for (source, modality, licence), count in sorted(counts.items())
    ]
    return ("synthetic shapes and painted label maps (generated)", *real)


def _check_pack(pack: Path, facts: dict[str, Any]) -> None:
    """Refuse a pack that would put other sources on the card than the run has seen."""
    trained, given = str(facts.get("data_sha256")), str(read_index(pack)["sha256"])
    if given != trained:
        msg = (
            f"The run was trained on a pack of sha256 {trained[:12]}, {pack.name} has "
            f"{given[:12]}; give the pack that the run was trained on."
        )
        raise DatasetError(msg)


def main(arguments: list[str] | None = None) -> int:
    """Package the weights of a run; see ``--help``."""
    parser = argparse.ArgumentParser(prog="python -m fastsam3d.train.package", description=__doc__)
    parser.add_argument("run", type=Path, help="folder of a training run")
    parser.add_argument("output", type=Path, help="weights file, .safetensors")
    parser.add_argument("--pack", type=Path, required=True, help="train_pack.npz of the run")
    parser.add_argument("--int8", action="store_true", help="store matrices as int8")
    parser.add_argument("--notes", default="", help="kept in the card")
    options = parser.parse_args(arguments)
    try:
        card = package(
            options.run, options.output, pack=options.pack, int8=options.int8, notes=options.notes
        )
    except FastSAM3DError as error:
        sys.stderr.write(f"{error}\n")
        return 1
    sys.stdout.write(f"{options.output} sha256 {card.sha256}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
