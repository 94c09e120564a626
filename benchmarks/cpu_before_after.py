"""What a change saves on a CPU: two checkouts in turn, one thread, processor time.

    python benchmarks/cpu_before_after.py --before OLD_CHECKOUT/src --rounds 3

Segments a synthesised CT of 512 x 512 x 600 from its file with both, then encodes and clicks in
memory with both. Masks of the two are compared byte by byte.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from fastsam3d.eval.bench_phantom import ball_centres, synthesise
from fastsam3d.eval.bench_volume import compile_package, run_measured
from fastsam3d.eval.provenance import cpu_name, git_commit
from fastsam3d.io import write_volume

HERE = Path(__file__).parent
SHAPE = (512, 512, 600)
IN_MEMORY = """
import json, time, torch
from fastsam3d.eval.bench_volume import synthesise
from fastsam3d.session import Session
torch.set_num_threads(1)
session = Session.from_pretrained("hr_s", device="cpu")
session.set_volume(synthesise((160, 160, 160)))
session.add_point((80, 80, 80))
clicks, encodes = [], []
for n in range(5):
    before = time.process_time()
    session.add_point((79 + n % 3, 79 + n // 3, 82))
    clicks.append(time.process_time() - before)
image = torch.randn(1, 1, 128, 128, 128)
with torch.inference_mode():
    for _ in range(3):
        before = time.process_time()
        session.predictor.model.encode_image(image)
        encodes.append(time.process_time() - before)
print(json.dumps({"encode_cpu_s": min(encodes), "click_cpu_s": min(clicks)}))
"""


def main() -> None:
    """Run both in turn and write every time."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--before", type=Path, required=True, help="src folder to compare with")
    parser.add_argument("--before-commit", default="")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--output", type=Path, default=HERE / "cpu_before_after.json")
    options = parser.parse_args()
    sources = {"before": options.before.resolve(), "after": HERE.parent / "src"}
    compile_package(*sources.values())
    found: dict[str, list[dict[str, float]]] = {name: [] for name in sources}
    with tempfile.TemporaryDirectory(prefix="fastsam3d-bench-") as scratch:
        image = Path(scratch, "ct.nii.gz")
        volume = synthesise(SHAPE)
        num_bytes = volume.array.nbytes
        write_volume(volume, image)
        del volume
        masks = {name: Path(scratch, f"{name}.nii.gz") for name in sources}
        for _ in range(options.rounds):
            for name, source in sources.items():
                os.environ["PYTHONPATH"] = str(source)
                found[name].append(_once(image, masks[name]))
                print(name, found[name][-1], flush=True)
        same = masks["before"].read_bytes() == masks["after"].read_bytes()
    rows: dict[str, dict[str, Any]] = {
        name: {key: min(sample[key] for sample in samples) for key in samples[0]}
        for name, samples in found.items()
    }
    for row in rows.values():
        row["peak_over_volume"] = row["peak_bytes"] / num_bytes
    record = {
        "command": "python benchmarks/cpu_before_after.py --before OLD_CHECKOUT/src",
        "commit": git_commit(HERE),
        "before_commit": options.before_commit,
        "device": cpu_name(),
        "threads": 1,
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "shape": SHAPE,
        "masks_are_the_same_bytes": same,
        **rows,
        "after_over_before": {k: rows["after"][k] / v for k, v in rows["before"].items()},
        "samples": found,
    }
    options.output.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


def _once(image: Path, mask: Path) -> dict[str, float]:
    i, j, k = ball_centres(SHAPE, 1)[0]
    command = [sys.executable, "-m", "fastsam3d", "segment", str(image), "-o", str(mask)]
    command += ["--point", f"{i},{j},{k}", "--force", "--device", "cpu", "--model", "hr_s"]
    from_file = run_measured(command, 1)
    done = subprocess.run(  # noqa: S603 - this package's own code
        [sys.executable, "-c", IN_MEMORY],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    in_memory = json.loads(done.stdout)
    return {"file_cpu_s": from_file["cpu_s"], "peak_bytes": from_file["peak_bytes"], **in_memory}


if __name__ == "__main__":
    main()
