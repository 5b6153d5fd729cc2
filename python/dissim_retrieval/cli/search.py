"""`dissim search`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

from tyro.conf import arg

from ..atomic import check_writable
from ..embedding_file import read_embedding_file
from ..fitted_gallery import fitted_head
from ..index import DissimilarityIndex, SearchResult
from ..index.arguments import check_k, check_threshold
from ..index.results import PADDING
from ..photos import embed_photos, files_of
from ..search_page import Candidate, QueryResult, write_search_page
from .arguments import Device, Gallery, SkipDamaged, is_embedding_file, is_gallery, open_gallery, pick_device
from .images import skips_damaged
from .output import Output, tab_separated

Query = Annotated[Path, arg(metavar="QUERY", help="A photo, a folder of photos, or an .npz or .npy of embeddings.")]


def search(
    gallery: Gallery,
    query: Query,
    /,
    k: Annotated[int, arg(aliases=["-k"])] = 10,
    threshold: float | None = None,
    filter: str | None = None,
    html: Path | None = None,
    skip_damaged: SkipDamaged = False,
    device: Device = None,
) -> Output:
    """Print the best rows of GALLERY for a photo, or for each of several queries, tab-separated.

    Args:
        k: Results for each query.
        threshold: Tell for each result whether its score is at least this, which means "the same identity". The hinge
            loss trains for 0. A higher value gives fewer wrong pairs and misses more. `dissim evaluate` tells how
            many pairs of one identity and of two score 0 or more, and its report shows their scores.
        filter: An SQL condition on id and metadata that results satisfy: "camera != '3'", "id LIKE 'cats/%'".
        html: Write a page with thumbnails to this file.
    """
    check_k(k)
    if threshold is not None:
        check_threshold(threshold)
    if html is not None:
        check_writable(html)
    if not is_gallery(gallery) and is_gallery(query):
        raise ValueError(
            f"gallery: expected GALLERY before QUERY, got {gallery}, then the gallery {query}. Swap them:"
            f" `dissim search {query} {gallery}`."
        )
    index = open_gallery(gallery, device=pick_device(device))
    index.ids(filter, count=0)  # an error before photos are embedded
    if is_embedding_file(query):
        stored = read_embedding_file(query)
        rows, provenance, fitted = stored.embeddings, stored.provenance, fitted_head(index)
        rows = rows if fitted is None else fitted.project(rows.to(fitted.mean.device))
        names = stored.ids or list(map(str, range(len(rows))))
        files: list[str | None] = [None] * len(rows)
    else:
        skip_damaged = skip_damaged or skips_damaged(index.provenance, query)
        images, rows = embed_photos(index, query, skip_damaged=skip_damaged)
        provenance, names, files = None, images.ids, [*files_of(images)]
    found = index.search(rows, min(k, max(1, len(index))), filter=filter, provenance=provenance)

    known = _files(index, found)
    results = [
        QueryResult(name, file, _candidates(known, ids, scores, threshold))
        for name, file, ids, scores in zip(names, files, found.ids.tolist(), found.scores.tolist(), strict=True)
    ]
    if html is not None:
        write_search_page(html, results, title=f"Search in {gallery.name}", threshold=threshold)
    return Output(
        _table(results, threshold, one_photo=query.is_file() and not is_embedding_file(query)), _record(results)
    )


def _files(index: DissimilarityIndex, found: SearchResult) -> dict[Any, str | None]:
    """The file of each row that was found, by its id. None if there is none."""
    pairs = zip(found.ids.flatten().tolist(), found.scores.flatten().tolist(), strict=True)
    ids = list({name for name, score in pairs if score != PADDING})
    stored = index.get(ids).metadata.get("file", [None] * len(ids))
    # Another program may mean something else.
    return {name: file if isinstance(file, str) else None for name, file in zip(ids, stored, strict=True)}


def _candidates(
    files: dict[Any, str | None], ids: list[Any], scores: list[float], threshold: float | None
) -> list[Candidate]:
    """The results of a query, without padding."""
    known = [(name, score) for name, score in zip(ids, scores, strict=True) if score != PADDING]
    return [
        Candidate(rank, score, name, files[name], None if threshold is None else score >= threshold)
        for rank, (name, score) in enumerate(known, 1)
    ]


def _table(results: list[QueryResult], threshold: float | None, *, one_photo: bool) -> str:
    with_files = any(one.file is not None for result in results for one in result.candidates)
    columns = [
        *([] if one_photo else ["query"]),
        *("rank", "score", "id"),
        *([] if threshold is None else ["same"]),
        *(["file"] if with_files else []),
    ]
    rows = [
        {"query": result.name, **one._asdict(), "same": "yes" if one.same else "no", "file": _short(one.file)}
        for result in results
        for one in result.candidates
    ]
    return tab_separated(rows, columns)


def _short(file: str | None) -> str | None:
    """The path from the current folder on, if the file is in it."""
    return file if file is None else file.removeprefix(f"{Path.cwd()}/")


def _record(results: list[QueryResult]) -> list[dict]:
    return [
        {"query": one.name, "file": one.file, "results": [candidate._asdict() for candidate in one.candidates]}
        for one in results
    ]
