"""The MONAI Label wire protocol, for 3D Slicer's and OHIF's plug-ins of that name.

Endpoints and forms as of MONAI Label 0.8.5; docs/clients/monai-label.md says what is answered how.
Nothing is trained here, so those routes answer that nothing runs.
"""

from __future__ import annotations

import asyncio
import secrets
import tempfile
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final, Literal, cast

from fastapi import APIRouter, Query, Request, Response

import fastsam3d
from fastsam3d.errors import ConfigError
from fastsam3d.io import read_volume
from fastsam3d.server import monailabel_datastore, ohif
from fastsam3d.server.errors import ApiError
from fastsam3d.server.monailabel_forms import (
    file_reply,
    load_mask,
    load_series,
    load_volume,
    multipart_reply,
    read_form,
)
from fastsam3d.server.monailabel_images import ImageShelf, Opened
from fastsam3d.server.monailabel_infer import (
    LABELS,
    LABELS_MODEL,
    MODEL,
    describe,
    predict,
    read_ask,
    read_params,
    to_dicom_seg,
    to_file,
)
from fastsam3d.server.monailabel_store import Datastore
from fastsam3d.server.room import in_thread

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from fastsam3d.io.dicom_seg import SeriesHeaders
    from fastsam3d.server.dicomweb import DicomWeb
    from fastsam3d.server.monailabel_forms import Form
    from fastsam3d.server.monailabel_images import Image
    from fastsam3d.server.monailabel_infer import Answer, Ask
    from fastsam3d.server.room import Room
    from fastsam3d.server.services import Services
    from fastsam3d.server.settings import ServerSettings

REAP_EVERY_S: Final = 5.0
MAX_ID_CHARACTERS: Final = 200
Output = Literal["image", "json", "all", "dicom_seg"]
Text = Annotated[str, Query(max_length=MAX_ID_CHARACTERS)]


def create_router(services: Services) -> APIRouter:
    """Return the routes of the protocol.

    Args:
        services: The parts of the server.
    """
    desk = Desk(services)

    @asynccontextmanager
    async def lifespan(_: Any) -> AsyncGenerator[None]:
        reaper = asyncio.create_task(_reap(desk.shelf))
        try:
            yield
        finally:
            reaper.cancel()
            desk.shelf.close()

    router = APIRouter(tags=["monailabel"], lifespan=lifespan)
    _add_info_routes(router, desk)
    _add_training_routes(router, desk)
    _add_session_routes(router, desk)
    _add_infer_route(router, desk)
    router.include_router(monailabel_datastore.create_router(desk))
    page = services.settings.ohif_dir
    if page is not None:
        if desk.pacs is None:
            message = "The OHIF page shows images of a PACS; give its DICOMweb address too."
            raise ConfigError(message)
        router.include_router(ohif.create_router(page, desk.pacs))
    return router


class Desk:
    """Where requests of the protocol meet the server.

    Args:
        services: The parts of the server.
    """

    def __init__(self, services: Services) -> None:
        self.services = services
        self.shelf = ImageShelf(services)
        self.pacs = connect_pacs(services.settings)
        folder = services.settings.datastore_dir
        self.store = None if folder is None else Datastore(folder)

    def info(self) -> dict[str, Any]:
        """Return what clients build their panels from."""
        facts = self.services.host.facts
        about = f"{facts.name} ({facts.license}). {facts.notice}"
        common: dict[str, Any] = {"dimension": 3, "config": {}, "version": fastsam3d.__version__}
        return {
            "name": "fastsam3d",
            "description": about,
            "version": fastsam3d.__version__,
            "labels": list(LABELS),
            "models": {
                MODEL: {
                    "type": "deepgrow",
                    "labels": [],
                    "description": f"One object at a time, by points. {about}",
                    **common,
                },
                LABELS_MODEL: {
                    "type": "deepedit",
                    "labels": {name: value for value, name in enumerate(LABELS, 1)},
                    "description": f"Several objects at once, by points of each. {about}",
                    **common,
                },
            },
            "trainers": {},
            "strategies": {},
            "scoring": {},
            "train_stats": {},
            "datastore": {"total": 0, "completed": 0, "label_tags": {}},
        }

    async def find(self, image: str, session_id: str) -> Image:
        """Return the image that a request names.

        Raises:
            ApiError: 404 ``session_not_found`` or ``image_not_found``, or as `ImageShelf.kept`.
        """
        if session_id:
            return self.shelf.upload(session_id)
        if self.store is not None and await in_thread(self.store.has_image, image):
            return await self.shelf.kept(image, lambda: self._load(image))
        if self.pacs is not None:
            return await self.shelf.kept(image, lambda: self._fetch(image))
        message = "The server has no image of that name; upload it, see docs/server.md."
        raise ApiError(404, "image_not_found", message)

    async def _load(self, image: str) -> Opened:
        path = cast("Datastore", self.store).image_path(image)
        return Opened(volume=await in_thread(read_volume, path))

    async def _fetch(self, series_uid: str) -> Opened:
        pacs = cast("DicomWeb", self.pacs)
        with tempfile.TemporaryDirectory(prefix="fastsam3d-") as scratch:
            folder = Path(scratch)
            await pacs.fetch_series(series_uid, folder)
            return await in_thread(load_series, folder, self.services.readers)

    async def answer(self, model: str, image: str, session_id: str, form: Form) -> Found:
        """Answer a request for a segmentation.

        Raises:
            ApiError: No such model or image, or what `read_params` and `read_ask` refuse.
            FastSAM3DError: A file or a prompt does not fit.
        """
        readers = self.services.readers
        label, file = form.file("label"), form.file("file")
        mask = None if label is None else await in_thread(load_mask, label, readers)
        ask = read_ask(model, read_params(form.texts.get("params", "")), mask)
        if file is None or session_id or image:
            found = await self.find(image, session_id)
            return Found(ask, await _predict(found.room, ask), found.opened.series)
        room = await self.shelf.borrow(await in_thread(load_volume, [file], readers))
        try:
            return Found(ask, await _predict(room, ask), None)
        finally:
            room.close()

    async def write(self, found: Found, output: Output) -> Response | dict[str, Any]:
        """Return an answer in the form that was asked for.

        Raises:
            ApiError: 422 ``no_series``: DICOM SEG of an image that is no series of a PACS.
            VolumeWriteError: As `to_dicom_seg`.
        """
        told = describe(found.ask, found.answer)
        if output == "json":
            return told
        # Clients keep files under these names, side by side.
        name = f"mask-{secrets.token_hex(8)}"
        if output == "dicom_seg":
            if found.series is None:
                message = "DICOM SEG refers to a series; ask for an image of the PACS."
                raise ApiError(422, "no_series", message)
            model = self.services.host.facts.name
            content = await in_thread(to_dicom_seg, found.ask, found.answer, found.series, model)
            return file_reply(f"{name}.dcm", content, "application/dicom")
        content = await in_thread(to_file, found.answer, found.ask.form)
        name += found.ask.form.extension
        is_bare = output == "image"
        return file_reply(name, content) if is_bare else multipart_reply(told, name, content)


@dataclass(frozen=True, eq=False)
class Found:
    """What was asked, what was found, and the series that it was found in, if it is one."""

    ask: Ask
    answer: Answer
    series: SeriesHeaders | None


def connect_pacs(settings: ServerSettings) -> DicomWeb | None:
    """Return the service of the settings' address; None without one.

    Raises:
        ConfigError: It is no address, or packages are missing.
    """
    if settings.dicomweb_url is None:
        return None
    try:
        from fastsam3d.server.dicomweb import DicomWeb  # noqa: PLC0415 - an extra of its own
    except ImportError as error:
        message = f"A PACS needs {error.name}; install it with: pip install 'fastsam3d[dicom]'"
        raise ConfigError(message) from error
    return DicomWeb(
        settings.dicomweb_url,
        max_bytes=settings.max_upload_bytes,
        max_files=settings.max_files,
    )


async def _predict(room: Room, ask: Ask) -> Answer:
    return await room.run(lambda: predict(room.session, ask))


async def _reap(shelf: ImageShelf) -> None:
    while True:
        await asyncio.sleep(REAP_EVERY_S)
        shelf.reap()


def _add_info_routes(router: APIRouter, desk: Desk) -> None:
    @router.get("/info/")
    async def info() -> dict[str, Any]:  # pyright: ignore[reportUnusedFunction]
        """Models, labels and notices."""
        kept = {} if desk.store is None else {"datastore": await in_thread(desk.store.status)}
        return desk.info() | kept

    @router.get("/auth/")
    async def auth() -> dict[str, bool]:  # pyright: ignore[reportUnusedFunction]
        """Whether clients must log in; the server's key is no login of this protocol."""
        return {"enabled": False}


def _add_training_routes(router: APIRouter, desk: Desk) -> None:
    @router.get("/train/")
    async def train_status() -> None:  # pyright: ignore[reportUnusedFunction]
        """Say that nothing is being trained, which the protocol does by 404."""
        raise ApiError(404, "not_training", "Nothing is being trained on this server.")

    @router.post("/activelearning/{strategy}")
    async def next_sample(  # pyright: ignore[reportUnusedFunction]
        strategy: str,  # noqa: ARG001 - there is none to choose
    ) -> dict[str, Any]:
        """Propose the first image without a final label; an empty reply says that there is none."""
        if desk.store is None:
            return {}
        image = await in_thread(desk.store.next_unlabelled)
        return {} if image is None else {"id": image, "name": image, "path": "", "weight": 1}


def _add_session_routes(router: APIRouter, desk: Desk) -> None:
    settings = desk.services.settings

    @router.put("/session/", openapi_extra=_form("files"))
    async def create_session(  # pyright: ignore[reportUnusedFunction]
        request: Request, expiry: Annotated[int, Query(ge=0)] = 0
    ) -> dict[str, Any]:
        """Upload an image: one file, or the slices of a DICOM series."""
        async with read_form(request, max_files=settings.max_files) as form:
            files = form.files.get("files", [])
            volume = await in_thread(load_volume, files, desk.services.readers)
        session_id = await desk.shelf.add_upload(volume, expiry or None)
        return _describe_session(session_id, desk.shelf.upload(session_id))

    @router.get("/session/{session_id}")
    async def get_session(  # pyright: ignore[reportUnusedFunction]
        session_id: str,
    ) -> dict[str, Any]:
        """Whether an upload is still there; asking keeps it."""
        return _describe_session(session_id, desk.shelf.upload(session_id))

    @router.delete("/session/{session_id}")
    async def remove_session(  # pyright: ignore[reportUnusedFunction]
        session_id: str,
    ) -> dict[str, Any]:
        """Forget an upload."""
        desk.shelf.remove_upload(session_id)
        return {}


def _describe_session(session_id: str, image: Image) -> dict[str, Any]:
    info = {
        "name": "image",
        "path": "",
        "image": "",
        "meta": {"shape": list(image.opened.volume.shape)},
        "create_ts": int(image.created_at),
        "last_access_ts": int(image.used_at),
        "expiry": int(image.idle_s),
    }
    return {"session_id": session_id, "session_info": info}


def _add_infer_route(router: APIRouter, desk: Desk) -> None:
    @router.post("/infer/{model}", response_model=None, openapi_extra=_form("label", "file"))
    async def infer(  # pyright: ignore[reportUnusedFunction]
        model: str,
        request: Request,
        image: Text = "",
        session_id: Text = "",
        output: Output = "all",
    ) -> Response | dict[str, Any]:
        """Segment: a label map and what is said about it."""
        async with read_form(request, max_files=2) as form:
            found = await desk.answer(model, image, session_id, form)
        return await desk.write(found, output)


def _form(*files: str) -> dict[str, Any]:
    """Return how the API's description shows a form with files."""
    fields: dict[str, Any] = {name: {"type": "string", "format": "binary"} for name in files}
    fields["params"] = {"type": "string", "description": "A JSON object."}
    schema = {"type": "object", "properties": fields}
    return {"requestBody": {"content": {"multipart/form-data": {"schema": schema}}}}
