"""Small JPEG pictures of image files."""

from __future__ import annotations

import io

from PIL import Image
from PIL.ExifTags import Base

from .data.decode import decode

#: Pixels of the longer side of a thumbnail.
LONGER_SIDE = 200


def thumbnail(file: str) -> bytes | None:
    """The image, upright, its longer side LONGER_SIDE pixels, as JPEG; None if it cannot be read."""
    try:
        picture = Image.fromarray(decode(file, _size(file)))
    except (OSError, ValueError, Image.DecompressionBombError):
        return None
    picture.save(content := io.BytesIO(), "jpeg", quality=85)
    return content.getvalue()


def _size(file: str) -> tuple[int, int]:
    """(height, width) of the upright image, resized to LONGER_SIDE."""
    with Image.open(file) as image:
        sides = image.size if image.getexif().get(Base.Orientation, 1) >= 5 else image.size[::-1]
    height, width = (max(1, round(side * LONGER_SIDE / max(sides))) for side in sides)
    return height, width
