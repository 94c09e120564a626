"""What a user may rely on: the public names, quick imports, layers, agreeing versions."""

import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import fastsam3d

ROOT = Path(__file__).parent.parent
HEAVY = ("torch", "SimpleITK", "scipy", "pydicom", "numpy")

PUBLIC_NAMES = [
    "Box",
    "CheckpointError",
    "ConfigError",
    "DatasetError",
    "FastSAM3DError",
    "Geometry",
    "GeometryError",
    "Lasso",
    "Mask",
    "MaskPrompt",
    "ModelNotFoundError",
    "Painted",
    "Point",
    "Prediction",
    "PromptError",
    "PromptLog",
    "PromptSet",
    "Region",
    "Scribble",
    "Segmenter",
    "Session",
    "SessionStateError",
    "SliceBox",
    "Study",
    "StudyFileError",
    "Volume",
    "VolumeReadError",
    "VolumeWriteError",
    "__version__",
    "create_model",
    "list_models",
    "load_model",
    "read_mask",
    "read_volume",
    "write_mask",
]


def modules_after(statement: str) -> set[str]:
    """Names of the heavy packages that a fresh Python has loaded after a statement."""
    code = f"import sys\n{statement}\nprint(*[m for m in {HEAVY!r} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return set(done.stdout.splitlines()[-1].split())


def cpu_seconds(*arguments: str) -> float:
    """Processor time of a child Python; unlike wall time it does not count busy neighbours."""
    code = (
        "import resource, subprocess, sys\n"
        "subprocess.run(sys.argv[1:], stdout=subprocess.DEVNULL, check=True)\n"
        "used = resource.getrusage(resource.RUSAGE_CHILDREN)\n"
        "print(used.ru_utime + used.ru_stime)"
    )
    command = [sys.executable, "-c", code, sys.executable, *arguments]
    return float(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


def test_public_names_are_frozen() -> None:
    """A change here is a change of the API and needs a line in CHANGELOG.md."""
    assert fastsam3d.__all__ == PUBLIC_NAMES


@pytest.mark.parametrize("name", PUBLIC_NAMES)
def test_every_public_name_resolves_and_is_documented(name: str) -> None:
    value = getattr(fastsam3d, name)

    assert name in dir(fastsam3d)
    assert name == "__version__" or value.__doc__


def test_unknown_names_raise_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'Sesion'"):
        _ = fastsam3d.Sesion  # pyright: ignore


def test_importing_the_package_loads_nothing_heavy() -> None:
    assert modules_after("import fastsam3d") == set()


@pytest.mark.parametrize("words", [["--help"], ["segment", "--help"], ["models", "--help"]])
def test_help_loads_nothing_heavy(words: list[str]) -> None:
    loaded = modules_after(f"from fastsam3d.cli.main import main\nmain({words!r})")

    assert loaded == set()


def test_volumes_and_prompts_do_without_torch() -> None:
    loaded = modules_after("from fastsam3d import Geometry, Point, Segmenter, read_volume")

    assert "torch" not in loaded


def test_importing_the_package_takes_less_than_300_ms() -> None:
    assert min(cpu_seconds("-c", "import fastsam3d") for _ in range(2)) < 0.3


def test_help_takes_less_than_half_a_second() -> None:
    assert min(cpu_seconds("-m", "fastsam3d", "--help") for _ in range(2)) < 0.5


def test_the_changelog_names_this_version() -> None:
    assert f"## [{fastsam3d.__version__}]" in (ROOT / "CHANGELOG.md").read_text()


def test_metadata_has_ranges_and_the_constraints_have_pins() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"].values()
    ranges = project["dependencies"] + [item for extra in extras for item in extra]
    pins = [
        line
        for line in (ROOT / "constraints.txt").read_text().splitlines()
        if line and not line.startswith("#")
    ]
    ranges = [item.split(";")[0] for item in ranges]

    assert all("==" not in item and ">=" in item for item in ranges)
    assert all("==" in pin for pin in pins)
    assert "torch==2.13.0" in pins
