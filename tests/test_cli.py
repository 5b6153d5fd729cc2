"""The command line: what every command prints and writes, its exit codes, and its errors in one line."""

import inspect
import json
import logging
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import dissim_command
import dissim_retrieval
import numpy as np
import pytest
import torch
from dissim_retrieval import DissimilarityHead, DissimilarityIndex, SoftMarginLoss, TrainConfig, cli, train
from dissim_retrieval.cli.arguments import ImageOptions, pick_device
from dissim_retrieval.data import load_images
from dissim_retrieval.embedding_file import read_embedding_file
from dissim_retrieval.evidence import experiment_verdict
from dissim_retrieval.fit import fit_head
from dissim_retrieval.index import prepared_files
from dissim_retrieval.photos import replace_gallery
from dissim_retrieval.projected import ProjectedHead
from dissim_retrieval.speed import compare_speed

FILES = {"metrics.json", "per_query.csv", "report.html", "report.png"}
#: The folder of the packages, for Python started elsewhere.
COMMAND_PATH = str(Path(dissim_command.__file__).parents[1])
DATA = ["--data", "glyphs", "--size", "32"]
TRAINING = ["--backbone", "small", "--dim", "16", "--steps", "4", "--identities", "8"]


@pytest.fixture(scope="module")
def small_glyphs():
    letters = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
    from dissim_retrieval.data.glyphs import load_glyphs

    return load_glyphs(32, letters=letters, progress=False)


@pytest.fixture(autouse=True)
def _small_image_set(small_glyphs, monkeypatch, tmp_path):
    """Replaces the images of --data glyphs by a small set, and works in an empty folder."""
    monkeypatch.setitem(load_images.__globals__["SETS"], "glyphs", lambda size, root: small_glyphs)
    monkeypatch.chdir(tmp_path)


def run(*arguments):
    return cli.main([str(a) for a in arguments])


def last_error(capsys):
    """The last line on stderr."""
    return capsys.readouterr().err.strip().splitlines()[-1]


def test_from_training_to_a_report(capsys):
    assert run("train", "run", *DATA, *TRAINING) == 0
    assert "13 to train, 0 held out for validation, 13 to test" in capsys.readouterr().out
    assert run("embed", "run", "test.npz") == 0, "set, size and split are those of the run"
    assert run("index", "run", "test.npz", "test.index") == 0
    rows = read_embedding_file("test.npz").embeddings
    capsys.readouterr()
    assert run("search", "test.index", "test.npz", "-k", 3) == 0
    header, *lines = capsys.readouterr().out.splitlines()
    assert header == "query\trank\tscore\tid" and len(lines) == 3 * len(rows)
    scores = np.array([float(line.split("\t")[2]) for line in lines]).reshape(-1, 3)
    assert (np.diff(scores) <= 0).all()
    assert run("evaluate", "run", "report", *DATA) == 0
    out = capsys.readouterr().out
    assert "13 test identities, none of which the model was trained on." in out
    assert "pair classifier" in out and "cosine" in out and Path(out.splitlines()[-1]).name == "report.html"
    assert {p.name for p in Path("report").iterdir()} == FILES


def test_demo_compares_trained_and_untrained(capsys):
    assert run("demo", "--data", "glyphs", "--out", "report", "--backbone", "small", "--steps", 4) == 0
    note, _, *rows, page = capsys.readouterr().out.strip().splitlines()
    assert note == f"One run with one seed. {experiment_verdict('glyphs', 'small')}"
    trained = [f"small, {method}" for method in ("pair classifier", "plain L1", "multi-similarity")]
    names = [re.split(r" {2,}", row)[0] for row in rows]
    assert names[:3] == trained and [name.rpartition(",")[0] for name in names[3:]] == [
        "efficientnet_lite0, frozen", "mobilenet_v2, frozen", "Pixels, 8 x 8",
    ]  # fmt: skip
    assert len(set(row.removeprefix(name) for name, row in zip(names[:3], rows, strict=False))) == 3
    assert page.endswith("report.html") and Path("report/report.png").exists()
    assert note in Path("report/report.html").read_text()


def test_bench_lists_every_implementation(capsys):
    assert run("bench", "--queries", 8, "--gallery", 9, "--dim", 5) == 0
    out = capsys.readouterr().out
    for way in ("plain torch", "torch.cdist", "fused, cpu", "fused, reference", "Gelem/s"):
        assert way in out


def test_bench_raises_for_wrong_results(monkeypatch):
    wrong = lambda *inputs, **options: torch.zeros(8, 9)  # noqa: E731
    monkeypatch.setattr("dissim_retrieval.speed.fused_dissim_score", wrong)
    monkeypatch.setattr("dissim_retrieval.speed.SECONDS", 0.01)
    with pytest.raises(RuntimeError, match=r"fused, \w+: wrong by"):
        compare_speed(queries=8, gallery=9, dim=5)


def test_info_lists_versions_backends_and_gpu(capsys):
    assert run("info") == 0
    out = capsys.readouterr().out
    for text in (torch.__version__, "backend reference", "pylance", "GPU"):
        assert text in out
    assert run("info", "--json") == 0
    record = json.loads(capsys.readouterr().out)
    assert record["packages"]["torch"] == torch.__version__ and "reference" in record["backends"]


def test_info_describes_an_unfinished_run(capsys, monkeypatch):
    def interrupted(*arguments):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(sys.modules["dissim_retrieval.train.run_folder"], "write_model", interrupted)
        assert run("train", "run", *DATA, *TRAINING) == 130
    assert run("info", "run") == 0
    out = capsys.readouterr().out
    assert "steps            4 of 4" in out and "not finished" in out
    assert run("evaluate", "run") == 1 and "unfinished run" in last_error(capsys)


def test_info_describes_runs_without_a_checkpoint(capsys):
    """One that has just begun, and a finished one whose checkpoint was removed."""
    assert run("train", "run", *DATA, *TRAINING) == 0
    Path("run/checkpoint.pt").unlink()
    assert run("info", "run") == 0 and "finished" in capsys.readouterr().out
    Path("run/model.safetensors").unlink()
    assert run("info", "run") == 0
    out = capsys.readouterr().out
    assert "steps            0 of 4" in out and "best validation  none" in out and "not finished" in out


def test_info_describes_a_run_of_own_modules(small_glyphs, capsys):
    network = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3 * 32 * 32, 4))
    own = {"backbone": network, "loss": SoftMarginLoss(DissimilarityHead(4))}
    train(TrainConfig(dim=4, steps=1, identities=4), small_glyphs, **own, folder="run")
    assert run("info", "run") == 0
    out = capsys.readouterr().out
    assert "own, dissim_retrieval.losses.SoftMarginLoss" in out and re.search("backbone +Sequential", out)


@pytest.mark.parametrize(
    ("loss", "end"), [("soft_margin", " 0 or more, which means the same."), ("softmax", " 0 or more.")]
)
def test_0_is_a_threshold_after_losses_that_train_the_bias(loss, end, capsys):
    assert run("train", "run", *DATA, *TRAINING, "--loss", loss) == 0
    capsys.readouterr()
    assert run("evaluate", "run") == 0
    line = next(line for line in capsys.readouterr().out.splitlines() if "pairs of one identity" in line)
    advice = " 0 is no useful threshold for this run: train longer, or choose one from the report's histogram."
    assert line.removesuffix(advice if loss == "soft_margin" else "").endswith(end)


def test_train_tells_the_steps_that_were_done(capsys):
    """The learning rate destroys the network, so the first validation is the best."""
    patience = ["--val-fraction", "0.5", "--validate-every", "1", "--patience", "1", "--lr", "3", "--steps", "30"]
    assert run("train", "run", "--part", "all", *DATA, *TRAINING, *patience, "--json") == 0
    record = json.loads(capsys.readouterr().out)
    assert record["steps"] == record["best_validation"]["step"] + 1 < 30


@pytest.mark.parametrize(
    ("provenance", "lines"),
    [
        ({"model": "4f1c"}, ["weights 4f1c"]),
        ({"model": 7, "backbone": "my network"}, ["weights 7", "backbone my network"]),
        ({"data": {"name": "faces"}, "transform": {}}, ["trained on {'name': 'faces'}"]),
        ({"validation": "faces", "split": "by hand", "fit": "4f1c"}, ["held out faces", "split by hand"]),
        ({"transform": {"size": 20}}, ["image size {'size': 20}"]),
        ({"backbone": {"name": None, "class": "Net"}, "transform": {"size": [20, 16]}}, ["backbone Net"]),
        ({"by": "hand"}, []),
    ],
)
def test_what_another_program_recorded_is_shown(provenance, lines, capsys):
    np.savez("x.npz", embeddings=np.ones((1, 4), np.float32), provenance=np.array(json.dumps(provenance)))
    index = DissimilarityIndex.create("g.dissim", DissimilarityHead(4), provenance=provenance)
    index.add(torch.ones(1, 4), ["a"], {"file": [5]})
    for path in ("x.npz", "g.dissim"):
        assert run("info", path) == 0
        shown = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
        assert set(lines) <= set(shown) and not any(line.startswith("made by") for line in shown)
    assert run("search", "g.dissim", "x.npz", "--html", "page.html") == 0
    assert capsys.readouterr().out.splitlines()[0].split() == ["query", "rank", "score", "id"]


def test_fit_tells_whether_it_beats_the_baselines(capsys):
    draw = torch.Generator().manual_seed(0)
    labels = torch.arange(20).repeat_interleave(6)
    centers = torch.randn(20, 12, generator=draw)
    rows = centers[labels] + 0.3 * torch.randn(120, 12, generator=draw)
    np.savez("features.npz", embeddings=rows.numpy(), labels=labels.numpy())
    assert run("fit", "features.npz", "--steps", 3, "--projection", 8) == 0
    out = capsys.readouterr().out
    assert "12 to 8 numbers" in out and "4 held-out identities" in out and "against cosine's" in out
    assert Path("features.npz.head.safetensors").exists()
    assert run("fit", "features.npz", "negative", "--steps", 3, "--sign", "negative") == 0
    fitted = ProjectedHead.load("negative")
    assert fitted.head.sign == "negative" and (fitted.head.weight <= 0).all()
    assert "12 to 12 numbers, 0 weights above 0" in capsys.readouterr().out

    np.save("rows.npy", rows.numpy())
    Path("labels.txt").write_text("\n".join(map(str, labels.tolist())))
    assert run("fit", "rows.npy", "head", "--labels", "labels.txt", "--steps", 3, "--held-out", 0, "--json") == 0
    record = json.loads(capsys.readouterr().out)
    assert record["file"] == "head" and record["check"] is None and Path("head").exists()
    assert run("fit", "rows.npy") == 1 and "labels: expected a file" in last_error(capsys)
    Path("folder.npz").mkdir()
    for command in (["fit", "features.npz"], ["embed", "nowhere"]):
        assert run(*command, "folder.npz") == 1
        assert "path: expected the name of a file to write, got folder.npz, which is a folder" in last_error(capsys)


def test_fit_counts_the_identities_of_the_whole_file(capsys):
    np.savez("two.npz", embeddings=np.eye(8, dtype=np.float32), labels=np.arange(8) // 4)
    assert run("fit", "two.npz") == 1
    error = last_error(capsys)
    assert "got 2 and 0 of 2 identities with held_out=0.2. Pass another fraction, or 0," in error


def test_fitted_embeddings_are_indexed_and_searched_as_the_library_does(capsys, monkeypatch):
    draw = torch.Generator().manual_seed(0)
    labels = torch.arange(10).repeat_interleave(3)
    rows = (torch.randn(10, 12, generator=draw)[labels] + 0.3 * torch.randn(30, 12, generator=draw)).numpy()
    made_by = np.array(json.dumps({"model": "a" * 64, "backbone": {"name": "x"}, "transform": {"size": [8, 8]}}))
    names = np.array([f"person {label}" for label in labels])
    np.savez("features.npz", embeddings=rows, labels=names, provenance=made_by)
    np.save("queries.npy", rows[:4])
    options = ["--steps", 3, "--projection", 8, "--held-out", 0]
    assert run("fit", "features.npz", "head.safetensors", *options) == 0
    assert run("index", "head.safetensors", "features.npz", "g.dissim") == 0
    capsys.readouterr()
    assert run("search", "g.dissim", "queries.npy", "-k", 5, "--json") == 0
    found = json.loads(capsys.readouterr().out)
    expected = ProjectedHead.load("head.safetensors")(rows[:4], rows).topk(5)
    scores = torch.tensor([[one["score"] for one in query["results"]] for query in found])
    torch.testing.assert_close(scores, expected.values)
    assert [[one["id"] for one in query["results"]] for query in found] == expected.indices.tolist()

    for path in ("g.dissim", "head.safetensors"):
        assert run("info", path) == 0
        assert "aaaaaaaaaaaa" in capsys.readouterr().out, "the provenance of the embeddings is kept"
    assert DissimilarityIndex.open("g.dissim").get([3]).metadata == {"label": ["person 1"]}
    assert run("search", "g.dissim", "queries.npy", "--filter", "label = 'person 9'", "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert [{one["id"] for one in query["results"]} for query in found] == [{27, 28, 29}] * 4
    assert run("search", "g.dissim", "queries.npy", "-k", 1000000, "--json") == 0
    assert all(len(query["results"]) == 30 for query in json.loads(capsys.readouterr().out))
    assert run("search", "g.dissim", "queries.npy", "-k", 0) == 1 and "k: expected" in last_error(capsys)
    assert run("search", "g.dissim", "queries.npy", "--filter", "lable = 1") == 1
    assert "filter: expected an SQL condition on id, label" in last_error(capsys)
    assert run("search", "g.dissim", "photos") == 1 and "one without a network" in last_error(capsys)
    assert run("index", "head.safetensors", "photos", "h") == 1 and "of embeddings with" in last_error(capsys)
    monkeypatch.setattr(prepared_files, "FILE_MIN_ROWS", 10)
    assert run("index", "head.safetensors", "features.npz", "g.dissim", "--overwrite", "--quantized") == 0
    assert len(list(Path("g.dissim", "codes").iterdir())) == 1
    assert run("index", "head.safetensors", "features.npz", "h", "--quantized", "--clustered") == 1
    assert "got both" in last_error(capsys) and not Path("h").exists()
    np.save("narrow.npy", rows[:, :5])
    assert run("search", "g.dissim", "narrow.npy") == 1 and "expected [N, 12]" in last_error(capsys)
    np.savez("others.npz", embeddings=rows, provenance=np.array(json.dumps({"model": "b" * 64})))
    assert run("search", "g.dissim", "others.npz") == 1 and "another model" in last_error(capsys)
    assert run("fit", "features.npz", "other", "--seed", 1, *options) == 0
    assert run("index", "other", "features.npz", "g.dissim", "--append") == 1
    assert "made with another model" in last_error(capsys)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["embed", "nowhere", "out.npz", *DATA], "nowhere"),
        (["evaluate", "nowhere"], "nowhere"),
        (["index", "nowhere", "photos", "g"], "nowhere"),
        (["search", "no.index", "no.npz"], "no.index"),
        (["info", "nowhere"], "nowhere"),
        (["fit", "nowhere.npz"], "nowhere.npz"),
        (["train", "run", "--data", "imagenet"], "data: expected one of market1501, "),
        (["train", "run", *DATA, "--root", "photos"], "root: expected none with glyphs"),
        (["train", "run", "--root", "nowhere"], "root: expected the folder of the image set, got nowhere"),
        (["train", "run", *DATA, *TRAINING, "--device", "nonsense"], "device: expected a device of this machine"),
        (["train", "run", "--root", "nowhere", "--device", "nonsense"], "device: expected a device of this machine"),
        (["train", "run", "--root", "nowhere", "--backbone", "nope"], "backbone: expected one of efficientnet_lite"),
        (["train", __file__, "--root", "nowhere"], "RUN: expected a folder, or a name for a new one, got"),
        (["train", "run", "--data", "folder"], "--data folder, got none. Pass --root."),
        (["train", "run", "--data", "market1501"], "--data market1501, got none. Pass --root."),
        (["embed", "nowhere", "rows"], "out: expected a name that ends in .npz, by which commands know"),
        (["embed", "nowhere", "a.npz", "--device", "nonsense"], "device: expected a device of this machine"),
        (["evaluate", "nowhere", "--device", "nonsense"], "device: expected a device of this machine"),
        (["bench", "--device", "nonsense"], "device: expected a device of this machine, got 'nonsense'"),
        (["bench", "--queries", "0"], "queries: expected at least 1, got 0"),
    ],
)
def test_errors_are_printed_in_one_line(arguments, message, capsys):
    assert run(*arguments) == 1
    captured = capsys.readouterr()
    error = captured.err.strip().splitlines()[-1]
    assert error.startswith("dissim: ") and message in error
    assert "Traceback" not in captured.err and not captured.out


@pytest.mark.parametrize(
    ("command", "given"),
    [
        (["export", "gallery", "out.faiss"], "out.faiss.json"),
        (["export", "gallery", "out.faiss"], "out.faiss"),
    ],
)
def test_an_export_replaces_no_file_without_being_told(command, given, capsys):
    Path(given).write_text("of another program")
    assert cli.main(command) == 1
    assert last_error(capsys) == f"dissim: {given} exists. --overwrite replaces it."


@pytest.mark.parametrize(
    "command",
    [
        ["embed", "run", "file/out.npz"],
        ["evaluate", "run", "file/report"],
        ["export", "gallery", "file/out.faiss"],
        ["fit", "features.npz", "file/out.safetensors"],
        ["index", "run", "features.npz", "file/gallery"],
        ["search", "gallery", "features.npz", "--html", "file/page.html"],
    ],
    ids=lambda command: command[0],
)
def test_a_name_below_a_file_is_an_error_before_anything_is_read(command, capsys):
    Path("file").touch()
    assert cli.main(command) == 1
    assert "path: expected the name of a file to write, got file/" in (line := last_error(capsys))
    assert "but file is a file" in line


def test_replacing_a_gallery_keeps_a_link_to_it(tmp_path):
    index = DissimilarityIndex(DissimilarityHead(2))
    index.save(tmp_path / "old")
    Path("link").symlink_to(tmp_path / "old")
    index.add([[1.0, 2.0]])
    replace_gallery(index, "link")
    assert Path("link").is_symlink() and len(DissimilarityIndex.open(tmp_path / "old")) == 1


def test_debug_shows_where_an_error_was_raised(capsys):
    assert run("embed", "nowhere", "out.npz", "--debug") == 1
    error = capsys.readouterr().err
    assert "Traceback" in error and error.strip().splitlines()[-1].startswith("dissim: ")


def test_an_unexpected_error_is_one_line_with_its_type(monkeypatch, capsys):
    def broken(**options):
        raise RuntimeError("first line\nsecond line")

    monkeypatch.setattr(sys.modules["dissim_retrieval.cli.bench"], "compare_speed", broken)
    assert run("bench") == 1
    assert last_error(capsys).startswith("dissim: RuntimeError: first line second line (--debug")


def test_more_identities_than_there_are_are_lowered_with_a_line(capsys):
    assert run("train", "run", *DATA, *TRAINING, "--identities", 999) == 0
    assert "a batch has all 13 identities: there are fewer than 999 (--identities)" in capsys.readouterr().err
    assert not logging.getLogger("dissim_retrieval").handlers, "the handler is there during a command only"


def test_only_the_first_of_several_processes_prints(monkeypatch, capfd):
    monkeypatch.setenv("RANK", "1")  # as torchrun sets it
    assert run("train", "run", *DATA, *TRAINING, "--identities", 999) == 0
    assert capfd.readouterr() == ("", "")


def test_indexing_a_triplet_run_fails(capsys):
    assert run("train", "run", *DATA, *TRAINING, "--loss", "triplet") == 0
    assert run("evaluate", "run", *DATA, "--rerank") == 1
    assert "rerank: expected a run with a pair classifier" in capsys.readouterr().err
    np.savez("x.npz", embeddings=np.zeros((2, 16), np.float32))
    assert run("index", "run", "x.npz", "x.index") == 1
    assert "expected a run with a pair classifier" in last_error(capsys)
    assert not Path("x.index").exists()


def test_unknown_arguments_and_help():
    for arguments, code in ((["trian"], 2), (["--help"], 0), *(([name, "--help"], 0) for name in cli.COMMANDS)):
        with pytest.raises(SystemExit) as stop:
            run(*arguments)
        assert stop.value.code == code


@pytest.mark.parametrize("name", cli.COMMANDS)
def test_help_explains_every_option(name, capsys):
    with pytest.raises(SystemExit):
        run(name, "--help")
    text = " ".join(re.sub(r"[│╭╮╰╯─]", " ", capsys.readouterr().out).split())
    assert not re.findall(r"--[\w-]+,? (?:\S+ )?\(default", text)
    assert "one line" not in text
    assert name == "train" or "emoji of 64 pixels" not in text
    assert name != "train" or "as in RUN" not in text


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("--steps", "0", "steps: expected at least 1, got 0."),
        ("--views", "-2", "views: expected at least 1, got -2."),
        ("--lr", "-1", "lr: expected a positive number, got -1.0."),
    ],
)
def test_settings_that_cannot_be_are_an_error_in_one_line(option, value, message, capsys):
    assert run("train", "run", *DATA, *TRAINING, option, value) == 1
    assert capsys.readouterr().err == f"dissim: {message}\n"


def test_a_value_that_cannot_be_read_is_wrong_usage(capsys):
    with pytest.raises(SystemExit) as stop:
        run("train", "run", *DATA, *TRAINING, "--size", "64x32x3")
    assert stop.value.code == 2
    error = capsys.readouterr().err
    assert "HxW" in error and "Traceback" not in error
    with pytest.raises(SystemExit):
        run("evaluate", "run", "--part", "nothing")
    assert "'train', 'validation', 'test', 'all'" in " ".join(re.sub("│", "", capsys.readouterr().err).split())


def test_interrupt_and_closed_pipe_print_no_traceback(monkeypatch, capsys):
    def interrupted(config):
        raise KeyboardInterrupt

    monkeypatch.setattr(sys.modules["dissim_retrieval.cli.demo"], "run_demo", interrupted)
    assert run("demo") == 130 and "interrupted" in capsys.readouterr().err
    read, write = os.pipe()
    os.close(read)
    command = [sys.executable, "-m", "dissim_retrieval.cli", "info"]
    done = subprocess.run(command, stdout=write, stderr=subprocess.PIPE, text=True)
    os.close(write)
    assert "Traceback" not in done.stderr


def test_an_interrupt_while_packages_are_imported_is_one_line(tmp_path):
    """Here by a torch that takes a minute, and that catches every exception."""
    (tmp_path / "torch.py").write_text(
        "import time\ntry:\n    print('importing', flush=True)\n    time.sleep(60)\nexcept BaseException:\n    pass\n"
    )
    script = (
        "import signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler)\n"  # even in the background
        "from dissim_command import main; sys.exit(main())"
    )
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(tmp_path), COMMAND_PATH])}
    command = [sys.executable, "-c", script, "info"]
    with subprocess.Popen(command, env=environment, stdout=-1, stderr=-1, text=True) as process:
        assert process.stdout.readline() == "importing\n"
        process.send_signal(signal.SIGINT)
        assert process.communicate(timeout=30) == ("", "dissim: interrupted\n")
    assert process.returncode == 130


def test_the_program_runs_the_commands(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["dissim", "info"])
    before = signal.getsignal(signal.SIGINT)
    assert dissim_command.main() == 0 and torch.__version__ in capsys.readouterr().out
    assert signal.getsignal(signal.SIGINT) is before
    assert 'dissim = "dissim_command:main"' in (Path(__file__).parents[1] / "pyproject.toml").read_text()


def test_slow_packages_are_imported_only_when_they_are_used():
    script = "import sys, dissim_retrieval.cli; print({'scipy', 'kornia', 'matplotlib'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.stdout == "set()\n", done.stderr


def test_every_public_name_is_there():
    assert set(dissim_retrieval.__all__) <= set(dir(dissim_retrieval))
    assert all(hasattr(dissim_retrieval, name) for name in dissim_retrieval.__all__)
    assert not hasattr(dissim_retrieval, "nothing")


def test_defaults_of_fit_are_those_of_fit_head():
    ours, theirs = (inspect.signature(function).parameters for function in (cli.COMMANDS["fit"], fit_head))
    for name in ours.keys() & theirs.keys() - {"labels", "device"}:
        assert ours[name].default == theirs[name].default, name


def test_devices():
    assert pick_device("cpu") == torch.device("cpu")
    assert pick_device(None).type == ("cuda" if torch.cuda.is_available() else "cpu")


def test_defaults_of_the_image_options_are_those_of_the_run():
    assert all(not value for value in vars(ImageOptions()).values())
