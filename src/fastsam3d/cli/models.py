"""``fastsam3d models``: what models there are, what a weights file is, and how to make one.

NAME is a registered model or the path of a .safetensors file throughout. Listing and showing load
no torch.
"""

from __future__ import annotations

import json as json_module
from pathlib import Path
from typing import Any, Literal, cast

from cyclopts import App

from fastsam3d.cli.progress import show_progress
from fastsam3d.cli.usage import Flag
from fastsam3d.errors import CheckpointError

app = App(name="models", help="List, inspect, verify and convert models.")


@app.command(name="list")
def list_models(*, json: Flag = False) -> None:
    """List the models and whether their weights ship with the package.

    Args:
        json: Print a JSON list.
    """
    from fastsam3d.model.registry import describe_models

    rows = describe_models()
    if json:
        print(json_module.dumps(rows))
        return
    table = [("name", "family", "layers", "width", "weights", "licence")]
    for row in rows:
        weights = f"{row['weights_bytes'] / 1e6:.1f} MB" if row["has_weights"] else "-"
        name = f"{row['name']} (default)" if row["is_default"] else row["name"]
        size = (str(row["depth"]), str(row["embed_dim"]))
        table.append((name, row["family"], *size, weights, row["licence"] or "-"))
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    for cells in table:
        padded = (cell.ljust(width) for cell, width in zip(cells, widths, strict=True))
        print("  ".join(padded).rstrip())


@app.command
def info(name: str, /, *, json: Flag = False) -> None:
    """Show a model's weights card: architecture, preprocessing, training data, licence.

    Args:
        name: Name of a model or path of a .safetensors file.
        json: Print one JSON object.
    """
    from fastsam3d.model.registry import describe_model

    facts = describe_model(name)
    print(json_module.dumps(facts) if json else "\n".join(_outline(facts)))


@app.command
def verify(name: str, /) -> None:
    """Check that weights are whole, belong to their card and fill their network.

    Args:
        name: Name of a model or path of a .safetensors file.
    """
    with show_progress(f"Verifying {name}"):
        from fastsam3d.model.registry import verify_weights

        facts = verify_weights(name)
    print(
        f"{facts['path']} is sound: {facts['num_parameters']:,} parameters in "
        f"{facts['num_tensors']} tensors, sha256 {facts['sha256']}"
    )


@app.command
def convert(
    source: Path,
    target: Path,
    /,
    *,
    variant: str | None = None,
    residual: Literal["sam_med3d", "fastsam3d"] | None = None,
    decoder_from: Path | None = None,
    force: Flag = False,
) -> None:
    """Convert an official SAM-Med3D or FastSAM3D checkpoint; no pickle code is executed.

    Args:
        source: The official .pth file.
        target: The .safetensors file to write; its card (.json) goes beside it.
        variant: Name of the model that the file must hold; by default it is recognised.
        residual: Order of the blocks' residual, which no file tells; by default that of the
            project that published such a file.
        decoder_from: Official whole-model file that completes a student whose file holds the
            encoder alone.
        force: Replace files that exist.
    """
    for path in (target, target.with_suffix(".json")):
        if path.exists() and not force:
            raise CheckpointError(f"{path} exists; choose another name or add --force.")
    with show_progress(f"Converting {source.name}"):
        from fastsam3d.model.convert import convert_official

        card = convert_official(
            source, target, force_variant=variant, residual=residual, decoder_from=decoder_from
        )
    print(f"Wrote {card.name}: {target} and its card {target.with_suffix('.json').name}")


def _outline(value: object, indent: int = 0) -> list[str]:
    """Lay out nested facts as indented lines."""
    lines: list[str] = []
    for key, item in cast("dict[str, Any]", value).items():
        start = f"{'  ' * indent}{key}:"
        if isinstance(item, dict):
            lines += [start, *_outline(cast("dict[str, Any]", item), indent + 1)]
        elif isinstance(item, list) and any(isinstance(x, str) for x in cast("list[Any]", item)):
            lines += [start, *(f"{'  ' * indent}  - {x}" for x in cast("list[Any]", item))]
        else:
            lines.append(f"{start} {item}")
    return lines
