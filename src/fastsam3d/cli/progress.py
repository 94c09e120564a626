"""What is being done, on stderr, so that stdout stays clean for results."""

import sys
from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import Any


@contextmanager
def show_progress(first: str) -> Generator[Callable[[str], None], None, None]:
    """Show a spinner on stderr while the block runs; silent where stderr is no terminal.

    Args:
        first: What is done first, such as ``"Reading scan.nii.gz"``.

    Yields:
        A function that replaces the text by the next step.
    """
    if not sys.stderr.isatty():
        yield _say_nothing  # rich would be silent too, and take 0.1 s to load
        return
    from rich.console import Console

    with Console(stderr=True).status(first) as status:
        yield status.update


def _say_nothing(_: str) -> None:
    return


@contextmanager
def show_training(title: str) -> Generator[Callable[[dict[str, Any]], None], None, None]:
    """Show a bar of training steps on stderr, with loss and ROIs per second.

    Args:
        title: What is trained.

    Yields:
        A function that takes the lines of the run's log, see `fastsam3d.train.runlog`.
    """
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
    )

    from fastsam3d.train.runlog import Throughput

    rate = Throughput()
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[figures]}"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task(title, total=None, figures="first steps")

        def update(line: dict[str, Any]) -> None:
            speed = rate.update(line)
            figures = f"loss {line['loss']:.3f}"
            if speed is not None:
                figures += f", {speed:.3g} ROIs/s"
            bar.update(task, completed=line["step"], total=line["num_steps"], figures=figures)

        yield update
