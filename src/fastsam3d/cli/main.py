"""The ``fastsam3d`` command: a table of commands, each imported only when it is called.

Exit codes: 0 done, 1 a typed error (one sentence on stderr, nothing written), 2 wrong usage.
This module must not import torch, numpy or SimpleITK: ``--help`` has to answer at once.
"""

import sys
from collections.abc import Sequence
from typing import Final, NamedTuple

from cyclopts import App, CycloptsError

import fastsam3d
from fastsam3d.cli.usage import UsageError
from fastsam3d.errors import FastSAM3DError

EXIT_OK: Final = 0
EXIT_ERROR: Final = 1
EXIT_USAGE: Final = 2
EXIT_INTERRUPTED: Final = 130


class Command(NamedTuple):
    """One row of the command table: its word, where it lives, what it does."""

    name: str
    target: str
    help: str


COMMANDS: Final = (
    Command("segment", "fastsam3d.cli.segment:segment", "Segment what you point at in a volume."),
    Command("serve", "fastsam3d.cli.serve:serve", "Serve a page to click in, and other viewers."),
    Command("info", "fastsam3d.cli.info:info", "Show a volume's geometry and intensities."),
    Command("models", "fastsam3d.cli.models:app", "List, inspect, verify and convert models."),
    Command("export", "fastsam3d.cli.export:app", "Write a model as ONNX graphs."),
    Command("train", "fastsam3d.cli.train:train", "Train a model from a pack of cases."),
    Command("distill", "fastsam3d.cli.distill:distill", "Teach a small model what a large knows."),
    Command("bench", "fastsam3d.cli.bench:bench", "Time models: latency, FLOPs, memory."),
    Command("finetune", "fastsam3d.cli.finetune:finetune", "Fine-tune a model on your own cases."),
    Command("evaluate", "fastsam3d.cli.evaluate:evaluate", "Measure models on your own cases."),
    Command("compare", "fastsam3d.cli.compare:compare", "Compare two evaluations, paired."),
    Command(
        "results-table",
        "fastsam3d.cli.results_table:results_table",
        "Write the README's table of results.",
    ),
    Command(
        "predict-npz",
        "fastsam3d.cli.predict_npz:predict_npz",
        "Answer a file of the CVPR 2025 challenge.",
    ),
    Command("demo", "fastsam3d.cli.demo:demo", "Segment the brain MR that nilearn ships."),
)


def build_app() -> App:
    """Build the command tree; no command's module is imported yet.

    Returns:
        The application, ready to be called with the command line's words.
    """
    app = App(
        name="fastsam3d",
        help="Click on a structure in a CT, MR or PET volume and get its mask in 3D.",
        version=fastsam3d.__version__,
        version_flags=["--version"],
        suppress_keyboard_interrupt=False,  # main() turns it into an exit code
    )
    for command in COMMANDS:
        app.command(command.target, name=command.name, help=command.help)
    return app


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command.

    Args:
        arguments: The words after ``fastsam3d``; by default those of this process.

    Returns:
        The exit code: 0 done, 1 typed error, 2 wrong usage, 130 interrupted.
    """
    words = list(sys.argv[1:] if arguments is None else arguments)
    try:
        build_app()(
            words,
            exit_on_error=False,
            result_action="return_value",
        )
    except CycloptsError:
        return EXIT_USAGE  # cyclopts has already printed what was wrong
    except UsageError as error:
        print(f"Usage: {error}", file=sys.stderr)
        return EXIT_USAGE
    except FastSAM3DError as error:
        print(f"Error: {error}", file=sys.stderr)
        return EXIT_ERROR
    except KeyboardInterrupt:
        print("Interrupted.", file=sys.stderr)
        return EXIT_INTERRUPTED
    return EXIT_OK
