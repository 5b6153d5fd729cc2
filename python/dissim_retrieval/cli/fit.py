"""`dissim fit`."""

from __future__ import annotations

import re
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Literal

from tyro.conf import arg

from ..atomic import check_writable
from ..embedding_file import EmbeddingFile, read_labeled
from ..fit import fit_head
from .arguments import Device, pick_device
from .output import Output


def fit(
    features: Annotated[Path, arg(metavar="FEATURES", help="An .npz with embeddings and labels, or an .npy.")],
    out: Annotated[Path | None, arg(metavar="OUT", help="File to write. Default: FEATURES.head.safetensors.")] = None,
    /,
    *,
    labels: Path | None = None,
    projection: int = 256,
    loss: Literal["softmax", "supcon", "soft_margin", "hinge"] = "softmax",
    sign: Literal["free", "negative"] = "free",
    held_out: float = 0.2,
    steps: int = 40,
    lr: float = 1e-2,
    batch: int = 8192,
    seed: int = 0,
    device: Device = None,
) -> Output:
    """Learn a projection and the pair classifier on embeddings of any network; tell whether that beats cosine.

    `dissim index OUT EMBEDDINGS GALLERY` makes a gallery with the result; `ProjectedHead.load(OUT)` reads it.

    Args:
        labels: Labels of a file that has none: an .npy file, or a text file with one label a line.
        projection: Dimensions of the projected embeddings, at most those of the embeddings.
        loss: Loss of the score, see `dissim_retrieval.losses`.
        sign: negative: no weight above 0, as FAISS needs. free: some weights start positive if that is better.
        held_out: Fraction of the identities that are not fitted, but used for the comparison. 0: no comparison.
        steps: Optimizer steps.
        lr: Maximum learning rate of the projection.
        batch: Rows of a step, at least 4.
        seed: Of the held-out identities and the batches.
    """
    start = time.perf_counter()
    out = out or features.with_name(f"{features.name}.head.safetensors")
    check_writable(out)
    computed_on = pick_device(device)
    stored = _read(features, labels)
    rows, names = stored.embeddings, stored.labels
    fitted = fit_head(
        rows, names, projection=projection, loss=loss, head={"sign": sign}, held_out=held_out, steps=steps, lr=lr,
        batch=batch, seed=seed, device=computed_on, progress=sys.stderr.isatty(),
    )  # fmt: skip
    fitted.provenance = stored.provenance
    fitted.save(out)
    seconds = time.perf_counter() - start
    positive = int((fitted.head.weight > 0).sum())
    sizes = f"{len(fitted.mean)} to {len(fitted.head.weight)} numbers, {positive} weights above 0"
    text = f"{out}: a projection of {sizes}, {seconds:.0f} s"
    check = None if fitted.check is None else asdict(fitted.check)
    record = {"file": str(out), "seconds": seconds, "positive_weights": positive, "check": check}
    return Output(text if fitted.check is None else f"{text}\n{fitted.check}", record)


def _read(features: Path, labels: Path | None) -> EmbeddingFile:
    """The embeddings with their labels. Errors name the argument of the command."""
    if features.is_dir():
        raise IsADirectoryError(
            f"FEATURES: expected an .npz or .npy file, got {features}, a folder. `dissim train RUN --root {features}`"
            " takes photos."
        )
    try:
        return read_labeled(features, labels)
    except ValueError as error:
        raise ValueError(re.sub("^path:", "FEATURES:", str(error))) from error
