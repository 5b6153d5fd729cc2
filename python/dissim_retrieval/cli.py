"""The command line. Each command is a few calls of the library.

Exit codes: 0 success; 1 an error in an argument or a file, printed in one line; 2 unknown arguments; 130 interrupted.
"""

from __future__ import annotations

import os
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import torch
import tyro
from tyro.conf import OmitArgPrefixes, arg

from .data import SETS, ImageSet, load_images
from .demo import DemoConfig, run_demo
from .embedding import embed_images
from .embedding_file import read_embeddings, write_embeddings
from .evaluate import cosine, negative_euclidean, pick_queries
from .evaluate import evaluate as evaluate_scorer
from .index import DissimilarityIndex
from .report import metric_text, write_report
from .speed import compare_speed, environment_summary
from .train import TrainConfig, load_trained
from .train import train as train_on

Run = Annotated[Path, arg(metavar="RUN", help="Folder of a training run.")]
Embeddings = Annotated[Path, arg(metavar="EMBEDDINGS", help="An .npz file written by `dissim embed`.")]
Index = Annotated[Path, arg(metavar="INDEX", help="A folder written by `dissim index`.")]
Out = Annotated[Path, arg(metavar="OUT", help="Where to write the result.")]
Part = Literal["train", "test", "all"]


@dataclass(frozen=True)
class Data:
    """The images."""

    data: Annotated[str, arg(help=f"One of {', '.join(SETS)}.")] = "emoji"
    size: int = 64
    """Height of the images in pixels."""
    root: Path | None = None
    """Folder of an image set on disk."""
    train_fraction: float = 0.5
    """Fraction of the identities in the training part; the others are in the test part."""
    split_seed: int = 0
    """Seed of the split into training and test part."""

    def load(self, part: Part) -> ImageSet:
        images = load_images(self.data, size=self.size, root=self.root)
        if part == "all":
            return images
        train, test = images.split_labels(self.train_fraction, self.split_seed)
        return train if part == "train" else test


def demo(config: Annotated[DemoConfig, arg(name="")]) -> None:
    """Train and compare on real images from pip packages; write the report, an HTML page with pictures, to --out."""
    run_demo(config)


def train(
    run: Run, /, data: OmitArgPrefixes[Data], config: OmitArgPrefixes[TrainConfig], part: Part = "train"
) -> None:
    """Train a backbone and the pair classifier; write checkpoints to RUN. An interrupted run continues from there."""
    start = time.perf_counter()
    train_on(config, data.load(part), folder=run)
    print(f"{run}: {config.steps} steps, {time.perf_counter() - start:.0f} s")


def embed(run: Run, out: Out, /, data: OmitArgPrefixes[Data], part: Part = "test") -> None:
    """Embed images with the network in RUN; write embeddings, labels and cameras to OUT, a NumPy .npz file."""
    trained, images = load_trained(run), data.load(part)
    embeddings = embed_images(trained.backbone, images)
    write_embeddings(out, embeddings, images, provenance=trained.provenance)
    print(f"{out}: {len(embeddings)} embeddings of {embeddings.shape[1]} numbers")


def index(run: Run, embeddings: Embeddings, out: Out, /) -> None:
    """Build the index OUT from the rows of an embeddings file. The id of a row is its number in the file."""
    head = load_trained(run).head
    if head is None:
        raise ValueError(f"run: expected a run trained with --loss hinge, got {run}, which has no pair classifier.")
    rows = read_embeddings(embeddings)
    built = DissimilarityIndex(head)
    built.add(rows, torch.arange(len(rows)))
    built.save(out)
    print(f"{out}: {len(built)} rows")


def search(index: Index, queries: Embeddings, /, k: int = 10) -> None:
    """Print the k best rows of INDEX for each row of an embeddings file: query, rank, id, score, tab-separated."""
    result = DissimilarityIndex.open(index).search(read_embeddings(queries), k)
    print("query\trank\tid\tscore")
    for query, (ids, scores) in enumerate(zip(result.ids.tolist(), result.scores.tolist(), strict=True)):
        for rank, (row, score) in enumerate(zip(ids, scores, strict=True), 1):
            print(f"{query}\t{rank}\t{row}\t{score:.6g}")


def evaluate(run: Run, out: Out, /, data: OmitArgPrefixes[Data], part: Part = "test", seed: int = 0) -> None:
    """Evaluate RUN with each image as a query against all others; write report and metrics to the folder OUT.

    Args:
        seed: Seed for the choice of the queries that the report shows.
    """
    start = time.perf_counter()
    trained, images = load_trained(run), data.load(part)
    embeddings, pictured = embed_images(trained.backbone, images), pick_queries(images, seed=seed)
    scorers = {"cosine": cosine, "L2 distance": negative_euclidean}
    if trained.head is not None:
        scorers = {"pair classifier": trained.head, **scorers}
    evaluations = [
        evaluate_scorer(name, embeddings, scorer, images, pictured_queries=pictured)
        for name, scorer in scorers.items()
    ]
    facts = {
        "images": f"{len(images)} of {data}, part {part}",
        "training": trained.config,
        "pictured queries": f"chosen at random, seed {seed}",
        "machine": environment_summary(),
        "embedding and evaluation": f"{time.perf_counter() - start:.0f} s",
    }
    page = write_report(out, evaluations, images, title=f"Retrieval with {run.name}, {data.data}", facts=facts)
    print(metric_text(evaluations))
    print(page)


def bench(queries: int = 256, gallery: int = 1024, dim: int = 256, device: str = "cpu") -> None:
    """Compare the speed of methods that score all pairs on this machine: plain torch, torch.cdist and every backend.

    Gelem/s: billions of terms abs(q_d - r_d) per second, queries x gallery x dim terms per call.
    """
    results = compare_speed(queries=queries, gallery=gallery, dim=dim, device=device)
    print(f"{environment_summary()}; float32, {queries} x {gallery} pairs of {dim} numbers")
    for method in results:
        speed = f"{method.rate:8.2f} Gelem/s   largest error {method.error:.1e}"
        print(f"{method.name:<20}" + (method.reason or speed))


COMMANDS = {command.__name__: command for command in (demo, train, embed, index, search, evaluate, bench)}


def main(arguments: list[str] | None = None) -> int:
    """Run `dissim` with the given arguments (default: those of the process) and return its exit code."""
    try:
        tyro.extras.subcommand_cli_from_dict(
            COMMANDS, prog="dissim", description="Image retrieval with a learned pair score.", args=arguments
        )
    except BrokenPipeError:  # the reader of the output, for example `head`, has closed it
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except (ValueError, ArithmeticError, OSError, ImportError) as error:
        print(f"dissim: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("dissim: interrupted", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
