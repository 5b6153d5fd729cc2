"""`dissim index`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from tyro.conf import arg

from ..data import load_unlabelled
from ..embedding import embed_images
from ..embedding_file import read_embedding_file
from ..index import DissimilarityIndex
from ..photos import new_gallery, photo_metadata, replace_gallery, without_stored
from ..provenance import check_same_model
from ..train import load_trained
from .arguments import Device, Run, SkipDamaged, is_embedding_file, pick_device
from .output import Output

Source = Annotated[
    Path, arg(metavar="PHOTOS", help="A folder of photos, a photo, or an .npz file of `dissim embed`.")
]


def index(
    run: Run,
    source: Source,
    gallery: Annotated[Path, arg(metavar="GALLERY", help="The folder to write, for example gallery.dissim.")],
    /,
    append: bool = False,
    overwrite: bool = False,
    skip_damaged: SkipDamaged = False,
    device: Device = None,
) -> Output:
    """Embed photos with the network of RUN and store them in GALLERY, which can then be searched without RUN.

    Photos need no identities. The id of a photo is its path below the folder, that of a row of embeddings the id in
    the file, or its number.

    Args:
        append: Add to an existing gallery of RUN. Photos that it has are not embedded again.
        overwrite: Replace an existing gallery.
    """
    if append and overwrite:
        raise ValueError("append: expected --append or --overwrite, got both.")
    if gallery.exists() and not append and not overwrite:
        raise FileExistsError(f"{gallery} exists. --append adds to it, --overwrite replaces it.")
    trained = load_trained(run)
    existing = append and gallery.exists()
    built = DissimilarityIndex.open(gallery) if existing else new_gallery(trained)
    check_same_model(built.provenance or {}, trained.provenance, argument="gallery", source=gallery)
    before = len(built)
    if is_embedding_file(source):
        stored = read_embedding_file(source)
        check_same_model(trained.provenance, stored.provenance, argument="embeddings", source=run)
        built.add(stored.embeddings, stored.ids)
    else:
        height, width = trained.provenance["transform"]["size"]
        images = without_stored(load_unlabelled(source, (height, width), skip_damaged=skip_damaged), built)
        if len(images):
            rows = embed_images(trained.backbone.to(pick_device(device)), images)
            built.add(rows, images.ids, photo_metadata(images))
    if not existing:
        replace_gallery(built, gallery)
    added = len(built) - before
    text = f"{gallery}: {len(built)} rows" + (f", {added} of them new" if existing else "")
    return Output(text, {"gallery": str(gallery), "rows": len(built), "added": added})
