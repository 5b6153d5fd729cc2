"""The report of a comparison: an HTML page without external files, a picture, and the numbers as JSON and CSV."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Mapping
from dataclasses import asdict, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import Image

from ..atomic import atomic_write
from ..data import ImageSet
from ..html_page import data_uri, write_page
from .evaluate import Evaluation
from .histogram import RECALL_GRID
from .metrics import PerQueryMetrics

if TYPE_CHECKING:
    from .figures import Table

#: Column heading -> key of `Evaluation.metrics`; higher is better in all.
COLUMNS = {
    "mAP": "mAP_mean",
    "Recall@1": "recall@1",
    "Recall@5": "recall@5",
    "Recall@10": "recall@10",
    "mINP": "mINP",
    "MAP@R": "MAP@R",
    "R-prec.": "R-precision",
    "mAP trapez.": "mAP_trapezoid",
}


#: Columns that are shown even if their values equal those of an earlier one.
ALWAYS_SHOWN = ("mAP", "Recall@1")


def write_report(
    out_dir: str | Path,
    evaluations: list[Evaluation],
    images: ImageSet,
    *,
    title: str,
    facts: dict,
    note: str = "",
    trained_identities: int | None = None,
) -> Path:
    """Write report.html, report.png, metrics.json and per_query.csv into `out_dir`; return the path of report.html.

    evaluations: the method of interest first, then its baselines, all on the same `images` and with the same pictured
    queries. facts: what a reader needs to repeat the run (seed, configuration, machine, time): text, numbers, or
    mappings of them.
    note: a sentence above the metrics, on whether the model was trained on these identities; trained_identities: on
    how many of them, if that is known.
    """
    from .figures import curves_svg, overview_png  # here, because matplotlib takes a second to import

    if not evaluations:
        raise ValueError("evaluations: expected at least one, got none. Pass what `evaluate` returned.")
    out_dir = Path(out_dir)
    columns, table = metric_table(evaluations)
    record: dict = {"title": title, "note": note, "trained_identities": trained_identities, "facts": facts}
    record["recall_grid"] = RECALL_GRID.tolist()
    arrays = ("queries", "per_query")  # they are in per_query.csv
    record["evaluations"] = [{k: v for k, v in asdict(one).items() if k not in arrays} for one in evaluations]
    for shown in (shown for one in record["evaluations"] for shown in one["ranked"]):
        shown["scores"] = [score if math.isfinite(score) else None for score in shown["scores"]]  # JSON has no inf
    with atomic_write(out_dir / "metrics.json") as file:
        file.write(json.dumps(record, indent=1, default=str, allow_nan=False).encode())
    with atomic_write(out_dir / "per_query.csv") as file:
        file.write(per_query_csv(evaluations, images).encode())
    with atomic_write(out_dir / "report.png") as file:
        file.write(overview_png(evaluations, images, columns, table, title=title))

    pictured = {row for e in evaluations for one in e.ranked for row in (one.query, *one.gallery)}
    page = out_dir / "report.html"
    write_page(
        page,
        __package__,
        "report.html",
        title=title,
        note=note,
        facts={name: _fact_text(value) for name, value in facts.items()},
        evaluations=evaluations,
        columns=columns,
        table=table,
        curves=data_uri("svg+xml", curves_svg(evaluations)),
        pictures={row: data_uri("png", _png(images, row)) for row in pictured},
        names=[images.label_names[label] for label in images.labels.tolist()],
        cameras=[images.camera_names[camera] for camera in images.cameras.tolist()],
        several_cameras=len(images.camera_names) > 1,
        official_queries=images.queries is not None,
        credit=images.credit,
    )
    return page


def metric_table(evaluations: list[Evaluation]) -> tuple[list[str], Table]:
    """Headings of the COLUMNS that are shown, and their values in percent. Values that print alike count as equal.

    Some metrics are equal by definition if every query has one match. A column that is not in ALWAYS_SHOWN is omitted
    if it has the values of an earlier column for all methods.
    """
    shown: dict[str, list[float]] = {}
    for heading, key in COLUMNS.items():
        values = [evaluation.metrics[key] for evaluation in evaluations]
        if heading in ALWAYS_SHOWN or values not in shown.values():
            shown[heading] = values
    texts = [[f"{100 * value:.1f}" for value in values] for values in shown.values()]
    cells = [[(text, text == max(column, key=float)) for text in column] for column in texts]
    names = [evaluation.name for evaluation in evaluations]
    return list(shown), list(zip(names, map(list, zip(*cells, strict=True)), strict=True))


def metric_text(evaluations: list[Evaluation], note: str = "") -> str:
    """The metric table as text, under a note. An asterisk marks the best value of a column."""
    columns, table = metric_table(evaluations)
    width = max(len(name) for name, _ in table)
    lines = [note] if note else []
    lines.append(" " * width + "".join(f"{column:>12}" for column in columns))
    for name, cells in table:
        lines.append(f"{name:<{width}}" + "".join(f"{text + ('*' if best else ' '):>12}" for text, best in cells))
    return "\n".join(lines)


def per_query_csv(evaluations: list[Evaluation], images: ImageSet) -> str:
    """The metrics of every query and method, under a line of headings. Cells of a query without a match are empty."""
    names = [field.name for field in fields(PerQueryMetrics)]
    writer = csv.writer(text := io.StringIO(), lineterminator="\n")
    writer.writerow(["method", "query", "identity", *names])
    for evaluation in evaluations:
        columns = [getattr(evaluation.per_query, name).tolist() for name in names]
        for row, (matches, *values) in zip(evaluation.queries.tolist(), zip(*columns, strict=True), strict=True):
            cells = list(map(_cell, values)) if matches else [""] * len(values)
            label = images.label_names[int(images.labels[row])]
            writer.writerow([evaluation.name, images.ids[row], label, matches, *cells])
    return text.getvalue()


def _cell(value: float) -> str:
    """Six digits of a float, all of an integer."""
    return str(value) if isinstance(value, int) else f"{value:.6g}"


def threshold_text(evaluation: Evaluation, *, is_threshold: bool) -> str:
    """How many pairs score 0 or more, which is the threshold of a classifier whose bias was trained.

    A sentence says so if this threshold separates nothing.
    """
    useless = evaluation.different_above_0 > 0.5 or evaluation.same_above_0 == 0
    advice = " 0 is no useful threshold for this run: train longer, or choose one from the report's histogram."
    return (
        f"{evaluation.name}: {100 * evaluation.same_above_0:.1f} % of the pairs of one identity and"
        f" {100 * evaluation.different_above_0:.1f} % of the pairs of two score 0 or more"
        f"{', which means the same' if is_threshold else ''}."
        f"{advice if is_threshold and useless else ''}"
    )


def _fact_text(value: Any) -> Any:
    return ", ".join(f"{key} {one}" for key, one in value.items()) if isinstance(value, Mapping) else value


def _png(images: ImageSet, row: int) -> bytes:
    file = io.BytesIO()
    Image.fromarray(images[row].permute(1, 2, 0).numpy()).save(file, "png")
    return file.getvalue()
