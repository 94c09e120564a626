"""from_pretrained reads folders and the Hub's cache without any network."""

from __future__ import annotations

import shutil
import socket
import sys
from pathlib import Path

import pytest
import torch

from fastsam3d.errors import CheckpointError, ModelNotFoundError
from fastsam3d.model.hub import from_pretrained, save_pretrained
from fastsam3d.model.registry import build_model
from tests.model.tiny import TINY_STUDENT, tiny_card

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_args: object, **_kwargs: object) -> None:
        pytest.fail("the network was touched")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    state = build_model(TINY_STUDENT).state_dict()
    return save_pretrained(state, tmp_path / "new" / "folder", tiny_card(TINY_STUDENT)).parent


@pytest.fixture
def hub_cache(tmp_path: Path, folder: Path) -> Path:
    """A Hub cache as a download leaves it, holding clinic/tiny."""
    repository = tmp_path / "hub" / "models--clinic--tiny"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text(COMMIT)
    shutil.copytree(folder, repository / "snapshots" / COMMIT)
    return tmp_path / "hub"


def test_a_folder_is_ready_to_publish(folder: Path) -> None:
    assert sorted(p.name for p in folder.iterdir()) == [
        "README.md",
        "model.json",
        "model.safetensors",
    ]
    readme = (folder / "README.md").read_text()
    assert readme.startswith("---\nlicense: apache-2.0\nlibrary_name: fastsam3d\n")
    assert "- random numbers" in readme


def test_a_folder_needs_no_huggingface_hub(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    assert from_pretrained(folder).config == TINY_STUDENT
    assert from_pretrained(str(folder)).config == TINY_STUDENT


def test_the_cache_is_enough_offline(hub_cache: Path, folder: Path) -> None:
    expected = from_pretrained(folder).state_dict()
    for revision in (None, COMMIT):
        model = from_pretrained(
            "clinic/tiny", revision=revision, local_files_only=True, cache_dir=hub_cache
        )
        assert all(torch.equal(model.state_dict()[n], t) for n, t in expected.items())


def test_a_repository_outside_the_cache_is_refused_offline(hub_cache: Path) -> None:
    with pytest.raises(ModelNotFoundError, match="other/model was not found in the local Hub"):
        from_pretrained("other/model", local_files_only=True, cache_dir=hub_cache)


def test_a_name_that_is_no_repository_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelNotFoundError, match="check the name"):
        from_pretrained("not a/repository/name", cache_dir=tmp_path)


def test_without_huggingface_hub_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(ModelNotFoundError, match=r"fastsam3d\[hub\]"):
        from_pretrained("clinic/tiny")


def test_a_folder_without_weights_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelNotFoundError, match=r"holds no model\.safetensors"):
        from_pretrained(tmp_path)


def test_a_folder_that_cannot_be_made_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(CheckpointError, match="cannot be created"):
        save_pretrained({}, tmp_path / "file" / "below", tiny_card())
