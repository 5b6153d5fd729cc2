"""Letters in the fonts that matplotlib includes: identity = letter, camera = font."""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Collection
from importlib.util import find_spec
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from tqdm import tqdm

from ..extras import install_extra
from ..logs import hide_bar
from .image_set import ImageSet, drop_ambiguous, stack_pictures

CREDIT = "DejaVu fonts (Bitstream Vera and Arev licenses); STIX General fonts (STIX license)."


def load_glyphs(size: int, letters: Collection[str] | None = None, progress: bool = True) -> ImageSet:
    """Black letters on white, size x size: those of `letters` (default: all) that at least two fonts have.

    A letter whose picture in some font equals that of an earlier one (Greek Alpha and Latin A) is excluded, because
    no retrieval result would be right. All letters at 32 pixels: about 3,000 letters, 19,000 images, 5 s.
    """
    spec = find_spec("matplotlib")  # locates the package without importing it
    if spec is None or spec.origin is None:
        raise ModuleNotFoundError(f"no package 'matplotlib'. {install_extra('retrieval')}")
    folder = Path(spec.origin).parent / "mpl-data/fonts/ttf"
    # their text faces: not Display and not STIXNonUni/STIXSiz, whose glyphs are partial or mathematical
    wanted = re.compile(r"DejaVu(Sans|SansMono|Serif)\b|STIXGeneral")
    fonts = [font for font in sorted(folder.glob("*.ttf")) if wanted.match(font.stem)]
    shown = tqdm(fonts, desc="Drawing letters", disable=hide_bar(progress))
    drawn = [_draw(font, size, letters) for font in shown]
    in_fonts = Counter(letter for glyphs in drawn for letter in glyphs)
    names = [name for name in drop_ambiguous(drawn) if in_fonts[name] > 1]
    if not names:
        raise ValueError(f"letters: expected some that two of the fonts have, got {letters!r}")
    images, labels, cameras = stack_pictures(drawn, names)
    return ImageSet(
        images.unsqueeze(1).repeat(1, 3, 1, 1), labels, cameras,
        label_names=names,
        camera_names=[font.stem for font in fonts],
        credit=CREDIT,
    )  # fmt: skip


def _draw(path: Path, size: int, letters: Collection[str] | None) -> dict[str, np.ndarray]:
    """The font's letters that have visible pixels, on a common baseline, uint8 [size, size] each."""
    try:
        from fontTools.ttLib import TTFont
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(f"no package 'fonttools'. {install_extra('images')}") from error
    with TTFont(path, lazy=True) as font:
        has = {chr(point) for point in font.getBestCmap()}
    wanted = {c for c in has if unicodedata.category(c).startswith("L")} if letters is None else has & set(letters)
    pen = ImageFont.truetype(path, round(0.7 * size))
    drawn = {}
    for letter in sorted(wanted):
        image = Image.new("L", (size, size), 255)
        ImageDraw.Draw(image).text((size / 2, 0.72 * size), letter, fill=0, font=pen, anchor="ms")
        pixels = np.asarray(image)
        if pixels.min() < 255:
            drawn[letter] = pixels
    return drawn
