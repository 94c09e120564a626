"""The process of one command: what is put off, left out, and still there when it is wanted."""

import gc
import json
import os
import subprocess
import sys
from importlib import import_module
from pathlib import Path

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


@pytest.fixture
def process(monkeypatch):
    """What a process does in order, with stand-ins for its work and its end."""
    seen = []
    monkeypatch.setattr(start, "load_libraries", lambda: seen.append("libraries"))
    monkeypatch.setattr(command, "main", lambda words: seen.append((words, gc.isenabled())) or 7)
    monkeypatch.setattr(start.os, "_exit", lambda code: seen.append(f"exit {code}"))
    monkeypatch.setenv("OPENBLAS_NUM_THREADS", "3")
    yield seen
    gc.enable()


@pytest.mark.parametrize("words", [["segment", "--help"], ["serve"], []])
def test_a_command_that_stays_is_run_as_any_program(monkeypatch, process, words):
    monkeypatch.setattr(sys, "argv", ["fastsam3d", *words])
    assert start.run() == 7
    assert process == [(words, True)]


def test_a_command_that_answers_once_is_not_searched_for_cycles_and_ends_at_once(
    monkeypatch, process
):
    monkeypatch.setattr(sys, "argv", ["fastsam3d", "segment", "ct.nii.gz"])
    start.run()
    assert sorted(process[:2], key=str) == [(["segment", "ct.nii.gz"], False), "libraries"]
    assert process[2:] == ["exit 7"]


UNWRITTEN = """
from fastsam3d.cli import main, start
main.main = lambda words: print("an answer") or 0
start.load_libraries = lambda: None
raise SystemExit(start.run())
"""


def test_output_that_cannot_be_written_is_told_of():
    environment = {n: v for n, v in os.environ.items() if n != "PYTHONUNBUFFERED"}
    with Path("/dev/full").open("wb") as full:
        done = subprocess.run(
            [sys.executable, "-c", UNWRITTEN, "segment"],
            check=False,
            env=environment,
            stdout=full,
            stderr=subprocess.PIPE,
        )
    assert done.returncode == 120  # as Python says it
    assert b"No space left" in done.stderr


def test_libraries_that_lie_elsewhere_are_left_to_torch(monkeypatch, tmp_path):
    monkeypatch.setattr(start, "find_spec", lambda _: None)
    start.load_libraries()
    (tmp_path / "lib").mkdir()
    (tmp_path / "lib" / "libtorch_global_deps.so").write_bytes(b"no library")
    spec = type("Spec", (), {"submodule_search_locations": [str(tmp_path)]})
    monkeypatch.setattr(start, "find_spec", lambda _: spec)
    start.load_libraries()
