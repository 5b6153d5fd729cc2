"""Evaluation: retrieval metrics, re-ranking and query expansion, and the report of a comparison."""

from .evaluate import Evaluation, evaluate, pick_queries
from .metrics import PerQueryMetrics, per_query_metrics, retrieval_metrics
from .query_expansion import expand_queries
from .rerank import KReciprocalScorer, RerankedLists, k_reciprocal_rerank
from .scorers import Scorer, cosine, negative_euclidean

__all__ = [
    "Evaluation",
    "KReciprocalScorer",
    "PerQueryMetrics",
    "RerankedLists",
    "Scorer",
    "cosine",
    "evaluate",
    "expand_queries",
    "k_reciprocal_rerank",
    "negative_euclidean",
    "per_query_metrics",
    "pick_queries",
    "retrieval_metrics",
]
