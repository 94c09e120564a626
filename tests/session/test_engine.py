"""Every engine gives the answers of eager torch, and an export needs nothing of this package."""

import hashlib
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from fastsam3d.errors import ConfigError
from fastsam3d.model.card import Preprocessing
from fastsam3d.model.config import HR_S
from fastsam3d.model.hr import HighResSam3D
from fastsam3d.model.onnx_export import OnnxFiles, export_onnx
from fastsam3d.model.registry import build_model
from fastsam3d.session import engine as engines
from fastsam3d.session.engine import create_engine
from tests.model.tiny import TINY_STUDENT, TINY_TEACHER

SIZE = 32
TOY = replace(HR_S, image_size=SIZE, embed_dim=48, depth=2, num_heads=2, out_dim=48)
FOREIGN = """
import sys, numpy, onnxruntime
given = dict(numpy.load(sys.argv[2] + "/given.npz"))
load = lambda name: onnxruntime.InferenceSession(sys.argv[1] + "/" + name + ".onnx")
encoder, decoder = load("encoder"), load("decoder")
parts = encoder.run(None, {"image": given.pop("image")})
names = [output.name for output in encoder.get_outputs()]
logits, quality = decoder.run(None, {**dict(zip(names, parts)), **given})
assert not {"torch", "fastsam3d"} & set(sys.modules)
numpy.savez(sys.argv[2] + "/answer.npz", logits=logits, quality=quality)
"""


def preprocessing(size: int = SIZE) -> Preprocessing:
    return Preprocessing(normalisation="roi_percentile_zscore", image_size=size, spacings_mm=(1.5,))


def toy(config=TOY, *, seed: int = 3) -> HighResSam3D:
    torch.manual_seed(seed)
    model = build_model(config).eval()
    if config.family == "hr":
        model.decoder.is_limited = True
    return model


@pytest.fixture(scope="module")
def model() -> HighResSam3D:
    return toy()


@pytest.fixture(scope="module")
def files(model: HighResSam3D, tmp_path_factory: pytest.TempPathFactory) -> OnnxFiles:
    pytest.importorskip("onnx")
    folder = tmp_path_factory.mktemp("export")
    return export_onnx(model, folder, preprocessing=preprocessing(), weights_sha256="0" * 64)


def graph_engine(model: HighResSam3D, files: OnnxFiles) -> engines.GraphEngine:
    pytest.importorskip("onnxruntime")
    load = engines.OnnxRuntimeGraph
    return engines.GraphEngine(model, load(files.encoder, 1), load(files.decoder, 1))


def assert_same_answers(model: HighResSam3D, engine: object, *, counts: tuple[int, ...]) -> None:
    size, logits_size = model.config.image_size, model.config.logits_size
    image = torch.randn(1, 1, size, size, size)
    mask = torch.randn(1, 1, logits_size, logits_size, logits_size)
    box = torch.tensor([[3.0, 4, 5, 20, 18, 22]])
    with torch.inference_mode():
        expected, found = model.encode_image(image), engine.encode_image(image)
        for a, b in zip(expected.skips, found.skips, strict=True):
            torch.testing.assert_close(b, a, rtol=1e-3, atol=1e-4)
        torch.testing.assert_close(found.tokens, expected.tokens, rtol=1e-3, atol=1e-4)
        for count in counts:
            points = size * torch.rand(1, count, 3)
            labels = torch.randint(-1, 2, (1, count))
            for given in ({}, {"boxes": box}, {"mask_logits": mask}):
                one = model.decode_masks(expected, points, labels, **given)
                two = engine.decode_masks(found, points, labels, **given)
                for a, b in zip(one, two, strict=True):
                    torch.testing.assert_close(b, a, rtol=1e-3, atol=1e-3)


def test_onnx_agrees_for_every_number_of_points_box_and_mask(model, files) -> None:
    assert_same_answers(model, graph_engine(model, files), counts=tuple(range(9)))


def test_the_compatible_student_exports_too(tmp_path: Path) -> None:
    pytest.importorskip("onnx")
    model, wanted = toy(TINY_STUDENT), preprocessing(TINY_STUDENT.image_size)
    files = export_onnx(model, tmp_path, preprocessing=wanted, weights_sha256="0" * 64)
    assert_same_answers(model, graph_engine(model, files), counts=(0, 1, 3))


def test_what_onnx_cannot_express_is_refused(tmp_path: Path) -> None:
    pytest.importorskip("onnx")
    wanted = preprocessing(TINY_TEACHER.image_size)
    with pytest.raises(ConfigError, match="cannot be written as ONNX"):
        export_onnx(toy(TINY_TEACHER), tmp_path, preprocessing=wanted, weights_sha256="0" * 64)


@pytest.mark.parametrize("bias", [-30.0, 0.0, 30.0], ids=["no box", "small box", "whole cube"])
def test_the_box_of_the_finest_stage_is_found_inside_the_graph(bias: float, tmp_path: Path) -> None:
    pytest.importorskip("onnx")
    model = toy()
    with torch.no_grad():
        model.decoder.hyper4[-1].bias[-1] += bias
    files = export_onnx(model, tmp_path, preprocessing=preprocessing(), weights_sha256="0" * 64)
    assert_same_answers(model, graph_engine(model, files), counts=(1,))


def test_an_export_runs_with_numpy_and_onnxruntime_alone(model, files, tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    image, points = torch.randn(1, 1, SIZE, SIZE, SIZE), torch.tensor([[[16.0, 15, 14]]])
    labels = torch.ones(1, 1, dtype=torch.int64)
    np.savez(
        tmp_path / "given.npz",
        image=image.numpy(),
        points=points.numpy(),
        labels=labels.numpy(),
        boxes=np.zeros((1, 6), np.float32),
        mask_logits=np.zeros((1, 1, SIZE, SIZE, SIZE), np.float32),
    )
    words = [sys.executable, "-I", "-c", FOREIGN, str(files.encoder.parent), str(tmp_path)]
    subprocess.run(words, check=True)
    with torch.inference_mode():
        logits, quality = model.decode_masks(model.encode_image(image), points, labels)
    answer = np.load(tmp_path / "answer.npz")
    np.testing.assert_allclose(answer["logits"], logits.numpy(), rtol=1e-3, atol=1e-3)
    np.testing.assert_allclose(answer["quality"], quality.numpy(), atol=1e-3)


def test_the_facts_beside_an_export_hold_what_a_foreign_program_needs(files) -> None:
    facts = json.loads(files.facts.read_text())
    for path in (files.encoder, files.decoder):
        assert facts["sha256"][path.name] == hashlib.sha256(path.read_bytes()).hexdigest()
    assert facts["preprocessing"]["image_size"] == SIZE
    assert facts["decoder_inputs"]["points"][0] == 1


def test_what_a_graph_does_not_hold_is_left_to_torch(model) -> None:
    engine = engines.GraphEngine(model, None, None)
    image = torch.randn(2, 1, SIZE, SIZE, SIZE)
    with torch.inference_mode():
        embedding = model.encode_image(image)
        logits, _ = engine.decode_masks(
            embedding, torch.full((2, 1, 3), 16.0), torch.ones(2, 1), multimask=True
        )
    assert logits.shape == (2, 3, SIZE, SIZE, SIZE)


def test_torch_is_the_reference_and_the_default(model) -> None:
    for name in ("auto", "torch"):
        given = create_engine(model, name, preprocessing=preprocessing(), weights_sha256="0" * 64)
        assert given is model


def test_a_missing_package_is_named_with_its_extra(model, monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(ConfigError, match=r"onnxruntime.*fastsam3d\[onnx\]"):
        create_engine(model, "onnx", preprocessing=preprocessing(), weights_sha256="0" * 64)


def test_an_unknown_engine_is_refused(model) -> None:
    with pytest.raises(ConfigError, match="torch, onnx"):
        create_engine(model, "tpu", preprocessing=preprocessing(), weights_sha256="0" * 64)
