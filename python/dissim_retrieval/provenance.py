"""Provenance: what data, settings and weights a result came from, and whether two results belong together.

A provenance is a dict that can be saved as JSON. `train` makes it; embeddings files and indexes store that of the run
they were made with. Its keys: data, validation (`ImageSet.provenance()` each), split, transform, backbone, and model,
the digest of the weights of backbone and classifier. That of embeddings from elsewhere may lack any of them, or have
them in another form.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn


def as_provenance(value: Any) -> dict[str, Any]:
    """A mapping as it is when it was saved as JSON and read again. Raises TypeError if that is not possible."""
    if not isinstance(value, Mapping):
        raise TypeError(f"provenance: expected a dict, got {type(value).__name__}.")
    try:
        return json.loads(json.dumps(dict(value), allow_nan=False))
    except (TypeError, ValueError, RecursionError) as error:
        raise TypeError(f"provenance: expected a dict that fits in JSON, got one that does not: {error}.") from error


def weights_digest(**modules: nn.Module | None) -> str:
    """A hex digest of the names, types and values of all parameters and buffers that a state dict has."""
    digest = hashlib.sha256()
    for prefix, module in sorted(modules.items()):
        state = {} if module is None else module.state_dict()
        for name, value in sorted(state.items()):
            digest.update(f"{prefix}.{name} {value.dtype} {list(value.shape)}\n".encode())
            digest.update(value.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


def image_size(provenance: Mapping) -> tuple[int, int] | None:
    """Height and width of the images that the network takes; None if they are not recorded."""
    transform = provenance.get("transform")
    match transform.get("size") if isinstance(transform, Mapping) else None:
        case [int(height), int(width)]:
            return height, width
    return None


def check_same_data(recorded: Mapping, found: Mapping, *, argument: str, source: object) -> None:
    """Raise if the images or their split are not those that `source` was made with.

    Paths and names may differ: what counts is the fingerprint of the images.
    """
    for key in ("data", "validation"):
        before, now = recorded.get(key) or {}, found.get(key) or {}
        if before.get("fingerprint") != now.get("fingerprint"):
            what = "validation images" if key == "validation" else "images"
            raise ValueError(
                f"{argument}: expected the {what} that {source} was made with ({_describe(before)}), got others"
                f" ({_describe(now)}). Pass those images. Others, also these without damaged ones, need a new folder."
            )


def check_same_model(recorded: Mapping | None, found: Mapping | None, *, argument: str, source: object) -> None:
    """Raise if `found` was not made with the same weights as `source`, whose provenance is `recorded`.

    A provenance without "model", as of embeddings from elsewhere, and None are not checked.
    """
    before, now = (recorded or {}).get("model"), (found or {}).get("model")
    if before and now and before != now:
        raise ValueError(
            f"{argument}: expected embeddings by the model of {source} ({str(before)[:12]}), got those of another"
            f" model ({str(now)[:12]}). Embed the images with this model."
        )


def _describe(data: Mapping) -> str:
    if not data:
        return "none"
    return f"{data.get('images')} images of {data.get('identities')} identities, {str(data.get('fingerprint'))[:12]}"
