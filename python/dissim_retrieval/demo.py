"""A complete example on real images: load, train, evaluate on new identities, compare, report."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import adaptive_avg_pool2d
from tqdm import tqdm

from .data import ImageSet, load_images
from .embedding import embed_images
from .evaluation import Evaluation, Scorer, cosine, evaluate, negative_euclidean, pick_queries
from .evaluation.report import write_report
from .evidence import experiment_verdict, tuned_settings
from .head import DissimilarityHead
from .models import build_backbone
from .speed import environment_summary
from .train import TrainConfig, train

#: Trained methods. All have the same backbone, images, batches and steps. Their settings were tuned in the experiment
#: `demo`, see `tuned_settings`.
METHODS = {
    "pair classifier": "hinge loss on the score with learned weights",
    "plain L1": "the same with learn_weight=False",
    "multi-similarity": "MultiSimilarityLoss of pytorch-metric-learning on the cosine",
}

#: Fields of TrainConfig that the report names: all trainings have the same.
SHARED = ("backbone", "dim", "steps", "identities", "views", "flip", "warmup", "weight_decay", "seed")


@dataclass(frozen=True)
class DemoConfig:
    """Half of the identities are for training, the others for testing."""

    out: Path = Path("runs/demo")
    """Folder of the report."""
    data: Literal["emoji", "glyphs"] = "emoji"
    """The images."""
    size: int = 64
    """Height of the images in pixels."""
    backbone: str = "mobilenet_v2"
    """As of `dissim train`: efficientnet_lite0, mobilenet_v2, small, timm:NAME, torchvision:NAME or hf:NAME."""
    steps: int = 100
    """Optimizer steps of each training."""
    seed: int = 0
    """Seed of the split of the identities and of all trainings."""
    threads: int = 1
    """CPU threads of each training. The trainings run in parallel; more threads help only if cores are idle."""


class DemoResult(NamedTuple):
    """The path of the report, an HTML page; whether a method may be called ahead; the evaluations."""

    page: Path
    note: str
    evaluations: list[Evaluation]


def run_demo(config: DemoConfig) -> DemoResult:
    """Compare the pair classifier with plain L1, multi-similarity loss and untrained features; write the report.

    Every image of a test identity is a query against all other test images, except those with its identity and camera
    (Market-1501's rule). For untrained features, the best of cosine, L2 and L1 on the test images is reported.
    """
    torch.set_num_threads(config.threads)
    images = load_images(config.data, size=config.size)
    seen, unseen = images.split_labels(seed=config.seed)
    pictured = pick_queries(unseen, seed=config.seed)
    training = TrainConfig(
        backbone=config.backbone, steps=config.steps, identities=min(64, len(seen.labels.unique())), flip=0.0,
        seed=config.seed,
    )  # fmt: skip
    facts = {
        "images": f"{config.data}: {_count(seen)} to train, {_count(unseen)} to test, {config.size} pixels",
        "all trainings": ", ".join(f"{name} {getattr(training, name)}" for name in SHARED),
    }

    evaluations = []
    _log(f"training {len(METHODS)} networks at the same time, {config.steps} steps each")
    context = get_context("spawn")  # torch's threads do not work after a fork
    with ProcessPoolExecutor(len(METHODS), context, tqdm.set_lock, (context.RLock(),)) as pool:
        work = partial(_train_and_embed, training=training, seen=seen, unseen=unseen, threads=config.threads)
        results = pool.map(work, METHODS, range(len(METHODS)))
        for method, (rows, scorer, seconds) in zip(METHODS, results, strict=True):
            name = f"{training.backbone}, {method}"
            facts[name] = f"{METHODS[method]}; {tuned_settings(method)}; {seconds:.0f} s of CPU time"
            _log(f"{name}: trained")
            evaluations.append(evaluate(name, rows, scorer, unseen, pictured_queries=pictured))

    for backbone in ("efficientnet_lite0", "mobilenet_v2"):
        frozen = embed_images(build_backbone(backbone, None), unseen)
        evaluations.append(_best_plain(f"{backbone}, frozen", frozen, unseen, pictured))
    pixels = unseen.read(torch.arange(len(unseen))).float()
    thumbnails = adaptive_avg_pool2d(pixels, 8).flatten(1)  # better than full-size pixels
    evaluations.append(_best_plain("Pixels, 8 x 8", thumbnails, unseen, pictured))

    facts["machine"] = environment_summary()
    note = f"One run with one seed. {experiment_verdict(config.data, training.backbone)}"
    page = write_report(
        config.out, evaluations, unseen, title=f"Retrieval of unseen {config.data} from the other camera",
        facts=facts, note=note,
    )  # fmt: skip
    return DemoResult(page.resolve(), note, evaluations)


def _train_and_embed(
    method: str, line: int, *, training: TrainConfig, seen: ImageSet, unseen: ImageSet, threads: int
) -> tuple[Tensor, Scorer, float]:
    """Train a method in a process of its own. Returns embeddings of the test images, the scorer, and CPU seconds."""
    torch.set_num_threads(threads)
    start = time.process_time()
    settings, loss = tuned_settings(method), None
    if method == "multi-similarity":
        config, loss = replace(training, lr=settings["lr"]), multi_similarity(settings)
    else:
        config = replace(training, learn_weight=method != "plain L1", **settings)
    trained = train(config, seen, loss=loss, progress=method, line=line)
    seconds = time.process_time() - start
    return embed_images(trained.backbone, unseen, progress=False), trained.head or cosine, seconds


def multi_similarity(settings: Mapping[str, Any]) -> nn.Module:
    """The loss of pytorch-metric-learning with these alpha, beta and base."""
    from pytorch_metric_learning.losses import MultiSimilarityLoss  # here, because it takes a second to import

    from .interop import PMLLoss

    loss = MultiSimilarityLoss(alpha=settings["alpha"], beta=settings["beta"], base=settings["base"])
    return PMLLoss(loss)


def _best_plain(name: str, rows: Tensor, images: ImageSet, pictured: list[int]) -> Evaluation:
    """The evaluation with the highest mAP of three scorers without learned weights."""
    l1 = DissimilarityHead(rows.shape[1], normalize=False)  # untrained: minus an L1 distance
    scorers: dict[str, Scorer] = {"cosine": cosine, "L2": negative_euclidean, "L1": l1}
    tried = [
        evaluate(f"{name}, {kind}", rows, scorer, images, pictured_queries=pictured)
        for kind, scorer in scorers.items()
    ]
    return max(tried, key=lambda evaluation: evaluation.metrics["mAP_mean"])


def _log(text: str) -> None:
    """A line on stderr, where that is no terminal, so no progress bar is shown."""
    if not sys.stderr.isatty():
        print(text, file=sys.stderr, flush=True)


def _count(images: ImageSet) -> str:
    return f"{len(images)} images of {len(images.labels.unique())} identities"
