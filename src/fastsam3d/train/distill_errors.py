"""How far students are from their teacher: ``python -m fastsam3d.train.distill_errors``.

Measured on the same rendered ROIs for every student, whatever it was trained on. Widths need not
agree: besides the relative error, which asks for equal features, there is the linear centred kernel
alignment, which asks for the same information up to rotation and scale.

Source: Kornblith et al., "Similarity of neural network representations" (arXiv 1905.00414).
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fastsam3d.errors import FastSAM3DError
from fastsam3d.model.checkpoint import write_atomically
from fastsam3d.train.bank import TrainingBank
from fastsam3d.train.config import recipe
from fastsam3d.train.distill import load_teacher
from fastsam3d.train.distill_losses import feature_error
from fastsam3d.train.distill_schedule import layer_pairs
from fastsam3d.train.drawing import BatchDrawer, GeneratorConfig
from fastsam3d.train.families import Family, family_of
from fastsam3d.train.launch import training_device
from fastsam3d.train.pack import load_pack, read_index
from fastsam3d.train.rendering import Renderer

# Of the ROIs; runs draw theirs from seeds that depend on the step.
SEED = 20_000_003


def layer_errors(student: Family, teacher: Family, images: list[Tensor]) -> list[dict[str, Any]]:
    """Compare the features of two models.

    Args:
        student: The distilled model.
        teacher: The model that it imitated.
        images: Batches of normalised ROIs, each (B, 1, S, S, S).

    Returns:
        One row per pair of layers, then one named ``neck`` for the image embedding: ``error``
        relative to the teacher's norm (None where widths differ) and ``alignment`` in
        0..1, means over batches.
    """
    pairs = layer_pairs(student.model.config.depth, teacher.model.config.depth)
    names = [f"layer{pair.student}" for pair in pairs] + ["neck"]
    found: dict[str, list[tuple[float | None, float]]] = {name: [] for name in names}
    with torch.no_grad():
        for image in images:
            ours, theirs = student.trace(image), teacher.trace(image)
            both = [(ours.blocks[p.student - 1], theirs.blocks[p.teacher - 1]) for p in pairs]
            both.append((_tokens(ours.parts[0]), _tokens(theirs.parts[0])))
            for name, (given, wanted) in zip(names, both, strict=True):
                same = given.shape == wanted.shape
                error = float(feature_error(given, wanted)) if same else None
                found[name].append((error, alignment(given, wanted)))
    partners: list[int | None] = [*(pair.teacher for pair in pairs), None]
    return [
        {
            "name": name,
            "teacher_layer": partner,
            "error": _mean([error for error, _ in found[name]]),
            "alignment": _mean([value for _, value in found[name]]),
        }
        for name, partner in zip(names, partners, strict=True)
    ]


def alignment(student: Tensor, teacher: Tensor) -> float:
    """Return the linear centred kernel alignment of tokens (B, T, C) and (B, T, C')."""
    x, y = (t.double().flatten(0, 1) for t in (student, teacher))
    x, y = x - x.mean(0), y - y.mean(0)
    shared = (x.T @ y).square().sum()
    own = (x.T @ x).square().sum() * (y.T @ y).square().sum()
    return float(shared / own.sqrt().clamp(min=1e-30))


def render_rois(pack: Path, config: GeneratorConfig, device: torch.device) -> list[Tensor]:
    """Render the batch of ROIs that all models are compared on, one ROI at a time.

    Raises:
        DatasetError: The pack is missing, damaged or empty.
    """
    bank = TrainingBank(load_pack(pack), device=device)
    drawn = BatchDrawer(bank, config, seed=SEED).draw().to(device)
    torch.manual_seed(SEED)  # pyright: ignore[reportUnknownMemberType]
    with torch.no_grad():
        return list(Renderer(bank, config).render(drawn).image[:, None])


def main(arguments: list[str] | None = None) -> int:
    """Compare finished students with their teacher; see ``--help``."""
    parser = argparse.ArgumentParser(
        prog="python -m fastsam3d.train.distill_errors", description=__doc__
    )
    parser.add_argument("students", nargs="+", help="averaged folders or .safetensors files")
    parser.add_argument("--teacher", required=True, help="averaged folder, file or name")
    parser.add_argument("--pack", type=Path, required=True, help="train_pack.npz")
    parser.add_argument("--output", type=Path, required=True, help="JSON file to write")
    parser.add_argument("--recipe", default="default", help="whose data mix is used")
    parser.add_argument("--device", default="auto", help="cpu, cuda or auto")
    options = parser.parse_args(arguments)
    try:
        _compare(options)
    except FastSAM3DError as error:
        sys.stderr.write(f"{error}\n")
        return 1
    return 0


def _compare(options: argparse.Namespace) -> None:
    device = training_device(options.device)
    teacher = load_teacher(options.teacher, device)
    images = render_rois(options.pack, recipe(options.recipe).generator, device)
    table: dict[str, Any] = {
        "teacher": teacher.name,
        "teacher_sha256": teacher.sha256,
        "data_sha256": read_index(options.pack)["sha256"],
        "num_rois": len(images),
        "students": {},
    }
    guide = family_of(teacher.model)
    for spec in options.students:
        student = load_teacher(spec, device)
        rows = layer_errors(family_of(student.model), guide, images)
        table["students"][student.name] = {"sha256": student.sha256, "layers": rows}
        shown = ", ".join(f"{r['name']} {r['error']} ({r['alignment']})" for r in rows)
        sys.stdout.write(f"{student.name}: {shown}\n")
    write_atomically(options.output, (json.dumps(table, indent=1) + "\n").encode())


def _tokens(grid: Tensor) -> Tensor:
    return grid.flatten(2).transpose(1, 2)


def _mean(values: list[float] | list[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return round(sum(known) / len(known), 4) if known else None


if __name__ == "__main__":
    sys.exit(main())
