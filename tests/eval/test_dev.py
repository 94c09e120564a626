import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from fastsam3d.errors import ConfigError
from fastsam3d.eval import dev
from fastsam3d.eval.cases import write_case_pack
from fastsam3d.eval.protocol import InteractionProtocol
from tests.eval.toy import ThresholdSegmenter, make_case


@pytest.fixture
def pack(tmp_path: Path) -> Path:
    write_case_pack([make_case("clinic__a"), make_case("other__b", seed=1)], tmp_path / "dev.npz")
    return tmp_path / "dev.npz"


def test_the_ball_baseline_takes_the_best_radius_and_records_how(pack: Path, capsys) -> None:
    out = pack.with_name("ball.json")
    arguments = ["--pack", str(pack), "--baseline", "ball", "--clicks", "2", "--output", str(out)]
    assert dev.main(arguments) == 0
    provenance = json.loads(out.read_text())["provenance"]
    tried = {float(r): curve for r, curve in provenance["macro_by_radius_mm"].items()}
    assert provenance["radius_mm"] == max(tried, key=lambda radius: tried[radius][0])
    assert {len(curve) for curve in tried.values()} == {2}
    assert provenance["command"].endswith("--output " + str(out))
    assert {"commit", "device", "date", "seed"} <= provenance.keys()
    assert "macro" in capsys.readouterr().out


def test_a_model_is_run_through_its_session(pack: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[str, str, bool]] = []

    def session(model: str, device: str, *, is_blind: bool) -> ThresholdSegmenter:
        asked.append((model, device, is_blind))
        return ThresholdSegmenter()

    monkeypatch.setattr(dev, "_session", session)
    out = pack.with_name("model.json")
    common = ["--pack", str(pack), "--model", "hr_s", "--clicks", "1", "--sources", "clinic"]
    dev.main([*common, "--output", str(out)])
    seeing = json.loads(out.read_text())
    assert asked == [("hr_s", "cpu", False)]
    assert {row["case"] for row in seeing["rows"]} == {"clinic__a"}
    assert seeing["summary"]["macro"] == [1.0]
    dev.main([*common, "--zero-image", "--limit-targets", "1", "--output", str(out)])
    blind = json.loads(out.read_text())
    assert asked[-1] == ("hr_s", "cpu", True)
    assert blind["provenance"]["zero_image"] is True
    assert len(blind["rows"]) == 1


def test_something_to_measure_on_is_needed() -> None:
    with pytest.raises(ConfigError, match="DATA_DIR or --pack"):
        dev.main(["--baseline", "ball"])
    with pytest.raises(ConfigError, match="radius"):
        dev.best_ball_radius([make_case()], [], InteractionProtocol())


def test_numpy_scipy_and_torch_are_enough_to_measure(pack: Path) -> None:
    """A machine lent for its GPU has no image reader, no terminal library and no fast clicker."""
    absent = ("SimpleITK", "pydicom", "cyclopts", "rich", "edt", "cc3d", "matplotlib", "jinja2")
    output = pack.with_name("lean.json")
    arguments = ["--pack", str(pack), "--baseline", "ball", "--radius-mm", "4", "--clicks", "1"]
    code = (
        "import sys\n"
        f"sys.modules.update(dict.fromkeys({absent!r}))\n"
        "from fastsam3d.eval import dev\n"
        f"dev.main({[*arguments, '--output', str(output)]!r})"
    )
    environment = {**os.environ, "PYTHONPATH": str(Path(dev.__file__).parents[2])}
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, env=environment)
    assert len(json.loads(output.read_text())["rows"]) == 4
