"""Write every table of docs/paper.md from committed JSON: ``python benchmarks/paper_tables.py``.

A table, or a figure's line, stands between ``<!-- table: NAME -->`` and ``<!-- end -->``; what is
between is replaced, the rest of the page is left alone. ``--check`` writes nothing and fails where
the page differs from its files. A table whose file is not there yet says so.
"""

from __future__ import annotations

import argparse
import re
import sys
import textwrap
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from fastsam3d.errors import DatasetError
from fastsam3d.eval.outputs import read_json

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    Json = dict[str, Any]

HERE = Path(__file__).parent
PAGE = HERE.parent / "docs" / "paper.md"
MISSING = "-"
NOT_YET = "not measured yet"
NO_WEIGHTS = "no weights"
TIMES = "\N{MULTIPLICATION SIGN}"
CLICKS = ("1", "3", "5", "10")
SLICES = USUAL_ROI = 128
_BLOCK = re.compile(r"(<!-- table: (\w+) -->\n)(.*?)(<!-- end -->)", re.DOTALL)

# Played before CT had windows, as the others were.
DISTILLATION, SHIPPED = "paper_distillation.json", "dev_run6_whole_range.json"
GPU, GPU_EAGER = "bench_gpu.json", "bench_gpu_eager.json"
ONE_CORE, TWO_CORES = "bench_cpu_official.json", "bench_cpu.json"
ATTENTION, ABLATION = "sparse_attention_h200.json", "attention_ablation.json"

# Of whom no weights are to be had here, so that only their cost can be measured.
WITHOUT_WEIGHTS = ("2-D SAM ViT-B", "SAM-Med3D", "FastSAM3D, the published student")
SAM_2D = "official:sam_vit_b one slice"
COSTS = {
    "2-D SAM ViT-B, published, one slice": SAM_2D,
    "SAM-Med3D, published modules": "official:sam_med3d_b",
    "`sam_med3d_b`": "sam_med3d_b",
    "`sam_med3d_b@cuda_graph`, bfloat16": "sam_med3d_b@cuda_graph",
    "FastSAM3D student, published modules": "official:fastsam3d_6l",
    "`fastsam3d_6l`": "fastsam3d_6l",
    "`fastsam3d_6l@cuda_graph`, bfloat16": "fastsam3d_6l@cuda_graph",
    "`hr_s`": "hr_s",
    "`hr_s@cuda_graph`, bfloat16": "hr_s@cuda_graph",
}
# The paper's own figures, arXiv 2403.09827, abstract: ms of a volume and two factors.
CLAIMED = (8.0, 527.38, 8.75)
# Several kernels may serve one column; the fastest counts.
ATTENTIONS = {
    "dense, all scores": ("dense math",),
    "dense, flash": ("dense", "dense cudnn"),
    "sparse, all scores of a group": ("dilated sdpa",),
    "sparse, flash": ("dilated triton",),
}


def dice_table(folder: Path) -> str:
    """Dice by clicks of every model."""
    rows = [[name, *[NO_WEIGHTS] * len(CLICKS), MISSING] for name in WITHOUT_WEIGHTS]
    record = _record(folder, DISTILLATION)
    models = {} if record is None else _models(record)
    files = [DISTILLATION]
    if "hr_s" not in models:  # played with fewer clicks than the others
        files.append(SHIPPED)
        rows.append(_dice_row("`hr_s` of run 6", _shipped_dice(folder)))
    if record is None:
        rows.append(["`sam_med3d_b` and five `fastsam3d_6l`", *[NOT_YET] * len(CLICKS), MISSING])
    most = max((of["num_targets"] for of in models.values()), default=0)
    for of in models.values():
        few = f" ({of['num_targets']} of {most} targets)" * (of["num_targets"] < most)
        rows.append(_dice_row(of["words"] + few, of["dice"]))
    heads = ["", "1 click", "3 clicks", "5 clicks", "10 clicks", "95 % at 3 clicks"]
    return _with_sources(_table(heads, rows), folder, *files)


def source_table(folder: Path) -> str:
    """Dice after three clicks by source."""
    record = _record(folder, DISTILLATION)
    if record is None:
        return _sentence(NOT_YET)
    models = _models(record)
    sources = list(next(iter(models.values()))["by_source"])
    rows: list[list[str]] = []
    for of in models.values():
        found: dict[str, Json] = of["by_source"]
        dice: list[list[float | None]] = [
            found.get(s, {"dice": {}})["dice"].get("3") for s in sources
        ]
        rows.append([of["words"], *map(_share, dice)])
    return _with_sources(_table(["", *sources], rows), folder, DISTILLATION)


def distillation_table(folder: Path) -> str:
    """Minutes, steps, Dice and, by layer, the error of features."""
    record = _record(folder, DISTILLATION)
    if record is None:
        return _sentence(NOT_YET)
    models = {n: of for n, of in _models(record).items() if "steps" in of and not _is_wide(of)}
    layers, cells = _layer_columns(models, "error")
    rows = [
        [
            of["words"],
            f"{of['minutes']:.1f}",
            f"{of['steps']:,d}",
            _share(of["dice"].get("3")),
            *cells[name],
        ]
        for name, of in models.items()
    ]
    heads = ["", "minutes", "steps", "Dice at 3 clicks", *layers]
    return _with_sources(_table(heads, rows), folder, DISTILLATION)


def alignment_table(folder: Path) -> str:
    """Alignment of features with the teacher's, by layer."""
    record = _record(folder, DISTILLATION)
    if record is None:
        return _sentence(NOT_YET)
    models = {name: of for name, of in _models(record).items() if "layers" in of}
    layers, cells = _layer_columns(models, "alignment")
    rows = [[of["words"], *cells[name]] for name, of in models.items()]
    return _with_sources(_table(["", *layers], rows), folder, DISTILLATION)


def difference_table(folder: Path, *, base: str) -> str:
    """Dice of each model less that of another, in points, with intervals."""
    record = _record(folder, DISTILLATION)
    if record is None:
        return _sentence(NOT_YET)
    rows = [
        [of["words"], *(_points(found["dice"].get(clicks)) for clicks in CLICKS)]
        for name, of in _models(record).items()
        if (found := record["differences"][name].get(base)) is not None
    ]
    heads = ["", "1 click", "3 clicks", "5 clicks", "10 clicks"]
    return _with_sources(_table(heads, rows), folder, DISTILLATION)


def wide_table(folder: Path) -> str:
    """Models that see a larger part of the volume at once, beside one that does not."""
    record = _record(folder, DISTILLATION)
    models = {} if record is None else _models(record)
    wide = [of for of in models.values() if _is_wide(of)]
    if not wide:
        return _sentence(NOT_YET)
    usual = models["hr_s"]["dice"] if "hr_s" in models else _shipped_dice(folder)
    large = _large_dice(models["hr_s"]) if "hr_s" in models else MISSING
    first = ["`hr_s` of run 6", f"{USUAL_ROI}³", "dense", MISSING]
    rows = [[*first, *_dice_row("", usual)[1:4], large]]
    for of in wide:
        config = of["config"]
        rows.append(
            [
                of["words"],
                f"{config['roi_voxels']}³",
                config.get("attention") or "dense",
                f"{of['minutes']:.1f}" if "minutes" in of else MISSING,
                *_dice_row("", of["dice"])[1:4],
                _large_dice(of),
            ]
        )
    heads = ["", "ROI, voxels", "attention", "minutes", "1 click", "3 clicks", "5 clicks"]
    table = _table([*heads, "large objects, 1 / 3 / 5 clicks"], rows)
    return _with_sources(table, folder, DISTILLATION, SHIPPED)


def _large_dice(of: dict[str, Json]) -> str:
    found = of.get("large", {"dice": {}})["dice"]
    shown = [_three(found[clicks]) for clicks in ("1", "3", "5") if clicks in found]
    return " / ".join(shown) or MISSING


def gpu_table(folder: Path) -> str:
    """Size, work, memory and time of every model on a GPU."""
    models = {**_benched(folder, GPU_EAGER), **_benched(folder, GPU)}
    rows: list[list[str]] = []
    for words, name in COSTS.items():
        of = models[name]
        rows.append(
            [
                words,
                f"{of['parameters'] / 1e6:.1f}",
                _sig(of["encode_flops"] / 1e9),
                _sig(of["click_flops"] / 1e9),
                _sig(of["peak_memory_bytes"] / 2**20),
                _sig(of["encode"]["p50_ms"]),
                _sig(of["click"]["p50_ms"]),
            ]
        )
    heads = ["", "parameters, M", "encode, GFLOP", "click, GFLOP", "memory, MiB", "encode, ms"]
    return _with_sources(_table([*heads, "click, ms"], rows), folder, GPU, GPU_EAGER)


def cpu_table(folder: Path) -> str:
    """Time on one core (processor time) and two (wall time), and memory of the first pass."""
    one, two = _benched(folder, ONE_CORE), _benched(folder, TWO_CORES)
    rows = [
        [
            words,
            *_cpu_cells(one.get(name), "encode_cpu", "click_cpu"),
            *_cpu_cells(two.get(name), "encode", "click"),
        ]
        for words, name in COSTS.items()
        if name in one or name in two
    ]
    heads = ["", "one core: encode, s", "click, ms", "memory, MiB"]
    heads += ["two cores: encode, s", "click, ms", "memory, MiB"]
    return _with_sources(_table(heads, rows), folder, ONE_CORE, TWO_CORES)


def claim_table(folder: Path) -> str:
    """The paper's three figures of speed beside the same sums of measured times."""
    files = {
        "official:fastsam3d_6l": GPU,
        "fastsam3d_6l": GPU_EAGER,
        "fastsam3d_6l@cuda_graph": GPU,
    }
    ours: list[float] = []
    sam: list[float] = []
    med3d: list[float] = []
    for name, file in files.items():
        models = _benched(folder, file)  # each beside the others of its own run
        ours.append(_answer(models[name]))
        sam.append(SLICES * _answer(models[SAM_2D]) / ours[-1])
        med3d.append(_answer(models["official:sam_med3d_b"]) / ours[-1])
    rows = [
        ["encode and one click, ms", f"{CLAIMED[0]:g}", *map(_sig, ours)],
        [
            f"as fast as 2-D SAM on {SLICES} slices",
            *(f"{times:,.0f}{TIMES}" for times in (CLAIMED[1], *sam)),
        ],
        ["as fast as SAM-Med3D", *(f"{times:.1f}{TIMES}" for times in (CLAIMED[2], *med3d))],
    ]
    heads = ["", "the paper", "published modules", "`fastsam3d_6l`", "`fastsam3d_6l@cuda_graph`"]
    return _with_sources(_table(heads, rows), folder, GPU, GPU_EAGER)


def attention_table(folder: Path, *, figure: str) -> str:
    """One attention: dense and sparse, with and without all scores in memory."""
    name = ABLATION if (folder / ABLATION).is_file() else ATTENTION
    times: list[Json] = read_json(folder / name)["times"]
    known: set[str] = {row["method"] for row in times}
    is_memory = figure.endswith("_mib")
    rows: list[list[str]] = []
    for side in sorted({row["side"] for row in times}):
        cells = [f"{side}³"]
        found: dict[str, float | None] = {}
        for column, methods in ATTENTIONS.items():
            here = [r[figure] for r in times if r["side"] == side and r["method"] in methods]
            found[column] = min(here, default=None)
            is_open = not known.intersection(methods)
            cells.append(NOT_YET if is_open else _plain(found[column], _sig))
        dense, sparse = found["dense, flash"], found["sparse, flash"]
        if is_memory:
            kb = None if sparse is None else sparse * 2**20 / 1e3 / side**3
            cells.append(_plain(kb, ".1f"))
        else:
            ratio = None if dense is None or sparse is None else dense / sparse
            cells.append(_plain(ratio, _times))
        rows.append(cells)
    last = "sparse, flash: kB per token" if is_memory else "sparse, flash, faster than dense"
    return _with_sources(_table(["tokens", *ATTENTIONS, last], rows), folder, name)


def encoder_table(folder: Path) -> str:
    """Whole encoders with dense and sparse attention."""
    encoders: list[Json] = [*read_json(folder / ATTENTION)["encoders"]]
    encoders += (_record(folder, ABLATION) or {}).get("encoders", [])
    rows = [
        [
            f"`{of['model']}`, {of['image_size']}³ voxels",
            f"{of['tokens_per_axis']}³",
            of["attention"],
            _sig(of["encode_ms"]),
            _sig(of["encode_peak_mib"]),
        ]
        for of in encoders
    ]
    heads = ["encoder", "tokens", "attention", "encode, ms", "memory, MiB"]
    return _with_sources(_table(heads, rows), folder, ATTENTION, ABLATION)


def published_table(folder: Path) -> str:
    """The published sparse attention beside ours at its own pattern."""
    rows: list[list[str]] = []
    for of in cast("list[Json]", read_json(folder / ATTENTION)["official"]["rows"]):
        theirs, ours = of["published_forward_backward_ms"], of["ours_forward_backward_ms"]
        words = "with projections" if of["part"] == "module" else of["part"]
        rows.append(
            [f"{of['side']}³", words, _sig(theirs), _sig(ours), f"{theirs / ours:.1f}{TIMES}"]
        )
    rows.sort(key=lambda row: row[1])
    heads = ["tokens", "", "published, ms", "ours, ms", "as fast"]
    return _with_sources(_table(heads, rows), folder, ATTENTION)


def figure_block(folder: Path, *, file: str, words: str) -> str:
    """A figure that ``paper_figures.py`` draws, once there is something to draw."""
    if not (folder / DISTILLATION).is_file():
        return _sentence(NOT_YET)
    return f"\n![{words}](figures/{file})\n"


TABLES: dict[str, Callable[[Path], str]] = {
    "dice": dice_table,
    "sources": source_table,
    "claims": claim_table,
    "cost_gpu": gpu_table,
    "cost_cpu": cpu_table,
    "attention_time": partial(attention_table, figure="forward_backward_ms"),
    "attention_forward": partial(attention_table, figure="forward_ms"),
    "attention_memory": partial(attention_table, figure="forward_backward_peak_mib"),
    "encoders": encoder_table,
    "published_attention": published_table,
    "wide": wide_table,
    "distillation": distillation_table,
    "alignment": alignment_table,
    "less_teacher": partial(difference_table, base="teacher"),
    "less_scratch": partial(difference_table, base="from_scratch"),
    "figure_clicks": partial(
        figure_block, file="paper_clicks.png", words="Dice by number of clicks of every model"
    ),
    "figure_training": partial(
        figure_block,
        file="paper_training.png",
        words="IoU and embedding error by minute of training",
    ),
    "figure_layers": partial(
        figure_block, file="paper_layers.png", words="error and alignment of features by layer"
    ),
}


def render(page: str, folder: Path) -> str:
    """Return the page with all its tables made anew.

    Args:
        page: Markdown with marks.
        folder: Where the JSON files lie.

    Raises:
        DatasetError: A mark names no table or is not closed, or a needed file is damaged.
    """
    shown = {match[1] for match in _BLOCK.findall(page)}
    if unknown := shown - TABLES.keys():
        raise DatasetError(f"The page asks for {sorted(unknown)}; there are {list(TABLES)}.")
    if page.count("<!-- table: ") != len(_BLOCK.findall(page)):
        raise DatasetError("A table of the page has no <!-- end -->; close each one.")
    return _BLOCK.sub(lambda m: f"{m[1]}{TABLES[m[2]](folder)}\n{m[4]}", page)


def stale(page: str, folder: Path) -> list[str]:
    """Return the names of the tables that differ from their files."""
    fresh = _BLOCK.findall(render(page, folder))
    pairs = zip(_BLOCK.findall(page), fresh, strict=True)
    return [then[1] for then, now in pairs if then[2] != now[2]]


def _record(folder: Path, name: str) -> Json | None:
    return read_json(folder / name) if (folder / name).is_file() else None


def _models(record: Json) -> dict[str, Json]:
    return record["models"]


def _shipped_dice(folder: Path) -> dict[str, list[float | None]]:
    estimates: dict[str, Json] = read_json(folder / SHIPPED)["summary"]["overall"]["estimates"]
    return {
        name.removeprefix("dice@"): [of["value"], of["low"], of["high"]]
        for name, of in estimates.items()
        if name.startswith("dice@")
    }


def _benched(folder: Path, name: str) -> dict[str, Json]:
    return {of["name"]: of for of in read_json(folder / name)["models"]}


def _layer_columns(models: dict[str, Json], figure: str) -> tuple[list[str], dict[str, list[str]]]:
    """Return the heads of layers and, by model, their cells."""
    found: dict[str, dict[str, float | None]] = {
        name: {layer["name"]: layer[figure] for layer in of.get("layers", [])}
        for name, of in models.items()
    }
    names: list[str] = []
    for of in found.values():
        names += [name for name in of if name not in names]
    heads = ["embedding" if name == "neck" else name.replace("layer", "layer ") for name in names]
    return heads, {m: [_share([of.get(name)]) for name in names] for m, of in found.items()}


def _is_wide(model: Json) -> bool:
    return model.get("config", {}).get("roi_voxels", USUAL_ROI) > USUAL_ROI


def _answer(model: Json) -> float:
    return model["encode"]["p50_ms"] + model["click"]["p50_ms"]


def _cpu_cells(model: Json | None, encode: str, click: str) -> list[str]:
    if model is None:
        return [MISSING] * 3
    memory = _sig(model["peak_memory_bytes"] / 2**20)
    return [_sig(model[encode]["p50_ms"] / 1e3), _sig(model[click]["p50_ms"]), memory]


def _dice_row(name: str, dice: dict[str, list[float | None]]) -> list[str]:
    _, low, high = dice.get("3", [None] * 3)
    interval = MISSING if low is None or high is None else f"{_three(low)} to {_three(high)}"
    return [name, *(_share(dice.get(clicks)) for clicks in CLICKS), interval]


def _share(found: Sequence[float | None] | None) -> str:
    return MISSING if not found or found[0] is None else _three(found[0])


def _three(value: float) -> str:
    return f"{value:.3f}".removeprefix("0")


def _points(found: Sequence[float | None] | None) -> str:
    if not found or None in found:
        return MISSING
    value, low, high = (100 * cast("float", one) for one in found)
    return f"{value:+.1f} ({low:+.1f} to {high:+.1f})"


def _plain(value: float | None, form: str | Callable[[float], str]) -> str:
    if value is None:
        return MISSING
    return format(value, form) if isinstance(form, str) else form(value)


def _times(ratio: float) -> str:
    return f"{ratio:.2f}{TIMES}" if ratio < 1 else f"{_sig(ratio)}{TIMES}"


def _sig(value: float) -> str:
    """Write three significant digits, thousands with a comma."""
    return f"{value:,.0f}" if value >= 99.95 else f"{value:#.3g}"


def _sentence(words: str) -> str:
    return f"\n{words.capitalize()}.\n"


def _table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [heads, ["---"] * len(heads), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _with_sources(table: str, folder: Path, *names: str) -> str:
    """Add where the figures come from, in the words of the files themselves."""
    said = [_source(folder, name) for name in names if (folder / name).is_file()]
    words = textwrap.fill("; ".join(said) + ".", 100, break_on_hyphens=False)
    return f"\n{table}\n\n{words}\n"


def _source(folder: Path, name: str) -> str:
    content = read_json(folder / name)
    start = content["run"]["starts"][-1] if "run" in content else content
    commit = str(start["commit"])[:7]
    parts = [f"`{folder.name}/{name}`: {start['device']}"]
    if "precision" in start:
        trained = {
            of["name"].partition("@")[0] for of in content["models"] if of["weights"] != "random"
        }
        but = ", ".join(f"`{name}`" for name in sorted(trained))
        parts.append(f"{start['precision']} where not named, random weights but for {but}")
    return ", ".join([*parts, f"commit {commit}", str(start["date"])[:10]])


def main(arguments: list[str] | None = None) -> int:
    """Write or check the page; see ``--help``."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="write nothing; fail on a difference")
    parser.add_argument("--page", type=Path, default=PAGE)
    parser.add_argument("--folder", type=Path, default=HERE, help="of the JSON files")
    options = parser.parse_args(arguments)
    page = options.page.read_text(encoding="utf-8")
    if options.check:
        names = stale(page, options.folder)
        for name in names:
            sys.stderr.write(
                f"Table {name} of {options.page.name} is not what its files say; run "
                "python benchmarks/paper_tables.py.\n"
            )
        return 1 if names else 0
    options.page.write_text(render(page, options.folder), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
