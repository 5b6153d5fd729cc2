"""`dissim evaluate`."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated, Literal

from tyro.conf import OmitArgPrefixes, arg

from ..embedding import embed_images
from ..evaluate import cosine, negative_euclidean, pick_queries
from ..evaluate import evaluate as evaluate_scorer
from ..report import metric_text, threshold_text, write_report
from ..speed import environment_summary
from ..train import load_trained
from .arguments import Device, ImageOptions, Run, pick_device
from .images import load_for_run
from .output import Output


def evaluate(
    run: Run,
    out: Annotated[Path | None, arg(metavar="OUT", help="Folder of the report. Default: RUN/evaluation.")] = None,
    /,
    *,
    images: OmitArgPrefixes[ImageOptions],
    part: Literal["validation", "test", "all"] | None = None,
    seed: int = 0,
    device: Device = None,
) -> Output:
    """Evaluate RUN on identities that it held out; write a report with pictures, and metrics.json.

    Each image is a query against all others, or in sets with an official protocol, each query against the gallery.

    Args:
        part: Default: the test part, or if the run has none, the validation part. all: also the identities that the
            model was trained on, which the report says.
        seed: Seed for the choice of the queries that the report shows.
    """
    start = time.perf_counter()
    out = out or run / "evaluation"
    trained = load_trained(run)
    selected, note, known = load_for_run(run, trained, images, part)
    pictured = pick_queries(selected, seed=seed)
    rows = embed_images(trained.backbone.to(pick_device(device)), selected)
    scorers = {"cosine": cosine, "L2 distance": negative_euclidean}
    if trained.head is not None:
        scorers = {"pair classifier": trained.head, **scorers}
    evaluations = [
        evaluate_scorer(name, rows, scorer, selected, pictured_queries=pictured) for name, scorer in scorers.items()
    ]
    facts = {
        "images": f"{len(selected)} of {selected.name}, {selected.size[0]}x{selected.size[1]} pixels",
        "fingerprint of the images": selected.fingerprint,
        "training": trained.config,
        "digest of the weights": trained.provenance["model"],
        "pictured queries": f"chosen at random, seed {seed}",
        "machine": environment_summary(),
        "embedding and evaluation": f"{time.perf_counter() - start:.0f} s",
    }
    page = write_report(
        out, evaluations, selected, title=f"Retrieval with {run.resolve().name}, {selected.name}", facts=facts,
        note=note, trained_identities=known,
    )  # fmt: skip
    record = {"report": str(page), "note": note, "trained_identities": known}
    metrics = {one.name: one.metrics for one in evaluations}
    lines = [metric_text(evaluations, note), str(page)]
    if trained.head is not None:
        lines.insert(1, threshold_text(evaluations[0]))
    return Output("\n".join(lines), record | {"metrics": metrics})
