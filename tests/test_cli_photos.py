"""The command line on a folder of photos: train, index, search, evaluate; and what does not belong together."""

import json
import re
import shutil
import sys
from contextlib import redirect_stderr, redirect_stdout
from io import StringIO
from pathlib import Path

import numpy as np
import pytest
from dissim_retrieval import DissimilarityIndex, cli
from dissim_retrieval.index import lance_store
from dissim_retrieval.photos import replace_gallery
from filelock import FileLock
from PIL import Image

ROOT = Path(__file__).parents[1]
SETTINGS = ["--size", "20x16", "--backbone", "small", "--dim", "8", "--identities", "8", "--steps", "3"]


def write_photos(root, identities, seed=0, prefix="id"):
    """Three photos of each identity, of its color, one of them in a folder below."""
    draw = np.random.default_rng(seed)
    for number in range(identities):
        folder = root / f"{prefix}{number:02d}"
        (folder / "day2").mkdir(parents=True)
        color = draw.integers(30, 220, 3)
        for name in ("a.png", "b.JPG", "day2/c.png"):
            noisy = (color + draw.integers(-20, 20, (40, 30, 3))).astype(np.uint8)
            Image.fromarray(noisy).save(folder / name)


def dissim(*arguments):
    """The exit code, and what was printed on stdout and stderr, in order."""
    out = StringIO()
    with redirect_stdout(out), redirect_stderr(out):
        code = cli.main([str(argument) for argument in arguments])
    return code, out.getvalue()


def success(*arguments):
    code, text = dissim(*arguments)
    assert code == 0, text
    return text


def failure(*arguments):
    """The one line of an error."""
    code, text = dissim(*arguments)
    assert code == 1 and "Traceback" not in text
    assert text.splitlines()[-1].startswith("dissim: ")
    return text.splitlines()[-1]


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """photos/ of 20 identities, run/ trained on 18 of them, and its gallery."""
    folder = tmp_path_factory.mktemp("made")
    write_photos(folder / "photos", 20)
    text = success("train", folder / "run", "--root", folder / "photos", *SETTINGS)
    assert "18 to train, 2 held out for validation, 0 to test" in text
    success("index", folder / "run", folder / "photos", folder / "gallery")
    return folder


@pytest.fixture(autouse=True)
def _in_a_copy(made, tmp_path, monkeypatch):
    shutil.copytree(made, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)


def test_the_run_records_what_it_came_from():
    record = json.loads(Path("run/config.json").read_text())
    assert record["provenance"]["transform"]["size"] == [20, 16]
    assert record["provenance"]["split"]["data"] == "folder"
    assert record["provenance"]["data"]["identities"] == 18
    described = success("info", "run")
    for text in ("3 of 3", "18 identities", "2 identities", "20x16", "best validation", "mAP"):
        assert text in described


def documented_keys():
    """Command, or file -> the keys that the page on the command line tells of its JSON."""
    section = (ROOT / "docs" / "cli.md").read_text().partition("\n## JSON\n")[2]
    rows = re.findall(r"^\| `(.+?)`.*? \| (.*) \|$", section, re.M)
    return {name: re.findall("`(.+?)`", keys) for name, keys in rows}


def test_json_has_plain_values_under_the_documented_keys():
    success("embed", "run", "rows.npz", "--part", "all")
    success("fit", "rows.npz", "fitted", "--steps", 1)
    commands = {
        "info": "info",
        "info RUN": "info run",
        "info GALLERY": "info gallery",
        "info EMBEDDINGS": "info rows.npz",
        "info FITTED": "info fitted",
        "index": "index run photos new.dissim",
        "evaluate": "evaluate run",
        "embed": "embed run new.npz",
        "fit": "fit rows.npz --steps 1",
    }
    printed = {name: success(*command.split(), "--json") for name, command in commands.items()}
    # The JSON comes after what went to stderr.
    records = {name: json.loads(text[text.index("{") :]) for name, text in printed.items()}
    records["metrics.json"] = json.loads(Path("run/evaluation/metrics.json").read_text())
    (found,) = json.loads(success("search", "gallery", "photos/id03/a.png", "-k", 1, "--json"))
    records["search"] = found | found["results"][0]
    documented = documented_keys()
    for name, record in records.items():
        assert set(record) == set(documented[name]), name
    recorded = json.loads(Path("run/config.json").read_text())
    run, evaluated = records["info RUN"], records["metrics.json"]["facts"]
    assert (run["steps"], run["best_validation"]["step"], run["finished"]) == (3, 3, True)
    assert run["config"] == recorded["config"] == evaluated["training"]
    assert run["provenance"] == recorded["provenance"] | {"model": evaluated["weights"]}
    assert records["info GALLERY"]["provenance"] == run["provenance"]
    assert evaluated["images"] == recorded["provenance"]["validation"]


def test_search_with_a_photo_finds_it_first(made):
    text = success("search", "gallery", "photos/id03/a.png", "-k", 4)
    header, *rows = [line.split("\t") for line in text.splitlines()]
    assert header == ["rank", "score", "id", "file"] and len(rows) == 4
    assert rows[0][0] == "1" and rows[0][2] == "id03/a.png"
    assert rows[0][3] == str(made / "photos/id03/a.png"), "where it was when it was indexed"
    assert [float(row[1]) for row in rows] == sorted((float(row[1]) for row in rows), reverse=True)


def test_a_gallery_of_embeddings_has_labels_and_cameras_to_filter_by():
    success("embed", "run", "all.npz", "--part", "all")
    success("index", "run", "all.npz", "all.dissim")
    options = ["photos/id03/a.png", "--json", "--filter", "camera = 'all' AND label != 'id03' AND id LIKE '%/a.png'"]
    names = [one["id"] for one in json.loads(success("search", "all.dissim", *options))[0]["results"]]
    assert len(names) == 10 and all(name.endswith("/a.png") and name != "id03/a.png" for name in names)


def test_a_name_with_a_tab_is_one_cell():
    name = "a\tb\nc\rd\\e.png"
    Path("odd").mkdir()
    shutil.copy("photos/id03/a.png", Path("odd", name))
    success("index", "run", "odd", "odd.dissim")
    header, row, end = success("search", "odd.dissim", Path("odd", name)).split("\n")
    _, _, *cells = row.split("\t")
    assert (len(header.split("\t")), cells, end) == (4, [r"a\tb\nc\rd\\e.png", r"odd/a\tb\nc\rd\\e.png"], "")
    (found,) = json.loads(success("search", "odd.dissim", Path("odd", name), "--json"))
    assert found["results"][0]["id"] == name


def test_search_with_a_folder_of_photos_and_json():
    Path("queries").mkdir()
    for name in ("id03", "id11"):
        shutil.copy(f"photos/{name}/a.png", f"queries/{name}.png")
    text = success("search", "gallery", "queries", "-k", 2)
    header, *rows = [line.split("\t") for line in text.splitlines()]
    assert header == ["query", "rank", "score", "id", "file"]
    assert [(row[0], row[3]) for row in rows[::2]] == [("id03.png", "id03/a.png"), ("id11.png", "id11/a.png")]
    found = json.loads(success("search", "gallery", "queries", "-k", 2, "--json"))
    assert [one["results"][0]["id"] for one in found] == ["id03/a.png", "id11/a.png"]


def test_threshold_tells_what_is_the_same():
    query = ("search", "gallery", "photos/id03/a.png", "-k", 60)
    header, *rows = [line.split("\t") for line in success(*query, "--threshold", 0.9).splitlines()]
    assert header == ["rank", "score", "id", "same", "file"]
    assert [row[3] for row in rows] == ["yes" if float(row[1]) >= 0.9 else "no" for row in rows]
    assert {row[3] for row in rows} == {"yes", "no"}
    assert len(success(*query[:-1], 99).splitlines()) == 61, "k above the number of photos"
    assert "threshold: expected a number, got nan." in failure(*query, "--threshold", "nan")


def test_what_is_no_gallery_or_no_photo_is_named():
    photo = "photos/id03/a.png"
    for path, what in (
        ("nowhere", "which does not exist. `dissim index RUN PHOTOS GALLERY` makes one."),
        ("run", "which is a training run. `dissim index run PHOTOS GALLERY` makes a gallery with it."),
        ("photos", "which is a folder of other files."),
        (photo, "which is a file."),
    ):
        expected = f"dissim: gallery: expected a gallery made by `dissim index`, got {path}, {what}"
        for command in (("search", path, photo), ("export", path, "out"), ("serve", path)):
            assert failure(*command).startswith(expected)
    assert failure("index", "run", "photos", "photos", "--append").startswith("dissim: gallery: expected a gallery")
    for command in (("search", "gallery", "photos/no.jpg"), ("index", "run", "photos/no.jpg", "new")):
        assert failure(*command) == "dissim: photos/no.jpg: no such file or folder."
    assert "got run/config.json, which is a file" in failure("train", "new", "--root", "run/config.json")
    Path("phone").mkdir()
    Path("phone/1.heic").write_bytes(b"a photo")
    assert "such as .heic, to .jpg or .png" in failure("index", "run", "phone", "new")


def test_html_page_is_self_contained_and_shows_the_photos():
    shutil.copytree("photos/id03", "some/id03")
    success("index", "run", "some", "some.dissim")
    Path("some/id03/b.JPG").unlink()
    success("search", "some.dissim", "photos/id03", "--html", "found.html", "--threshold", 0.9)
    page = Path("found.html").read_text()
    assert not re.search(r"(src|href)=\"(?!data:)|url\(|@import", page), "the page loads something"
    assert page.count("<section>") == 3 and page.count("<li>") == 9
    assert 'alt="id03/a.png"' in page
    assert page.count("no picture") == 3, "a photo that is no longer there"
    assert page.count('<figure class="same">') + page.count('<figure class="other">') == 9


def test_photos_without_identities_are_indexed():
    Path("flat/deeper").mkdir(parents=True)
    shutil.copy("photos/id03/a.png", "flat/one.png")
    shutil.copy("photos/id04/a.png", "flat/deeper/two.png")
    assert "2 rows" in success("index", "run", "flat", "flat.dissim")
    found = success("search", "flat.dissim", "photos/id04/a.png", "-k", 1)
    assert "deeper/two.png\tflat/deeper/two.png" in found, "a path below the current folder is shown from there on"


def test_an_existing_gallery_is_kept_unless_it_is_told_otherwise():
    assert "--append adds to it, --overwrite replaces it" in failure("index", "run", "photos", "gallery")
    assert "got both" in failure("index", "run", "photos", "gallery", "--append", "--overwrite")
    write_photos(Path("photos"), 1, seed=9, prefix="new")
    assert "63 rows, 3 of them new" in success("index", "run", "photos", "gallery", "--append")
    assert "new00/a.png" in success("search", "gallery", "photos/new00/a.png", "-k", 1)
    assert "gallery: 63 rows" in success("index", "run", "photos", "gallery", "--overwrite")
    assert sorted(path.name for path in Path(".").iterdir()) == ["gallery", "photos", "run"]


@pytest.mark.parametrize("failing", [1, 2])
def test_a_gallery_that_cannot_be_replaced_is_where_it_was(monkeypatch, failing):
    """The renames are: the new folder to its name, the old gallery away, the new one into its place."""
    index, rename, calls = DissimilarityIndex.open("gallery"), Path.rename, []

    def interrupted(path, target):
        calls.append(path)
        if len(calls) == 1 + failing:
            raise KeyboardInterrupt
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", interrupted)
    with pytest.raises(KeyboardInterrupt):
        replace_gallery(index, "gallery")
    index.refresh()
    index.verify()
    assert sorted(path.name for path in Path(".").iterdir()) == ["gallery", "photos", "run"]
    replace_gallery(index, "gallery")
    with pytest.raises(OSError, match="was replaced"):
        index.refresh()
    assert len(DissimilarityIndex.open("gallery", verify=True)) == 60


def test_a_writer_and_a_replacement_exclude_each_other(monkeypatch):
    monkeypatch.setattr(lance_store, "LOCK_SECONDS", 0)
    index = DissimilarityIndex.open("gallery")
    with FileLock("gallery/write.lock"), pytest.raises(TimeoutError, match="another writer"):
        replace_gallery(index, "gallery")
    index.refresh()


def test_only_a_gallery_is_overwritten():
    for run in ("run", "nowhere"):  # an error before the run is read
        assert "expected a gallery to overwrite" in failure("index", run, "photos", "photos", "--overwrite")
    assert Path("photos/id00/a.png").exists()


def test_a_gallery_that_was_made_meanwhile_is_kept(monkeypatch):
    """By another `dissim index`, while the photos are embedded."""
    module = sys.modules["dissim_retrieval.cli.index"]
    embed_images = module.embed_images

    def slow(network, images):
        shutil.copytree("gallery", "new.dissim")
        return embed_images(network, images)

    monkeypatch.setattr(module, "embed_images", slow)
    assert "new.dissim, which exists" in failure("index", "run", "photos/id03", "new.dissim")
    assert "60 of 8 numbers" in success("info", "new.dissim")
    assert sorted(path.name for path in Path(".").iterdir()) == ["gallery", "new.dissim", "photos", "run"]


def test_arguments_of_a_search_are_checked_before_photos_are_embedded(monkeypatch):
    module = sys.modules["dissim_retrieval.cli.search"]
    monkeypatch.setattr(module, "embed_photos", lambda *arguments, **options: pytest.fail("embedded"))
    search = ("search", "gallery", "photos")
    assert "k: expected an integer of at least 1, got 0" in failure(*search, "-k", 0)
    assert "got photos, which is a folder" in failure(*search, "--html", "photos")
    assert "filter: expected an SQL condition on id" in failure(*search, "--filter", "colour = 1")


def test_a_search_looks_up_the_files_of_all_results_at_once(monkeypatch):
    get, calls = DissimilarityIndex.get, []
    monkeypatch.setattr(DissimilarityIndex, "get", lambda index, ids: calls.append(ids) or get(index, ids))
    text = success("search", "gallery", "photos/id03", "-k", 2)
    assert len(text.splitlines()) == 7 and text.count("photos/id03/") >= 3 and len(calls) == 1


def test_info_reads_no_rows(monkeypatch):
    monkeypatch.setattr(lance_store.LanceStore, "_all_rows", lambda *arguments: pytest.fail("rows were read"))
    assert "60 of 8 numbers" in success("info", "gallery")


def test_other_photos_of_the_same_names_are_not_appended():
    write_photos(Path("other/photos"), 2, seed=5)
    assert "another photo as id00/a.png" in failure("index", "run", "other/photos", "gallery", "--append")
    assert "60 of 8 numbers" in success("info", "gallery")


def test_evaluation_is_on_the_identities_held_out():
    text = success("evaluate", "run", "--root", "photos", "--rerank")
    assert "2 validation identities, none of which the model was trained on" in text
    record = json.loads(Path("run/evaluation/metrics.json").read_text())
    assert record["trained_identities"] == 0 and "none of which" in record["note"]
    assert record["evaluations"][0]["metrics"]["queries"] == 6
    assert [one["name"] for one in record["evaluations"]][:2] == ["pair classifier", "pair classifier, re-ranked"]
    assert "2 validation identities" in Path("run/evaluation/report.html").read_text()
    assert "no test part" in failure("evaluate", "run", "--part", "test")


def test_part_all_says_that_it_includes_trained_identities():
    """The report on the identities held out stays as it was."""
    note = "All 20 identities; the model was trained on 18 of them."
    success("evaluate", "run")
    before = Path("run/evaluation/metrics.json").read_bytes()
    for part in ("all", "train"):
        success("evaluate", "run", "--part", part)
        record = json.loads(Path(f"run/evaluation-{part}/metrics.json").read_text())
        assert record["trained_identities"] == 18
    assert Path("run/evaluation/metrics.json").read_bytes() == before
    success("evaluate", "run", "--part", "validation")
    assert sorted(path.name for path in Path("run").glob("eval*")) == [
        "evaluation", "evaluation-all", "evaluation-train",
    ]  # fmt: skip
    assert note in success("evaluate", "run", "all", "--root", "photos", "--part", "all")
    record = json.loads(Path("all/metrics.json").read_text())
    assert record["note"] == note and record["trained_identities"] == 18
    assert record["evaluations"][0]["metrics"]["queries"] == 60
    assert note in Path("all/report.html").read_text()


def test_another_split_or_other_images_are_not_evaluated_as_held_out():
    assert "split_seed: expected 0" in failure("evaluate", "run", "--root", "photos", "--split-seed", 1)
    assert "train_fraction: expected None" in failure("evaluate", "run", "--train-fraction", "0.5")
    assert "size: expected 20x16" in failure("evaluate", "run", "--size", "20")
    write_photos(Path("photos"), 3, seed=7, prefix="new")
    assert "trained identities could count as held out" in failure("evaluate", "run", "--root", "photos")
    assert "whether it knows some is unknown" in success("evaluate", "run", "--root", "photos", "--part", "all")
    assert [path.name for path in Path("run").glob("eval*")] == ["evaluation-all"]


def test_a_run_with_a_test_part_is_evaluated_on_it():
    split = ["--train-fraction", "0.6", "--split-seed", "3"]
    assert "12 to train, 0 held out for validation, 8 to test" in success(
        "train", "half", "--root", "photos", *SETTINGS, *split
    )
    assert "8 test identities, none of which the model was trained on." in success("evaluate", "half")


def test_a_run_on_all_identities_has_none_to_evaluate():
    success("train", "whole", "--root", "photos", "--part", "all", *SETTINGS)
    assert "no identities were held out" in failure("evaluate", "whole")
    both = ("train", "half", "--root", "photos", "--part", "all", "--train-fraction", 0.5, *SETTINGS)
    assert "train_fraction: expected none with --part all" in failure(*both) and not Path("half").exists()
    assert "trained on 20 of them" in success("evaluate", "whole", "--part", "all")


def test_resume_on_other_photos_is_an_error():
    before = Path("run/checkpoint.pt").read_bytes()
    write_photos(Path("other"), 20, seed=4)
    assert "images" in failure("train", "run", "--root", "other", *SETTINGS)
    assert Path("run/checkpoint.pt").read_bytes() == before


def test_embeddings_and_galleries_of_another_run_are_errors():
    success("train", "run2", "--root", "photos", *SETTINGS, "--seed", 1)
    success("embed", "run", "one.npz", "--part", "all")
    success("embed", "run2", "two.npz", "--part", "all")
    assert "another model" in failure("index", "run", "two.npz", "mixed")
    assert not Path("mixed").exists()
    assert "60 rows" in success("index", "run", "one.npz", "own")
    assert "model" in failure("search", "own", "two.npz")
    assert "another model" in failure("index", "run2", "photos", "gallery", "--append")
    assert "id03/a.png" in success("search", "own", "one.npz", "-k", 1)
    assert "without a network" not in success("search", "own", "photos/id03/a.png", "-k", 1)


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_a_damaged_run_is_named(name):
    path = Path("run", name)
    path.write_bytes(path.read_bytes()[:20])
    assert name in failure("evaluate", "run")
    assert name in failure("index", "run", "photos", "new.dissim")
    assert not Path("new.dissim").exists()


def test_a_damaged_photo_is_named_or_skipped():
    Path("photos/id02/b.JPG").write_bytes(Path("photos/id02/b.JPG").read_bytes()[:200])
    assert "photos/id02/b.JPG" in failure("index", "run", "photos", "new.dissim")
    assert not Path("new.dissim").exists()
    assert "59 rows" in success("index", "run", "photos", "new.dissim", "--skip-damaged")
    assert "photos/id02/b.JPG" in failure("train", "run3", "--root", "photos", *SETTINGS, "--steps", 9)


def test_a_damaged_photo_that_was_held_out_is_skipped_on_request():
    """The split stays the one that the run recorded, without --skip-damaged."""
    success("embed", "run", "held_out.npz")
    photo = Path("photos", np.load("held_out.npz")["ids"][0])
    photo.write_bytes(photo.read_bytes()[:200])
    for command in (("evaluate", "run"), ("embed", "run", "new.npz")):
        arguments = (*command, "--root", "photos")
        assert str(photo) in failure(*arguments)
        assert "skipped 1 of 6 images" in success(*arguments, "--skip-damaged")
    assert len(np.load("new.npz")["ids"]) == 5


def test_what_a_run_skipped_is_skipped_later_and_told_once():
    damaged = Path("photos/id02/b.JPG")
    damaged.write_bytes(damaged.read_bytes()[:200])
    Path("photos/notes.txt").touch()
    success("train", "other", "--root", "photos", *SETTINGS, "--skip-damaged")
    assert "59 rows" in success("index", "other", "photos", "new.dissim")
    assert "skipped 1 of 3 images" in success("search", "new.dissim", "photos/id02", "-k", 1)
    assert str(damaged) in failure("search", "new.dissim", damaged)
    for command in (("evaluate", "other"), ("embed", "other", "x.npz")):
        text = success(*command, "--part", "all")
        assert text.count("skipped 1 of 60 images") == text.count("skipped 1 file of other types") == 1


def test_market1501_keeps_its_official_split():
    draw = np.random.default_rng(0)
    for folder, cameras, first in (
        ("bounding_box_train", (1, 2), 1), ("bounding_box_test", (1, 2), 101), ("query", (1,), 101),
    ):  # fmt: skip
        Path("market", folder).mkdir(parents=True)
        for person in range(first, first + 6):
            for camera in cameras:
                name = f"{person:04d}_c{camera}s1_{len(folder):06d}_00.jpg"
                Image.fromarray(draw.integers(0, 256, (20, 16, 3), dtype=np.uint8)).save(Path("market", folder, name))
    shutil.copy(Path("market", "query", name), Path("market", "bounding_box_test", "0000_c1s1_000001_00.jpg"))
    data = ["--root", "market", *SETTINGS]
    assert "6 to train" in success("train", "people", "--data", "market1501-train", *data)
    for options in (["--data", "market1501-test", "--root", "market"], []):
        assert "6 test identities, none of" in success("evaluate", "people", "report", *options)
        record = json.loads(Path("report/metrics.json").read_text())
        assert record["evaluations"][0]["metrics"]["queries"] == 6
        assert "ranked against its gallery" in Path("report/report.html").read_text()
    # Of a run on other images, only the official test part is known to be held out.
    for part, text in (
        ("train", "than the model was trained on; whether it knows some is unknown."),
        ("test", "6 test identities, none of which the model was trained on."),
    ):
        assert text in success("embed", "run", "x.npz", "--data", "market1501", *data[:2], "--part", part, "--json")
    assert "part: expected train or test of market1501" in failure("embed", "people", "all.npz", "--part", "all")


def console_sessions(document):
    """(command, output) of the ```console blocks."""
    for block in re.findall(r"^```console\n(.*?)^```", document.read_text(), re.M | re.S):
        for session in block.split("$ ")[1:]:
            command, _, output = session.partition("\n")
            yield command, output


def masked(line):
    """A line of output without what depends on the machine: numbers, digests, the mark of the best value, and the
    metrics after the first two, which are omitted if they equal others."""
    line = re.sub(r"\b(?=[0-9a-f]*\d)[0-9a-f]{12}\b", "DIGEST", line)
    line = " ".join(re.sub(r"-?\d+(\.\d+)?", "N", line).replace("*", "").split())
    return re.sub(r"^(mAP Recall@N|(?:pair classifier|cosine|LN distance) N N) .*$", r"\1", line)


def check_sessions(document, folder):
    """The commands of a document print what it shows. Returns the names of the commands."""
    names = []
    for command, expected in console_sessions(document):
        program, name, *_ = command.split()
        assert program == "dissim"
        printed = success(*command.split()[1:]).replace(f"{folder}/", "")
        lines, expected_lines = printed.splitlines(), expected.splitlines()
        if name == "search":  # the order of the candidates depends on the machine, the query itself is first
            assert len(lines) == len(expected_lines)
            lines, expected_lines = lines[:2], expected_lines[:2]
        assert list(map(masked, lines)) == list(map(masked, expected_lines)), command
        names.append(name)
    return names


def test_the_commands_of_the_documentation_print_what_it_shows(tmp_path, monkeypatch):
    """The photos and the embeddings are those that the page on the command line makes.

    No processes are started to read images, which takes longer than reading them.
    """
    monkeypatch.setattr("dissim_retrieval.data.workers.MIN_ROWS", 10**9)
    monkeypatch.chdir(tmp_path)
    for name in ("photos", "run", "gallery"):
        shutil.rmtree(name)
    page = ROOT / "docs" / "cli.md"
    photos, embeddings = re.findall(r"^```python\n(.*?)^```", page.read_text(), re.M | re.S)
    exec(photos, {})
    assert check_sessions(ROOT / "README.md", tmp_path) == ["train", "index", "search", "evaluate", "info"]
    shutil.rmtree("gallery.dissim")
    exec(embeddings, {})
    assert check_sessions(page, tmp_path) == ["fit", "index", "search"]
