"""A set with an official split that is loaded as a folder of identities is an error that names the set."""

import pytest
from dissim_retrieval.data import OFFICIAL, load_images
from dissim_retrieval.data.folder import OFFICIAL_LAYOUTS
from PIL import Image


def save(root, *paths):
    for path in paths:
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (4, 4)).save(root / path)


def load(root):
    return load_images("folder", size=4, root=root)


@pytest.mark.parametrize("entries", OFFICIAL_LAYOUTS, ids=OFFICIAL_LAYOUTS.get)
def test_an_official_set_is_named(tmp_path, entries):
    save(tmp_path, "query/a/1.png", "train/b/1.png")
    assert load(tmp_path).label_names == ["query", "train"]
    for entry in entries:
        (tmp_path / entry).mkdir(parents=True, exist_ok=True)
    name = OFFICIAL_LAYOUTS[entries]
    with pytest.raises(ValueError) as raised:
        load(tmp_path)
    message = str(raised.value)
    assert message.startswith("root: expected images as <identity>/<image>, a folder for each identity, got ")
    assert f"looks like {name} (it has " in message and entries[0] in message
    assert f'Pass the name "{name}", on the command line --data {name}' in message


def test_every_official_set_has_a_layout():
    assert {*OFFICIAL_LAYOUTS.values(), "dukemtmc"} == set(OFFICIAL)


def test_a_part_of_an_official_set_is_named(tmp_path):
    root = tmp_path / "market"
    save(root, "bounding_box_train/0002_c1s1_000451_03.png")
    alone = f'file names like those of market1501 (0002_c1s1_000451_03.png). Pass the name "market1501" and .* {root}'
    with pytest.raises(ValueError, match=alone.replace("(", r"\(").replace(")", r"\)")):
        load(root / "bounding_box_train")
    (root / "query").mkdir()
    with pytest.raises(ValueError, match=f", a part of market1501. .* --data market1501 --root {root}"):
        load(root / "bounding_box_train")
    save(tmp_path, "others/1.png")
    with pytest.raises(ValueError, match="found no such images in"):
        load(tmp_path / "others")
