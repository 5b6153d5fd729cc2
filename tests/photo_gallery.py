"""A gallery of photos, embedded by an untrained network, and a process that serves it."""

import os
import signal
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from dissim_retrieval import BackboneWeights, DissimilarityHead, DissimilarityIndex
from dissim_retrieval.data import load_unlabeled
from dissim_retrieval.embedding import embed_images
from dissim_retrieval.models import build_backbone
from dissim_retrieval.photos import photo_metadata
from PIL import Image

ROOT = Path(__file__).parents[1]
SIZE = (20, 16)
TOKEN = "0123456789abcdef"
BEARER = {"Authorization": f"Bearer {TOKEN}"}
LOCAL = "http://127.0.0.1:8000"


def write_photos(root, identities=6):
    """Two photos of each identity, of its color."""
    draw = np.random.default_rng(0)
    for number in range(identities):
        (root / f"id{number}").mkdir(parents=True)
        color = draw.integers(30, 220, 3)
        for name in ("a.png", "b.png"):
            noisy = (color + draw.integers(-20, 20, (40, 30, 3))).astype(np.uint8)
            Image.fromarray(noisy).save(root / f"id{number}" / name)


def make_gallery(path, photos, network=True):
    """A gallery at `path` of the folder `photos`, with columns file, digest and label, the identity."""
    torch.manual_seed(0)
    backbone = build_backbone("small", 8, pretrained=False).eval()
    images = load_unlabeled(photos, SIZE)
    index = DissimilarityIndex.create(
        path,
        DissimilarityHead(8),
        provenance={"transform": {"size": list(SIZE)}, "backbone": {"name": "small"}} if network else None,
        backbone=BackboneWeights("small", backbone.state_dict()) if network else None,
    )
    labels = [int(name.split("/")[0].removeprefix("id")) for name in images.ids]
    rows = embed_images(backbone, images, progress=False)
    index.add(rows, images.ids, photo_metadata(images) | {"label": labels})
    return path


@contextmanager
def served(gallery, *options):
    """`dissim serve` in a process of its own; gives the URL of the page, and the process."""
    command = [sys.executable, "-m", "dissim_retrieval.cli", "serve", str(gallery), "--port", "0", *options]
    places = os.pathsep.join([str(ROOT), str(ROOT / "python"), os.environ.get("PYTHONPATH", "")])
    process = subprocess.Popen(
        command,
        env={**os.environ, "PYTHONPATH": places},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # Processes that a shell runs in the background ignore SIGINT, and so would this one.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    try:
        line = process.stdout.readline()
        assert "http://" in line, process.stderr.read()
        yield line.split(": ")[-1].strip(), process
    finally:
        process.terminate()
        process.communicate(timeout=20)


def problem(response, status):
    """The sentence of an error."""
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/json"
    assert list(response.json()) == ["detail"]
    return response.json()["detail"]
