"""`dissim embed`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from tyro.conf import OmitArgPrefixes, arg

from ..atomic import check_writable
from ..embedding import embed_images
from ..embedding_file import write_embeddings
from ..train import load_trained
from .arguments import Device, ImageOptions, PartOption, Run, pick_device
from .images import load_for_run
from .output import Output


def embed(
    run: Run,
    out: Annotated[Path, arg(metavar="OUT", help="The .npz file to write.")],
    /,
    images: OmitArgPrefixes[ImageOptions],
    part: PartOption = None,
    device: Device = None,
) -> Output:
    """Embed images with the network of RUN; write embeddings, labels, cameras and ids to OUT, a NumPy .npz file.

    Args:
        part: Default: the images that RUN held out.
    """
    if out.suffix != ".npz":
        raise ValueError(
            f"out: expected a name that ends in .npz, by which commands know a file of embeddings, got {out}."
        )
    check_writable(out)
    computed_on = pick_device(device)
    trained = load_trained(run)
    selection = load_for_run(run, trained, images, part)
    rows = embed_images(trained.backbone.to(computed_on), selection.images)
    write_embeddings(out, rows, selection.images, provenance=trained.provenance)
    return Output(
        f"{out}: {len(rows)} embeddings of {rows.shape[1]} numbers",
        {"file": str(out), "rows": len(rows), "dim": rows.shape[1], **selection.facts()},
    )
