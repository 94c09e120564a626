"""Measure a model on the development cases: `python -m fastsam3d.eval.dev DATA_DIR --model NAME`.

Runs the whole session, as a user would, on whole volumes in their own grid. With ``--pack`` the
cases come from one file and no image reader is needed. Figures of this module choose between
models; they are never used for training.
"""

from __future__ import annotations

import argparse
import math
import platform
import shlex
import sys
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from fastsam3d.errors import ConfigError
from fastsam3d.eval.baselines import BallSegmenter, BlindModel
from fastsam3d.eval.cases import load_cases
from fastsam3d.eval.folders import find_cases
from fastsam3d.eval.protocol import InteractionProtocol
from fastsam3d.eval.provenance import git_commit
from fastsam3d.eval.results import ResultRow
from fastsam3d.eval.runner import run
from fastsam3d.eval.summary import Summary, summarise, summary_to_json, table, write_json
from fastsam3d.prompts.simulate import PLACEMENTS

if TYPE_CHECKING:
    from collections.abc import Sequence

    from fastsam3d.eval.cases import EvalCase
    from fastsam3d.eval.runner import ClickSegmenter, Row

BALL_RADII_MM = (3.0, 5.0, 8.0, 12.0, 16.0, 20.0, 25.0, 30.0, 36.0, 44.0)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the evaluation; see ``--help``."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    options = _parser().parse_args(given)
    protocol = InteractionProtocol(
        num_clicks=options.clicks,
        placement=options.placement,
        max_targets=options.limit_targets,
        seeds=(options.seed,),
    )
    cases = _cases(options)
    segmenter, described = _segmenter(options, cases, protocol)
    rows = run(segmenter, cases, protocol, on_target=_progress)
    summary = _summary(rows, cases, seed=options.seed)
    provenance = {
        "command": shlex.join(["python", "-m", "fastsam3d.eval.dev", *given]),
        "commit": options.commit or git_commit(Path(__file__).parent),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "device": _device_name(options.device),
        "python": platform.python_version(),
        "seed": options.seed,
        "zero_image": options.zero_image,
        "cases": len(cases),
        **described,
    }
    sys.stdout.write(table(summary) + "\n")
    if options.output is not None:
        content = {
            "provenance": provenance,
            "summary": summary_to_json(summary),
            "rows": [asdict(row) for row in rows],
        }
        write_json(options.output, content)
    return 0


def best_ball_radius(
    cases: Sequence[EvalCase], radii_mm: Sequence[float], protocol: InteractionProtocol
) -> tuple[float, dict[float, list[float]]]:
    """Find the fixed radius whose ball around one click overlaps best, judged by the truth itself.

    Args:
        cases: The cases to be evaluated, so that the baseline is as strong as it can be.
        radii_mm: Candidates.
        protocol: Targets and clicks.

    Returns:
        The best radius for one click, and for every radius the macro Dice after each click.

    Raises:
        ConfigError: There is no candidate.
    """
    if not radii_mm:
        raise ConfigError("No radius to choose from; give at least one.")
    found = {r: _summary(run(BallSegmenter(r), cases, protocol), cases).macro for r in radii_mm}
    return max(found, key=lambda radius: found[radius][0]), found


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m fastsam3d.eval.dev", description=__doc__)
    parser.add_argument("data_dir", type=Path, nargs="?", help="folder with manifest.csv and dev/")
    parser.add_argument("--pack", type=Path, help="read cases from this .npz instead")
    parser.add_argument("--model", default="hr_s", help="name or path of a model")
    parser.add_argument("--baseline", choices=["ball"], help="measure a baseline instead")
    parser.add_argument("--radius-mm", type=float, help="of the ball; default: the best one")
    parser.add_argument("--clicks", type=int, default=5)
    parser.add_argument("--placement", choices=PLACEMENTS, default="centre")
    parser.add_argument("--limit-targets", type=int, help="at most so many structures per case")
    parser.add_argument("--limit-cases", type=int, help="only the first cases")
    parser.add_argument("--sources", nargs="+", help="only cases of these sources")
    parser.add_argument("--zero-image", action="store_true", help="hide the image from the model")
    parser.add_argument("--device", choices=["auto", "cpu", "cuda"], default="cpu")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--commit", help="recorded when git is not at hand")
    parser.add_argument("--output", type=Path, help="JSON with all rows")
    return parser


def _cases(options: argparse.Namespace) -> list[EvalCase]:
    if options.pack is not None:
        cases = load_cases(options.pack)
    elif options.data_dir is not None:
        cases = [case.read() for case in find_cases(options.data_dir, split="dev")]
    else:
        raise ConfigError("Nothing to measure on; give DATA_DIR or --pack.")
    if options.sources:
        cases = [case for case in cases if case.source in options.sources]
    return cases[: options.limit_cases]


def _segmenter(
    options: argparse.Namespace, cases: list[EvalCase], protocol: InteractionProtocol
) -> tuple[ClickSegmenter, dict[str, Any]]:
    described: dict[str, Any]
    if options.baseline == "ball":
        radius, tried = options.radius_mm, {}
        if radius is None:
            radius, tried = best_ball_radius(cases, BALL_RADII_MM, protocol)
        described = {"model": "ball", "radius_mm": radius, "macro_by_radius_mm": tried}
        return BallSegmenter(radius), described
    segmenter = _session(options.model, options.device, is_blind=options.zero_image)
    return segmenter, {"model": str(options.model)}


def _session(model: str, device: str, *, is_blind: bool) -> ClickSegmenter:
    from fastsam3d.session import Session  # noqa: PLC0415 - loads torch

    session = Session.from_pretrained(model, device=cast("Any", device))
    if is_blind:
        session.predictor.model = BlindModel(session.predictor.model)
    return session


def _summary(rows: Sequence[Row], cases: Sequence[EvalCase], *, seed: int = 0) -> Summary:
    """Summarise Dice and times; surfaces are not measured here, so their figures stay undefined."""
    subjects = {case.name: case.subject or case.name for case in cases}
    return summarise([_result(row, subjects[row.case]) for row in rows], seed=seed)


def _result(row: Row, subject: str) -> ResultRow:
    return ResultRow(
        case=row.case,
        subject=subject,
        source=row.source,
        label=row.label,
        component=0,
        structure=row.structure,
        seed=0,
        round=row.round,
        prompt="none" if row.position is None else "point",
        position=row.position,
        positive=row.positive,
        dice=row.dice,
        nsd_1mm=math.nan,
        nsd_2mm=math.nan,
        hd95_mm=None,
        truth_ml=math.nan,
        mask_ml=math.nan,
        encode_ms=row.encode_ms,
        click_ms=row.click_ms,
        spacing_mm=row.spacing_mm,
        quality=row.quality,
    )


def _progress(rows: list[Row]) -> None:
    curve = " ".join(f"{row.dice:.2f}" for row in rows)
    sys.stderr.write(f"{rows[0].case} {rows[0].structure}: {curve}\n")


def _device_name(device: str) -> str:
    if not device.startswith("cuda"):
        return f"{device} ({platform.machine()})"
    import torch  # noqa: PLC0415 - heavy

    return torch.cuda.get_device_name(device)


if __name__ == "__main__":
    sys.exit(main())
