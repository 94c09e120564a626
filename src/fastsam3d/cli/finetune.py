"""``fastsam3d finetune``: a folder of labelled cases in, weights that know its structures out."""

from __future__ import annotations

import os
import shlex
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from fastsam3d.cli.progress import show_progress
from fastsam3d.cli.train import LengthOptions, fit
from fastsam3d.cli.usage import Flag, UsageError

if TYPE_CHECKING:
    from fastsam3d.train.finetune import FinetuneOptions
    from fastsam3d.train.finetune_cases import CaseOptions

DEFAULT_MINUTES = 10.0


@Parameter(name="*", group="Cases")
@dataclass(frozen=True, kw_only=True)
class DataOptions:
    """Which cases, and what is said about them on the card.

    Attributes:
        split: Only the cases of this split of the folder's manifest.csv.
        held_out: Share of the subjects that is not trained on but measured, chosen by --seed.
        validation: Other cases to measure on instead; then all of CASES are trained on.
        modality: Of the images, such as CT or "MR T1"; by default CT is told by its air.
        data_licence: Licence of the data; by default what the folder says, else unspecified.
        pack_only: Write the training pack and stop, to train on another machine.
    """

    split: str | None = None
    held_out: float = 0.2
    validation: Path | None = None
    modality: str | None = None
    data_licence: str | None = None
    pack_only: Flag = False


@Parameter(name="*", group="Weights")
@dataclass(frozen=True, kw_only=True)
class WeightsOptions:
    """What the new weights are called.

    Attributes:
        model: Weights to begin with: a name or the path of a .safetensors file.
        name: Of the new weights and their file.
        licence: Of the new weights, for their card.
        notes: Kept in the card.
    """

    model: str = "hr_s"
    name: str = "finetuned"
    licence: str = "unspecified"
    notes: str = ""


def finetune(
    cases: Path,
    /,
    *,
    output: Annotated[Path, Parameter(name=["--output", "-o"])],
    data: DataOptions = DataOptions(),
    weights: WeightsOptions = WeightsOptions(),
    length: LengthOptions = LengthOptions(),  # noqa: B008 - frozen, hence safe to share
    seed: int = 1,
    settings: Annotated[tuple[str, ...], Parameter(name="--set", negative="")] = (),
) -> None:
    """Fine-tune a model on your own cases and measure it on some that are held out.

    Args:
        cases: Folder of CASE/image.nii.gz with CASE/label.nii.gz, or an nnU-Net folder (imagesTr,
            labelsTr, dataset.json).
        output: Folder for the training pack, the run and the new weights.
        data: Which cases.
        weights: What to begin with, and the new name.
        length: How long, where; 10 minutes by default.
        seed: Of the held-out choice and of training.
        settings: Change a field of the run's config, such as muon_rate=0.002.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise UsageError(
            "Write the pack first with --pack-only, then use several GPUs with: "
            "torchrun --nproc-per-node N -m fastsam3d.train.finetune --pack PACK --output DIR."
        )
    length.check(output / "run")
    from fastsam3d.train.finetune import start_card
    from fastsam3d.train.finetune_cases import CaseOptions

    options = _finetune_options(weights, length, seed=seed, settings=settings)
    start_card(options)
    share = data.held_out if data.validation is None else 0.0
    case_options = CaseOptions(
        split=data.split,
        held_out=share,
        seed=seed,
        modality=data.modality,
        licence=data.data_licence,
    )
    _run(cases, output, options, case_options, data)


def _finetune_options(
    weights: WeightsOptions, length: LengthOptions, *, seed: int, settings: tuple[str, ...]
) -> FinetuneOptions:
    from fastsam3d.train.finetune import FinetuneOptions

    return FinetuneOptions(
        model=weights.model,
        name=weights.name,
        licence=weights.licence,
        notes=weights.notes,
        device=length.device,
        minutes=length.minutes or DEFAULT_MINUTES,
        steps=length.steps,
        seed=seed,
        resume=length.resume,
        settings=(*settings, "compile=false") if length.eager else settings,
    )


def _run(
    cases: Path,
    output: Path,
    options: FinetuneOptions,
    case_options: CaseOptions,
    data: DataOptions,
) -> None:
    from fastsam3d.eval.folders import find_cases
    from fastsam3d.train.finetune import HELD_OUT_FILE
    from fastsam3d.train.finetune import finetune as train_on_pack
    from fastsam3d.train.finetune_cases import prepare_cases
    from fastsam3d.train.held_out import check_measurable, compare

    with show_progress("Packing the cases"):
        others = () if data.validation is None else tuple(find_cases(data.validation))
        check_measurable(others)
        prepared = prepare_cases(cases, output, case_options)
    held_out = others or prepared.held_out
    print(f"{len(prepared.train)} cases to train on, {len(held_out)} held out: {prepared.pack}")
    if data.pack_only:
        return
    written = train_on_pack(
        prepared.pack,
        output,
        options,
        fit=lambda trainer, process: fit(trainer, process, title=f"Fine-tuning {options.model}"),
    )
    print(f"Weights: {written}")
    if written is None or not held_out:
        return
    facts = {"command": shlex.join(["fastsam3d", *sys.argv[1:]])}
    with show_progress("Measuring the held-out cases") as progress:
        table = compare(
            options.model,
            written,
            held_out,
            output / HELD_OUT_FILE,
            device=options.device,
            facts=facts,
            on_target=lambda rows: progress(f"Measured {rows[0].case} {rows[0].structure}"),
        )
    print(table)
