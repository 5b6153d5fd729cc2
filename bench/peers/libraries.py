"""Libraries that compute L1 distances: FAISS, scikit-learn and SciPy.

They support weights of one sign, by scaling the inputs (E11). Scaling and building an index are not timed.
"""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from ..problem import Problem
from ..registry import Call, competitor


def scaled(problem: Problem, dtype: str = "float32") -> tuple[np.ndarray, np.ndarray]:
    """query and reference times |w|, so that a score is the bias minus their L1 distance (E11)."""
    query, reference, weight = problem.floats()
    return tuple(np.ascontiguousarray((t * weight.abs()).numpy(), dtype) for t in (query, reference))


@competitor("FAISS, L1", {"score": 13}, needs=("faiss",), one_sign=True)
def _faiss(problem: Problem) -> Call:
    import faiss

    faiss.omp_set_num_threads(len(os.sched_getaffinity(0)))
    query, reference = scaled(problem)

    def score():
        distances = faiss.pairwise_distances(query, reference, metric=faiss.METRIC_L1)
        return np.subtract(problem.bias, distances, out=distances)

    return score


@competitor("FAISS IndexFlat, L1", {"topk": 11, "quantized_topk": 11}, needs=("faiss",), one_sign=True)
def _faiss_topk(problem: Problem) -> Call:
    import faiss

    faiss.omp_set_num_threads(len(os.sched_getaffinity(0)))
    query, reference = scaled(problem)
    index = faiss.IndexFlat(problem.case.dim, faiss.METRIC_L1)
    index.add(reference)

    def search():
        distances, indices = index.search(query, problem.case.k)
        return np.subtract(problem.bias, distances, out=distances), indices

    return search


@competitor("scikit-learn, cityblock", {"score": 1.9}, needs=("sklearn",), one_sign=True)
def _sklearn(problem: Problem) -> Call:
    from sklearn.metrics import pairwise_distances

    query, reference = scaled(problem)
    return lambda: problem.bias - pairwise_distances(query, reference, metric="cityblock", n_jobs=-1)


@competitor("SciPy, cityblock, threads", {"score": 2.4}, needs=("scipy",), one_sign=True)
def _scipy(problem: Problem) -> Call:
    from scipy.spatial.distance import cdist

    query, reference = scaled(problem, "float64")  # its only type
    threads = len(os.sched_getaffinity(0))
    longer = query if len(query) >= len(reference) else reference
    pool, parts = ThreadPoolExecutor(threads), np.array_split(longer, threads)

    def score():
        if longer is query:
            return problem.bias - np.concatenate(list(pool.map(lambda x: cdist(x, reference, "cityblock"), parts)))
        return problem.bias - np.concatenate(list(pool.map(lambda x: cdist(query, x, "cityblock"), parts)), axis=1)

    return score


@competitor("scikit-learn NearestNeighbors, brute", {"topk": 1}, needs=("sklearn",), one_sign=True)
def _sklearn_topk(problem: Problem) -> Call:
    from sklearn.neighbors import NearestNeighbors

    query, reference = scaled(problem)
    search = NearestNeighbors(n_neighbors=problem.case.k, algorithm="brute", metric="manhattan", n_jobs=-1)
    search.fit(reference)

    def topk():
        distances, indices = search.kneighbors(query)
        return problem.bias - distances, indices

    return topk
