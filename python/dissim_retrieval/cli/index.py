"""`dissim index`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from tyro.conf import arg

from ..atomic import check_writable
from ..data import load_unlabeled
from ..embedding import embed_images
from ..embedding_file import read_embedding_file
from ..fitted_gallery import fitted_gallery
from ..index import DissimilarityIndex
from ..photos import check_replaceable, new_gallery, photo_metadata, replace_gallery, without_stored
from ..projected import ProjectedHead
from ..provenance import check_same_model
from ..train import Trained, load_trained
from .arguments import Device, SkipDamaged, is_embedding_file, is_gallery, open_gallery, pick_device
from .images import skips_damaged
from .output import Output

Model = Annotated[Path, arg(metavar="RUN", help="Folder of a training run, or a file that `dissim fit` wrote.")]
Source = Annotated[
    Path, arg(metavar="PHOTOS", help="A folder of photos, a photo, or an .npz or .npy file of embeddings.")
]


def index(
    run: Model,
    source: Source,
    gallery: Annotated[Path, arg(metavar="GALLERY", help="The folder to write, for example gallery.dissim.")],
    /,
    append: bool = False,
    overwrite: bool = False,
    quantized: bool = False,
    clustered: bool = False,
    skip_damaged: SkipDamaged = False,
    device: Device = None,
) -> Output:
    """Embed photos with the network of RUN and store them in GALLERY, which can then be searched without RUN.

    Photos need no identities. The id of a photo is its path below the folder, that of a row of embeddings the id in
    the file, or its number. Labels and cameras in a file of embeddings are stored for the filters of a search. With a
    file of `dissim fit`, the gallery stores the projection of given embeddings.

    Args:
        append: Add to an existing gallery of RUN. Photos that it has are not embedded again.
        overwrite: Replace an existing gallery.
        quantized: Also store 8-bit codes of the rows, for faster searches by `dissim serve --quantized`.
        clustered: Also store clusters of the rows, for `dissim serve --clustered`.
    """
    if append and overwrite:
        raise ValueError("append: expected --append or --overwrite, got both.")
    if quantized and clustered:
        raise ValueError("quantized: expected --quantized or --clustered, got both.")
    if gallery.exists() and not append and not overwrite:
        if not is_gallery(gallery):
            what = "a folder that is no gallery" if gallery.is_dir() else "a file"
            raise FileExistsError(
                f"gallery: expected a name for a new gallery, got {gallery}, {what}. Choose a new name."
            )
        raise FileExistsError(f"{gallery} exists. --append adds to it, --overwrite replaces it.")
    if overwrite:
        check_replaceable(gallery)
    if not gallery.exists():
        check_writable(gallery)
    computed_on = pick_device(device)
    model = ProjectedHead.load(run) if run.is_file() else load_trained(run)
    new = new_gallery(model) if isinstance(model, Trained) else fitted_gallery(model)
    existing = append and gallery.exists()
    built = open_gallery(gallery) if existing else new
    facts = new.provenance or {}
    if (built.provenance or {}).get("fit") != facts.get("fit"):
        raise ValueError(
            f"gallery: expected one made with {run}, got {gallery}, which was made with another model. Choose a new"
            " gallery, or replace it with --overwrite."
        )
    check_same_model(built.provenance, facts, argument="gallery", source=gallery)
    before = len(built)
    if is_embedding_file(source):
        stored = read_embedding_file(source)
        check_same_model(facts, stored.provenance, argument="embeddings", source=run)
        rows = stored.embeddings if isinstance(model, Trained) else model.project(stored.embeddings)
        built.add(rows, stored.ids, stored.metadata())
    elif isinstance(model, Trained):
        height, width = facts["transform"]["size"]
        skip_damaged = skip_damaged or skips_damaged(facts, source)
        images = without_stored(load_unlabeled(source, (height, width), skip_damaged=skip_damaged), built)
        if len(images):
            rows = embed_images(model.backbone.to(computed_on), images)
            built.add(rows, images.ids, photo_metadata(images))
    else:
        raise ValueError(
            f"photos: expected an .npz or .npy file of embeddings with {run}, which has no network, got {source}."
        )
    if overwrite:
        replace_gallery(built, gallery)
    elif not existing:
        built.save(gallery)  # an error if another process has made it meanwhile
    if quantized or clustered:
        DissimilarityIndex.open(gallery, quantized=quantized, clustered=clustered).optimize()
    added = len(built) - before
    text = f"{gallery}: {len(built)} rows" + (f", {added} of them new" if existing else "")
    return Output(text, {"gallery": str(gallery), "rows": len(built), "added": added})
