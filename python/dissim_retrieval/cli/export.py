"""`dissim export`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from tyro.conf import arg

from ..atomic import check_writable
from ..index import export_faiss
from .arguments import Gallery, open_gallery
from .output import Output


def export(
    gallery: Gallery,
    out: Annotated[
        Path, arg(metavar="OUT.faiss", help="The file to write. OUT.faiss.json has the names of the rows.")
    ],
    /,
    kind: Literal["Flat", "HNSW", "IVF"] = "HNSW",
    overwrite: bool = False,
) -> Output:
    """Write the rows of GALLERY as an index of FAISS with L1 distances, and measure its recall.

    Only for weights of one sign, as `dissim train --sign negative` trains them.

    Args:
        kind: Flat is exact; HNSW and IVF are approximate.
        overwrite: Replace existing files.
    """
    for file in (out, Path(f"{out}.json")):
        check_writable(file)
        if file.exists() and not overwrite:
            raise FileExistsError(f"{file} exists. --overwrite replaces it.")
    made = export_faiss(open_gallery(gallery), out, kind=kind)
    text = f"{out}: {made.rows} rows, built in {made.seconds:.1f} s, recall@10 {made.recall:.3f}"
    return Output(text, {"file": str(out), "kind": kind, **made._asdict()})
