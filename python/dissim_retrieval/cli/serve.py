"""`dissim serve`."""

from __future__ import annotations

import os
from importlib.util import find_spec
from typing import Annotated

from tyro.conf import arg

from ..extras import install_extra
from .arguments import Device, Gallery, pick_device, require_gallery
from .output import Output


def serve(
    gallery: Gallery,
    /,
    host: str = "127.0.0.1",
    port: int = 8000,
    token: Annotated[str | None, arg(metavar="TOKEN")] = None,
    quantized: bool = False,
    clustered: bool = False,
    max_upload: int = 20,
    device: Device = None,
) -> Output:
    """Serve GALLERY over HTTP: a page for searches with photos, and a JSON API. Ctrl-C stops it.

    Args:
        host: The address to listen on. Any but this machine's own needs a token.
        port: 0 takes a free one.
        token: What requests to the API must carry, at least 16 characters. Without one, only this machine may search,
            and nobody may add or remove rows. Default: DISSIM_TOKEN of the environment, which other users of the
            machine cannot read.
        quantized: Scan 8-bit codes first. The results are the same. `dissim index --quantized` stores the codes.
        clustered: Search in clusters first. The results are the same. `dissim index --clustered` stores the clusters.
        max_upload: The largest request, in MiB.
    """
    require_gallery(gallery)
    missing = [package for package in ("fastapi", "uvicorn", "python_multipart") if find_spec(package) is None]
    if missing:
        raise ImportError(
            f"serve: expected the package {missing[0]}, which is not installed. {install_extra('serve')}"
        )
    from ..serve import create_app, listen, run

    token = token or os.environ.get("DISSIM_TOKEN") or None
    listening, url = listen(host, port, token=token)
    with listening:
        app = create_app(
            gallery, token=token, device=pick_device(device), quantized=quantized, clustered=clustered,
            max_upload=max_upload << 20,
        )  # fmt: skip
        run(app, listening, lambda: print(f"{gallery}: {url}", flush=True))
    return Output("", {"gallery": str(gallery), "url": url})
