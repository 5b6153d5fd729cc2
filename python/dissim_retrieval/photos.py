"""A gallery of photos: an index that knows the network that embedded it and the file of each row.

Such a gallery alone answers for a photo: it contains the weights of the network, and the size of its images.
"""

from __future__ import annotations

import os
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from torch import Tensor

from .data import ImageFiles, ImageSet, load_unlabeled
from .data.decode import printable
from .embedding import embed_images
from .index import BackboneWeights, DissimilarityIndex
from .index.lance_store import write_lock
from .index.projection import PROJECTION
from .logs import get_logger
from .models import Backbone, build_backbone
from .provenance import image_size
from .train import Trained

logger = get_logger(__name__)


def new_gallery(trained: Trained) -> DissimilarityIndex:
    """An empty gallery for the embeddings of a trained model, in memory on the CPU."""
    if trained.head is None:
        raise ValueError(
            "loss: expected a run with a pair classifier, got one without, because its loss has none. Train with"
            " a loss that has one, such as hinge."
        )
    name = trained.provenance["backbone"]["name"]
    backbone = None if name is None else BackboneWeights(name, trained.backbone.state_dict())
    return DissimilarityIndex(trained.head, provenance=trained.provenance, backbone=backbone)


def gallery_network(index: DissimilarityIndex) -> tuple[Backbone, tuple[int, int]]:
    """The network of a gallery, on the device of the index, and the size (H, W) of its images."""
    weights, size = index.backbone, image_size(index.provenance or {})
    expected, remedy = "gallery: expected one that `dissim index RUN PHOTOS` made", "Search it with embeddings."
    if weights is None or size is None or weights.name == PROJECTION:
        raise ValueError(f"{expected}, got one without a network or without the size of its images. {remedy}")
    network = build_backbone(weights.name, len(index.head.weight), pretrained=False)
    try:
        network.load_state_dict(weights.state)
    except RuntimeError as error:
        raise ValueError(f"{expected}, got one whose weights are not those of {weights.name}. {remedy}") from error
    return network.to(index.head.weight.device).eval(), size


def embed_photos(
    index: DissimilarityIndex, path: str | Path, *, skip_damaged: bool = False
) -> tuple[ImageSet, Tensor]:
    """The photo or the folder of photos at `path`, and their embeddings [B, D] by the gallery's network."""
    network, size = gallery_network(index)
    images = load_unlabeled(path, size, skip_damaged=skip_damaged)
    return images, embed_images(network, images)


def files_of(images: ImageSet) -> list[str]:
    """The absolute path of each image file, as valid Unicode."""
    files = _image_files(images)
    return [printable(os.path.abspath(files.path(row))) for row in range(len(files))]


def photo_metadata(images: ImageSet) -> dict[str, list[str]]:
    """The columns that a gallery stores of photos: where each file is, and a digest of it (`ImageFiles.digests`)."""
    return {"file": files_of(images), "digest": [content.hex() for content in _image_files(images).digests()]}


def without_stored(images: ImageSet, index: DissimilarityIndex) -> ImageSet:
    """The photos that the gallery does not have yet. Raises ValueError if it has another photo of the same id."""
    stored = index.contains(images.ids)
    if not stored.any():
        return images
    present = images.take(torch.from_numpy(stored))
    known = index.get(present.ids).metadata.get("digest", [None] * len(present))
    for name, before, now in zip(present.ids, known, photo_metadata(present)["digest"], strict=True):
        if before != now:
            raise ValueError(
                f"ids: expected new photos, or those that the gallery has, got another photo as {name}. Rename it,"
                " index a folder above both, or replace the gallery."
            )
    logger.info("%d of %d photos are in the gallery already", len(present), len(images))
    return images.take(torch.from_numpy(~stored))


def check_replaceable(path: Path) -> None:
    """Raise ValueError for a file or a folder that is no gallery."""
    if path.exists() and not (path / "index.json").is_file():
        raise ValueError(f"gallery: expected a gallery to overwrite, got {path}, which is none. Choose another name.")


def replace_gallery(index: DissimilarityIndex, path: str | Path) -> None:
    """Save a gallery at `path`, where another one may be, which is deleted when the new one is in its place.

    An error or an interrupt before that leaves the other one where it was.
    """
    path = Path(path).resolve()  # of a symbolic link, the gallery that it names is replaced
    check_replaceable(path)
    if not path.exists():
        index.save(path)
        return
    with TemporaryDirectory(dir=path.parent, prefix=f".{path.name}.") as folder:
        old, new = Path(folder, "old"), Path(folder, "new")
        index.save(new)
        with write_lock(path):  # a writer that waits for it finds that its index was replaced
            try:
                path.rename(old)
                new.rename(path)
            except BaseException:
                if not path.exists():
                    old.rename(path)
                raise


def _image_files(images: ImageSet) -> ImageFiles:
    assert isinstance(images.images, ImageFiles)
    return images.images
