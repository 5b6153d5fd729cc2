"""A complete example on real images: load, train, evaluate on new identities, compare, report."""

from __future__ import annotations

import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field, replace
from multiprocessing import get_context
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d
from tqdm import tqdm

from .data import ImageSet, load_images
from .embedding import embed_images
from .evaluation import Evaluation, Scorer, cosine, evaluate, negative_euclidean, pick_queries
from .evaluation.report import write_report
from .head import DissimilarityHead
from .models import build_backbone
from .speed import environment_summary
from .train import TrainConfig, Trained, train


@dataclass(frozen=True)
class DemoConfig:
    """Half of the identities are for training, the others for testing. Each method sees 19,200 training images.

    The settings of each method were chosen with identities held out of the training half, never on the test half: see
    docs/benchmarks.md.
    """

    out: Path = Path("runs/demo")
    """Folder of the report."""
    data: str = "emoji"
    size: int = 64
    """Height of the images in pixels."""
    seed: int = 0
    """Seed of the split of the identities and of both trainings."""
    threads: int = 1
    """CPU threads of each training. The two trainings run in parallel; more threads help only if cores are idle."""
    hinge: TrainConfig = field(default_factory=lambda: TrainConfig(backbone="mobilenet_v2", flip=0.0))
    triplet: TrainConfig = field(
        default_factory=lambda: TrainConfig("triplet", "mobilenet_v2", steps=300, identities=32, flip=0.0)
    )


def run_demo(config: DemoConfig) -> tuple[Path, list[Evaluation]]:
    """Compare the pair classifier with a triplet baseline and with untrained features; write the report.

    Every image of a test identity is a query against all other test images, except those with its identity and camera
    (Market-1501's rule). For untrained features, the best of cosine, L2 and L1 on the test images is reported.
    Returns the path of the report, an HTML page, and the evaluations.
    """
    torch.set_num_threads(config.threads)
    images = load_images(config.data, size=config.size)
    seen, unseen = images.split_labels(seed=config.seed)
    pictured = pick_queries(unseen, seed=config.seed)
    facts = {"images": f"{config.data}: {_count(seen)} to train, {_count(unseen)} to test, {config.size} pixels"}

    names = f"{config.hinge.backbone}, pair classifier", f"{config.triplet.backbone}, triplet loss"
    evaluations = []
    settings = [replace(one_method, seed=config.seed) for one_method in (config.hinge, config.triplet)]
    context = get_context("spawn")  # torch's threads do not work after a fork
    with ProcessPoolExecutor(len(names), context, tqdm.set_lock, (context.RLock(),)) as pool:
        trainings = pool.map(_train, settings, [seen] * 2, [config.threads] * 2, range(2))
        for name, (trained, seconds) in zip(names, trainings, strict=True):
            facts[name] = f"{seconds:.0f} s of training; {trained.config}"
            rows = embed_images(trained.backbone, unseen)
            evaluations.append(evaluate(name, rows, trained.head or cosine, unseen, pictured_queries=pictured))

    for backbone in ("efficientnet_lite0", "mobilenet_v2"):
        frozen = embed_images(build_backbone(backbone, None), unseen)
        evaluations.append(_best_plain(f"{backbone}, frozen", frozen, unseen, pictured))
    pixels = unseen.read(torch.arange(len(unseen))).float()
    thumbnails = adaptive_avg_pool2d(pixels, 8).flatten(1)  # better than full-size pixels
    evaluations.append(_best_plain("Pixels, 8 x 8", thumbnails, unseen, pictured))

    facts["machine"] = environment_summary()
    page = write_report(
        config.out, evaluations, unseen, title=f"Retrieval of unseen {config.data} from the other camera", facts=facts
    )
    return page.resolve(), evaluations


def _train(settings: TrainConfig, images: ImageSet, threads: int, line: int) -> tuple[Trained, float]:
    """Train in a process of its own. Returns the result and the seconds."""
    torch.set_num_threads(threads)
    start = time.perf_counter()
    return train(settings, images, line=line), time.perf_counter() - start


def _best_plain(name: str, rows: Tensor, images: ImageSet, pictured: list[int]) -> Evaluation:
    """The evaluation with the highest mAP of three scorers without learned weights."""
    l1 = DissimilarityHead(rows.shape[1], normalize=False)  # untrained: minus an L1 distance
    scorers: dict[str, Scorer] = {"cosine": cosine, "L2": negative_euclidean, "L1": l1}
    tried = [
        evaluate(f"{name}, {kind}", rows, scorer, images, pictured_queries=pictured)
        for kind, scorer in scorers.items()
    ]
    return max(tried, key=lambda evaluation: evaluation.metrics["mAP_mean"])


def _count(images: ImageSet) -> str:
    return f"{len(images)} images of {len(images.labels.unique())} identities"
