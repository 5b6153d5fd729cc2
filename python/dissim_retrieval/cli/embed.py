"""`dissim embed`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from tyro.conf import OmitArgPrefixes, arg

from ..embedding import embed_images
from ..embedding_file import write_embeddings
from ..train import load_trained
from .arguments import Device, ImageOptions, Run, pick_device
from .images import Part, load_for_run
from .output import Output


def embed(
    run: Run,
    out: Annotated[Path, arg(metavar="OUT", help="The .npz file to write.")],
    /,
    images: OmitArgPrefixes[ImageOptions],
    part: Part | None = None,
    device: Device = None,
) -> Output:
    """Embed images with the network of RUN; write embeddings, labels, cameras and ids to OUT, a NumPy .npz file.

    Args:
        part: Default: the images that RUN held out.
    """
    trained = load_trained(run)
    selection = load_for_run(run, trained, images, part)
    rows = embed_images(trained.backbone.to(pick_device(device)), selection.images)
    write_embeddings(out, rows, selection.images, provenance=trained.provenance)
    return Output(
        f"{out}: {len(rows)} embeddings of {rows.shape[1]} numbers",
        {"file": str(out), "embeddings": len(rows), "dim": rows.shape[1], "identities": selection.note},
    )
