import json
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
