"""Which images a command works on: those to train on, those that a run held out, or all."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, Literal, NamedTuple

from ..data import OFFICIAL, SETS, ImageSet, Split, load_images, load_split, split_images
from ..data.layout import Size
from ..data.split import hold_out
from ..models import BACKBONES, build_backbone
from ..train import Trained
from .arguments import ImageOptions, Part

#: Sets that are in no folder.
PACKAGED = ("emoji", "glyphs")


@dataclass(frozen=True)
class SplitSettings:
    """What determines the parts of an image set. A run records it in its provenance, as "split"."""

    data: str
    part: Literal["train", "all"] = "train"
    """all: every identity may be trained on."""
    train_fraction: float | None = None
    val_fraction: float | None = None
    split_seed: int = 0
    skip_damaged: bool = False

    @property
    def official(self) -> str | None:
        """The name of the set, without the part, if it has an official split."""
        base = self.data.partition("-")[0]
        return base if base in OFFICIAL else None

    def load(self, size: Size, root: Path | None) -> Split:
        """The parts."""
        if self.part == "all":
            return self.split(self.load_all(size, root))
        self._check_root(root)
        return load_split(
            self.data, size=size, root=root, val_fraction=self.val_fraction, train_fraction=self.train_fraction,
            seed=self.split_seed, skip_damaged=self.skip_damaged,
        )  # fmt: skip

    def load_all(self, size: Size, root: Path | None) -> ImageSet:
        """All images, without a split."""
        if self.data in OFFICIAL:
            raise ValueError(
                f"part: expected train or test of {self.data}, which has an official split, got all. Or choose the"
                f" images with --data {self.data}-train or --data {self.data}-test."
            )
        self._check_root(root)
        return load_images(self.data, size=size, root=root, skip_damaged=self.skip_damaged)

    def split(self, images: ImageSet) -> Split:
        """The parts of what `load_all` loaded."""
        if self.part == "all":
            return Split(*hold_out(images, self.val_fraction, self.split_seed), None)
        return split_images(
            images, val_fraction=self.val_fraction, train_fraction=self.train_fraction, seed=self.split_seed
        )

    def _check_root(self, root: Path | None) -> None:
        if root is None and self.data not in PACKAGED:
            raise ValueError(
                f"root: expected the folder of the images with --data {self.data}, got none. Pass --root."
            )


class Selection(NamedTuple):
    """Images, and how their identities relate to the training."""

    images: ImageSet
    part: Part
    note: str
    trained_identities: int | None
    """How many of them the model was trained on, None if it is not known."""
    is_held_out: bool
    """Whether it is the part that the run held out: the test part if there is one, else the validation part."""

    def facts(self) -> dict[str, Any]:
        """Part, note and number of trained identities, for JSON."""
        return {"part": self.part, "note": self.note, "trained_identities": self.trained_identities}


def load_for_training(
    options: ImageOptions, part: Literal["train", "all"], backbone: str
) -> tuple[Split, SplitSettings]:
    """The parts of an image set, for this backbone, and what determines them."""
    settings = _settings(options, "emoji" if options.root is None else "folder", part=part)
    trained_size = _trained_size(backbone)  # in any case, so that an unknown name is an error before the images
    size = options.size or trained_size or (64 if options.root is None else 128)
    return settings.load(size, options.root), settings


def _trained_size(backbone: str) -> tuple[int, int] | None:
    """Height and width that the weights of another package were trained with, since many networks take no other size.
    None for BACKBONES, which take any. Raises ValueError for an unknown name."""
    network = build_backbone(backbone, None, pretrained=False)  # downloads no weights
    return None if backbone in BACKBONES else network.preprocessing.size


def load_for_run(run: Path, trained: Trained, options: ImageOptions, part: Part | None) -> Selection:
    """The images of `part`. None: those held out, which are the test part if there is one, else the validation part.

    Options that are not given are those of the run. Raises ValueError if images or split are others, so that trained
    identities could count as held out.
    """
    data, height_width = trained.provenance["data"], tuple(trained.provenance["transform"]["size"])
    settings = _settings_of_run(run, trained, options)
    root = options.root
    if root is None and data["root"] is not None and data["name"].startswith(settings.official or settings.data):
        root = Path(data["root"])
    size = options.size or height_width
    everything = settings.load_all(size, root) if part == "all" else None
    split = settings.load(size, root) if everything is None else settings.split(everything)
    found = next(images.size for images in vars(split).values() if images is not None)
    if found != height_width:
        shown, expected = ("x".join(map(str, size)) for size in (found, height_width))
        raise ValueError(f"size: expected {expected}, with which {run} was trained, got {shown}.")
    if everything is not None:
        selection = _all(everything, split.train, data["fingerprint"])
    else:
        selection = _held_out(run, settings, split, data, part)
    if options.skip_damaged and not settings.skip_damaged:
        # Only now, because which identities were held out follows from all images.
        return selection._replace(images=selection.images.without_damaged())
    return selection


def _settings_of_run(run: Path, trained: Trained, options: ImageOptions) -> SplitSettings:
    name, root = (trained.provenance["data"][key] for key in ("name", "root"))
    settings = _recorded_split(trained)
    other_set = options.root is not None and root is None  # a folder, while the run's images came from a package
    default = name if name in SETS and not other_set else "folder"
    if settings is None or other_set or options.data not in (None, settings.data):
        return _settings(options, default)
    for key, value in _given(options).items():
        recorded = getattr(settings, key)
        if key in ("train_fraction", "val_fraction", "split_seed") and value != recorded:
            raise ValueError(
                f"{key}: expected {recorded}, with which {run} was trained, got {value}. With another split,"
                " trained identities could count as held out."
            )
    if settings.official and options.data is None:
        return replace(settings, data=settings.official)  # with the test part, wherever the training part was named
    return settings


def _recorded_split(trained: Trained) -> SplitSettings | None:
    """The split that `dissim train` recorded; None if another caller of `train` recorded something else."""
    try:
        return SplitSettings(**trained.provenance["split"])
    except (KeyError, TypeError):
        return None


def _identities(images: ImageSet) -> int:
    """How many there are; of a set with queries, among those: distractors of the gallery are none."""
    return len((images.labels if images.queries is None else images.labels[images.queries]).unique())


def _all(images: ImageSet, train: ImageSet | None, trained_fingerprint: str) -> Selection:
    total = _identities(images)
    for known in (images, train):
        if known is not None and known.fingerprint == trained_fingerprint:
            trained = len(known.labels.unique())
            note = f"All {total} identities; the model was trained on {trained} of them."
            return Selection(images, "all", note, trained, is_held_out=False)
    note = f"All {total} identities of other images than the model was trained on; whether it knows some is unknown."
    return Selection(images, "all", note, None, is_held_out=False)


def _held_out(run: Path, settings: SplitSettings, split: Split, data: dict, part: Part | None) -> Selection:
    known = split.train is not None and split.train.fingerprint == data["fingerprint"]
    unseen = settings.official and split.test is not None and data["name"] != split.test.name
    if not known and not unseen:
        raise ValueError(
            f"root: expected the images and the split that {run} was trained with ({data['images']} images of"
            f" {data['identities']} identities to train), got others, so that trained identities could count as held"
            " out. Use --part all for all of these images."
        )
    default: Part = "validation" if split.test is None else "test"
    part = part or default
    images = getattr(split, part)
    if images is None:
        raise ValueError(f"part: {run} has no {part} part{_why_without(settings, split, part, default)}")
    total = _identities(images)
    if part != "test" and not known:
        note = (
            f"{total} {part} identities of other images or another split than the model was trained on; whether it"
            " knows some is unknown."
        )
        return Selection(images, part, note, None, is_held_out=False)
    if part == "train":
        note = f"{total} identities, all of which the model was trained on."
        return Selection(images, part, note, total, is_held_out=False)
    chosen = "; its weights were chosen by their mAP" if part == "validation" else ""
    note = f"{total} {part} identities, none of which the model was trained on{chosen}."
    return Selection(images, part, note, 0, is_held_out=known and part == default)


def _why_without(settings: SplitSettings, split: Split, part: Part, default: Part) -> str:
    """Why there is no such part, and what to do."""
    instead = getattr(split, default)
    if instead is None and part == default:
        return ", since no identities were held out. --part all takes the trained ones."
    option = {"test": "--train-fraction", "validation": "--val-fraction"}.get(part)
    why = f": it was trained without {option}" if option and settings.official is None else ""
    if instead is None:
        return f"{why}, and no identities were held out. --part all takes the trained ones."
    return f"{why}. Without --part, its {_identities(instead)} {default} identities are taken; --part all takes all."


def skips_damaged(provenance: Mapping[str, Any] | None, photos: Path) -> bool:
    """Whether damaged photos of a folder are skipped, because the run of this provenance skipped its own."""
    split = (provenance or {}).get("split")
    return photos.is_dir() and isinstance(split, Mapping) and split.get("skip_damaged") is True


def _given(options: ImageOptions) -> dict[str, Any]:
    """The options that were given, by the name of the setting."""
    names = {field.name for field in fields(SplitSettings)}
    return {name: value for name, value in vars(options).items() if name in names and value is not None}


def _settings(options: ImageOptions, default: str, *, part: Literal["train", "all"] = "train") -> SplitSettings:
    settings = SplitSettings(**{"data": default, "part": part} | _given(options))
    if settings.data not in SETS and settings.data not in OFFICIAL:
        raise ValueError(f"data: expected one of {', '.join([*OFFICIAL, *SETS])}, got {settings.data!r}.")
    if settings.data in PACKAGED and options.root is not None:
        raise ValueError(f"root: expected none with {settings.data}, which pip packages bring, got {options.root}.")
    if settings.part == "all" and settings.train_fraction is not None:
        raise ValueError(
            f"train_fraction: expected none with --part all, which has no test part, got {settings.train_fraction}."
            " Omit one of them."
        )
    return settings
