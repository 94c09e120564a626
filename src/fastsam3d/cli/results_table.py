"""``fastsam3d results-table``: the README's results, from committed JSON files."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from fastsam3d.errors import DatasetError

CONFIG = Path("benchmarks/results.json")


def results_table(
    config: Path = CONFIG,
    /,
    *,
    write: Path | None = None,
    export: Annotated[tuple[Path, Path] | None, Parameter(negative="")] = None,
) -> None:
    """Print the table of results that CONFIG describes, or put it into a document.

    Args:
        config: JSON that lists the runs shown and the words around them.
        write: Document whose block between the results marks is replaced, such as README.md.
        export: Instead: an output folder of `fastsam3d evaluate`, and the JSON file to make of it.
    """
    if export is not None:
        from fastsam3d.eval.outputs import export_run

        export_run(*export)
        print(f"Wrote {export[1]}")
        return
    from fastsam3d.eval.results_table import render_results, replace_results

    block = render_results(config)
    if write is None:
        print(block)
        return
    try:
        before = write.read_text(encoding="utf-8")
        after = replace_results(before, block)
        if after != before:
            write.write_text(after, encoding="utf-8")
    except OSError as error:
        raise DatasetError(f"Could not update {write}: {error.strerror}.") from error
    print(f"{'Updated' if after != before else 'Unchanged:'} {write}")
