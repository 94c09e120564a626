"""Routes of MONAI Label's datastore; without a folder it is empty and takes nothing."""

from __future__ import annotations

import asyncio
import secrets
from typing import TYPE_CHECKING, Annotated, Any, Final, Literal

from fastapi import APIRouter, Query, Request, Response

from fastsam3d.server.errors import ApiError
from fastsam3d.server.monailabel_forms import file_reply, load_mask, load_volume, read_form
from fastsam3d.server.monailabel_infer import series_mask
from fastsam3d.server.monailabel_store import DEFAULT_TAG
from fastsam3d.server.room import in_thread

if TYPE_CHECKING:
    from starlette.datastructures import UploadFile

    from fastsam3d.server.monailabel import Desk
    from fastsam3d.server.monailabel_store import Datastore
    from fastsam3d.volume import Mask

NAME_CHARACTERS: Final = 200
Name = Annotated[str, Query(max_length=NAME_CHARACTERS)]


def create_router(desk: Desk) -> APIRouter:
    """Return the routes.

    Args:
        desk: Where images are found.
    """
    router = APIRouter(prefix="/datastore")
    writing = asyncio.Lock()
    _add_reading(router, desk)

    async def put_image(request: Request, image: Name = "") -> dict[str, str]:
        """Keep an image; without a name it is given one."""
        store = store_of(desk)
        async with read_form(request, max_files=desk.services.settings.max_files) as form:
            files = form.files.get("file", [])
            volume = await in_thread(load_volume, files, desk.services.readers)
        image_id = image or secrets.token_hex(8)
        async with writing:
            await in_thread(store.put_image, image_id, volume)
        desk.shelf.forget(image_id)
        return {"image": image_id}

    async def put_label(
        request: Request, image: Name = "", tag: Name = DEFAULT_TAG
    ) -> dict[str, str]:
        """Keep a label of an image that the server has, or finds in its PACS."""
        store = store_of(desk)
        found = await desk.find(image, "")
        async with read_form(request, max_files=1) as form:
            file = form.file("label")
            if file is None:
                raise ApiError(400, "no_file", "The request must hold a label; send one.")
            mask = await in_thread(_read_label, desk, found.opened.volume, file)
        async with writing:
            await in_thread(store.put_label, image, tag or DEFAULT_TAG, mask)
        return {"image": image, "label": image}

    router.put("/")(put_image)
    router.put("/image")(put_image)
    router.put("/label")(put_label)
    return router


def _read_label(desk: Desk, volume: Any, file: UploadFile) -> Mask:
    if (file.filename or "").endswith(".bin"):  # OHIF sends bare voxels.
        file.file.seek(0)
        return series_mask(volume, file.file.read(volume.array.size + 1))
    prompt = load_mask(file, desk.services.readers)
    return volume.new_mask(prompt.to_voxel(volume.geometry).array)


def _add_reading(router: APIRouter, desk: Desk) -> None:
    @router.get("/")
    async def datastore(  # pyright: ignore[reportUnusedFunction]
        output: Literal["all", "stats"] = "stats",
    ) -> dict[str, Any]:
        """What is kept: everything, or how much."""
        if desk.store is None:
            return {"objects": {}} if output == "all" else desk.info()["datastore"]
        return await in_thread(desk.store.describe if output == "all" else desk.store.status)

    @router.get("/image")
    async def get_image(image: Name = "") -> Response:  # pyright: ignore[reportUnusedFunction]
        """The file of an image."""
        path = await in_thread(store_of(desk).image_path, image)
        return file_reply("image.nii.gz", await in_thread(path.read_bytes))

    @router.get("/label")
    async def get_label(  # pyright: ignore[reportUnusedFunction]
        label: Name = "", tag: Name = DEFAULT_TAG
    ) -> Response:
        """The file of a label."""
        path = await in_thread(store_of(desk).label_path, label, tag)
        return file_reply("label.nrrd", await in_thread(path.read_bytes))


def store_of(desk: Desk) -> Datastore:
    """Return the datastore.

    Raises:
        ApiError: 404 ``no_datastore``.
    """
    if desk.store is None:
        message = "This server keeps no images; upload them as sessions, see docs/server.md."
        raise ApiError(404, "no_datastore", message)
    return desk.store
