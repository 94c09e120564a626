"""Files that appear under their name only when they are complete."""

from __future__ import annotations

import tempfile
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from fastsam3d.errors import VolumeWriteError

if TYPE_CHECKING:
    from collections.abc import Generator


@contextmanager
def staged(target: Path) -> Generator[Path]:
    """Give a path to write to; what lies there afterwards replaces the target in one step.

    Files made beside that path, such as the data file of a pair, move along, before the target.

    Args:
        target: Where the file shall be, in an existing folder.

    Yields:
        A path of the same name in a scratch folder on the same file system.

    Raises:
        VolumeWriteError: The system refused, or the block raised this error; nothing is left.
    """
    try:
        with tempfile.TemporaryDirectory(prefix=".fastsam3d-", dir=target.parent) as scratch:
            yield Path(scratch) / target.name
            # Data files of pairs first, so that a header never waits for its data.
            for made in sorted(Path(scratch).iterdir(), key=lambda file: file.name == target.name):
                made.replace(target.parent / made.name)
    except (OSError, VolumeWriteError) as error:
        reason = (error.strerror or error) if isinstance(error, OSError) else error
        message = f"Cannot write {target.name!r}: {reason}; check the folder's rights and space."
        raise VolumeWriteError(message) from error
