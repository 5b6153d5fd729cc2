"""Decoding of one image file: upright, RGB, alpha on white, at a given size."""

from __future__ import annotations

import errno
import os
import warnings
from typing import BinaryIO

import numpy as np
from PIL import Image, UnidentifiedImageError

#: Endings of image files, in lower case.
ENDINGS = {
    *(".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".bmp", ".dib", ".tif", ".tiff", ".gif"),
    *(".ppm", ".pgm", ".pbm", ".pnm", ".avif", ".jp2"),
}
#: PIL's decoders of these files. Its other decoders are never used: for EPS it would start Ghostscript.
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "DIB", "TIFF", "GIF", "PPM", "AVIF", "JPEG2000")
#: The largest picture that is decoded: 270 MB as RGB. For a JPEG the reduced size counts (see `decode`), and PIL's
#: own limit of 179 million.
MAX_PIXELS = 90_000_000

_ORIENTATION, _BITS_PER_SAMPLE, _PHOTOMETRIC = 0x0112, 0x0102, 0x0106  # tags of EXIF and TIFF
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


class DamagedImageError(ValueError):
    """A file that cannot be decoded. `name` is what the error calls it, `remedy` a sentence that says what to do."""

    def __init__(self, name: str, reason: str, remedy: str = "") -> None:
        super().__init__(name, reason, remedy)  # all of them, so that the error can be pickled
        self.name, self.reason, self.remedy = name, reason, remedy

    def __str__(self) -> str:
        return f"{self.name}: expected an image that can be decoded, got {self.reason}. {self.remedy}".rstrip()


def decode(path: str, size: tuple[int, int] | int) -> np.ndarray:
    """The image as uint8 [H, W, 3], size = (H, W), resized without keeping the aspect ratio.

    A number instead of `size` is that of the longer side; the aspect ratio is kept.

    Turned upright by its EXIF orientation. Transparent areas become white, but not a single transparent value of a
    PNG with 2, 4 or 16 bits. Of more than 8 bits of gray, the upper 8 are used; of an animation, the first frame. A
    JPEG is decoded at 1/2, 1/4 or 1/8 of its size if that is not smaller than `size`, then resized (bicubic).

    A file that cannot be decoded, or has more than MAX_PIXELS, raises DamagedImageError; one that cannot be opened or
    read, an OSError.
    """
    with open(path, "rb") as file:
        return decode_opened(file, size, printable(path))


def decode_opened(file: BinaryIO, size: tuple[int, int] | int, name: str) -> np.ndarray:
    """The same for an open file, which errors call `name`."""
    try:
        return _decode(file, size)
    except UnidentifiedImageError:
        reason = f"a file in none of the formats {', '.join(_formats())}"
    except MemoryError:
        raise
    except Exception as error:  # on damaged data, decoders raise OSError, SyntaxError, struct.error and others
        # An offset of damaged data is one where seek fails. With other numbers, the system cannot read the file.
        if isinstance(error, OSError) and error.errno not in (None, errno.EINVAL):
            raise OSError(error.errno, error.strerror, name) from error
        reason = str(error) or type(error).__name__
    raise DamagedImageError(name, reason)


def printable(path: str) -> str:
    r"""The path as valid Unicode: bytes of the name that are not UTF-8 become \xNN."""
    return os.fsencode(path).decode("utf-8", "backslashreplace")


def _formats() -> list[str]:
    """FORMATS that the installed PIL has: it can be built without some of them."""
    Image.init()
    return [name for name in FORMATS if name in Image.OPEN]


def _decode(file: BinaryIO, size: tuple[int, int] | int) -> np.ndarray:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # MAX_PIXELS is checked below
        image = Image.open(file, formats=_formats())
    image.draft(None, _stored_size(image, size))
    if image.width * image.height > MAX_PIXELS:
        raise ValueError(f"{image.width} x {image.height} pixels, more than {MAX_PIXELS / 1e6:.0f} million")
    image.load()  # turns a TIFF, whose orientation is 1 from here on
    turn = _TURNS.get(_orientation(image))
    small = _to_rgb(image).resize(_stored_size(image, size), Image.Resampling.BICUBIC, reducing_gap=3.0)
    return np.asarray(small if turn is None else small.transpose(turn))


def _stored_size(image: Image.Image, size: tuple[int, int] | int) -> tuple[int, int]:
    """(width, height) before the image is turned upright to `size` = (H, W), or a number for the longer side."""
    if isinstance(size, int):
        width, height = (max(1, round(side * size / max(image.size))) for side in image.size)
        return width, height
    height, width = size
    return (height, width) if _orientation(image) in (5, 6, 7, 8) else (width, height)


def _orientation(image: Image.Image) -> int:
    """1 to 8 for valid metadata. 1, upright, if they are damaged: the pixels can still be decoded."""
    try:
        return int(image.getexif().get(_ORIENTATION, 1))
    except Exception:
        return 1


def _upper_bits(image: Image.Image) -> np.ndarray:
    """Gray of 9 to 16 bits as uint8. A TIFF says how many it has, and may have white as 0."""
    tags = getattr(image, "tag_v2", {})
    gray = (np.asarray(image) >> (tags.get(_BITS_PER_SAMPLE, (16,))[0] - 8)).astype(np.uint8)
    return 255 - gray if tags.get(_PHOTOMETRIC) == 0 else gray


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I;16") or (image.mode == "I" and image.format in ("PNG", "PPM")):
        return Image.fromarray(_upper_bits(image)).convert("RGB")
    if image.mode in ("I", "F"):
        raise ValueError("32 bits per pixel, or signed numbers, whose range is not known (8 and 16 bits are)")
    if image.has_transparency_data:
        picture = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture).convert("RGB")
    return image if image.mode == "RGB" else image.convert("RGB")
