"""Arguments that several commands have."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import torch
from tyro.conf import arg
from tyro.constructors import PrimitiveConstructorSpec

from ..data import OFFICIAL, SETS

Run = Annotated[Path, arg(metavar="RUN", help="Folder of a training run.")]
Gallery = Annotated[Path, arg(metavar="GALLERY", help="A gallery that `dissim index` wrote.")]
Device = Annotated[str | None, arg(metavar="DEVICE", help="cpu, cuda or cuda:1. Default: a GPU if there is one.")]

SkipDamaged = Annotated[
    bool, arg(help="Skip images that cannot be decoded, instead of stopping at the first. Decodes every image twice.")
]


def _parse_size(words: list[str]) -> int | tuple[int, int]:
    height, *width = (int(number) for number in words[0].lower().split("x"))
    if len(width) > 1 or height < 1 or (width and width[0] < 1):
        raise ValueError(f"expected a number of pixels or HEIGHTxWIDTH, got {words[0]}")
    return (height, width[0]) if width else height


def _format_size(size: Any) -> list[str]:
    return ["x".join(map(str, size)) if isinstance(size, tuple) else str(size)]


ImageSize = Annotated[
    Any,
    PrimitiveConstructorSpec(
        nargs=1,
        metavar="HxW",
        instance_from_str=_parse_size,
        is_instance=lambda _: True,
        str_from_instance=_format_size,
    ),
]


@dataclass(frozen=True)
class ImageOptions:
    """The images. What is not given is as in RUN."""

    data: Annotated[str | None, arg(help=f"One of {', '.join([*OFFICIAL, *SETS])}. With --root: folder.")] = None
    root: Annotated[
        Path | None, arg(help="Folder of an image set on disk; your own photos as ROOT/<identity>/<image>.")
    ] = None
    size: Annotated[ImageSize, arg(help="Height and width in pixels, 256x128, or one number.")] = None
    train_fraction: float | None = None
    """Fraction of the identities in the training part; the others are for testing. folder: 1; emoji, glyphs: 0.5."""
    val_fraction: float | None = None
    """Fraction of the training identities with two or more images that is held out for validation. folder: 0.1; other
    sets: 0."""
    split_seed: int | None = None
    """Seed of both choices. Default: 0."""
    skip_damaged: SkipDamaged = False


def pick_device(name: str | None) -> torch.device:
    """The device of this name, which must work; without a name, a GPU if there is one."""
    if name is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        return torch.empty(0, device=name).device
    except (RuntimeError, AssertionError) as error:  # torch has no one error for this
        reason = str(error).split("\n")[0]
        raise ValueError(f"device: expected a device of this machine, got {name!r} ({reason})") from error


def is_embedding_file(path: Path) -> bool:
    """Whether an argument that is photos or embeddings is a file of embeddings."""
    return path.suffix in (".npz", ".npy")
