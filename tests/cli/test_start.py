"""The process of one command: what is put off, left out, and still there when it is wanted."""

import gc
import json
import subprocess
import sys
from importlib import import_module

import pytest

from fastsam3d.cli import main as command
from fastsam3d.cli import start

EAGER = """
import json, sys
from fastsam3d.cli.start import tracing_later
with tracing_later():
    from fastsam3d.session import Session
absent = [n for n in ("torch._meta_registrations", "torch._dynamo", "scipy", "SimpleITK",
                      "fastsam3d.session.study") if n not in sys.modules]
from fastsam3d.session import Study, suggest_objects
import torch._meta_registrations
traced = torch.nn.functional.max_pool3d(torch.empty(1, 1, 4, 4, 4, device="meta"), 2)
print(json.dumps([absent, Study.__name__, suggest_objects.__name__, list(traced.shape)]))
"""


def test_one_answer_does_without_what_it_never_uses_and_the_rest_comes_later():
    done = subprocess.run([sys.executable, "-c", EAGER], capture_output=True, check=True)
    absent, *later = json.loads(done.stdout)
    assert absent == [
        *("torch._meta_registrations", "torch._dynamo", "scipy", "SimpleITK"),
        "fastsam3d.session.study",
    ]
    assert later == ["Study", "suggest_objects", [1, 1, 2, 2, 2]]


@pytest.fixture
def kernels(monkeypatch, tmp_path):
    """Stand-ins: a torch without a GPU, not imported yet, and a module of it that can wait."""
    (tmp_path / "torch").mkdir()
    (tmp_path / "torch" / "__init__.py").write_text(
        "from torch import kernels as kernels\n"
        "class cuda:\n    is_available = staticmethod(lambda: gpus > 0)\n"
        "gpus = 0\n"
    )
    (tmp_path / "torch" / "kernels.py").write_text("NAMES = ['sum']\n")
    for name in [name for name in sys.modules if name.split(".")[0] == "torch"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(start, "_LATER", ("torch.kernels",))
    yield "torch.kernels"
    for name in ("torch", "torch.kernels"):
        sys.modules.pop(name, None)


def test_a_module_is_put_off_until_it_is_imported_again(kernels):
    with start.tracing_later():
        torch = import_module("torch")
    assert kernels not in sys.modules
    assert not hasattr(torch, "kernels")
    assert import_module(kernels).NAMES == ["sum"]


def test_a_module_that_is_put_off_gives_what_is_asked_of_it(kernels):
    with start.tracing_later():
        assert import_module("torch").kernels.NAMES == ["sum"]
    assert sys.modules[kernels].NAMES == ["sum"]


def test_nothing_is_put_off_for_longer_where_there_is_a_gpu(kernels):
    with start.tracing_later():
        import_module("torch").gpus = 1
    assert sys.modules[kernels].NAMES == ["sum"]


def test_nothing_is_put_off_once_torch_is_there(kernels):
    import_module("torch")
    with start.tracing_later():
        assert sys.modules[kernels].NAMES == ["sum"]


def test_nothing_stays_in_the_way_when_the_import_fails(kernels):
    with pytest.raises(ModuleNotFoundError), start.tracing_later():
        import_module("no_such_module")
    assert kernels not in sys.modules


@pytest.mark.parametrize(
    ("words", "is_brief"),
    [
        (["segment", "ct.nii.gz"], True),
        (["segment", "--help"], False),
        (["serve"], False),
        ([], False),
    ],
)
def test_only_what_answers_once_is_never_searched_for_cycles(monkeypatch, words, is_brief):
    seen = []
    monkeypatch.setattr(sys, "argv", ["fastsam3d", *words])
    monkeypatch.setattr(start, "load_libraries", lambda: seen.append("libraries"))
    monkeypatch.setattr(command, "main", lambda given: seen.append((given, gc.isenabled())) or 7)
    try:
        assert start.run() == 7
    finally:
        gc.enable()
        gc.unfreeze()
    assert seen[-1] == (words, not is_brief)
    assert ("libraries" in seen) == is_brief


def test_libraries_that_lie_elsewhere_are_left_to_torch(monkeypatch, tmp_path):
    monkeypatch.setattr(start, "find_spec", lambda _: None)
    start.load_libraries()
    (tmp_path / "lib").mkdir()
    (tmp_path / "lib" / "libtorch_global_deps.so").write_bytes(b"no library")
    spec = type("Spec", (), {"submodule_search_locations": [str(tmp_path)]})
    monkeypatch.setattr(start, "find_spec", lambda _: spec)
    start.load_libraries()
