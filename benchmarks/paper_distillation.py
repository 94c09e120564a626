"""Put a distillation chain's files together into the one record that the paper's page reads.

    python benchmarks/paper_distillation.py FOLDER --device "NVIDIA H100" --commit 1a2b3c4

FOLDER holds, for every model NAME, the output of ``fastsam3d evaluate`` as ``NAME-dev``, or
``NAME.rows.jsonl``: one line per target with "arm", "case", "source", "structure" and "dice" after
each click. Beside it may lie the run's folder ``NAME`` or, of it, ``NAME.jsonl`` (the log) and
``NAME.run.json``, and ``errors.json`` (from ``python -m fastsam3d.train.distill_errors``). Names
are `MODELS`, in any selection; others are kept under their own name. How the files are made:
docs/training/distillation.md.

Means, intervals and paired differences are those of `fastsam3d.eval`: over targets, structures,
sources; subjects are redrawn within sources. Needs numpy and scipy, no torch.
"""

from __future__ import annotations

import argparse
import json
import shlex
import sys
import zlib
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from fastsam3d.errors import DatasetError
from fastsam3d.eval.comparison import compare_rows
from fastsam3d.eval.evaluation import RESULTS_FILE
from fastsam3d.eval.outputs import read_json
from fastsam3d.eval.provenance import git_commit
from fastsam3d.eval.results import ResultRow
from fastsam3d.eval.results import read_rows as read_results
from fastsam3d.eval.statistics import BOOTSTRAP_DRAWS
from fastsam3d.eval.summary import summarise
from fastsam3d.train.runlog import LOG_FILE, read_log

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence

    from fastsam3d.eval.statistics import Estimate

HERE = Path(__file__).parent
FORMAT = 1
MAX_BYTES = 200_000
MAX_POINTS = 60
ROWS, EVALUATED = ".rows.jsonl", "-dev"
# In the order of the tables; how each is called there.
MODELS = {
    "teacher": "`sam_med3d_b`, the teacher",
    "progressive": "progressive, layer by layer (the paper)",
    "all_layers": "all layers at once",
    "output_only": "output only (the published code)",
    "copy_then_output": "copied blocks, then output",
    "from_scratch": "from scratch, no teacher",
    "hr_s": "`hr_s` of run 6",
}
BASES = ("teacher", "from_scratch")
CLICKS = ("1", "3", "5", "10")
# Of a log; losses of different stages are not one curve.
CURVES = ("iou", "dice_loss", "layers_loss", "neck_error")


def read_rows(path: Path, subjects: Mapping[str, str], *, arm: str) -> list[ResultRow]:
    """Return the rows of one model, one per target and click, ordered by target.

    Args:
        path: ``NAME.rows.jsonl``.
        subjects: Who was scanned, by case.
        arm: Lines of other arms are left out.

    Raises:
        DatasetError: The file is unreadable or empty, names an unknown case, or has a target twice.
    """
    try:
        text = path.read_text(encoding="utf-8")
        lines: list[dict[str, Any]] = [json.loads(line) for line in text.splitlines() if line]
    except (OSError, ValueError) as error:
        raise DatasetError(
            f"Could not read {path} ({error}); bring the file back whole."
        ) from error
    mine = sorted(
        (line for line in lines if line["arm"] == arm),
        key=lambda line: (line["case"], line["structure"]),
    )
    unknown = {line["case"] for line in mine} - subjects.keys()
    if not mine or unknown:
        raise DatasetError(
            f"{path} has {len(mine)} lines of arm {arm!r} and cases without a subject: "
            f"{sorted(unknown)}; give --arm or --subjects."
        )
    rows = [row for line in mine for row in _target_rows(line, subjects[line["case"]])]
    if len({(row.target, row.round) for row in rows}) < len(rows):
        raise DatasetError(f"{path} has a target twice; keep one line of each.")
    return rows


def _label(structure: str) -> int:
    """Return a number for a structure, the same in every model; rows do not tell the file's own."""
    return zlib.crc32(structure.encode())


def _target_rows(line: dict[str, Any], subject: str) -> list[ResultRow]:
    nan = float("nan")
    row = ResultRow(
        case=line["case"],
        subject=subject,
        source=line["source"],
        label=_label(line["structure"]),
        component=0,
        structure=line["structure"],
        seed=0,
        round=0,
        prompt="point",
        position=None,
        positive=None,
        dice=nan,
        nsd_1mm=nan,
        nsd_2mm=nan,
        hd95_mm=None,
        truth_ml=nan,
        mask_ml=nan,
        encode_ms=0.0,
        click_ms=0.0,
        spacing_mm=0.0,
        quality=0.0,
    )
    return [replace(row, round=n, dice=dice) for n, dice in enumerate(line["dice"], start=1)]


def rows_by_model(
    folder: Path, subjects: Mapping[str, str], *, arm: str
) -> dict[str, list[ResultRow]]:
    """Return every model's rows, in the order of the tables.

    Raises:
        DatasetError: There are none, or a file is damaged.
    """
    found = {
        path.name.removesuffix(ROWS): read_rows(path, subjects, arm=arm)
        for path in folder.glob(f"*{ROWS}")
    }
    for path in folder.glob(f"*{EVALUATED}/{RESULTS_FILE}"):
        found[path.parent.name.removesuffix(EVALUATED)] = [
            replace(
                row,
                label=_label(row.structure),
                subject=subjects.get(row.case, row.subject),
            )
            for row in read_results(path)
        ]
    if not found:
        raise DatasetError(f"{folder} holds no *{ROWS}; give the folder of the chain's files.")
    order = [*MODELS, *sorted(found.keys() - MODELS.keys())]
    return {name: found[name] for name in order if name in found}


def dice_of(rows: Sequence[ResultRow]) -> dict[str, Any]:
    """Return macro Dice and intervals at `CLICKS`, the same by source, and the whole curve."""
    found = summarise(rows)
    return {
        "num_targets": found.overall.num_targets,
        "num_subjects": found.overall.num_subjects,
        "dice": _at_clicks(found.overall.estimates),
        "by_source": {
            source: {"num_targets": of.num_targets, "dice": _at_clicks(of.estimates)}
            for source, of in found.sources.items()
        },
        "clicks": found.rounds,
        "curve": [_round(value) for value in found.macro],
        "curve_95": [[_round(low), _round(high)] for low, high in found.interval],
        "below_half": _round(found.failures),
        "worse_clicks": _round(found.worse_clicks),
    }


def difference(mine: Sequence[ResultRow], base: Sequence[ResultRow]) -> dict[str, Any]:
    """Return Dice of a model less that of another, paired over targets and clicks of both."""
    shared = {(row.target, row.round) for row in mine} & {(row.target, row.round) for row in base}
    kept = [[row for row in rows if (row.target, row.round) in shared] for rows in (base, mine)]
    found = compare_rows(kept[0], kept[1], names=("base", "model"))
    return {
        "num_targets": found.num_targets,
        "dice": _at_clicks({name: one.difference for name, one in found.overall.items()}),
    }


def thinned(log: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return columns of a log with at most `MAX_POINTS` entries, means of neighbouring lines.

    Args:
        log: Lines of ``log.jsonl``.

    Returns:
        "step" and "minutes" of the last line of each mean, and a column for each of `CURVES` and
        each layer's error that the log has; None where those lines lack the figure.
    """
    size = -(-len(log) // MAX_POINTS)
    parts = [log[n : n + size] for n in range(0, len(log), size)] if size else []
    layers = sorted(
        {key for line in log for key in line if key.endswith("_error") and "layer" in key}
    )
    columns: dict[str, Any] = {
        "step": [part[-1]["step"] for part in parts],
        "minutes": [round(part[-1]["seconds"] / 60, 3) for part in parts],
    }
    for key in (*CURVES, *layers):
        values = [[line[key] for line in part if key in line] for part in parts]
        if any(values):
            columns[key] = [_round(sum(of) / len(of)) if of else None for of in values]
    return columns


def training_of(folder: Path, name: str) -> dict[str, Any]:
    """Return what log and record of a run say about it; empty where there are none."""
    log = read_log(_either(folder / f"{name}.jsonl", folder / name / LOG_FILE))
    found: dict[str, Any] = {}
    if log:
        last, window = log[-1], log[0]["step"]
        planned = last["num_steps"] or last["step"]
        # The last steps of a whole run are not logged; a run that was cut off ends with its log.
        steps = planned if planned - last["step"] < window else last["step"]
        found = {
            "steps": steps,
            "planned_steps": planned,
            "minutes": round(last["seconds"] / 60 * steps / last["step"], 2),
            "rois": last["rois"],
            "skipped_steps": last["skipped"],
            "log": thinned(log),
        }
    record = _either(folder / f"{name}.run.json", folder / name / "run.json")
    if record.is_file():
        content = read_json(record)
        config = content["config"]
        kept = ("model", "depth", "attention", "minutes", "seed", "teacher")
        found["config"] = {key: config[key] for key in kept if key in config}
        found["config"]["roi_voxels"] = config["generator"]["size"]
        found["facts"] = content["facts"]
    return found


def errors_by_model(folder: Path) -> dict[str, Any]:
    """Return the error by layer of each student, by its name; empty without ``errors.json``."""
    path = folder / "errors.json"
    if not path.is_file():
        return {}
    students = cast("dict[str, Any]", read_json(path)["students"])
    return {spec.split("/")[0].removesuffix(".safetensors"): of for spec, of in students.items()}


def collect(
    folder: Path,
    subjects: Mapping[str, str],
    *,
    arm: str = "default",
    words: Mapping[str, str] | None = None,
    large: Collection[tuple[str, str]] = (),
) -> dict[str, Any]:
    """Return all figures of a folder.

    Args:
        folder: The chain's files.
        subjects: Who was scanned, by case.
        arm: Which lines of the rows count.
        words: How tables call models that are not in `MODELS`; by default by their names.
        large: Case and structure of the objects that are longer than the usual first ROI.

    Raises:
        DatasetError: There are no rows, or a file is damaged.
    """
    rows = rows_by_model(folder, subjects, arm=arm)
    errors = errors_by_model(folder)
    called = MODELS | dict(words or {})
    models: dict[str, Any] = {}
    for name in rows:
        of = {"words": called.get(name, f"`{name}`"), **dice_of(rows[name])}
        of |= training_of(folder, name)
        if name in errors:
            of["layers"] = errors[name]["layers"]
        if large:
            of["large"] = mean_of(rows[name], large)
        models[name] = of
    return {
        "models": models,
        "differences": {
            name: {
                base: difference(rows[name], rows[base])
                for base in BASES
                if base in rows and base != name
            }
            for name in rows
        },
    }


def mean_of(rows: Sequence[ResultRow], chosen: Collection[tuple[str, str]]) -> dict[str, Any]:
    """Return the plain mean of Dice by clicks over some objects, named by case and structure."""
    kept = [row for row in rows if (row.case, row.structure) in chosen]
    by_clicks = {c: [row.dice for row in kept if row.round == int(c)] for c in CLICKS}
    return {
        "num_targets": len({row.target for row in kept}),
        "dice": {c: round(sum(found) / len(found), 4) for c, found in by_clicks.items() if found},
    }


def read_large(path: Path) -> set[tuple[str, str]]:
    """Return case and structure of the targets of ``benchmarks/large_objects.py``."""
    return {(row["case"], row["structure"]) for row in read_json(path)["rows"]}


def read_subjects(path: Path) -> dict[str, str]:
    """Return who was scanned, by case, from an exported evaluation of the same cases."""
    return {target["case"]: target["subject"] for target in read_json(path)["targets"]}


def _either(first: Path, second: Path) -> Path:
    return first if first.is_file() else second


def _at_clicks(estimates: Mapping[str, Estimate]) -> dict[str, list[float | None]]:
    """Return value and interval by number of clicks, as far as there are so many."""
    return {
        clicks: [_round(one.value), _round(one.low), _round(one.high)]
        for clicks in CLICKS
        if (one := estimates.get(f"dice@{clicks}")) is not None
    }


def _round(value: float | None) -> float | None:
    return None if value is None else round(value, 4)


def _compact(content: Any, depth: int = 0) -> str:
    """Write JSON with one line for everything from the fourth level on."""
    if not isinstance(content, dict) or depth > 3:
        return json.dumps(content, allow_nan=False)
    items = cast("dict[str, Any]", content).items()
    pad = " " * (depth + 1)
    inner = ",\n".join(f"{pad}{json.dumps(k)}: {_compact(v, depth + 1)}" for k, v in items)
    return "{\n" + inner + "\n" + " " * depth + "}"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path, help="the chain's files")
    parser.add_argument("--device", required=True, help="what the models were trained on")
    parser.add_argument("--commit", help="of the sources that trained and played; default: here")
    parser.add_argument("--date", help="of the runs; default: now")
    parser.add_argument("--chain", action="append", default=[], help="a command of the chain")
    parser.add_argument("--note", action="append", default=[], help="what a reader must know")
    parser.add_argument("--arm", default="default", help="which lines of the rows count")
    parser.add_argument("--words", action="append", default=[], metavar="NAME=WORDS")
    parser.add_argument("--subjects", type=Path, default=HERE / "dev_hr_s.json")
    parser.add_argument("--large", type=Path, default=HERE / "large_objects.json")
    parser.add_argument("--output", type=Path, default=HERE / "paper_distillation.json")
    return parser


def main(arguments: list[str] | None = None) -> int:
    """Write the record; see ``--help``."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    options = _parser().parse_args(given)
    # Where files lay says nothing about a run.
    words = [Path(word).name if "/" in word and " " not in word else word for word in given]
    record = {
        "format": FORMAT,
        "command": shlex.join(["python", "benchmarks/paper_distillation.py", *words]),
        "chain": options.chain,
        "commit": options.commit or git_commit(HERE),
        "device": options.device,
        "date": options.date or datetime.now(UTC).isoformat(timespec="seconds"),
        "notes": options.note,
        "protocol": "clicks in the centre of the largest mistake, whole scans, last mask",
        "bootstrap": {"draws": BOOTSTRAP_DRAWS, "seed": 0},
        "definitions": {
            "dice": "macro mean and 95 % interval by clicks: targets, structures, sources",
            "differences": "model less base, paired by target, in Dice",
            "minutes": "wall clock of the training loop, from its log; of students without "
            "compiling, of the teacher with it",
            "layers": "error relative to the teacher's norm, linear centred kernel alignment",
            "large": "plain mean over the objects of benchmarks/large_objects.json, by clicks",
            "log": f"means of neighbouring log lines, at most {MAX_POINTS}",
        },
    }
    called = dict(item.split("=", 1) for item in options.words)
    subjects = read_subjects(options.subjects)
    large = read_large(options.large) if options.large.is_file() else set[tuple[str, str]]()
    record |= collect(options.folder, subjects, arm=options.arm, words=called, large=large)
    text = _compact(record) + "\n"
    if len(text) > MAX_BYTES:
        msg = (
            f"The record would have {len(text)} bytes; bring at most {MAX_BYTES}, in fewer models."
        )
        raise DatasetError(msg)
    options.output.write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
