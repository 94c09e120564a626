"""The fixed-shape engine answers as the eager model does, whatever is asked in whatever order."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from itertools import product

import numpy as np
import pytest
import torch
from torch import Tensor

from fastsam3d.errors import ConfigError
from fastsam3d.model.embedding import ImageEmbedding
from fastsam3d.model.registry import build_model
from fastsam3d.session import fixed_shape
from fastsam3d.session.fixed_prompts import ClickBuffers, Fence
from fastsam3d.session.fixed_replay import Replay
from fastsam3d.session.fixed_shape import FixedShapeConfig, FixedShapeEngine
from fastsam3d.session.mask_bits import pack_mask, unpack_mask
from fastsam3d.session.predictor import EncodedRoi, Predictor, RoiPrompts
from tests.model.tiny import TINY_STUDENT, TINY_TEACHER, drawn_model
from tests.session.test_engine import TOY

# What a CPU can run: the same buffers and padding, without compiling and without graphs.
EAGER = FixedShapeConfig(dtype=torch.float32, is_compiled=False, is_captured=False, max_points=4)
CONFIGS = [TOY, TINY_TEACHER, TINY_STUDENT]


def make(config, options: FixedShapeConfig = EAGER):
    model = drawn_model(config, seed=3)
    return model, FixedShapeEngine(model, options)


def some_prompts(config, count: int, *, box: bool, mask: bool, batch: int = 1) -> dict[str, Tensor]:
    given = {
        "points": config.image_size * torch.rand(batch, count, 3),
        "labels": torch.randint(0, 2, (batch, count)),
    }
    if box:
        given["boxes"] = torch.tensor([[3.0, 4, 5, 20, 18, 22]]).repeat(batch, 1)
    if mask:
        given["mask_logits"] = torch.randn(batch, 1, *(config.logits_size,) * 3)
    return given


def assert_equal_answers(model, engine, expected: ImageEmbedding, found: ImageEmbedding, **given):
    with torch.inference_mode():
        wanted = model.decode_masks(expected, **given)
    for a, b in zip(wanted, engine.decode_masks(found, **given), strict=True):
        torch.testing.assert_close(b, a, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("config", CONFIGS, ids=lambda c: c.name)
def test_every_kind_of_prompt_after_every_other(config) -> None:
    model, engine = make(config)
    with torch.inference_mode():
        images = torch.randn(2, 1, *(config.image_size,) * 3)
        expected = [model.encode_image(image[None]) for image in images]
        found = [engine.encode_image(image[None]) for image in images]
    for number, (count, box, mask, multimask) in enumerate(
        product((3, 1, 4, 0, 6), (False, True), (True, False), (False, True))
    ):
        given = some_prompts(config, count, box=box, mask=mask)
        which = number % 2
        assert_equal_answers(
            model, engine, expected[which], found[which], **given, multimask=multimask
        )


@pytest.mark.parametrize("config", CONFIGS, ids=lambda c: c.name)
def test_an_empty_box_is_not_the_same_as_none(config) -> None:
    model, engine = make(config)
    image = torch.randn(1, 1, *(config.image_size,) * 3)
    with torch.inference_mode():
        expected = model.encode_image(image)
    found = engine.encode_image(image)
    given = some_prompts(config, 2, box=False, mask=False)
    for box in (torch.tensor([[9.0, 9, 9, 9, 9, 9]]), None, torch.zeros(1, 6)):
        assert_equal_answers(model, engine, expected, found, **given, boxes=box)


@pytest.mark.parametrize("config", CONFIGS, ids=lambda c: c.name)
def test_nothing_of_a_click_is_left_for_the_next(config) -> None:
    model, engine = make(config)
    image = torch.randn(1, 1, *(config.image_size,) * 3)
    with torch.inference_mode():
        expected = model.encode_image(image)
    found = engine.encode_image(image)
    wild = some_prompts(config, 4, box=True, mask=True)
    wild["points"][:, 1:] = torch.nan
    engine.decode_masks(found, **wild)
    assert_equal_answers(
        model, engine, expected, found, **some_prompts(config, 1, box=False, mask=False)
    )


@pytest.mark.parametrize("box", [False, True])
def test_prompts_on_the_device_are_taken_as_those_in_host_memory(box: bool) -> None:
    given = some_prompts(TOY, 2, box=box, mask=False)
    packed = []
    for way in (ClickBuffers._fill_from_host, ClickBuffers._fill_on_device):
        cpu = torch.device("cpu")
        buffers = ClickBuffers(4, empty_label=-2, side=8, fence=Fence(cpu), device=cpu)
        way(buffers, given["points"], given["labels"], given.get("boxes"))
        packed.append(buffers.packed)
    assert torch.equal(*packed)


@pytest.mark.parametrize("config", CONFIGS, ids=lambda c: c.name)
def test_batches(config) -> None:
    model, engine = make(config)
    images = torch.randn(3, 1, *(config.image_size,) * 3)
    with torch.inference_mode():
        expected = model.encode_image(images)
    found = engine.encode_image(images)
    given = some_prompts(config, 2, box=False, mask=True, batch=3)
    assert_equal_answers(model, engine, expected, found, **given)


def assert_mask_of_logits(config, answer) -> None:
    size = (config.image_size,) * 3
    logits = torch.nn.functional.interpolate(answer.logits, size=size, mode="trilinear")
    wanted = (logits[0, 0] > 0).numpy()
    inside = tuple(slice(*bound) for bound in answer.bounds)
    assert (wanted[inside] == answer.mask).all()
    assert wanted.sum() == answer.mask.sum()


@pytest.mark.parametrize("config", CONFIGS, ids=lambda c: c.name)
def test_the_mask_in_bits_is_that_of_the_logits(config) -> None:
    _, engine = make(config)
    embedding = engine.encode_image(torch.randn(1, 1, *(config.image_size,) * 3))
    answer = engine.answer(embedding, **some_prompts(config, 2, box=False, mask=False))
    assert_mask_of_logits(config, answer)


def test_bounds_are_tight_and_an_empty_mask_has_none() -> None:
    logits = torch.full((1, 1, 16, 16, 16), -1.0)
    quality = torch.tensor([[0.5]])
    empty = unpack_mask(logits, pack_mask(logits, quality, 16).numpy(), 16)
    assert empty.bounds == ((0, 0),) * 3
    assert empty.mask.size == 0
    logits[0, 0, 3:5, 9, 2:15] = 1.0
    found = unpack_mask(logits, pack_mask(logits, quality, 16).numpy(), 16)
    assert found.bounds == ((3, 5), (9, 10), (2, 15))
    assert found.mask.all()


@pytest.mark.parametrize("density", [0.0, 0.001, 0.3])
def test_bits_and_bounds_of_any_mask(density: float) -> None:
    torch.manual_seed(5)
    inside = torch.rand(16, 16, 16) < density
    logits = torch.where(inside, 1.0, -1.0)[None, None]
    found = unpack_mask(logits, pack_mask(logits, torch.tensor([[0.25]]), 16).numpy(), 16)
    assert (np.unpackbits(found.bits, axis=-1).astype(bool) == inside.numpy()).all()
    places = inside.nonzero().numpy()
    if len(places):
        wanted = tuple(zip(places.min(0), places.max(0) + 1, strict=True))
        assert found.bounds == wanted
    assert found.quality == 0.25


class StillReplay(Replay):
    """Leaves its outputs where they are, as a captured graph does."""

    _left: tuple[Tensor, ...] = ()

    @property
    def outputs(self) -> tuple[Tensor, ...]:
        if not self._left:
            self._left = super().run()
        return self._left

    def run(self) -> tuple[Tensor, ...]:
        for left, part in zip(self.outputs, super().run(), strict=True):
            left.copy_(part)
        return self._left


@pytest.mark.parametrize("config", [TOY, TINY_STUDENT], ids=lambda c: c.name)
def test_what_an_answer_holds_belongs_to_the_caller(
    config, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fixed_shape, "Replay", StillReplay)
    _, engine = make(config)
    embedding = engine.encode_image(torch.randn(1, 1, *(config.image_size,) * 3))
    answers = [
        engine.answer(embedding, **some_prompts(config, count, box=False, mask=False))
        for count in (1, 3)
    ]
    assert_mask_of_logits(config, answers[0])
    assert not torch.equal(answers[0].logits, answers[1].logits)


def shown(logits: Tensor) -> Tensor:
    return logits


def as_a_session_does(logits: Tensor) -> Tensor:
    return logits[0, 0].expand(1, 1, -1, -1, -1)


def changed(logits: Tensor) -> Tensor:
    return logits.clamp_(-0.1, 0.1)


def changed_in_part(logits: Tensor) -> Tensor:
    logits[..., :4] = -5.0
    return logits


def turned(logits: Tensor) -> Tensor:
    return logits.transpose(2, 4)


@pytest.mark.parametrize("between", [False, True])
@pytest.mark.parametrize("config", CONFIGS, ids=lambda c: c.name)
@pytest.mark.parametrize("feed", [shown, as_a_session_does, changed, changed_in_part, turned])
def test_an_answer_fed_back_is_taken_as_it_is_now(config, feed, between: bool) -> None:
    model, engine = make(config)
    image = torch.randn(1, 1, *(config.image_size,) * 3)
    with torch.inference_mode():
        expected = model.encode_image(image)
    found = engine.encode_image(image)
    first, second, other = (
        some_prompts(config, count, box=False, mask=False) for count in (1, 2, 3)
    )
    with torch.inference_mode():
        before = engine.answer(found, **first).logits
        given = {"mask_logits": feed(before)}
        if between:
            engine.answer(found, **other)
    assert_equal_answers(model, engine, expected, found, **second, **given)
    assert_equal_answers(model, engine, expected, found, **first)


def test_an_answer_fed_back_is_not_copied_again(monkeypatch: pytest.MonkeyPatch) -> None:
    _, engine = make(TINY_STUDENT)
    embedding = engine.encode_image(torch.randn(1, 1, *(TINY_STUDENT.image_size,) * 3))
    first, second = (some_prompts(TINY_STUDENT, n, box=False, mask=False) for n in (1, 2))
    seen: list[bool] = []
    monkeypatch.setattr(ClickBuffers, "_is_kept", watched(ClickBuffers._is_kept, seen))
    answer = engine.answer(embedding, **first)
    logits, _ = engine.decode_masks(embedding, **second, mask_logits=answer.logits)
    engine.decode_masks(embedding, **second, mask_logits=logits)
    engine.answer(embedding, **second, mask_logits=logits)
    assert seen == [True, True, False]  # the last one is not the answer before


def watched(function, seen: list[bool]):
    def run(*args: object) -> bool:
        seen.append(function(*args))
        return seen[-1]

    return run


@pytest.mark.parametrize("is_decoded_first", [False, True])
def test_embeddings_stay_apart_where_the_decoder_reads_what_the_encoder_writes(
    is_decoded_first: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fixed_shape, "Replay", StillReplay)
    model, engine = make(TOY)
    images = torch.randn(3, 1, *(TOY.image_size,) * 3)
    with torch.inference_mode():
        expected = [model.encode_image(image[None]) for image in images]
    given = some_prompts(TOY, 2, box=False, mask=True)
    found: list[ImageEmbedding] = []
    if is_decoded_first:
        assert_equal_answers(model, engine, expected[0], expected[0], **given)
    for number, image in enumerate(images):
        found.append(engine.encode_image(image[None]))
        for which in (number, 0):
            assert_equal_answers(model, engine, expected[which], found[which], **given)


@pytest.mark.parametrize("count", [2, 3])
def test_a_batch_of_a_recorded_size_is_replayed_and_others_are_run(count: int) -> None:
    model, engine = make(TOY, replace(EAGER, batch_sizes=(2,)))
    images = torch.randn(count, 1, *(TOY.image_size,) * 3)
    with torch.inference_mode():
        expected = model.encode_image(images).tokens
    torch.testing.assert_close(engine.encode_image(images).tokens, expected, rtol=1e-4, atol=1e-4)
    assert list(engine._encoders) == [2][: int(count == 2)]


def test_a_failing_compiler_leaves_the_answer_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise RuntimeError("no compiler here")

    monkeypatch.setattr(torch, "compile", lambda *_, **__: fail)
    model, engine = make(TOY)
    options = replace(EAGER, is_compiled=True)
    image = torch.randn(1, 1, *(TOY.image_size,) * 3)
    with pytest.warns(UserWarning, match="no compiler here"):
        found = FixedShapeEngine(model, options).encode_image(image)
    assert torch.equal(found.tokens, engine.encode_image(image).tokens)


def test_the_compiler_keeps_layouts(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[bool] = []

    def compiled(function, **_: object):
        def run(**given: Tensor):
            seen.append(torch._inductor.config.layout_optimization)
            return function(**given)

        return run

    monkeypatch.setattr(torch, "compile", compiled)
    model, _ = make(TOY)
    options = replace(EAGER, is_compiled=True)
    FixedShapeEngine(model, options).encode_image(torch.randn(1, 1, *(TOY.image_size,) * 3))
    assert seen[0] is False


def test_answers_belong_to_the_caller_and_threads_do_not_mix() -> None:
    _, engine = make(TOY)
    images = torch.randn(3, 1, *(TOY.image_size,) * 3)
    found = [engine.encode_image(image[None]) for image in images]
    prompts = [some_prompts(TOY, 2, box=False, mask=False) for _ in images]
    alone = [
        engine.decode_masks(one, **given)[0] for one, given in zip(found, prompts, strict=True)
    ]
    kept = [answer.clone() for answer in alone]

    def click(number: int) -> bool:
        which = number % len(images)
        return torch.equal(engine.decode_masks(found[which], **prompts[which])[0], kept[which])

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(click, range(24)))
    assert all(torch.equal(a, b) for a, b in zip(alone, kept, strict=True))


def test_the_model_given_is_not_changed() -> None:
    model, _ = make(TOY)
    model.decoder.is_limited = True
    FixedShapeEngine(model, FixedShapeConfig(is_compiled=False, is_captured=False))
    assert model.decoder.is_limited
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}


@pytest.mark.parametrize("config", CONFIGS, ids=lambda c: c.name)
def test_reduced_precision_stays_near(config) -> None:
    model, _ = make(config)
    engine = FixedShapeEngine(model, replace(EAGER, dtype=torch.bfloat16))
    image = torch.randn(1, 1, *(config.image_size,) * 3)
    given = some_prompts(config, 2, box=True, mask=True)
    with torch.inference_mode():
        wanted, _ = model.decode_masks(model.encode_image(image), **given)
    found, quality = engine.decode_masks(engine.encode_image(image), **given)
    assert found.dtype == quality.dtype == torch.float32
    assert (found - wanted).norm() < 0.1 * wanted.norm()


@pytest.mark.parametrize("config", [TOY, TINY_STUDENT], ids=lambda c: c.name)
def test_what_is_compiled_is_one_graph_and_right(config, monkeypatch: pytest.MonkeyPatch) -> None:
    def trace(function, *, dynamic: bool, fullgraph: bool, **_: str):
        return compiler(function, dynamic=dynamic, fullgraph=fullgraph, backend="eager")

    compiler = torch.compile
    monkeypatch.setattr(torch, "compile", trace)
    model, engine = make(config, replace(EAGER, is_compiled=True))
    image = torch.randn(1, 1, *(config.image_size,) * 3)
    with torch.inference_mode():
        expected = model.encode_image(image)
    found = engine.encode_image(image)
    for mask, multimask in ((False, True), (True, False)):
        given = some_prompts(config, 3, box=True, mask=mask)
        assert_equal_answers(model, engine, expected, found, **given, multimask=multimask)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there the kernel serves")
@pytest.mark.parametrize("config", [TINY_TEACHER, TINY_STUDENT], ids=lambda c: c.name)
def test_a_kernel_that_does_not_serve_the_device_is_passed_over(config) -> None:
    model, _ = make(config)
    engine = FixedShapeEngine(model, EAGER)
    image = torch.randn(1, 1, *(config.image_size,) * 3)
    with torch.inference_mode():
        expected = model.encode_image(image).tokens
    found = engine.encode_image(image).tokens
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.skipif(torch.cuda.is_available(), reason="the machine can capture")
def test_capture_without_cuda_is_refused() -> None:
    with pytest.raises(ConfigError, match="CUDA"):
        FixedShapeEngine(build_model(TOY).eval())


@pytest.mark.skipif(not torch.cuda.is_available(), reason="CUDA graphs need a GPU")
@pytest.mark.parametrize("config", CONFIGS, ids=lambda c: c.name)
def test_replayed_graphs_agree_with_the_eager_model(
    config, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    model, _ = make(config)
    model = model.cuda()
    engine = FixedShapeEngine(model, replace(EAGER, is_captured=True))
    images = torch.randn(2, 1, *(config.image_size,) * 3, device="cuda")
    with torch.inference_mode():
        expected = [model.encode_image(image[None]) for image in images]
    found = [engine.encode_image(image[None]) for image in images]
    for number, (count, box, mask) in enumerate(product((1, 3, 6), (False, True), (False, True))):
        given = some_prompts(config, count, box=box, mask=mask)
        given = {name: value.cuda() for name, value in given.items()}
        assert_equal_answers(model, engine, expected[number % 2], found[number % 2], **given)


def test_a_session_hands_the_engine_its_prompts_in_host_memory() -> None:
    _, engine = make(TOY)
    asked: list[torch.device] = []
    engine.prompt_device = torch.device("meta")
    decode = engine.decode_masks

    def watched(embedding: ImageEmbedding, points: Tensor, labels: Tensor, **given: Tensor):
        asked.extend((points.device, labels.device, given["boxes"].device))
        given["boxes"] = torch.zeros(1, 6)
        return decode(embedding, torch.zeros(points.shape), torch.ones(labels.shape), **given)

    engine.decode_masks = watched
    predictor = Predictor(engine)
    embedding = engine.encode_image(torch.randn(1, 1, *(TOY.image_size,) * 3))
    prompts = RoiPrompts(np.zeros((1, 3)), np.ones(1, np.bool_), np.array([0.0, 0, 0, 5, 5, 5]))
    predictor.decode(EncodedRoi(embedding, is_blank=False), prompts)
    assert asked == [torch.device("meta")] * 3
    assert engine.device == predictor.device == torch.device("cpu")
