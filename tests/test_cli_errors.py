"""What newcomers get wrong on the command line: each error names the argument, what came, and what to do."""

import re
import shutil
from contextlib import redirect_stderr, redirect_stdout
from io import StringIO
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from dissim_retrieval import TrainConfig, cli, train
from dissim_retrieval.data import load_images
from dissim_retrieval.evaluation.report import threshold_text
from photo_gallery import write_photos

SETTINGS = ["--root", "photos", "--size", "20x16", "--backbone", "small", "--dim", "8", "--identities", "8"]
TRAINING = [*SETTINGS, "--steps", "1"]


def dissim(*arguments):
    """The exit code, and the lines that were printed on stdout and stderr, in order."""
    out = StringIO()
    with redirect_stdout(out), redirect_stderr(out):
        code = cli.main([str(argument) for argument in arguments])
    return code, out.getvalue().splitlines()


def failure(*arguments):
    """The line of an error, without "dissim: "."""
    code, lines = dissim(*arguments)
    assert code == 1 and lines[-1].startswith("dissim: ") and len(lines) < 4, lines
    return lines[-1].removeprefix("dissim: ")


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """photos/ of 20 identities, run/ trained on 18 of them, and its gallery."""
    folder = tmp_path_factory.mktemp("made")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        write_photos(Path("photos"), 20)
        for command in (["train", "run", *TRAINING], ["index", "run", "photos", "gallery"]):
            code, lines = dissim(*command)
            assert code == 0, lines
    return folder


@pytest.fixture(autouse=True)
def _in_a_copy(made, tmp_path, monkeypatch):
    shutil.copytree(made, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)


def test_a_folder_of_other_files_is_no_place_for_a_run():
    told = "folder: expected a new folder or one of a run, got photos, which has other files, such as id0."
    before = sorted(Path("photos").rglob("*"))
    assert failure("train", "photos", *TRAINING).startswith(told)
    with pytest.raises(ValueError, match=re.escape(told)):
        train(TrainConfig(), load_images("folder", size=16, root="photos"), folder="photos")
    with pytest.raises(NotADirectoryError, match=r"got photos/id0/a\.png, a file"):
        train(TrainConfig(), load_images("folder", size=16, root="photos"), folder="photos/id0/a.png")
    assert sorted(Path("photos").rglob("*")) == before
    Path("empty").mkdir()
    Path("empty/.hidden").touch()
    assert dissim("train", "empty", *TRAINING)[0] == 0


def test_other_settings_of_a_run_are_told_with_their_values():
    other = failure("train", "run", *TRAINING, "--identities", 4, "--lr", 0.5)
    assert other == (
        "identities: expected 8, as the run in run has, got 4; lr: expected 0.001, got 0.5. Pass the run's values to"
        " continue it, or choose a new folder."
    )
    other = failure("train", "run", *TRAINING, "--size", 16)
    assert other.startswith("size: expected 20x16, as the run in run has, got 16x16. Pass the run's values")
    shutil.rmtree("photos/id0")
    other = failure("train", "run", *TRAINING, "--val-fraction", 0)
    assert other.startswith("images: expected the images that run was made with (36 images of 18 identities, ")


@pytest.mark.parametrize("size", ["32,32", "x", "20x16x3", "0", "-4", "1.5", "20x"])
def test_a_size_that_cannot_be_read_is_told(size, capsys):
    with pytest.raises(SystemExit):
        cli.main(["train", "new", *TRAINING, f"--size={size}"])
    error = " ".join(capsys.readouterr().err.replace("│", "").split())
    assert f"expected pixels such as 128, or HEIGHTxWIDTH such as 256x128, got '{size}'" in error


def test_the_number_of_identities_is_told_after_the_other_checks():
    lines = dissim("train", "new", *TRAINING, "--identities", 64)[1]
    assert "identities: a batch has all 18 identities: there are fewer than 64 (--identities)" in lines
    lines = dissim("train", "new", *TRAINING, "--identities", 65)[1]
    assert lines[-1].startswith("dissim: identities: expected 64, as the run in new has, got 65.")
    assert not [line for line in lines if "a batch has all" in line]


def test_a_part_that_a_run_does_not_have_is_told():
    assert failure("embed", "run", "out.npz", "--part", "test") == (
        "part: run has no test part: it was trained without --train-fraction. Without --part, its 2 validation"
        " identities are taken; --part all takes all."
    )
    assert dissim("train", "half", *TRAINING, "--train-fraction", 0.5)[0] == 0
    assert "no validation part: it was trained without --val-fraction. Without --part, its 10 test identities" in (
        failure("evaluate", "half", "--part", "validation")
    )
    assert dissim("train", "whole", *TRAINING, "--part", "all")[0] == 0
    told = failure("evaluate", "whole", "--part", "test")
    assert told.endswith(", and no identities were held out. --part all takes the trained ones.")


def test_what_info_cannot_describe_is_told():
    expected = "path: expected a run, a gallery, a file of embeddings (.npz, .npy) or a file of `dissim fit`, got "
    Path("empty").mkdir()
    Path("a.txt").write_text("text")
    assert failure("info", "photos").startswith(f"{expected}photos, a folder of other files. `dissim train")
    assert failure("info", "empty").startswith(f"{expected}empty, an empty folder.")
    assert failure("info", "a.txt").startswith(f"{expected}a.txt, a file that is none of them")


def test_a_folder_that_is_no_gallery_is_neither_appended_to_nor_replaced():
    told = failure("index", "run", "photos", "photos")
    assert told == "gallery: expected a name for a new gallery, got photos, a folder that is no gallery." + (
        " Choose a new name."
    )
    told = failure("index", "run", "photos", "photos", "--overwrite")
    assert "Delete" not in told and told.endswith("Choose another name.")


def test_features_that_cannot_be_fitted_are_told():
    np.save("int.npy", np.ones((4, 3), int))
    np.savez("rows.npz", embeddings=np.ones((4, 3)))
    np.savez("labels.npz", labels=np.ones(4))
    told = failure("fit", "int.npy", "out")
    assert told.startswith("FEATURES: expected embeddings [N, D] of floats in int.npy, got int64 [4, 3]. Convert")
    assert told.endswith('.astype("float32").')
    told = failure("fit", "photos", "out")
    assert told.startswith("FEATURES: expected an .npz or .npy file, got photos, a folder. `dissim train RUN --root")
    assert "rows.npz has no array 'labels'. Add the array" in failure("fit", "rows.npz", "out")
    assert failure("fit", "labels.npz", "out").startswith("FEATURES: expected an array 'embeddings' in labels.npz")


def test_a_gallery_in_the_place_of_another_argument_is_told():
    told = "which is a gallery. Pass the run that it was made with."
    assert failure("evaluate", "gallery") == f"folder: expected a training run, got gallery, {told}"
    assert failure("evaluate", "none") == "folder: expected a training run, got none, which does not exist."
    told = failure("search", "photos/id0/a.png", "gallery")
    assert told.startswith("gallery: expected GALLERY before QUERY, got photos/id0/a.png, then the gallery gallery.")
    assert told.endswith("Swap them: `dissim search gallery photos/id0/a.png`.")


@pytest.mark.parametrize(("same", "different", "useless"), [(0.9, 0.6, True), (0, 0, True), (0.9, 0.5, False)])
def test_a_threshold_that_separates_nothing_is_told(same, different, useless):
    evaluation = SimpleNamespace(name="pair classifier", same_above_0=same, different_above_0=different)
    text = threshold_text(evaluation, is_threshold=True)
    told = "0 is no useful threshold for this run: train longer, or choose one from the report's histogram."
    assert text.endswith(told) == useless
    assert not threshold_text(evaluation, is_threshold=False).endswith(told)


def test_the_demo_has_no_images_of_folders(capsys):
    with pytest.raises(SystemExit) as stop:
        cli.main(["demo", "--data", "folder"])
    error = capsys.readouterr().err
    assert stop.value.code == 2 and "--data" in error and "emoji" in error and "glyphs" in error
