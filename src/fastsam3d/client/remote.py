"""The segmenter that computes elsewhere: a `Session` whose engine is a server.

A remote session belongs to one thread at a time, as a local one does. It loads no torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Self

from fastsam3d.client.transport import Transport
from fastsam3d.errors import PromptError, SessionStateError, WireError
from fastsam3d.prompts import MaskPrompt, Point, PromptSet
from fastsam3d.prompts.plain import prompt_to_plain
from fastsam3d.segmenter import Prediction
from fastsam3d.volume import Mask, Region
from fastsam3d.wire.masks import decode_runs
from fastsam3d.wire.volumes import volume_to_bytes

if TYPE_CHECKING:
    from collections.abc import Iterable
    from types import TracebackType

    from fastsam3d.client.transport import Frames
    from fastsam3d.prompts import Box, Prompt
    from fastsam3d.volume import Volume


class RemoteSession:
    """Segments one object of one volume on a server; a `fastsam3d.segmenter.Segmenter`.

    Gives the masks that `fastsam3d.session.Session` gives with the server's model.

    Args:
        url: Root of the server.
        api_key: Where the server needs one.
        timeout_s: Longest wait for an answer.

    Raises:
        ConfigError: The address is none, or a package of ``fastsam3d[client]`` is missing.
        ServerUnreachableError: Nobody answers.
        ServerBusyError: All sessions are in use.
        WireError: The key is wrong, or the answer is not that of a fastsam3d server.

    Example:
        >>> with RemoteSession("http://127.0.0.1:1527") as session:  # doctest: +SKIP
        ...     session.set_volume(read_volume("ct.nii.gz"))
        ...     mask = session.add_point((120, 88, 40)).mask
    """

    def __init__(self, url: str, *, api_key: str | None = None, timeout_s: float = 120.0) -> None:
        self._transport = Transport(url, api_key=api_key, timeout_s=timeout_s)
        self.model: dict[str, str] = dict(self._transport.welcome.get("model", {}))
        self._volume: Volume | None = None
        self._object: int = 0
        self._prompts = PromptSet()
        self._prediction: Prediction | None = None

    def __enter__(self) -> Self:
        """Return the session itself."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """End the session."""
        self.close()

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
        return self._prompts

    @property
    def prediction(self) -> Prediction | None:
        """The latest answer; None before the first prompt."""
        return self._prediction

    def set_volume(self, volume: Volume) -> None:
        """Send a volume and start anew on it, without prompts.

        Raises:
            VolumeTooLargeError: The server takes smaller ones only.
            LeaseExpiredError: The server has forgotten the session; begin a new one.
            ServerBusyError: The volumes of others fill the server.
            ServerUnreachableError: Nobody answers.
        """
        self._volume, self._prompts, self._prediction = None, PromptSet(), None
        self._transport.request("PUT", "/session/volume", volume_to_bytes(volume))
        done, _ = self._transport.call(type="object.add")
        self._object = int(done["result"]["object"])
        self._volume = volume

    def add(self, prompt: Prompt) -> Prediction:
        """Add a prompt of any kind; see `predict` for the errors."""
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
            PromptError: The point has two signs; otherwise as `predict`.
        """
        if not isinstance(point, Point):
            point = Point.voxel(point, positive=positive is not False)
        elif positive is not None and positive != point.positive:
            message = f"Point says positive={point.positive}, got positive={positive}; drop one."
            raise PromptError(message)
        return self.add(point)

    def add_box(self, box: Box) -> Prediction:
        """Add a box around the object; see `predict` for the errors."""
        return self.add(box)

    def add_mask(self, mask: MaskPrompt | Mask) -> Prediction:
        """Go on from a mask on the volume's grid; see `predict` for the errors."""
        if isinstance(mask, Mask):
            mask = MaskPrompt(mask.array, mask.geometry)
        return self.add(mask)

    def predict(self, prompts: PromptSet) -> Prediction:
        """Replace all prompts.

        Args:
            prompts: All prompts, oldest first; at least one.

        Returns:
            The answer to the last prompt, as `Session.predict`.

        Raises:
            SessionStateError: There is no volume.
            PromptError: There is no prompt, or one does not fit the volume; nothing has changed.
            LeaseExpiredError: The server has forgotten the session; begin a new one.
            ServerBusyError: Too many requests wait; try again.
            ServerUnreachableError: The connection broke; set the volume again.
        """
        volume = self.volume
        if not len(prompts):
            message = "There is no prompt to answer; add a point, a box or a mask."
            raise PromptError(message)
        known = len(self._prompts)
        is_more = len(prompts) > known and prompts.prompts[:known] == self._prompts.prompts
        new = prompts.prompts[known:] if is_more else prompts.prompts
        _, frames = self._transport.call(
            type="prompt.add" if is_more else "prompt.set",
            object=self._object,
            prompts=[prompt_to_plain(prompt) for prompt in new],
        )
        self._prediction = self._read(frames, volume)
        self._prompts = prompts
        return self._prediction

    def undo(self) -> Prediction | None:
        """Take the latest prompt back.

        Returns:
            The answer to the prompts that are left; None when no prompt is left.

        Raises:
            SessionStateError: There is nothing to take back; otherwise as `predict`.
        """
        if not len(self._prompts):
            message = "There is nothing to undo; call add_point, add_box or add_mask first."
            raise SessionStateError(message)
        left = self._prompts.without_last()
        if len(left):
            return self.predict(left)
        self.reset()
        return None

    def reset(self) -> None:
        """Forget all prompts; the volume stays on the server. See `predict` for the errors."""
        if self._volume is not None and len(self._prompts):
            self._transport.call(type="prompt.set", object=self._object, prompts=[])
        self._prompts, self._prediction = PromptSet(), None

    def close(self) -> None:
        """End the session on the server; ending it twice does nothing."""
        self._transport.close()
        self._volume, self._prompts, self._prediction = None, PromptSet(), None

    def _read(self, frames: Frames, volume: Volume) -> Prediction:
        for header, payload in frames:
            if header.get("object") == self._object:
                return self._prediction_of(header, payload, volume)
        raise WireError("The server answered without a mask; update the server or the client.")

    def _prediction_of(
        self, header: dict[str, Any], payload: memoryview, volume: Volume
    ) -> Prediction:
        try:
            region, roi = _region(header["box"]), _region(header["roi"])
            if region.clip(volume.shape) != region and not region.is_empty:
                raise WireError(f"The server sent a mask at {region}, outside of the volume.")
            mask = decode_runs(payload, region.shape)
            mask.setflags(write=False)
            shown = self._prediction
            return Prediction(
                volume=volume,
                region=region,
                region_mask=mask,
                changed=region if shown is None else region.union(shown.region),
                roi=roi,
                spacing_mm=float(header["spacing_mm"]),
                predicted_quality=float(header["quality"]),
                encode_ms=float(header["encode_ms"]),
                click_ms=float(header["click_ms"]),
                warnings=tuple(str(text) for text in header["warnings"]),
            )
        except (KeyError, TypeError, ValueError) as error:
            message = f"The server sent a mask that cannot be read ({error!r}); update it."
            raise WireError(message) from error


def _region(box: Any) -> Region:
    (i0, i1), (j0, j1), (k0, k1) = box
    return Region((i0, j0, k0), (i1, j1, k1))
