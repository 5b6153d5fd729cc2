"""Small JPEG pictures of image files."""

from __future__ import annotations

import io

from PIL import Image

from .data.decode import decode

#: Pixels of the longer side of a thumbnail.
LONGER_SIDE = 200


def thumbnail(file: str) -> bytes | None:
    """The image, upright, its longer side LONGER_SIDE pixels, as JPEG; None if it cannot be read."""
    try:
        picture = Image.fromarray(decode(file, LONGER_SIDE))
    except (OSError, ValueError):
        return None
    picture.save(content := io.BytesIO(), "jpeg", quality=85)
    return content.getvalue()
