"""The same emoji drawn by seven vendors: identity = code point, camera = vendor. npm downloads 10 MB of SVG."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import tarfile
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from dissim_retrieval.data import ImageSet
from dissim_retrieval.data.emoji import code_points, draw_svg, has_skin_tone, titles
from dissim_retrieval.data.image_set import drop_ambiguous, stack_pictures
from tqdm import tqdm


class Vendor(NamedTuple):
    name: str
    package: str
    version: str
    license: str
    has_code_points: bool = True
    """If not, its pictures are matched by the names that the other vendors give to theirs."""


VENDORS = [
    Vendor("Twemoji", "twemoji", "1.2.5", "CC BY 4.0"),
    Vendor("Noto", "noto", "1.2.9", "Apache 2.0"),
    Vendor("OpenMoji", "openmoji", "1.2.29", "CC BY-SA 4.0"),
    Vendor("Fluent", "fluent-emoji-flat", "1.2.6", "MIT"),
    Vendor("EmojiOne", "emojione", "1.2.3", "CC BY 4.0", has_code_points=False),
    Vendor("FxEmojis", "fxemoji", "1.2.2", "Apache 2.0", has_code_points=False),
    Vendor("Noto 1", "noto-v1", "1.2.5", "Apache 2.0", has_code_points=False),
]


def load_emoji7(size: int, folder: Path) -> ImageSet:
    """Every emoji of at least two vendors, on white, size x size: 1,857 emoji and 9,750 images, in 22 s at 64 pixels.

    Excluded are skin-tone variants, and emoji of which a vendor's picture equals that of an earlier one. `folder`
    keeps the downloaded packages. Without npm: RuntimeError.
    """
    packages = [_read(_downloaded(vendor, folder)) for vendor in VENDORS]
    points_of_name = _points_of_names(packages)
    drawn = [
        _draw(vendor, _svgs(package, vendor, points_of_name), size)
        for vendor, package in zip(VENDORS, packages, strict=True)
    ]
    vendors_of = Counter(name for pictures in drawn for name in pictures)
    names = [name for name in drop_ambiguous(drawn) if vendors_of[name] > 1]
    images, labels, cameras = stack_pictures(drawn, names)
    return ImageSet(
        images, labels, cameras,
        label_names=titles(names),
        camera_names=[vendor.name for vendor in VENDORS],
        credit="; ".join(f"{vendor.name}, {vendor.license}" for vendor in VENDORS) + ".",
    )  # fmt: skip


def _downloaded(vendor: Vendor, folder: Path) -> Path:
    """The vendor's npm package, which is downloaded once."""
    path = folder / f"iconify-json-{vendor.package}-{vendor.version}.tgz"
    if path.exists():
        return path
    npm = shutil.which("npm")
    if npm is None:
        raise RuntimeError(
            "emoji7: npm downloads these images, and is not installed. Install Node.js, or use --set emoji."
        )
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder) as unfinished:
        wanted = f"@iconify-json/{vendor.package}@{vendor.version}"
        done = subprocess.run([npm, "pack", "--silent", wanted], cwd=unfinished, stderr=subprocess.PIPE, text=True)
        if done.returncode:
            raise RuntimeError(f"emoji7: npm could not download {wanted}: {done.stderr.strip()}")
        os.replace(Path(unfinished) / path.name, path)
    return path


def _read(path: Path) -> dict[str, Any]:
    """icons.json of a package, with chars.json as its entry "chars"."""
    with tarfile.open(path) as package:
        icons, chars = (json.load(package.extractfile(f"package/{name}.json")) for name in ("icons", "chars"))
    return icons | {"chars": chars}


def _points_of_names(packages: list[dict[str, Any]]) -> dict[str, str]:
    """Code points of all names and aliases, without '-'. The first vendor that has a name decides."""
    found: dict[str, str] = {}
    for package in packages:
        names = {name: code_points(points) for points, name in package["chars"].items()}
        names |= {
            alias: names[of["parent"]] for alias, of in package.get("aliases", {}).items() if of["parent"] in names
        }
        for name, points in names.items():
            found.setdefault(name.replace("-", ""), points)
    return found


def _svgs(package: dict[str, Any], vendor: Vendor, points_of_name: dict[str, str]) -> dict[str, str]:
    """Code points -> SVG, of emoji without a skin tone."""
    if vendor.has_code_points:
        icon_of = {code_points(points): name for points, name in package["chars"].items()}
    else:
        known = {name: points_of_name.get(name.replace("-", "")) for name in package["icons"]}
        icon_of = {points: name for name, points in known.items() if points is not None}
    return {points: _svg(package, name) for points, name in icon_of.items() if not has_skin_tone(points)}


def _svg(package: dict[str, Any], name: str) -> str:
    icon = package["icons"][name]
    width, height = (icon.get(side, package.get(side, 16)) for side in ("width", "height"))
    return f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}">{icon["body"]}</svg>'


def _draw(vendor: Vendor, svgs: dict[str, str], size: int) -> dict[str, np.ndarray]:
    shown = tqdm(svgs.items(), f"Drawing {vendor.name}", disable=None)
    return {points: draw_svg(svg, size) for points, svg in shown}
