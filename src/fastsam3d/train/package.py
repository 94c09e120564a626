"""Turn a run's averaged weights into a weights file: ``python -m fastsam3d.train.package RUN OUT``.

The card gets the sources and licences of the training pack, so that nobody has to type them.
"""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

from fastsam3d.errors import FastSAM3DError
from fastsam3d.model.card import Preprocessing, WeightsCard
from fastsam3d.model.checkpoint import save_checkpoint
from fastsam3d.model.registry import find_config
from fastsam3d.train.loop import AVERAGED
from fastsam3d.train.pack import read_index
from fastsam3d.train.state import load_state

# One spacing: measured on the development cases, choosing among several by the quality that this
# short a training teaches the model is worse than always 1.1 mm (docs/training/log.md).
SPACINGS_MM = (1.1,)
# Sources with share-alike terms are named with their licence in the card's list of training data.
WEIGHTS_LICENCE = "Apache-2.0"


def package(run: Path, output: Path, *, pack: Path, int8: bool, notes: str) -> WeightsCard:
    """Write the averaged weights of a run with their card.

    Args:
        run: Folder of a training run.
        output: Weights file, ``.safetensors``.
        pack: The training pack of the run, for sources and licences.
        int8: Store matrices as int8 with one scale per output channel.
        notes: Kept in the card.

    Returns:
        The card as written.

    Raises:
        CheckpointError: The run has no averaged weights, or the target cannot be written.
    """
    tensors, facts = load_state(run / AVERAGED)
    run_config = facts["config"]
    config = replace(find_config(run_config["model"]), image_size=run_config["generator"]["size"])
    card = WeightsCard(
        name=config.name,
        architecture=config,
        preprocessing=Preprocessing(
            normalisation="roi_percentile_zscore",
            image_size=config.image_size,
            spacings_mm=SPACINGS_MM,
        ),
        licence=WEIGHTS_LICENCE,
        training_data=training_sources(pack),
        sha256="0" * 64,
        created=datetime.now(UTC).date().isoformat(),
        quantisation="int8" if int8 else "none",
        notes=notes,
    )
    return save_checkpoint({name: value.float() for name, value in tensors.items()}, output, card)


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
