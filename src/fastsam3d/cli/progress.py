"""A line on stderr that says what is being done, so that stdout stays clean for results."""

from collections.abc import Callable, Generator
from contextlib import contextmanager

from rich.console import Console


@contextmanager
def show_progress(first: str) -> Generator[Callable[[str], None], None, None]:
    """Show a spinner on stderr while the block runs; silent where stderr is no terminal.

    Args:
        first: What is done first, such as ``"Reading scan.nii.gz"``.

    Yields:
        A function that replaces the text by the next step.
    """
    with Console(stderr=True).status(first) as status:
        yield status.update
