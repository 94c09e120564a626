"""``fastsam3d export``: models for programs that are not Python, or without this package."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from cyclopts import App, Parameter

from fastsam3d.cli.progress import show_progress
from fastsam3d.cli.usage import Flag
from fastsam3d.errors import ConfigError

app = App(name="export", help="Write models in other formats.")


@app.command
def onnx(
    *,
    output: Annotated[Path, Parameter(name=["--output", "-o"])],
    model: str = "hr_s",
    force: Flag = False,
) -> None:
    """Write encoder.onnx, decoder.onnx and model.json, for onnxruntime alone; float32.

    Args:
        output: The folder to write to; it is made if need be.
        model: Name of a model or path of a .safetensors file.
        force: Replace files of an earlier export.
    """
    if (output / "model.json").exists() and not force:
        raise ConfigError(f"{output} holds an export; choose another folder or add --force.")
    with show_progress(f"Exporting {model}"):
        from fastsam3d.model.onnx_export import export_onnx
        from fastsam3d.model.registry import load_card, load_model

        card = load_card(model)
        network = load_model(model)
        output.mkdir(parents=True, exist_ok=True)
        files = export_onnx(
            network, output, preprocessing=card.preprocessing, weights_sha256=card.sha256
        )
    print(f"Wrote {files.encoder}, {files.decoder} and {files.facts.name}")
