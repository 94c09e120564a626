"""From a request of the native API to its place in the queue, and to what is sent back.

Everything here happens on the event loop's thread, in the order in which requests came.
"""

from __future__ import annotations

import base64
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

from fastsam3d.server.errors import to_api_error
from fastsam3d.server.native_messages import (
    MaskPromptMessage,
    PaintedPrompt,
    PromptAdd,
    to_prompt,
)
from fastsam3d.server.native_ops import Desk

if TYPE_CHECKING:
    from collections.abc import Callable
    from concurrent.futures import Future

    from fastsam3d.prompts import Prompt
    from fastsam3d.server.native_messages import Call
    from fastsam3d.server.native_ops import Answer
    from fastsam3d.server.room import Room
    from fastsam3d.server.services import Services

    Batches = list[tuple[Prompt, ...]]


@dataclass(eq=False, kw_only=True)
class Pending:
    """A request that has its place in the queue.

    Attributes:
        room: Whose.
        future: Will hold the answer.
        batches: Prompts to be given, a step of the log each; those of requests whose place this
            one took come first.
        came: When the request came.
        began: When its turn came; the same until then.
    """

    room: Room
    future: Future[Answer]
    batches: Batches | None
    came: float
    began: float


class Calls:
    """Takes requests and sees to their answers.

    Args:
        services: The parts of the server.
    """

    def __init__(self, services: Services) -> None:
        self._services = services
        # Prompts of the latest `prompt.add` of each object that may still wait.
        self._latest: WeakKeyDictionary[Room, dict[int, Batches]] = WeakKeyDictionary()

    def submit(
        self, room: Room, call: Call, observer: Callable[[str], None] | None = None
    ) -> Pending:
        """Give a request its place in the queue.

        Args:
            room: Whose.
            call: What is asked for.
            observer: Told of the stages of the work, in the engine's thread.

        Raises:
            ApiError: It cannot be taken, see `Room.submit`.
            PromptError: A prompt does not fit the volume.
        """
        now = time.perf_counter()
        batches = self._batches(room, call)
        max_objects = self._services.settings.max_objects
        started: list[float] = []

        def work() -> Answer:
            started.append(time.perf_counter())
            with self._services.host.watched(observer):
                return Desk.of(room, max_objects).perform(call, batches)

        if batches is None or not isinstance(call, PromptAdd):
            future = room.submit(work)
        else:
            latest = self._latest.setdefault(room, {})
            older = latest.get(call.object, [])
            key = ("prompt.add", call.object)
            future = room.submit(work, key, lambda: batches.extend((*older, batches.pop())))
            latest[call.object] = batches
        pending = Pending(room=room, future=future, batches=batches, came=now, began=now)
        future.add_done_callback(lambda _: setattr(pending, "began", (started or [now])[0]))
        return pending

    async def answer(self, pending: Pending) -> Answer:
        """Wait for the answer to a request.

        Raises:
            ApiError: There is none, whatever the reason.
        """
        try:
            answer = await pending.room.result(pending.future)
        # Whatever went wrong is told in one form, and counted.
        except Exception as error:  # noqa: BLE001
            raise self.refused(error) from None
        metrics = self._services.metrics
        waited = pending.began - pending.came
        total = time.perf_counter() - pending.came
        metrics.waited.observe(waited)
        if answer.encode_ms:
            metrics.encode.observe(answer.encode_ms / 1e3)
        if answer.click_ms:
            metrics.click.observe(answer.click_ms / 1e3)
            spent = waited + (answer.encode_ms + answer.click_ms) / 1e3
            metrics.overhead.observe(max(0.0, total - spent))
        return answer

    def refused(self, error: Exception) -> Exception:
        """Return what a client is told about an error, and count it."""
        known = to_api_error(error)
        self._services.metrics.refusals.labels(code=known.code).inc()
        return known

    def cancel(self, pending: Pending) -> bool:
        """Take a request back if it has not begun."""
        is_cancelled = pending.future.cancel()
        if is_cancelled and pending.batches is not None:
            pending.batches.clear()  # Nobody shall inherit what was taken back.
        return is_cancelled

    def _batches(self, room: Room, call: Call) -> Batches | None:
        """Return the prompts of a `prompt.add`, checked at once; None where that takes time."""
        if not isinstance(call, PromptAdd):
            return None
        if any(isinstance(message, MaskPromptMessage | PaintedPrompt) for message in call.prompts):
            return None
        geometry = room.volume.geometry
        prompts = tuple(to_prompt(message, geometry.shape) for message in call.prompts)
        for prompt in prompts:
            prompt.to_voxel(geometry)
        return [prompts]


def to_json(answer: Answer, seq: int) -> dict[str, Any]:
    """Return an answer as one JSON message, masks in base64."""
    masks = [
        {**header, "seq": seq, "payload": base64.b64encode(payload).decode()}
        for header, payload in answer.masks
    ]
    return {**answer.done, "seq": seq, "masks": masks}
