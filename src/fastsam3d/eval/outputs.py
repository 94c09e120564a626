"""What an evaluation left behind, read back; and its one-file form for ``benchmarks/``."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

from fastsam3d.errors import DatasetError
from fastsam3d.eval.curves import arrange
from fastsam3d.eval.evaluation import RESULTS_FILE, RUN_FILE, SUMMARY_FILE
from fastsam3d.eval.results import read_rows
from fastsam3d.eval.summary import summary_from_json, write_json

if TYPE_CHECKING:
    from pathlib import Path

    from fastsam3d.eval.results import ResultRow
    from fastsam3d.eval.summary import Summary

EXPORT_FORMAT = 1
_DECIMALS = 4


@dataclass(frozen=True, kw_only=True)
class Record:
    """A run and its figures.

    Attributes:
        run: Content of ``run.json``.
        summary: Its figures.
    """

    run: dict[str, Any]
    summary: Summary

    @property
    def is_oracle(self) -> bool:
        """Whether the protocol gives upper bounds only."""
        return bool(self.run["protocol"]["is_oracle"])


def read_json(path: Path) -> dict[str, Any]:
    """Read one JSON object.

    Raises:
        DatasetError: The file is missing or holds something else.
    """
    try:
        content: Any = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DatasetError(f"Could not read {path} ({error}); finish the evaluation.") from error
    if not isinstance(content, dict):
        raise DatasetError(f"{path} does not hold a JSON object; finish the evaluation.")
    return cast("dict[str, Any]", content)


def model_name(run: dict[str, Any]) -> str:
    """Return what was evaluated in a run, as ``run.json`` names it."""
    options = run["options"]
    mirrors = options.get("mirrors", 1)  # records of earlier versions know none
    name = str(options["model"]) + (f", {mirrors} mirror images" if mirrors > 1 else "")
    return name + (", no image" if options["zero_image"] else "")


def read_output(output_dir: Path) -> tuple[Record, list[ResultRow]]:
    """Read the folder of a finished evaluation.

    Raises:
        DatasetError: A file is missing or damaged.
    """
    record = Record(
        run=read_json(output_dir / RUN_FILE),
        summary=summary_from_json(read_json(output_dir / SUMMARY_FILE)),
    )
    return record, read_rows(output_dir / RESULTS_FILE)


def export_run(output_dir: Path, path: Path) -> None:
    """Write run, summary and every target's curves to one JSON file.

    Curves hold Dice and NSD at 2 mm after every round, rounded to four decimals, so that figures
    can be recomputed; clicks and times of single rounds stay in ``results.jsonl``.

    Raises:
        DatasetError: The evaluation is not finished, or a file is damaged.
    """
    run, summary = read_json(output_dir / RUN_FILE), read_json(output_dir / SUMMARY_FILE)
    summary_from_json(summary)  # refuses what could not be read back
    curves = arrange(read_rows(output_dir / RESULTS_FILE))
    targets = [
        {
            "case": case,
            "label": label,
            "component": component,
            "seed": seed,
            "structure": place.structure,
            "subject": place.subject,
            "dice": [round(float(v), _DECIMALS) for v in curves.scores["dice"][number]],
            "nsd_2mm": [round(float(v), _DECIMALS) for v in curves.scores["nsd_2mm"][number]],
        }
        for number, ((case, label, component, seed), place) in enumerate(
            zip(curves.targets, curves.places, strict=True)
        )
    ]
    content = {"format": EXPORT_FORMAT, "run": run, "summary": summary, "targets": targets}
    write_json(path, content)


def read_export(path: Path) -> Record:
    """Read a file that `export_run` wrote.

    Raises:
        DatasetError: The file is missing, damaged or of another format.
    """
    content = read_json(path)
    if content.get("format") != EXPORT_FORMAT:
        raise DatasetError(
            f"{path} is no exported evaluation of format {EXPORT_FORMAT}; export it again with "
            "fastsam3d results-table --export."
        )
    return Record(run=content["run"], summary=summary_from_json(content["summary"]))
