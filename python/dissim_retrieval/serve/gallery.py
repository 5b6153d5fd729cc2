"""The gallery of a service: reads, writes and images, each in threads of its own."""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, TypeVar

import numpy as np
import torch

from ..data.decode import decode_opened
from ..embedding import embed, pixels_like
from ..fitted_gallery import fitted_head
from ..index import DissimilarityIndex
from ..index.condition import without_strings
from ..index.results import PADDING
from ..index.settings import folder_identity
from ..photos import gallery_network
from .batching import Batcher
from .photo_files import photo_thumbnail

Result = TypeVar("Result")

#: How long searches may not see what another process has written.
REFRESH_SECONDS = 1.0
#: Columns that `dissim index` writes and the service does not show, so that nobody learns where files are.
PRIVATE = ("file", "digest")
#: What may be before a parenthesis in a filter: no function that makes long text or lists of short ones. Words of SQL
#: and types come first.
FUNCTIONS = (
    *("and", "between", "from", "ilike", "in", "like", "not", "or"),
    *("datetime", "decimal", "timestamp"),
    *("abs", "cast", "ceil", "char_length", "coalesce", "contains", "date_part", "date_trunc"),
    *("ends_with", "length", "lower", "now", "nullif", "round", "starts_with", "strpos", "to_date"),
    *("to_timestamp", "try_cast", "upper"),
)


class Query(NamedTuple):
    """An embedding to search with, [D], or else the id of a row; and the arguments of the search."""

    row: np.ndarray | None
    id: Any
    k: int
    filter: str | None
    group_by: str | None
    fuse: str
    metadata: bool


class Answer(NamedTuple):
    """Ids and scores, best first, and if wanted the metadata of each, in a version of the gallery."""

    version: int
    ids: list[Any]
    scores: list[float]
    metadata: list[dict[str, Any]] | None = None


class ServedGallery:
    """A gallery on disk that a service searches and writes. Its methods are coroutines that block no event loop.

    One thread makes all reads, so that a search and the look-ups after it see one version. Before a read it moves to
    the newest version, if the last check was more than REFRESH_SECONDS ago or this object has written since. Writes
    have a thread and an index object of their own, which does not keep the rows in memory: a write that waits for
    another process delays no search. At most two images are decoded at a time.

    Embeddings that come in are those of the network: a gallery of `dissim fit` projects them before it uses them.
    """

    def __init__(
        self,
        path: str | Path,
        *,
        device: str | torch.device = "cpu",
        quantized: bool = False,
        clustered: bool = False,
        max_batch: int = 64,
    ) -> None:
        self.path = Path(path).absolute()  # the current folder may change
        self._identity = folder_identity(self.path)
        self.index = DissimilarityIndex.open(self.path, device=device, quantized=quantized, clustered=clustered)
        self._fitted = fitted_head(self.index)
        self.dim = len(self.index.head.weight if self._fitted is None else self._fitted.mean)
        try:
            self.network, self.image_size = gallery_network(self.index)
            self.no_network = None
        except (ValueError, ImportError) as error:
            self.no_network = str(error)
        self._reader, self._writer, self._images = map(ThreadPoolExecutor, (1, 1, 2))
        self._checked = time.monotonic()
        self._index_to_write: DissimilarityIndex | None = None
        self._searches = Batcher(self._search, _search_key, self._reader, max_batch=max_batch)
        self._files = Batcher(self._read_files, lambda _: None, self._reader, max_batch=max_batch)

    def close(self) -> None:
        """Wait for running work and end the threads."""
        for pool in (self._reader, self._writer, self._images):
            pool.shutdown(cancel_futures=True)

    # --- read -------------------------------------------------------------------------------------------------

    async def read(self, function: Callable[[DissimilarityIndex], Result]) -> Result:
        """``function(index)`` on the newest version, in the thread of reads."""
        return await _run(self._reader, lambda: function(self._newest()))

    async def search(self, query: Query) -> Answer:
        """The best rows for a query, which shares a scan of the gallery with the queries of other requests.

        Raises KeyError for an unknown id.
        """
        _check_filter(query.filter)
        _check_public("group_by", [query.group_by])
        if query.row is not None and len(query.row) != self.dim:
            raise ValueError(f"embedding: expected {self.dim} numbers, got {len(query.row)}.")
        return await self._searches.answer(query)

    async def ids(self, filter: str | None, start: int, count: int) -> list[Any]:
        """Ids of rows, in the order in which they were added."""
        _check_filter(filter)
        return (await self.read(lambda index: index.ids(filter, start=start, count=count))).tolist()

    async def thumbnail(self, id: str) -> bytes | None:
        """A JPEG of the photo of a row, None if there is none. Raises KeyError for an unknown id."""
        file = await self._files.answer(id)
        return await _run(self._images, partial(photo_thumbnail, id, file))

    async def embed(self, image: BinaryIO) -> np.ndarray:
        """The embedding of an image by the network of the gallery, [D]."""
        if self.no_network is not None:
            raise ValueError(self.no_network)
        return await _run(self._images, partial(self._embed, image))

    @torch.inference_mode()
    def _embed(self, image: BinaryIO) -> np.ndarray:
        pixels = torch.from_numpy(decode_opened(image, self.image_size, "image").transpose(2, 0, 1).copy())
        return embed(self.network, pixels_like(self.network, pixels[None]))[0].float().cpu().numpy()

    def _newest(self) -> DissimilarityIndex:
        if time.monotonic() - self._checked > REFRESH_SECONDS:
            self._check_not_replaced()
            self._checked = time.monotonic()  # before the refresh: a write that ends during it sets another
            self.index.refresh()
        return self.index

    def _check_not_replaced(self) -> None:
        if folder_identity(self.path) != self._identity:
            raise OSError(f"path: {self.path} was replaced by another gallery, or removed. Start the service again.")

    def _search(self, queries: list[Query]) -> list[Answer]:
        """One scan for queries that differ in row and k only."""
        index, first = self._newest(), queries[0]
        known = _stored(index, [query.id for query in queries if query.row is None])
        found = index.search(
            np.stack([known[query.id] if query.row is None else self._stored_form(query.row) for query in queries]),
            max(query.k for query in queries),
            filter=first.filter,
            group_by=first.group_by,
            fuse=first.fuse,
        )
        answers = []
        for query, ids, scores in zip(queries, found.ids.tolist(), found.scores.tolist(), strict=True):
            count = sum(score != PADDING for score in scores[: query.k])
            answers.append(Answer(index.version, ids[:count], scores[:count]))
        if first.metadata:
            metadata = _metadata(index, {id for answer in answers for id in answer.ids})
            answers = [answer._replace(metadata=[metadata[id] for id in answer.ids]) for answer in answers]
        return answers

    def _stored_form(self, rows: np.ndarray) -> np.ndarray:
        """Embeddings [..., D] as the gallery stores them."""
        if self._fitted is None:
            return rows
        projected = self._fitted.project(rows.reshape(-1, self.dim)).cpu().numpy()
        return projected.reshape(*rows.shape[:-1], projected.shape[1])

    def _read_files(self, ids: list[str]) -> list[Any]:
        """What each row has in the column "file"."""
        index = self._newest()
        typed = typed_ids(index, ids)
        wanted = list(set(typed))
        files = index.get(wanted).metadata.get("file", [None] * len(wanted))
        known = dict(zip(wanted, files, strict=True))
        return [known[id] for id in typed]

    # --- write ------------------------------------------------------------------------------------------------

    async def add(
        self, rows: np.ndarray, ids: list[Any] | None, metadata: Mapping[str, Sequence[Any]]
    ) -> tuple[int, list[Any]]:
        """Add rows [B, D]. Returns the version that has them, and their ids."""
        _check_public("metadata", metadata)

        def write(index: DissimilarityIndex) -> list[Any]:
            return index.add(self._stored_form(rows), ids, metadata).tolist()

        return await _run(self._writer, lambda: self._write(write))

    async def remove(self, ids: list[Any]) -> int:
        """Remove rows. Returns the version that does not have them. Raises KeyError for an unknown id."""
        return (await _run(self._writer, lambda: self._write(lambda index: index.remove(ids))))[0]

    def _write(self, function: Callable[[DissimilarityIndex], Result]) -> tuple[int, Result]:
        self._check_not_replaced()
        if self._index_to_write is None:
            self._index_to_write = DissimilarityIndex.open(self.path, in_memory=False)
        result = function(self._index_to_write)
        self._checked = float("-inf")
        return self._index_to_write.version, result


def _search_key(query: Query) -> Hashable:
    """Queries share a scan if they have the same candidates, and about the same k: a large one is slower for all."""
    return query.filter, query.group_by, query.fuse, query.metadata, max(16, query.k - 1).bit_length()


def typed_ids(index: DissimilarityIndex, ids: Sequence[Any]) -> list[Any]:
    """Ids as the index has them: text may be numbers, because addresses and forms have only text, and browsers no
    numbers beyond 2^53."""
    if index.columns.get("id") != "int64":
        return list(ids)
    wrong = [id for id in ids if isinstance(id, str) and not re.fullmatch("-?[0-9]{1,20}", id)]
    if wrong:  # int() takes "1_0" as well
        raise ValueError(f"id: expected numbers, as in this gallery, got {', '.join(map(repr, wrong))}.")
    return [int(id) if isinstance(id, str) else id for id in ids]


def _stored(index: DissimilarityIndex, ids: Sequence[Any]) -> dict[Any, np.ndarray]:
    """The embedding of each row, by its id as it was given."""
    if not ids:
        return {}
    typed = typed_ids(index, ids)
    wanted = list(set(typed))
    known = dict(zip(wanted, index.get(np.array(wanted, object)).embeddings, strict=True))
    return {given: known[id] for given, id in zip(ids, typed, strict=True)}


def _metadata(index: DissimilarityIndex, ids: Iterable[Any]) -> dict[Any, dict[str, Any]]:
    """The metadata of each row, without private columns."""
    wanted = list(ids)
    columns = {name: values for name, values in index.get(wanted).metadata.items() if name not in PRIVATE}
    return {id: {name: values[place] for name, values in columns.items()} for place, id in enumerate(wanted)}


def _check_filter(filter: str | None) -> None:
    """Raise ValueError if a condition names a private column, or calls a function that is not in FUNCTIONS.

    The names may be in a string, unless the condition has characters with which a single quote may not begin one:
    those of other quotes, of escapes and of comments.
    """
    text = filter or ""
    if not re.search(r'["`\\$#]|--|/\*', text):
        text = re.sub("'[^']*'", "", text)
    _check_public("filter", re.findall(r"\w+", text.lower()))
    for name in re.findall(r"\b(\w+)`?\s*\(", without_strings(filter or "").lower()):
        if name not in FUNCTIONS:
            expected = f"filter: expected only these names before a parenthesis: {', '.join(FUNCTIONS)}"
            raise ValueError(f"{expected}, got {name!r}.")


def _check_public(argument: str, names: Any) -> None:
    for name in PRIVATE:
        if name in names:
            raise ValueError(f"{argument}: expected columns that the service shows, got {name!r}, which it does not.")


async def _run(pool: Executor, function: Callable[[], Result]) -> Result:
    return await asyncio.get_running_loop().run_in_executor(pool, function)
