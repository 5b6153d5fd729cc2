"""A page of search results with thumbnails: HTML without external files."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

from .html_page import data_uri, write_page
from .thumbnail import thumbnail


class Candidate(NamedTuple):
    """A result of a search. file: its image, if that is known; same: whether its score reaches a threshold."""

    rank: int
    score: float
    id: Any
    file: str | None = None
    same: bool | None = None


class QueryResult(NamedTuple):
    """A query with its candidates, best first."""

    name: str
    file: str | None
    candidates: list[Candidate]


def write_search_page(
    path: str | Path, results: list[QueryResult], *, title: str, threshold: float | None = None
) -> None:
    """Write the page, atomically. An image whose file is missing or damaged is shown by its name only."""
    files = [one.file for one in results] + [one.file for result in results for one in result.candidates]
    thumbnails = {file: _thumbnail(file) for file in dict.fromkeys(files) if file is not None}
    write_page(
        path, __package__, "search.html",
        title=title, results=results, thumbnails=thumbnails, threshold=threshold,
    )  # fmt: skip


def _thumbnail(file: str) -> str | None:
    """The image as a data URI; None if it cannot be read."""
    content = thumbnail(file)
    return None if content is None else data_uri("jpeg", content)
