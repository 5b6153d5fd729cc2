"""Arguments that several commands have."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

import torch
from tyro.conf import arg
from tyro.constructors import PrimitiveConstructorSpec

from ..data import OFFICIAL, SETS
from ..index import DissimilarityIndex

Run = Annotated[Path, arg(metavar="RUN", help="Folder of a training run.")]
Gallery = Annotated[Path, arg(metavar="GALLERY", help="A gallery that `dissim index` wrote.")]
Device = Annotated[str | None, arg(metavar="DEVICE", help="cpu, cuda or cuda:1. Default: a GPU if there is one.")]

Part = Literal["train", "validation", "test", "all"]
#: As an option. tyro alone would offer None as a choice.
PartOption = Annotated[
    Part | None,
    PrimitiveConstructorSpec(
        nargs=1,
        metavar=f"{{{','.join(get_args(Part))}}}",
        instance_from_str=lambda words: words[0],
        is_instance=lambda _: True,
        str_from_instance=lambda part: [str(part)],
        choices=get_args(Part),
    ),
]

SkipDamaged = Annotated[
    bool, arg(help="Skip images that cannot be decoded, instead of stopping at the first. Decodes every image twice.")
]


def _parse_size(words: list[str]) -> int | tuple[int, int]:
    sides = words[0].lower().split("x")
    if len(sides) > 2 or not all(side.isdecimal() and int(side) > 0 for side in sides):
        raise ValueError(f"expected pixels such as 128, or HEIGHTxWIDTH such as 256x128, got {words[0]!r}")
    height, *width = map(int, sides)
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


def open_gallery(path: Path, **options: Any) -> DissimilarityIndex:
    """``DissimilarityIndex.open(path, **options)``, after `require_gallery`."""
    require_gallery(path)
    return DissimilarityIndex.open(path, **options)


def require_gallery(path: Path) -> None:
    """Raise if there is no gallery at `path`, and say how to make one."""
    if is_gallery(path):
        return
    run, made = "RUN", "makes one"
    if not path.exists():
        what = "which does not exist"
    elif (path / "config.json").is_file():
        what, run, made = "which is a training run", str(path), "makes a gallery with it"
    else:
        what = "which is a folder of other files" if path.is_dir() else "which is a file"
    raise ValueError(
        f"gallery: expected a gallery made by `dissim index`, got {path}, {what}. `dissim index {run} PHOTOS GALLERY`"
        f" {made}."
    )


def is_gallery(path: Path) -> bool:
    """Whether there is a gallery at `path`."""
    return (path / "index.json").is_file()


def is_embedding_file(path: Path) -> bool:
    """Whether an argument that is photos or embeddings is a file of embeddings."""
    return path.suffix in (".npz", ".npy")
