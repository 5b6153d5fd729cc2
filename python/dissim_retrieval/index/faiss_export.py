"""An index of FAISS with the same ranking, for weights of one sign: the score is the bias minus an L1 distance."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from ..atomic import atomic_write, check_writable
from ..extras import install_extra
from . import scan
from .gallery import DissimilarityIndex
from .projection import stored_projection
from .segments import BLOCK_VALUES, Snapshot

KINDS = ("Flat", "HNSW", "IVF")
#: Stored rows that are queries if none are given.
DRAWN_QUERIES = 200
#: FAISS warns if it trains centroids with fewer.
MIN_ROWS_PER_CELL = 39


class FaissExport(NamedTuple):
    """What `export_faiss` wrote and measured."""

    rows: int
    recall: float  #: share of the k best rows that FAISS finds
    seconds: float  #: to build the FAISS index


@torch.no_grad()
def export_faiss(
    index: DissimilarityIndex,
    path: str | Path,
    *,
    kind: str = "HNSW",
    m: int = 32,
    ef_construction: int = 80,
    ef_search: int = 64,
    nlist: int | None = None,
    nprobe: int | None = None,
    queries: Any = None,
    k: int = 10,
) -> FaissExport:
    """Write a FAISS index of the stored rows, and measure how much of the exact result it finds.

    Plain NumPy, for the query embeddings ``query`` [N, D] of a user of the file::

        rows = head.transform(query) * head.weight.abs()
        distances, ids = faiss.read_index(path).search(rows.numpy(), k)
        scores = head.bias - distances

    int64 ids are kept. For str ids, FAISS has the numbers 0, 1, ... in the order in which ids were added.
    ``<path>.json`` has a list of the names, or null, and the numbers that a search needs: abs_weight, bias, normalize
    and scale. Of a gallery of `dissim fit`, it also has mean [D] and projection [D, dim], else null: the query of
    FAISS is ``head.transform((query - mean) @ projection) * abs_weight``.

    Args:
        kind: "Flat" (exact), "HNSW" (a graph) or "IVF" (cells around centroids). Other kinds of FAISS raise for an L1
            distance, or rank by another one.
        m, ef_construction, ef_search: of HNSW: links per row, and candidates while it is built and searched.
        nlist, nprobe: of IVF: cells (default: 4 sqrt(rows), at most rows / 39), and how many of them are searched
            (default: a sixteenth).
        queries: embeddings [N, D] for which the recall is measured. Default: 200 drawn rows, each without itself.
        k: the recall is measured for the k best rows.

    Raises ValueError if a weight is positive, because the score is then no distance, and ModuleNotFoundError without
    FAISS (the extra ``faiss``). Memory: the rows in float32, and what FAISS adds.
    """
    faiss = _faiss()
    snapshot, head = index._snapshot, index.head
    numbers = dict(m=m, ef_construction=ef_construction, ef_search=ef_search, nlist=nlist, nprobe=nprobe, k=k)
    for name, value in numbers.items():
        smallest = 2 if name == "m" else 1  # with m=1, FAISS ends the process
        if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < smallest):
            raise ValueError(f"{name}: expected an integer of at least {smallest}, got {value!r}.")
    if kind not in KINDS:
        raise ValueError(f"kind: expected one of {', '.join(KINDS)}, got {kind!r}.")
    if (positive := int((head.weight > 0).sum())) > 0:
        raise ValueError(
            f"index: expected weights of at most 0, got {positive} positive ones: the score is then no distance. "
            'Search with DissimilarityIndex, or train a DissimilarityHead(sign="negative"): on the command line, '
            "--sign negative."
        )
    if not len(snapshot):
        raise ValueError("index: expected rows to export, got an index without rows.")
    check_writable(Path(path))
    check_writable(Path(f"{path}.json"))
    mean, projection = stored_projection(index) or (None, None)
    query = index._query(snapshot.take(_drawn(snapshot, DRAWN_QUERIES)) if queries is None else queries)
    rows = len(snapshot)
    cells = min(nlist or max(1, min(4 * int(rows**0.5), rows // MIN_ROWS_PER_CELL)), rows)
    begin = time.perf_counter()
    built = _built(faiss, kind, head.weight, snapshot, cells, m, ef_construction)
    seconds = time.perf_counter() - begin
    inner = faiss.downcast_index(built.index)
    if kind == "HNSW":
        inner.hnsw.efSearch = ef_search
    elif kind == "IVF":
        inner.nprobe = min(nprobe or max(1, cells // 16), cells)
    record = {
        "mean": None if mean is None else mean.tolist(),
        "projection": None if projection is None else projection.tolist(),
        "abs_weight": head.weight.abs().tolist(),
        "bias": head.bias.item(),
        "normalize": head.normalize,
        "scale": head.scale,
        "names": _names(snapshot),
    }
    with atomic_write(path) as file, atomic_write(f"{path}.json") as facts:  # neither is moved before both are there
        faiss.write_index(built, faiss.PyCallbackIOWriter(file.write))
        facts.write(json.dumps(record).encode())
    without = 1 if queries is None else 0  # the best row of a drawn query is itself, or an equal one
    return FaissExport(rows, _recall(built, query, snapshot, k, without), seconds)


def _faiss() -> Any:
    try:
        import faiss
    except ModuleNotFoundError as error:
        remedy = install_extra("faiss")
        raise ModuleNotFoundError(f"faiss: expected FAISS, which is not installed. {remedy}") from error
    return faiss


def _built(
    faiss: Any, kind: str, weight: Tensor, snapshot: Snapshot, cells: int, m: int, ef_construction: int
) -> Any:
    if kind == "Flat":
        inner = faiss.IndexFlat(len(weight), faiss.METRIC_L1)
    elif kind == "HNSW":
        inner = faiss.IndexHNSWFlat(len(weight), m, faiss.METRIC_L1)
        inner.hnsw.efConstruction = ef_construction
    else:
        inner = faiss.index_factory(len(weight), f"IVF{cells},Flat", faiss.METRIC_L1)
        drawn = _drawn(snapshot, inner.cp.max_points_per_centroid * cells)
        inner.train(_scaled(snapshot.take(drawn), weight))
    built = faiss.IndexIDMap2(inner)
    for positions, numbers in _numbered(snapshot, max(1, BLOCK_VALUES // len(weight))):
        built.add_with_ids(_scaled(snapshot.take(positions), weight), numbers)
    return built


def _scaled(rows: Tensor, weight: Tensor) -> np.ndarray:
    """The rows whose L1 distances are the weighted ones."""
    return (rows.float() * weight.float().abs()).cpu().numpy()


def _drawn(snapshot: Snapshot, count: int) -> np.ndarray:
    """Positions of drawn live rows."""
    live = snapshot.live.nonzero()[0]
    return np.random.default_rng(0).permutation(live)[:count]


def _ordered(snapshot: Snapshot) -> np.ndarray:
    """Positions of the live rows, in the order in which ids were added."""
    live = snapshot.live.nonzero()[0]
    return live[snapshot.sequence(live).argsort()]


def _numbered(snapshot: Snapshot, size: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Positions of the live rows, and their numbers in FAISS, in blocks."""
    order = _ordered(snapshot)
    numbers = np.arange(len(order))
    if pa.types.is_integer(snapshot.ids.type):
        numbers = snapshot.ids.take(pa.array(order)).to_numpy()
    for first in range(0, len(order), size):
        yield order[first : first + size], numbers[first : first + size]


def _names(snapshot: Snapshot) -> list[str] | None:
    if pa.types.is_integer(snapshot.ids.type):
        return None
    return snapshot.ids.take(pa.array(_ordered(snapshot))).to_pylist()


def _recall(built: Any, query: scan.Query, snapshot: Snapshot, k: int, without: int) -> float:
    """The share of the k best rows, after the first `without`, that FAISS finds.

    Another row with the score of the last one counts as found.
    """
    bias, count = query.bias.item(), min(k + without, len(snapshot))
    exact = scan.top_k(query, snapshot, count, None, None).scores.numpy()[:, without:]
    found = bias - built.search(_scaled(query.rows, query.weight), count)[0][:, without:]
    if not exact.size:
        return 1.0
    rounding = 1e-5 * (np.abs(exact[:, -1:]) + abs(bias))
    return float((found >= exact[:, -1:] - rounding).mean())
