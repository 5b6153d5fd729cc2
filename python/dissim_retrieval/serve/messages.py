"""The JSON of requests and answers. The OpenAPI schema is made of these classes."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from fastapi import UploadFile
from pydantic import BaseModel, ConfigDict, Field, Json, StrictInt, StrictStr, model_validator

#: The largest number of results of a query.
MAX_K = 1000

Id = StrictInt | StrictStr
#: Of an embedding: not true, nor text.
Number = Annotated[float, Field(strict=True, allow_inf_nan=False)]


class SearchOptions(BaseModel):
    """What every search takes."""

    model_config = ConfigDict(extra="forbid")

    k: Annotated[int, Field(ge=1, le=MAX_K, description="Results, if the gallery has as many.")] = 10
    filter: Annotated[
        str | None, Field(max_length=4000, description="SQL on id and metadata: camera = 2 AND label != 'unknown'.")
    ] = None
    group_by: Annotated[
        str | None, Field(description="A metadata column: the results are its values instead of ids.")
    ] = None
    fuse: Annotated[
        Literal["max", "mean", "min", "median"], Field(description="How scores of a group become one.")
    ] = "max"
    metadata: Annotated[bool, Field(description="Whether results have their metadata.")] = False


class Search(SearchOptions):
    """A search by an embedding, or by the id of a row."""

    embedding: Annotated[list[Number] | None, Field(description="As the network makes it.")] = None
    id: Annotated[Id | None, Field(description="The id of a row of the gallery; a number may be text.")] = None

    @model_validator(mode="after")
    def _one_query(self) -> Search:
        if (self.embedding is None) == (self.id is None):
            raise ValueError("expected an embedding or an id, got " + ("none" if self.id is None else "both"))
        return self


class ImageSearch(SearchOptions):
    """A search by an image."""

    image: UploadFile


class Hit(BaseModel):
    """A row of the gallery, or with group_by a value."""

    id: Any
    score: float
    metadata: dict[str, Any] | None = None


class SearchResults(BaseModel):
    """The best rows, best first, in this version of the gallery."""

    version: int
    results: list[Hit]


class NewRows(BaseModel):
    """Rows to add, as `DissimilarityIndex.add` takes them."""

    model_config = ConfigDict(extra="forbid")

    embeddings: list[list[Number]]
    ids: Annotated[list[Id] | None, Field(description="Not needed in a gallery whose ids are numbers.")] = None
    metadata: Annotated[dict[str, list[Any]], Field(description="For each column the values of all rows.")] = {}


class NewImage(BaseModel):
    """An image whose embedding is added. The image itself is not kept."""

    model_config = ConfigDict(extra="forbid")

    image: UploadFile
    id: Annotated[str | None, Field(description="Not needed in a gallery whose ids are numbers.")] = None
    metadata: Annotated[Json[dict[str, Any]], Field(description='A JSON object: {"label": "ada"}.')] = {}


class Rows(BaseModel):
    """The rows that a write concerned, and the version that it made."""

    version: int
    ids: list[Any]


class Items(BaseModel):
    """Ids of rows, in the order in which they were added."""

    ids: list[Any]
    next: Annotated[int | None, Field(description="`start` of the following ids; null after the last.")]


class Info(BaseModel):
    """What the gallery has and what the service does."""

    name: str
    rows: int
    version: int
    dim: Annotated[int, Field(description="Numbers of an embedding.")]
    columns: Annotated[dict[str, str], Field(description="Types of id and metadata, by name.")]
    photos: Annotated[bool, Field(description="Whether rows name photos, of which there are thumbnails.")]
    image_search: Annotated[str | None, Field(description="Why the service cannot embed images; null if it can.")]
    writable: bool
    max_k: int = MAX_K
    max_upload: Annotated[int, Field(description="Bytes of a request.")]


class Problem(BaseModel):
    """Why a request failed, in one sentence."""

    detail: str
