"""Mean of weights files: ``python -m fastsam3d.train.mean OUT A B [--shares 0.7 0.3] [--int8]``.

Runs that began with the same weights end in one basin, where the mean of their weights is a model
too, and mostly one that generalises better than each.

Source: model soups (arXiv 2203.05482).
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

from torch import Tensor

from fastsam3d.errors import CheckpointError, ConfigError, FastSAM3DError
from fastsam3d.model.card import WeightsCard
from fastsam3d.model.checkpoint import (
    describe_differences,
    load_state,
    save_checkpoint,
    tensor_shapes,
)


def mean_of_weights(
    paths: Sequence[Path],
    output: Path,
    *,
    shares: Sequence[float] | None = None,
    int8: bool = False,
    notes: str = "",
) -> WeightsCard:
    """Write the weighted mean of weights files of one architecture.

    Args:
        paths: Weights files, ``.safetensors`` with their cards.
        output: Weights file to write.
        shares: Weight of each file, positive, brought to a sum of 1; None for all alike.
        int8: Store matrices as int8 with one scale per output channel.
        notes: Kept in the card, which otherwise is that of the first file, with the training data
            of all of them.

    Returns:
        The card as written.

    Raises:
        CheckpointError: A file is missing, damaged or of another architecture than the first, or
            the target cannot be written.
        ConfigError: There are no files, or not one positive share for each.
    """
    chosen = [1.0] * len(paths) if shares is None else [float(share) for share in shares]
    if not paths or len(chosen) != len(paths) or min(chosen) <= 0:
        msg = f"A mean needs files and a positive share for each, got {len(paths)} and {chosen}."
        raise ConfigError(msg)
    total: dict[str, Tensor] = {}
    cards: list[WeightsCard] = []
    for path, share in zip(paths, chosen, strict=True):
        state, card = load_state(path)
        if cards:
            differences = describe_differences(tensor_shapes(total), tensor_shapes(state))
            if differences:
                msg = f"{path.name} is no model like {paths[0].name}: {differences}; leave it out."
                raise CheckpointError(msg)
        cards.append(card)
        part = share / sum(chosen)
        for name, value in state.items():
            total[name] = part * value.float() + total.get(name, 0.0)
    sources = tuple(dict.fromkeys(line for card in cards for line in card.training_data))
    card = replace(
        cards[0],
        training_data=sources,
        created=datetime.now(UTC).date().isoformat(),
        quantisation="int8" if int8 else "none",
        notes=notes,
    )
    return save_checkpoint(total, output, card)


def main(arguments: list[str] | None = None) -> int:
    """Write a mean of weights files; see ``--help``."""
    parser = argparse.ArgumentParser(prog="python -m fastsam3d.train.mean", description=__doc__)
    parser.add_argument("output", type=Path, help="weights file to write, .safetensors")
    parser.add_argument("weights", type=Path, nargs="+", help="weights files to take the mean of")
    parser.add_argument(
        "--shares", type=float, nargs="+", help="of each file; all alike if left out"
    )
    parser.add_argument("--int8", action="store_true", help="store matrices as int8")
    parser.add_argument("--notes", default="", help="kept in the card")
    options = parser.parse_args(arguments)
    try:
        card = mean_of_weights(
            options.weights,
            options.output,
            shares=options.shares,
            int8=options.int8,
            notes=options.notes,
        )
    except FastSAM3DError as error:
        sys.stderr.write(f"{error}\n")
        return 1
    sys.stdout.write(f"{options.output} sha256 {card.sha256}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
