"""The local segmenter: keeps a volume and its prompts in order, owns no arithmetic.

A session belongs to one thread at a time: it takes no locks. Its state is one immutable value
that is replaced as a whole, and only after a prompt has been answered: an error, or an interrupt,
leaves the session as it was.
"""

from __future__ import annotations

import itertools
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Literal, Self, cast

import torch

from fastsam3d.errors import ConfigError, PromptError, SessionStateError
from fastsam3d.model.registry import load_card, load_model
from fastsam3d.prompts import MaskPrompt, Point, PromptSet
from fastsam3d.session.budget import policy_within
from fastsam3d.session.cache import DEFAULT_MAX_BYTES, EmbeddingCache
from fastsam3d.session.candidates import Candidate, find_candidates
from fastsam3d.session.channels import ALL_CHANNELS, channel_names, select_channel
from fastsam3d.session.disk_cache import with_disk_cache
from fastsam3d.session.drawn_rounds import DrawnPolicy, play_prompt
from fastsam3d.session.engine import EngineName, create_engine
from fastsam3d.session.history import (
    DEFAULT_STATE_BYTES,
    NO_HINT,
    RoundHint,
    RoundState,
    StateCache,
)
from fastsam3d.session.looks import LookBack, RoiEncoder, look_back
from fastsam3d.session.mirrors import MirroredModel
from fastsam3d.session.predictor import Predictor
from fastsam3d.session.rounds import Round
from fastsam3d.session.scale import ScalePolicy
from fastsam3d.session.uncertainty import UncertaintyMap, map_uncertainty
from fastsam3d.volume import Mask

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from torch import Tensor

    from fastsam3d.preprocess.roi import Roi
    from fastsam3d.prompts import Box, Prompt
    from fastsam3d.segmenter import Prediction
    from fastsam3d.session.answers import Answer
    from fastsam3d.session.predictor import DecodedMask, PromptableModel
    from fastsam3d.volume import Volume

Device = Literal["auto", "cpu", "cuda"]

_volume_ids = itertools.count()


class Session:
    """Segments one object of one volume, prompt by prompt; a `fastsam3d.segmenter.Segmenter`.

    The answer to several prompts is defined as that of giving them one by one: each round is fed
    the mask of the round before, and all points so far. It does not depend on what was undone.

    Args:
        predictor: Runs the model.
        policy: How the ROI is chosen; by default the preprocessing's spacings and the policy's
            other defaults.
        cache_bytes: Bound of the memory of embeddings at hand.
        state_bytes: Bound of the memory of earlier answers at hand; those beyond it are computed
            anew when undo comes back to them.
        disk_cache: Folder in which embeddings are kept for later sessions, see `disk_cache`; by
            default nothing is written.

    Example:
        >>> session = Session.from_pretrained("hr_s")  # doctest: +SKIP
        >>> session.set_volume(read_volume("ct.nii.gz"))  # doctest: +SKIP
        >>> session.add_point((120, 88, 40)).mask  # doctest: +SKIP
    """

    def __init__(
        self,
        predictor: Predictor,
        *,
        policy: ScalePolicy | None = None,
        cache_bytes: int = DEFAULT_MAX_BYTES,
        state_bytes: int = DEFAULT_STATE_BYTES,
        disk_cache: Path | None = None,
    ) -> None:
        if disk_cache is not None:
            predictor = with_disk_cache(predictor, disk_cache)
        self.predictor = predictor
        if policy is None:
            policy = ScalePolicy(spacings_mm=predictor.preprocessing.spacings_mm)
        self._policy = policy
        self._drawn = DrawnPolicy(scribble_points=predictor.preprocessing.scribble_points)
        self._cache = EmbeddingCache(cache_bytes)
        self._volume: Volume | None = None
        self._channel = ALL_CHANNELS
        self._channel_ids: dict[str, int] = {}
        self._states = StateCache(state_bytes)
        self._current: RoundState | None = None

    @classmethod
    def from_pretrained(
        cls,
        name_or_path: str | Path = "hr_s",
        *,
        device: Device = "auto",
        policy: ScalePolicy | None = None,
        engine: EngineName = "auto",
        mirrors: int = 1,
        disk_cache: Path | None = None,
    ) -> Self:
        """Make a session with the weights of a registry name or a .safetensors file.

        Args:
            name_or_path: Which weights; their card says how they want their input.
            device: Where to compute; "auto" takes CUDA if there is any.
            policy: As the constructor.
            engine: What runs the model, see `fastsam3d.session.engine.create_engine`.
            mirrors: Average over so many mirror images of what the model sees: 1, 2, 4 or 8, see
                `fastsam3d.session.mirrors`.
            disk_cache: As the constructor.

        Raises:
            ModelNotFoundError: No such model.
            CheckpointError: The weights are damaged or do not fit their card.
            ConfigError: CUDA, or the package of an engine, is asked for and absent, there is no
                such number of mirror images, or the folder cannot be made.
        """
        chosen = choose_device(device)
        card = load_card(name_or_path)
        runner = create_engine(
            load_model(name_or_path, device=chosen),
            engine,
            preprocessing=card.preprocessing,
            weights_sha256=card.sha256,
        )
        model, model_id = cast("PromptableModel", runner), card.sha256
        if mirrors != 1:
            is_batched = chosen.type == "cuda" and engine != "cuda_graph"
            model = MirroredModel(model, mirrors, in_batch=is_batched)
            model_id = f"{model_id} {mirrors} mirror images"
        predictor = Predictor(model, card.preprocessing, device=chosen, model_id=model_id)
        return cls(predictor, policy=policy, disk_cache=disk_cache)

    @property
    def policy(self) -> ScalePolicy:
        """How the ROI is chosen; answers of another policy are forgotten."""
        return self._policy

    @policy.setter
    def policy(self, policy: ScalePolicy) -> None:
        self._policy = policy
        self._states.clear()

    def set_budget(self, milliseconds: float) -> None:
        """Bound the estimated work of each prompt; 0 takes the bound away.

        Measures once what an encode and a decode cost here, see `fastsam3d.session.budget`.

        Raises:
            ConfigError: The budget is negative.
        """
        self.policy = policy_within(self._policy, self.predictor, milliseconds)

    @property
    def drawn(self) -> DrawnPolicy:
        """How drawn prompts are played; answers of another policy are forgotten."""
        return self._drawn

    @drawn.setter
    def drawn(self, policy: DrawnPolicy) -> None:
        self._drawn = policy
        self._states.clear()

    @property
    def volume(self) -> Volume:
        """The volume.

        Raises:
            SessionStateError: There is none.
        """
        if self._volume is None:
            message = "There is no volume yet; call set_volume(volume) first."
            raise SessionStateError(message)
        return self._volume

    @property
    def prompts(self) -> PromptSet:
        """The prompts so far, oldest first."""
        state = self._current
        return PromptSet() if state is None else state.prompts

    @property
    def prediction(self) -> Prediction | None:
        """The latest answer; None before the first prompt."""
        state = self._current
        return None if state is None else state.prediction

    @property
    def embeddings(self) -> EmbeddingCache:
        """The embeddings at hand; forgetting some costs time only."""
        return self._cache

    @property
    def logits(self) -> tuple[Roi, Tensor] | None:
        """The latest ROI and the model's logits in it, for advanced use.

        The logits are float32, (S, S, S), RAS-canonical axes; S is the model's `logits_size` and
        spans the whole ROI. None while no prompt has placed the ROI. Not to be changed.
        """
        state = self._current
        if state is None or state.roi is None or state.prompt_logits is None:
            return None
        return state.roi, state.prompt_logits

    def set_volume(self, volume: Volume) -> None:
        """Start anew on a volume, without prompts, and see all of its channels.

        Args:
            volume: Not to be changed while the session uses it; with several channels a
                `channels.MultiVolume`.
        """
        self._cache.clear()
        self._states.clear()
        self._volume, self._channel = volume, ALL_CHANNELS
        self._channel_ids = {name: next(_volume_ids) for name in channel_names(volume)}
        self._current = None

    @property
    def channel(self) -> str:
        """What prompts are answered on: the name of a channel, or "all" of them combined."""
        return self._channel

    def set_channel(self, channel: str) -> Prediction | None:
        """Choose the channel and answer the prompts so far on it.

        Args:
            channel: A name of the `channels.MultiVolume`, or "all".

        Returns:
            The answer; None without prompts.

        Raises:
            ConfigError: There is no such channel.
            SessionStateError: There is no volume.
            CheckpointError: The model returned logits that are not finite.
        """
        if len(self.prompts):
            return self.predict(self.prompts, channel=channel)
        select_channel(self.volume, channel)
        self._channel = channel
        return None

    def add(self, prompt: Prompt) -> Prediction:
        """Add a prompt of any kind: a scribble or a lasso, or what the other methods add.

        Raises:
            SessionStateError: There is no volume.
            PromptError: The prompt does not fit the volume.
            CheckpointError: The model returned logits that are not finite.
        """
        return self.predict(self.prompts.add(prompt))

    def add_point(
        self, point: Point | Iterable[float], *, positive: bool | None = None
    ) -> Prediction:
        """Add a click.

        Args:
            point: A point, or voxel indices i, j, k of the volume as stored.
            positive: Whether plain indices are on the object (the default) or on background; a
                `Point` knows by itself.

        Raises:
            SessionStateError: There is no volume.
            PromptError: The point lies outside of the volume, or has two signs.
            CheckpointError: The model returned logits that are not finite.
        """
        if not isinstance(point, Point):
            point = Point.voxel(point, positive=positive is not False)
        elif positive is not None and positive != point.positive:
            message = f"Point says positive={point.positive}, got positive={positive}; drop one."
            raise PromptError(message)
        return self.add(point)

    def add_box(self, box: Box) -> Prediction:
        """Add a box around the object; of several boxes the latest counts.

        Raises:
            SessionStateError: There is no volume.
            PromptError: The box lies outside of the volume.
            CheckpointError: The model returned logits that are not finite.
        """
        return self.add(box)

    def add_mask(self, mask: MaskPrompt | Mask) -> Prediction:
        """Go on from a mask on the volume's grid.

        By itself the mask is the answer; with points or a box, before or after, it takes the
        place of the mask of the round before. A mask without foreground is ignored.

        Raises:
            SessionStateError: There is no volume.
            PromptError: The mask lies on another grid.
            CheckpointError: The model returned logits that are not finite.
        """
        if isinstance(mask, Mask):
            mask = MaskPrompt(mask.array, mask.geometry)
        return self.add(mask)

    def predict(self, prompts: PromptSet, *, channel: str | None = None) -> Prediction:
        """Replace all prompts.

        Rounds whose prompts are the same as before are not played again.

        Args:
            prompts: All prompts, oldest first; at least one.
            channel: What to answer them on, from now on; None leaves it, see `set_channel`.

        Returns:
            The answer to the last prompt. Its times are the sum over the rounds that were
            played, and `changed` is relative to the answer before this call.

        Raises:
            SessionStateError: There is no volume.
            PromptError: There is no prompt, or one does not fit the volume.
            ConfigError: There is no such channel.
            CheckpointError: The model returned logits that are not finite.
        """
        channel = self._channel if channel is None else channel
        select_channel(self.volume, channel)
        if not prompts.prompts:
            message = "There is no prompt to answer; add a point, a box or a mask."
            raise PromptError(message)
        state, played = self._play(prompts, channel)
        answer = replace(
            state.prediction,
            encode_ms=sum(prediction.encode_ms for prediction in played),
            click_ms=sum(prediction.click_ms for prediction in played),
        )
        self._channel = channel
        return self._show(state, answer)

    def undo(self) -> Prediction | None:
        """Take the latest prompt back.

        Returns:
            The answer to the prompts that are left, exactly as it was, with `changed` relative to
            the answer taken back; None when no prompt is left.

        Raises:
            SessionStateError: There is nothing to take back.
        """
        if self._current is None:
            message = "There is nothing to undo; call add_point, add_box or add_mask first."
            raise SessionStateError(message)
        left = self.prompts.without_last()
        if not len(left):
            self._current = None
            return None
        return self.predict(left)

    # Ambiguity and trust

    def candidates(self) -> tuple[Candidate, ...]:
        """Return up to three masks that the prompts may have meant, best quality first.

        See `fastsam3d.session.candidates` for what they are. Empty where no prompt has placed
        the object yet.

        Raises:
            SessionStateError: There is no prompt yet.
            CheckpointError: The model returned logits that are not finite.
        """
        look = self._look_back()
        if look is None:
            return ()

        def follow(decoded: DecodedMask) -> Answer:
            again = self._round(self._channel, look.state.seen)
            return again.answer_as(look.before, look.roi, decoded)

        return find_candidates(look, follow)

    def choose(self, candidate: Candidate) -> Prediction:
        """Make a candidate the answer; the choice is a prompt like any other.

        Raises:
            SessionStateError: There is no volume.
            PromptError: The candidate is of another volume.
        """
        return self.add(candidate.prompt)

    def uncertainty(
        self, *, samples: int = 16, jitter_mm: float = 2.0, seed: int = 0
    ) -> UncertaintyMap:
        """Return how sure the answer is, voxel by voxel: see `uncertainty.map_uncertainty`.

        Args:
            samples: Sets of prompts to decode; the first is the given one.
            jitter_mm: How far the others are moved, standard deviation along each axis.
            seed: Of the moves; the same seed gives the same map.

        Raises:
            SessionStateError: No prompt has placed the object yet.
            ConfigError: A number is out of range.
            CheckpointError: The model returned logits that are not finite.
        """
        look = self._look_back()
        if look is None:
            message = "No prompt has placed the object yet; add a positive point or a box first."
            raise SessionStateError(message)
        return map_uncertainty(look, samples=samples, jitter_mm=jitter_mm, seed=seed)

    def reset(self) -> None:
        """Forget all prompts and answers; the volume and its embeddings stay."""
        self._states.clear()
        self._current = None

    def _play(self, prompts: PromptSet, channel: str) -> tuple[RoundState, list[Prediction]]:
        """Return the state after some prompts, and the answers that had to be computed."""
        state = self._states.longest(prompts, channel)
        played: list[Prediction] = []
        for count in range(0 if state is None else len(state.prompts), len(prompts)):
            part = PromptSet(prompts.prompts[: count + 1])
            state = play_prompt(
                partial(self._play_round, channel),
                state,
                part,
                self.volume.geometry,
                self._drawn,
                budget_ms=self._policy.budget_ms,
                click_ms=self._policy.click_ms,
            )
            state = replace(state, channel=channel)
            self._states.put(state)
            played.append(state.prediction)
        return cast("RoundState", state), played

    def _play_round(
        self, channel: str, given: PromptSet, before: RoundState | None, hint: RoundHint = NO_HINT
    ) -> RoundState:
        return self._round(channel, given, hint).play(before)

    def _round(self, channel: str, given: PromptSet, hint: RoundHint = NO_HINT) -> Round:
        return Round(
            predictor=self.predictor,
            policy=self._policy,
            cache=self._cache,
            volume=select_channel(self.volume, channel),
            volume_id=self._channel_ids[channel],
            given=given,
            hint=hint,
        )

    def _look_back(self) -> LookBack | None:
        volume = select_channel(self.volume, self._channel)
        if self._current is None:
            message = "There is no answer yet; call add_point, add_box or add_mask first."
            raise SessionStateError(message)
        earlier = self.prompts.without_last()
        before = self._play(earlier, self._channel)[0] if len(earlier) else None
        encoder = RoiEncoder(self.predictor, self._cache, volume, self._channel_ids[self._channel])
        return look_back(encoder, self._current, before)

    def _show(self, state: RoundState | None, answer: Prediction) -> Prediction:
        shown = self.prediction
        self._current = state
        changed = answer.region if shown is None else answer.region.union(shown.region)
        return replace(answer, changed=changed)


def choose_device(device: Device) -> torch.device:
    """Return the device of a choice.

    Raises:
        ConfigError: An unknown choice, or CUDA where there is none.
    """
    has_cuda = torch.cuda.is_available()
    if device == "auto":
        return torch.device("cuda" if has_cuda else "cpu")
    if device not in {"cpu", "cuda"}:
        message = f"Device must be auto, cpu or cuda, got {device!r}; choose one."
        raise ConfigError(message)
    if device == "cuda" and not has_cuda:
        message = "CUDA was asked for but torch sees no such device; use device='auto' or 'cpu'."
        raise ConfigError(message)
    return torch.device(device)
