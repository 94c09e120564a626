"""Evaluate one segmenter over many cases, resumably: what ``fastsam3d evaluate`` runs.

Files of an output folder:

=============  ====================================================================================
run.json       options, hashes of cases and weights, the protocol's label, every start of the run
results.jsonl  one line per target and round; the rows of a target appear by one write
cases.jsonl    one line per finished case: done, or skipped with the reason
snapshots/     one small file per target, for the report
summary.json   all figures; written when no case is left
=============  ====================================================================================

After a kill the same call goes on where it stopped: half a line, or half a target, is dropped and
played again. One process writes the JSON files; workers play cases and send rows.
"""

from __future__ import annotations

import hashlib
import json
import platform
import shlex
import sys
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from fastsam3d.errors import ConfigError, DatasetError
from fastsam3d.eval.folders import find_cases, fingerprint
from fastsam3d.eval.playing import CaseTask, RowsReady, SegmenterSpec, play_task
from fastsam3d.eval.protocol import PROTOCOLS, InteractionProtocol
from fastsam3d.eval.provenance import cpu_name, git_commit
from fastsam3d.eval.results import append_json_lines, append_rows, read_json_lines, read_rows
from fastsam3d.eval.summary import summarise, summary_to_json, write_json
from fastsam3d.eval.workers import play_in_processes

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from fastsam3d.eval.challenge import SpacingOrder
    from fastsam3d.eval.folders import CaseFile
    from fastsam3d.eval.groups import SeenGroups
    from fastsam3d.eval.playing import Event
    from fastsam3d.eval.regions import RegionTable
    from fastsam3d.eval.results import ResultRow
    from fastsam3d.eval.runner import ClickSegmenter
    from fastsam3d.eval.summary import Summary

RUN_FORMAT = 1
RUN_FILE = "run.json"
RESULTS_FILE = "results.jsonl"
CASES_FILE = "cases.jsonl"
SUMMARY_FILE = "summary.json"

UnitKey = tuple[str, int, int, int]


@dataclass(frozen=True, kw_only=True)
class EvaluationOptions:
    """What decides the figures of a run; a run can be resumed with equal options only.

    Attributes:
        cases: Folder or case pack; see `fastsam3d.eval.folders.find_cases`.
        model: Name for `fastsam3d.eval.segmenters.create_segmenter`.
        protocol: Targets and clicks.
        device: Where a model computes.
        zero_image: Hide the image from the model.
        mirrors: Mirror images over which a model's answers are averaged.
        split: Only cases of this split.
        truth: Folder with the truth of challenge files.
        subject_pattern: What in a case name is the subject.
        spacing_order: Of challenge files.
        regions: Which sources have regions in place of labels.
        limit: Only the first cases.
    """

    cases: Path
    model: str
    protocol: InteractionProtocol = field(default_factory=InteractionProtocol)
    device: str = "cpu"
    zero_image: bool = False
    mirrors: int = 1
    split: str | None = None
    truth: Path | None = None
    subject_pattern: str | None = None
    spacing_order: SpacingOrder = "xyz"
    regions: RegionTable | None = None
    limit: int | None = None

    def __post_init__(self) -> None:
        """Check the ranges."""
        if self.limit is not None and self.limit < 1:
            raise ConfigError(f"limit must be at least 1 case, got {self.limit}; or leave it out.")

    def to_json(self) -> dict[str, Any]:
        """Return the options as JSON can hold them."""
        content: dict[str, Any] = json.loads(json.dumps(asdict(self), default=str))
        return content


@dataclass(frozen=True, kw_only=True)
class Progress:
    """How far a run is.

    Attributes:
        num_cases: Cases of the run.
        cases_done: Finished or skipped, also in earlier starts.
        targets_done: Targets with rows, also of earlier starts.
        rows: Rows that have just been written; empty for a case.
        skipped: "case: reason" if a case has just been skipped.
    """

    num_cases: int
    cases_done: int
    targets_done: int
    rows: tuple[ResultRow, ...] = ()
    skipped: str | None = None


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What a run gave.

    Attributes:
        summary: All figures.
        rows: All rows, in the order of cases, labels, components, seeds and rounds.
        skipped: Reason per case that could not be read.
    """

    summary: Summary
    rows: list[ResultRow]
    skipped: dict[str, str]


def evaluate(
    options: EvaluationOptions,
    output: Path,
    *,
    command: Sequence[str] = (),
    jobs: int = 1,
    segmenter: Callable[[], ClickSegmenter] | None = None,
    groups: SeenGroups | None = None,
    on_progress: Callable[[Progress], None] | None = None,
) -> Outcome:
    """Run, or go on with, an evaluation.

    Args:
        options: What to evaluate.
        output: Folder for the files listed above; made if absent.
        command: The words that started it, for the record.
        jobs: Processes that play cases; each has its share of the threads.
        segmenter: Makes the segmenter in place of `options.model`; must be picklable for `jobs`
            above 1.
        groups: What was seen in training, for the summary.
        on_progress: Called after every target and case.

    Raises:
        ConfigError: The folder holds a run with other options, `jobs` is below 1, or cases have
            regions that the protocol cannot play.
        DatasetError: Regions do not fit the cases, or there is no case, no target, or no case that
            can be read.
        FastSAM3DError: Whatever else the segmenter raises.
    """
    if jobs < 1:
        raise ConfigError(f"jobs must be at least 1, got {jobs}.")
    cases = _cases(options)
    weights = None if segmenter is not None else weights_sha256(options.model)
    hashes = {"cases": fingerprint(cases), "weights": weights}
    folder = _RunFolder(output)
    folder.start(options, hashes, _provenance(options, command, jobs))
    rows = folder.whole_rows(options.protocol)
    finished = folder.finished_cases()
    tasks = [
        CaseTask(
            case=case,
            protocol=options.protocol,
            done=frozenset(row.target[1:] for row in rows if row.case == case.name),
            snapshots=output / "snapshots",
        )
        for case in cases
        if case.name not in finished
    ]
    spec = segmenter or SegmenterSpec.of(options)
    report = _Reporter(len(cases), finished, rows, on_progress)
    if tasks:
        for event in _play(tasks, spec, jobs):
            folder.record(event)
            report.tell(event)
    return _finish(options, folder, cases, groups)


def _cases(options: EvaluationOptions) -> list[CaseFile]:
    found = find_cases(
        options.cases,
        split=options.split,
        truth=options.truth,
        subject_pattern=options.subject_pattern,
        spacing_order=options.spacing_order,
        regions=options.regions,
    )[: options.limit]
    with_regions = next((case.name for case in found if case.regions), None)
    if options.protocol.name == "cvpr25" and with_regions is not None:
        raise ConfigError(
            f"The protocol cvpr25 gives every voxel to one class, but {with_regions} has regions, "
            "which may overlap; choose another protocol, or cases without regions."
        )
    return found


def _play(tasks: list[CaseTask], spec: Callable[[], ClickSegmenter], jobs: int) -> Iterator[Event]:
    if jobs > 1 and len(tasks) > 1:
        yield from play_in_processes(tasks, spec, min(jobs, len(tasks)))
        return
    segmenter = spec()
    for task in tasks:
        yield from play_task(segmenter, task)


def _finish(
    options: EvaluationOptions,
    folder: _RunFolder,
    cases: list[CaseFile],
    groups: SeenGroups | None,
) -> Outcome:
    order = {case.name: number for number, case in enumerate(cases)}
    rows = sorted(
        folder.whole_rows(options.protocol),
        key=lambda row: (order[row.case], *row.target[1:], row.round),
    )
    skipped = {n: reason for n, reason in folder.finished_cases().items() if reason is not None}
    if not rows:
        reasons = "; ".join(f"{name}: {reason}" for name, reason in skipped.items())
        raise DatasetError(
            f"No structure of {options.cases} was evaluated ({reasons or 'all are too small'})."
        )
    summary = summarise(rows, groups=groups)
    write_json(folder.path / SUMMARY_FILE, summary_to_json(summary))
    return Outcome(summary=summary, rows=rows, skipped=skipped)


class _RunFolder:
    """The files of a run; written by one process at a time."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def start(
        self, options: EvaluationOptions, hashes: dict[str, Any], provenance: dict[str, Any]
    ) -> None:
        """Record this start; refuse a folder that holds another run."""
        run_file = self.path / RUN_FILE
        given = {"options": options.to_json(), "hashes": hashes}
        starts: list[Any] = []
        if run_file.is_file():
            content: dict[str, Any] = json.loads(run_file.read_text(encoding="utf-8"))
            _check_same(content, given, self.path)
            starts = content["starts"]
        elif (self.path / RESULTS_FILE).exists():
            raise ConfigError(f"{self.path} has results without {RUN_FILE}; choose another folder.")
        facts = PROTOCOLS[options.protocol.name]
        content = {
            "format": RUN_FORMAT,
            "protocol": {"name": options.protocol.name, **asdict(facts)},
            **given,
            "starts": [*starts, provenance],
        }
        try:
            write_json(run_file, content)
        except OSError as error:
            raise DatasetError(f"Could not write {run_file}: {error.strerror}.") from error

    def whole_rows(self, protocol: InteractionProtocol) -> list[ResultRow]:
        """Return the rows of all whole targets, after dropping those of half ones from the file."""
        path = self.path / RESULTS_FILE
        rows = read_rows(path)
        units: dict[UnitKey, list[int]] = {}
        for row in rows:
            units.setdefault(row.target, []).append(row.round)
        whole = {unit for unit, rounds in units.items() if rounds == list(protocol.rounds)}
        if protocol.name == "cvpr25":
            # The classes of a case are played together, hence kept or dropped together.
            broken = {unit[0] for unit in units.keys() - whole}
            broken |= {unit[0] for unit in whole} - self.finished_cases().keys()
            whole = {unit for unit in whole if unit[0] not in broken}
        if whole != units.keys():
            rows = [row for row in rows if row.target in whole]
            partial = path.with_name(path.name + ".part")
            partial.unlink(missing_ok=True)
            append_rows(partial, rows)
            partial.replace(path)
        return rows

    def finished_cases(self) -> dict[str, str | None]:
        """Return why a case was skipped, None for those that were played."""
        lines = read_json_lines(self.path / CASES_FILE)
        return {str(line["case"]): line["skipped"] for line in lines}

    def record(self, event: Event) -> None:
        """Write what has happened."""
        if isinstance(event, RowsReady):
            append_rows(self.path / RESULTS_FILE, event.rows)
        else:
            line = {"case": event.case, "skipped": event.skipped}
            append_json_lines(self.path / CASES_FILE, [line])


class _Reporter:
    """Counts what is done and tells it."""

    def __init__(
        self,
        num_cases: int,
        finished: dict[str, str | None],
        rows: list[ResultRow],
        on_progress: Callable[[Progress], None] | None,
    ) -> None:
        self._num_cases = num_cases
        self._cases_done = len(finished)
        self._targets = {row.target for row in rows}
        self._on_progress = on_progress
        self._call()

    def tell(self, event: Event) -> None:
        """Count an event and report it."""
        if isinstance(event, RowsReady):
            self._targets.update(row.target for row in event.rows)
            self._call(rows=event.rows)
        else:
            self._cases_done += 1
            skipped = None if event.skipped is None else f"{event.case}: {event.skipped}"
            self._call(skipped=skipped)

    def _call(self, rows: tuple[ResultRow, ...] = (), skipped: str | None = None) -> None:
        if self._on_progress is not None:
            progress = Progress(
                num_cases=self._num_cases,
                cases_done=self._cases_done,
                targets_done=len(self._targets),
                rows=rows,
                skipped=skipped,
            )
            self._on_progress(progress)


def _check_same(before: dict[str, Any], given: dict[str, Any], path: Path) -> None:
    if before.get("format") != RUN_FORMAT:
        raise ConfigError(f"{path} holds a run of another version; choose another folder.")
    for part, values in given.items():
        flat, flat_before = _flat(values), _flat(before[part])
        for name in flat | flat_before:  # a table may have lost rows
            held, value = flat_before.get(name), flat.get(name)
            if held != value:
                raise ConfigError(
                    f"{path} holds a run with {part[:-1] if part == 'options' else 'hash'} "
                    f"{name} = {held!r}, got {value!r}; use equal options or another folder."
                )


def _flat(values: dict[str, Any]) -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, dict):
            nested = _flat(cast("dict[str, Any]", value))
            flat.update({f"{name}.{key}": item for key, item in nested.items()})
        else:
            flat[name] = value
    return flat


def weights_sha256(model: str) -> str | None:
    """Return the hash of a model's weights; None for a baseline without weights.

    Raises:
        ModelNotFoundError: Neither a baseline nor a model.
    """
    from fastsam3d.eval.segmenters import BASELINES  # noqa: PLC0415 - loads the baselines
    from fastsam3d.model.registry import load_card  # noqa: PLC0415

    kind, _, argument = model.partition(":")
    if kind not in BASELINES:
        return load_card(model).sha256
    weights = Path(argument)
    return hashlib.sha256(weights.read_bytes()).hexdigest() if weights.is_file() else None


def _provenance(options: EvaluationOptions, command: Sequence[str], jobs: int) -> dict[str, Any]:
    device = cpu_name()
    if options.device != "cpu":
        import torch  # noqa: PLC0415 - heavy

        if torch.cuda.is_available():
            device = torch.cuda.get_device_name()
    return {
        "command": shlex.join(command),
        "commit": git_commit(Path(__file__).parent),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "device": device,
        "jobs": jobs,
        "python": platform.python_version(),
        "platform": sys.platform,
    }
