"""The routes of the service."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Annotated, Any, TypeVar

import numpy as np
import torch
from fastapi import APIRouter, Depends, FastAPI, File, HTTPException, Query, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from fastapi.security import HTTPBearer
from fastapi.staticfiles import StaticFiles

from ..logs import get_logger
from .access import Access, check_token
from .gallery import PRIVATE, Answer, ServedGallery, typed_ids
from .gallery import Query as GalleryQuery
from .messages import (
    Hit,
    ImageSearch,
    Info,
    Items,
    NewImage,
    NewRows,
    Problem,
    Rows,
    Search,
    SearchOptions,
    SearchResults,
)

logger = get_logger(__name__)
Result = TypeVar("Result")
MAX_UPLOAD = 20 << 20
#: A search in JSON may have so many bytes, and 32 for each number of an embedding: parsing blocks other requests.
MAX_SEARCH = 64 << 10


def create_app(
    path: str | Path,
    *,
    token: str | None = None,
    device: str | torch.device = "cpu",
    quantized: bool = False,
    clustered: bool = False,
    max_upload: int = MAX_UPLOAD,
    max_batch: int = 64,
) -> FastAPI:
    """An ASGI application that serves the gallery at `path`: a page at "/", a JSON API at "/api", "/openapi.json".

    Args:
        token: at least 16 characters. Every request to the API must carry it. Without one, the service answers only
            requests that name this machine as their host, and does not write.
        device, quantized, clustered: as of `DissimilarityIndex.open`.
        max_upload: the largest body of a request, in bytes. A search in JSON has at most 64 KiB and 32 bytes for each
            number of an embedding.
        max_batch: how many queries, of all clients together, share a scan of the gallery.

    Raises what `DissimilarityIndex.open` raises. The gallery is closed when the application shuts down.
    """
    check_token(token)
    for name, value in (("max_upload", max_upload), ("max_batch", max_batch)):
        if value < 1:
            raise ValueError(f"{name}: expected at least 1, got {value}.")
    gallery = ServedGallery(path, device=device, quantized=quantized, clustered=clustered, max_batch=max_batch)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        yield
        gallery.close()

    app = FastAPI(
        title=f"dissim: {gallery.path.name}",
        docs_url=None,
        redoc_url=None,
        lifespan=lifespan,
    )
    app.state.gallery, app.state.writable, app.state.max_upload = gallery, token is not None, max_upload
    max_search = min(max_upload, MAX_SEARCH + 32 * gallery.dim)
    app.add_middleware(Access, token=token, max_upload=max_upload, max_search=max_search)
    app.add_exception_handler(RequestValidationError, _malformed)
    app.include_router(router, dependencies=[Depends(HTTPBearer(auto_error=False))] if token else [])
    app.get("/health", responses={503: {"model": Problem}})(health)
    app.mount("/", StaticFiles(directory=Path(__file__).with_name("page"), html=True))
    return app


router = APIRouter(prefix="/api", responses={"4XX": {"model": Problem}, 503: {"model": Problem}})


async def _gallery(request: Request) -> ServedGallery:
    return request.app.state.gallery


Gallery = Annotated[ServedGallery, Depends(_gallery)]


async def health(gallery: Gallery) -> dict[str, str]:
    """Whether the gallery can be read."""
    with _problems():
        await gallery.read(len)
    return {"status": "ok"}


@router.get("/info")
async def info(gallery: Gallery, request: Request) -> Info:
    """What the gallery has, and what the service does."""
    with _problems():
        rows, version, columns = await gallery.read(lambda index: (len(index), index.version, index.columns))
    return Info(
        name=gallery.path.name,
        rows=rows,
        version=version,
        dim=gallery.dim,
        columns={name: kind for name, kind in columns.items() if name not in PRIVATE},
        photos="file" in columns,
        image_search=gallery.no_network,
        writable=request.app.state.writable,
        max_upload=request.app.state.max_upload,
    )


@router.post("/search")
async def search(body: Search, gallery: Gallery, request: Request) -> SearchResults:
    """The best rows for an embedding, or for a row of the gallery."""
    with _problems():
        row = None if body.embedding is None else np.array(body.embedding)
        return _results(await _while_connected(request, gallery.search(_query(row, body.id, body))))


@router.post("/search/image")
async def search_image(body: Annotated[ImageSearch, File()], gallery: Gallery, request: Request) -> SearchResults:
    """The best rows for an image, by the network of the gallery."""

    async def answer() -> Answer:
        return await gallery.search(_query(await gallery.embed(body.image.file), None, body))

    with _problems():
        return _results(await _while_connected(request, answer()))


@router.get("/items")
async def items(
    gallery: Gallery,
    start: Annotated[int, Query(ge=0)] = 0,
    count: Annotated[int, Query(ge=1, le=1000)] = 100,
    filter: Annotated[str | None, Query(max_length=4000)] = None,
) -> Items:
    """The ids of rows, to page through."""
    with _problems():
        ids = await gallery.ids(_condition(filter), start, count + 1)
    return Items(ids=ids[:count], next=start + count if len(ids) > count else None)


@router.get("/thumbnail", response_class=Response, responses={200: {"content": {"image/jpeg": {}}}})
async def thumbnail(gallery: Gallery, id: str) -> Response:
    """A JPEG of the photo of a row, 200 pixels long."""
    with _problems():
        content = await gallery.thumbnail(id)
    if content is None:
        raise HTTPException(404, f"id: expected a row with a photo in the indexed folder, got {id!r}.")
    return Response(content, media_type="image/jpeg", headers={"Cache-Control": "private, max-age=300"})


@router.post("/items", status_code=201)
async def add(body: NewRows, gallery: Gallery) -> Rows:
    """Add rows by their embeddings. Needs the token."""
    with _problems():
        widths = {len(row) for row in body.embeddings} - {gallery.dim}
        if widths:
            raise ValueError(f"embeddings: expected rows of {gallery.dim} numbers, got {min(widths)}.")
        rows = np.array(body.embeddings, np.float64).reshape(-1, gallery.dim)
        version, ids = await gallery.add(rows, body.ids, body.metadata)
    return Rows(version=version, ids=ids)


@router.post("/items/image", status_code=201)
async def add_image(body: Annotated[NewImage, File()], gallery: Gallery) -> Rows:
    """Add the embedding of an image; the image itself is not kept. Needs the token."""
    with _problems():
        row = await gallery.embed(body.image.file)
        ids = None if body.id is None else await gallery.read(lambda index: typed_ids(index, [body.id]))
        version, new = await gallery.add(row[None], ids, {name: [value] for name, value in body.metadata.items()})
    return Rows(version=version, ids=new)


@router.delete("/items")
async def remove(gallery: Gallery, id: Annotated[list[str], Query(min_length=1)]) -> Rows:
    """Remove rows: ?id=...&id=... Needs the token."""
    with _problems():
        ids = await gallery.read(lambda index: typed_ids(index, id))
        version = await gallery.remove(ids)
    return Rows(version=version, ids=ids)


def _query(row: np.ndarray | None, id: Any, options: SearchOptions) -> GalleryQuery:
    filter, group_by = _condition(options.filter), options.group_by or None
    return GalleryQuery(row, id, options.k, filter, group_by, options.fuse, options.metadata and group_by is None)


def _condition(filter: str | None) -> str | None:
    """The filter; None for the empty text of a form."""
    return filter if filter and filter.strip() else None


def _results(answer: Answer) -> SearchResults:
    hits = [Hit(id=id, score=score) for id, score in zip(answer.ids, answer.scores, strict=True)]
    for hit, metadata in zip(hits, answer.metadata or [], strict=False):
        hit.metadata = metadata
    return SearchResults(version=answer.version, results=hits)


async def _while_connected(request: Request, work: Awaitable[Result]) -> Result:
    """The result of `work`, which is canceled if the client goes away."""

    async def disconnected() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass

    working, gone = asyncio.ensure_future(work), asyncio.ensure_future(disconnected())
    try:
        await asyncio.wait((working, gone), return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            raise HTTPException(499, "The client went away.")
        return working.result()
    finally:
        working.cancel()
        gone.cancel()


@contextmanager
def _problems() -> Iterator[None]:
    """Errors of the gallery as HTTP errors: the sentence about a wrong request, or a hint at the log."""
    try:
        yield
    except KeyError as error:
        raise HTTPException(404, f"{error.args[0]}.") from error
    except (ValueError, TypeError) as error:
        if str(error).startswith("path: "):
            raise _unavailable(error) from error
        raise HTTPException(400, str(error)) from error
    except OSError as error:  # with TimeoutError, of a write that waited for another
        raise _unavailable(error) from error


def _unavailable(error: Exception) -> HTTPException:
    """The message names files of this machine, so it goes to the log only."""
    logger.error("%s", error)
    if isinstance(error, TimeoutError):
        return HTTPException(503, "Another program is writing to the gallery. Try again.", {"Retry-After": "1"})
    return HTTPException(503, "The gallery cannot be read or written. The log of the service says why.")


async def _malformed(_: Request, error: Exception) -> JSONResponse:
    """The first of the errors of a request that has not the documented form."""
    assert isinstance(error, RequestValidationError)
    first = error.errors()[0]
    name = ".".join(str(part) for part in first["loc"][1:]) or "body"
    return JSONResponse({"detail": f"{name}: {first['msg']}."}, 400)
