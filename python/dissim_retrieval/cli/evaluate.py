"""`dissim evaluate`."""

from __future__ import annotations

import time
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import torch
from torch import Tensor
from tyro.conf import OmitArgPrefixes, arg

from ..atomic import check_writable
from ..embedding import embed_images
from ..evaluation import KReciprocalScorer, Scorer, cosine, negative_euclidean, pick_queries
from ..evaluation import evaluate as evaluate_scorer
from ..evaluation.report import metric_text, threshold_text, write_report
from ..head import DissimilarityHead
from ..speed import environment_summary
from ..train import load_trained
from .arguments import Device, ImageOptions, PartOption, Run, pick_device
from .images import load_for_run
from .output import Output


def evaluate(
    run: Run,
    out: Annotated[
        Path | None,
        arg(
            metavar="OUT",
            help="Folder of the report. Default: RUN/evaluation for the part that RUN held out, and"
            " RUN/evaluation-PART for another part or other images.",
        ),
    ] = None,
    /,
    *,
    images: OmitArgPrefixes[ImageOptions],
    part: PartOption = None,
    seed: int = 0,
    rerank: bool = False,
    device: Device = None,
) -> Output:
    """Evaluate RUN on identities that it held out; write a report with pictures, metrics.json and per_query.csv.

    Each image is a query against all others, or in sets with an official protocol, each query against the gallery.

    Args:
        part: Default: the test part, or if the run has none, the validation part. train and all have identities that
            the model was trained on, which the report says.
        seed: Seed for the choice of the queries that the report shows.
        rerank: Also evaluate the pair classifier after k-reciprocal re-ranking.
    """
    start = time.perf_counter()
    if out is not None:
        check_writable(out / "report.html")
    computed_on = pick_device(device)
    trained = load_trained(run)
    if rerank and trained.head is None:
        raise ValueError(f"rerank: expected a run with a pair classifier, got {run}, which has none. Omit --rerank.")
    selection = load_for_run(run, trained, images, part)
    selected, note = selection.images, selection.note
    out = out or run / ("evaluation" if selection.is_held_out else f"evaluation-{selection.part}")
    pictured = pick_queries(selected, seed=seed)
    rows = embed_images(trained.backbone.to(computed_on), selected)
    evaluations = [
        evaluate_scorer(name, embeddings, scorer, selected, pictured_queries=pictured)
        for name, (embeddings, scorer) in _methods(rows, trained.head, rerank).items()
    ]
    facts = {
        "images": selected.provenance(),
        "training": asdict(trained.config),
        "weights": trained.provenance["model"],
        "seed": seed,
        "machine": environment_summary(),
        "seconds": round(time.perf_counter() - start, 1),
    }
    page = write_report(
        out, evaluations, selected, title=f"Retrieval with {run.resolve().name}, {selected.name}", facts=facts,
        note=note, trained_identities=selection.trained_identities,
    )  # fmt: skip
    record = {"report": str(page), **selection.facts()}
    metrics = {one.name: one.metrics for one in evaluations}
    lines = [metric_text(evaluations, note), str(page)]
    if trained.head is not None:
        # The softmax losses leave the bias as it starts: see `dissim_retrieval.losses`.
        untrained = torch.full_like(trained.head.bias, trained.head.initial_bias)
        lines.insert(1, threshold_text(evaluations[0], is_threshold=not torch.equal(trained.head.bias, untrained)))
    return Output("\n".join(lines), record | {"metrics": metrics})


def _methods(rows: Tensor, head: DissimilarityHead | None, rerank: bool) -> dict[str, tuple[Tensor, Scorer]]:
    """What is compared, the method of interest first: the rows that are passed to each scorer."""
    methods: dict[str, tuple[Tensor, Scorer]] = {}
    if head is not None:
        methods["pair classifier"] = rows, head
        if rerank:
            numbers = torch.arange(len(rows))[:, None]
            methods["pair classifier, re-ranked"] = numbers, KReciprocalScorer(rows, head)
    return methods | {"cosine": (rows, cosine), "L2 distance": (rows, negative_euclidean)}
