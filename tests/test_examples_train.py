"""The end-to-end training script runs, on the emoji and on a folder of photos."""

import subprocess
import sys
from pathlib import Path

import numpy as np
from PIL import Image

SCRIPT = Path(__file__).parents[1] / "python" / "examples" / "train.py"
SMALL = ["--backbone", "small", "--size", "16", "--dim", "8", "--identities", "4", "--steps", "3"]


def test_the_training_script_trains_on_photos_and_searches(tmp_path):
    draw = np.random.default_rng(0)
    for identity in range(8):
        (tmp_path / f"id{identity}").mkdir()
        for view in range(3):
            Image.fromarray(draw.integers(0, 256, (20, 24, 3), dtype=np.uint8)).save(
                tmp_path / f"id{identity}" / f"{view}.png"
            )
    done = subprocess.run([sys.executable, SCRIPT, tmp_path, *SMALL], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    first, result, *found = done.stdout.splitlines()
    assert first.startswith("step 0: loss ") and result.startswith("12 images of new identities: mAP 0.")
    assert len(found) == 3 and found[0].endswith(".png")


def test_the_training_script_is_short():
    assert len(SCRIPT.read_text().splitlines()) < 80
