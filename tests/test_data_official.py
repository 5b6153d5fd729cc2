"""Sets with official splits, each on a generated tree of its layout: parts, identities, cameras, queries, errors."""

import shutil

import numpy as np
import pytest
import torch
from dissim_retrieval.data import OFFICIAL, load_images, load_split
from PIL import Image


def save(root, *paths, size=(8, 16)):
    for path in paths:
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", size, (len(path), 0, 0)).save(root / path)


def market1501(root):
    """Junk, a distractor, cameras with two digits, endings in other cases, and a file of Windows."""
    save(root, *(f"bounding_box_train/{p:04d}_c{c}s1_{p:06d}_00.jpg" for p in (2, 7) for c in (1, 12)))
    save(root, "query/0001_c1s1_000451_03.jpg", "query/1501_c6s4_001902_01.JPG")
    save(root, "bounding_box_test/-1_c1s1_000401_03.jpg", "bounding_box_test/0000_c3s1_000001_01.jpg")
    save(root, "bounding_box_test/0001_c2s1_000001_01.png", "bounding_box_test/1501_c1s1_000001_01.jpg")
    (root / "bounding_box_test" / "Thumbs.db").write_bytes(b"no image")


def dukemtmc(root):
    save(root, "bounding_box_train/0001_c2_f0046182.jpg", "bounding_box_train/0005_c3_f0046182.jpg")
    save(root, "query/0002_c1_f0044158.jpg", "bounding_box_test/0002_c8_f0044158.jpg")


def veri776(root):
    save(root, "image_train/0001_c001_00016450_0.jpg", "image_train/0003_c017_00016450_0.jpg")
    save(root, "image_query/0002_c002_00030600_0.jpg", "image_test/0002_c020_00030600_0.jpg")


def msmt17(root, folders=("train", "test")):
    names = {
        "list_train.txt": [
            ("0000/0000_000_01_0303morning_0015_0.jpg", 0),
            ("0001/0001_000_15_0303noon_0015_0.jpg", 1),
        ],
        "list_val.txt": [("0000/0000_001_04_0303morning_0016_0.jpg", 0)],
        "list_query.txt": [("0000/0000_000_02_0303morning_0015_0.jpg", 0)],
        "list_gallery.txt": [("0000/0000_001_11_0303morning_0015_0.jpg", 0)],
    }
    for name, images in names.items():
        (root / name).write_text("".join(f"{path} {person}\n" for path, person in images))
        folder = folders[name in ("list_query.txt", "list_gallery.txt")]
        save(root, *(f"{folder}/{path}" for path, _ in images))


def msmt17_v2(root):
    msmt17(root, ("mask_train_v2", "mask_test_v2"))


def cub200(root):
    save(root, "images/001.Black_footed_Albatross/a.jpg", "images/100.Brown_Pelican/a.jpg")
    save(root, "images/101.White_Pelican/a.jpg", "images/200.Common_Yellowthroat/a.jpg", "images/notes/a.jpg")


def annotations(file, field, rows):
    """A MATLAB file like those of Cars-196: an array of structures."""
    savemat = pytest.importorskip("scipy.io").savemat
    array = np.array(rows, dtype=[(field, object), ("class", np.uint8), ("test", np.uint8)])
    file.parent.mkdir(exist_ok=True)
    savemat(file, {"annotations": array.reshape(1, -1)})


def cars196(root):
    rows = [(f"car_ims/{n:06d}.jpg", c, n % 2) for n, c in enumerate((1, 98, 99, 196))]
    annotations(root / "cars_annos.mat", "relative_im_path", rows)
    save(root, *(row[0] for row in rows))


def cars196_devkit(root):
    for part, classes in (("train", (1, 99)), ("test", (98, 196))):
        rows = [(f"{n:05d}.jpg", c, 0) for n, c in enumerate(classes)]
        name = "cars_train_annos.mat" if part == "train" else "cars_test_annos_withlabels.mat"
        annotations(root / "devkit" / name, "fname", rows)
        save(root, *(f"cars_{part}/{row[0]}" for row in rows))


def sop(root):
    for part, first in (("train", 1), ("test", 11319)):
        rows = [f"{n} {first + n // 2} 1 bicycle_final/{part} {n}.JPG" for n in range(4)]
        (root / f"Ebay_{part}.txt").write_text("\n".join(["image_id class_id super_class_id path", *rows]) + "\n")
        save(root, *(f"bicycle_final/{part} {n}.JPG" for n in range(4)))


def inshop(root, folder="Img/"):
    rows = [(n, f"id_{n:08d}", role) for n, role in ((1, "train"), (1, "train"), (2, "query"), (2, "gallery"))]
    lines = [f"img/WOMEN/Dresses/{item}/{n}_{place}.jpg {item} {role}" for place, (n, item, role) in enumerate(rows)]
    (root / "Eval").mkdir()
    (root / "Eval" / "list_eval_partition.txt").write_text(
        "\n".join(["4", "image_name item_id evaluation_status", *lines]) + "\n"
    )
    save(root, *(folder + line.split()[0] for line in lines))


def inshop_flat(root):
    inshop(root, "")


# tree, name, (identity names, camera names, queries) of the training and of the test part
TREES = [
    (market1501, "market1501", (["0002", "0007"], ["c1", "c12"], None),
     (["0000", "0001", "1501"], ["c1", "c2", "c3", "c6"], 2)),
    (dukemtmc, "dukemtmc", (["0001", "0005"], ["c2", "c3"], None), (["0002"], ["c1", "c8"], 1)),
    (veri776, "veri776", (["0001", "0003"], ["c1", "c17"], None), (["0002"], ["c2", "c20"], 1)),
    (msmt17, "msmt17", (["train/0000", "train/0001"], ["c1", "c4", "c15"], None),
     (["test/0000"], ["c2", "c11"], 1)),
    (msmt17_v2, "msmt17", (["train/0000", "train/0001"], ["c1", "c4", "c15"], None),
     (["test/0000"], ["c2", "c11"], 1)),
    (cub200, "cub200", (["001.Black_footed_Albatross", "100.Brown_Pelican"], ["all"], None),
     (["101.White_Pelican", "200.Common_Yellowthroat"], ["all"], None)),
    (cars196, "cars196", (["001", "098"], ["all"], None), (["099", "196"], ["all"], None)),
    (cars196_devkit, "cars196", (["001", "098"], ["all"], None), (["099", "196"], ["all"], None)),
    (sop, "sop", (["00001", "00002"], ["all"], None), (["11319", "11320"], ["all"], None)),
    (inshop, "inshop", (["id_00000001"], ["all"], None), (["id_00000002"], ["all"], 1)),
    (inshop_flat, "inshop", (["id_00000001"], ["all"], None), (["id_00000002"], ["all"], 1)),
]  # fmt: skip
trees = pytest.mark.parametrize(("tree", "name", "train", "test"), TREES, ids=[row[0].__name__ for row in TREES])


@trees
def test_parts(tmp_path, tree, name, train, test):
    tree(tmp_path)
    split = load_split(name, size=8, root=str(tmp_path))
    assert split.validation is None
    for part, images, (identities, cameras, queries) in (("train", split.train, train), ("test", split.test, test)):
        assert images.label_names == identities and images.camera_names == cameras
        assert sorted(images.labels.unique().tolist()) == list(range(len(identities)))
        assert (images.queries is None) if queries is None else int(images.queries.sum()) == queries
        assert images.size == ((8, 4) if name in ("market1501", "dukemtmc", "msmt17") else (8, 8))
        assert images.read(range(len(images))).shape[0] == len(images), "every file is where the set says"
        assert images.provenance()["name"] == f"{name}-{part}"
        alone = load_images(f"{name}-{part}", size=(6, 5), root=tmp_path)
        assert alone.ids == images.ids and alone.size == (6, 5)
    assert not set(split.train.ids) & set(split.test.ids)


@trees
def test_a_missing_or_half_present_set_shows_its_layout(tmp_path, tree, name, train, test):
    with pytest.raises(NotADirectoryError, match="root: expected the folder"):
        load_images(f"{name}-train", root=tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match=f"root: expected .* got {tmp_path} without ") as caught:
        load_images(f"{name}-test", root=tmp_path)
    layout = str(caught.value).split(", got ")[0]
    assert "/" in layout and "\n" not in layout
    tree(tmp_path)
    images = load_images(f"{name}-test", size=8, root=tmp_path)
    top = (tmp_path / images.ids[0]).relative_to(tmp_path).parts[0]
    shutil.rmtree(tmp_path / top)
    with pytest.raises(OSError, match="root: expected") as caught:
        load_images(f"{name}-test", size=8, root=tmp_path)
    assert top in str(caught.value)


def remove_role(root, tree, role):
    """Of the test part, all images of a role: "query" or "gallery"."""
    if tree is inshop:
        path = root / "Eval" / "list_eval_partition.txt"
        path.write_text(path.read_text().replace(f" {role}", " train"))
    elif tree is msmt17:
        (root / f"list_{role}.txt").write_text("")
    else:
        folders = {market1501: ("query", "bounding_box_test"), veri776: ("image_query", "image_test")}
        for path in (root / folders[tree][role == "gallery"]).iterdir():
            path.unlink()


@pytest.mark.parametrize("role", ["query", "gallery"])
@pytest.mark.parametrize("tree", [market1501, veri776, msmt17, inshop], ids=lambda tree: tree.__name__)
def test_without_queries_or_gallery_there_is_no_test_part(tmp_path, tree, role):
    """All images against all would be another protocol."""
    tree(tmp_path)
    remove_role(tmp_path, tree, role)
    with pytest.raises(ValueError, match=f"root: expected .*, found no {role} images in {tmp_path}"):
        load_images(f"{tree.__name__}-test", size=8, root=tmp_path)


@pytest.mark.parametrize("tree", [msmt17, cars196, sop, inshop], ids=lambda tree: tree.__name__)
def test_a_listed_file_that_is_missing_is_named(tmp_path, tree):
    tree(tmp_path)
    name = tree.__name__
    lost = load_images(f"{name}-test", size=8, root=tmp_path).ids[-1]
    (tmp_path / lost).unlink()
    with pytest.raises(FileNotFoundError, match=r"without 1 of the [24]") as caught:
        load_images(f"{name}-test", size=8, root=tmp_path)
    assert lost in str(caught.value)


def test_lists_with_other_lines_are_named(tmp_path):
    for tree, file, line in (
        (msmt17, "list_query.txt", "0000.jpg 0"),
        (sop, "Ebay_test.txt", "a bicycle"),
        (inshop, "Eval/list_eval_partition.txt", "img/a.jpg id_00000001 holdout"),
    ):
        root = tmp_path / tree.__name__
        root.mkdir()
        tree(root)
        (root / file).write_text((root / file).read_text() + line + "\n")
        with pytest.raises(ValueError, match=f"{file}: expected lines like .*{line}"):
            load_images(f"{tree.__name__}-test", size=8, root=root)


def test_skipped_files_of_market_are_told(tmp_path, caplog):
    market1501(tmp_path)
    save(tmp_path, "bounding_box_test/me.jpg")
    load_images("market1501-test", size=8, root=tmp_path)
    told = " ".join(record.getMessage() for record in caplog.records)
    assert "skipped 1 file of other types (1 .db)" in told and "skipped 1 image whose name" in told


def test_market_labels_cameras_and_queries_are_of_the_same_rows(tmp_path):
    market1501(tmp_path)
    images = load_images("market1501-test", size=32, root=tmp_path)
    rows = zip(images.ids, images.labels.tolist(), images.cameras.tolist(), images.queries.tolist(), strict=True)
    for name, label, camera, query in rows:
        identity, rest = name.split("/")[1].split("_c")
        assert images.label_names[label] == identity and rest.startswith(images.camera_names[camera][1:] + "s")
        assert query == name.startswith("query/")
    assert images.take(torch.tensor([3, 0])).queries.tolist() == [False, True]


def test_cars_without_scipy(tmp_path, monkeypatch):
    cars196(tmp_path)
    monkeypatch.setitem(__import__("sys").modules, "scipy.io", None)
    with pytest.raises(ModuleNotFoundError, match="pip install scipy"):
        load_images("cars196-train", root=tmp_path)


def test_damaged_annotations_of_cars_are_named(tmp_path):
    cars196(tmp_path)
    for content in (b"no MATLAB file", (tmp_path / "cars_annos.mat").read_bytes()[:200]):
        (tmp_path / "cars_annos.mat").write_bytes(content)
        with pytest.raises(ValueError, match=r"cars_annos\.mat: expected 'annotations'"):
            load_images("cars196-train", root=tmp_path)


def test_one_part_can_be_loaded_where_the_other_is_absent(tmp_path):
    market1501(tmp_path)
    shutil.rmtree(tmp_path / "query")
    split = load_split("market1501-train", size=8, root=tmp_path)
    assert len(split.train) == 4 and split.test is None
    with pytest.raises(FileNotFoundError, match="without query"):
        load_split("market1501", size=8, root=tmp_path)


def test_official_parts_stay_whole_unless_a_fraction_is_given(tmp_path):
    save(tmp_path, *(f"bounding_box_train/{p:04d}_c{c}s1_0_00.jpg" for p in range(30) for c in (1, 2)))
    save(tmp_path, *(f"{folder}/0099_c1s1_0_00.jpg" for folder in ("query", "bounding_box_test")))
    split = load_split("market1501", size=8, root=tmp_path)
    assert len(split.train) == 60 and split.validation is None and len(split.test) == 2
    split = load_split("market1501", size=8, root=tmp_path, val_fraction=0.2)
    assert len(split.train) == 48 and len(split.validation) == 12 and len(split.test) == 2
    with pytest.raises(ValueError, match="train_fraction: expected None for market1501"):
        load_split("market1501", size=8, root=tmp_path, train_fraction=0.5)
    assert set(OFFICIAL) == {row[1] for row in TREES}, "each set is tested"
