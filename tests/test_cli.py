"""The command line: every command, its output and its exit code."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from dissim_retrieval import cli
from dissim_retrieval.data import load_images
from dissim_retrieval.embedding_file import read_embeddings, write_embeddings
from dissim_retrieval.speed import compare_speed

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


def test_from_training_to_a_report(capsys):
    assert run("train", "run", *DATA, *TRAINING) == 0
    assert json.loads(Path("run/config.json").read_text())["config"]["steps"] == 4
    assert run("embed", "run", "test.npz", *DATA) == 0
    assert run("index", "run", "test.npz", "test.index") == 0
    rows = read_embeddings("test.npz")
    capsys.readouterr()
    assert run("search", "test.index", "test.npz", "--k", 3) == 0
    header, *lines = capsys.readouterr().out.splitlines()
    assert header == "query\trank\tid\tscore" and len(lines) == 3 * len(rows)
    scores = np.array([float(line.split("\t")[3]) for line in lines]).reshape(-1, 3)
    assert (np.diff(scores) <= 0).all()
    assert run("evaluate", "run", "report", *DATA) == 0
    out = capsys.readouterr().out
    assert "pair classifier" in out and "cosine" in out and Path(out.splitlines()[-1]).name == "report.html"
    assert sorted(p.name for p in Path("report").iterdir()) == ["metrics.json", "report.html", "report.png"]


def test_demo_compares_trained_and_untrained(capsys):
    options = [f"--{loss}.{option[2:]}" if option.startswith("--") else option
               for loss in ("hinge", "triplet") for option in TRAINING]  # fmt: skip
    assert run("demo", "--data", "glyphs", "--out", "report", *options) == 0
    out = capsys.readouterr().out
    for method in (
        "small, pair classifier",
        "small, triplet loss",
        "efficientnet_lite0, frozen",
        "mobilenet_v2, frozen",
        "Pixels",
    ):
        assert method in out
    assert out.strip().endswith("report.html") and Path("report/report.png").exists()


def test_bench_lists_every_implementation(capsys):
    assert run("bench", "--queries", 8, "--gallery", 9, "--dim", 5) == 0
    out = capsys.readouterr().out
    for way in ("plain torch", "torch.cdist", "fused, cpu", "fused, reference", "Gelem/s"):
        assert way in out


def test_bench_raises_for_wrong_results(monkeypatch):
    wrong = lambda *inputs, **options: torch.zeros(8, 9)  # noqa: E731
    monkeypatch.setattr("dissim_retrieval.speed.fused_dissim_score", wrong)
    with pytest.raises(RuntimeError, match=r"fused, \w+: wrong by"):
        compare_speed(queries=8, gallery=9, dim=5, seconds=0.01)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["embed", "nowhere", "out.npz", *DATA], "nowhere"),
        (["search", "no.index", "no.npz"], "no.index"),
        (["train", "run", "--data", "imagenet"], "name: expected one of emoji"),
        (["train", "run", *DATA, *TRAINING, "--freeze", "99"], "freeze: expected"),
    ],
)
def test_errors_are_printed_in_one_line(arguments, message, capsys):
    assert run(*arguments) == 1
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("dissim: ") and message in error


def test_indexing_a_triplet_run_fails(capsys):
    assert run("train", "run", *DATA, *TRAINING, "--loss", "triplet") == 0
    np.savez("x.npz", embeddings=np.zeros((2, 16), np.float32))
    assert run("index", "run", "x.npz", "x.index") == 1
    assert "expected a run trained with --loss hinge" in capsys.readouterr().err
    assert not Path("x.index").exists()


def test_unknown_arguments_and_help():
    for arguments, code in ((["trian"], 2), (["--help"], 0), *(([name, "--help"], 0) for name in cli.COMMANDS)):
        with pytest.raises(SystemExit) as stop:
            run(*arguments)
        assert stop.value.code == code


def test_interrupt_and_closed_pipe_print_no_traceback(monkeypatch, capsys):
    def interrupted(config):
        raise KeyboardInterrupt

    monkeypatch.setattr(cli, "run_demo", interrupted)
    assert run("demo") == 130 and "interrupted" in capsys.readouterr().err
    script = "import sys; from dissim_retrieval.cli import main; sys.exit(main(['--help']))"
    read, write = os.pipe()
    os.close(read)
    done = subprocess.run([sys.executable, "-c", script], stdout=write, stderr=subprocess.PIPE, text=True)
    os.close(write)
    assert "Traceback" not in done.stderr


def test_embedding_file_round_trip(small_glyphs):
    rows = torch.randn(len(small_glyphs), 3)
    write_embeddings("rows.npz", rows, small_glyphs)
    assert torch.equal(read_embeddings("rows.npz"), rows)
    with np.load("rows.npz") as arrays:
        assert arrays["labels"].tolist() == small_glyphs.labels.tolist()
        assert arrays["label_names"][arrays["labels"][5]] == small_glyphs.label_names[small_glyphs.labels[5]]


@pytest.mark.parametrize("content", ["text", "other array", "objects", "integers", "one row"])
def test_invalid_embedding_files_raise_and_run_no_code(content):
    if content == "text":
        Path("x.npz").write_text("no archive")
    else:
        arrays = {
            "other array": {"rows": np.zeros((2, 3))},
            "objects": {"embeddings": np.array([[print]], dtype=object)},
            "integers": {"embeddings": np.zeros((2, 3), int)},
            "one row": {"embeddings": np.zeros(3, np.float32)},
        }
        np.savez("x.npz", **arrays[content])
    with pytest.raises(ValueError, match=r"path: expected an \.npz file with an array 'embeddings'"):
        read_embeddings("x.npz")
