"""Image sets of real size: 120,000 photos of 15,000 identities. Speed and memory of listing and decoding."""

import os
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from dissim_retrieval.data import load_images
from PIL import Image

IDENTITIES, VIEWS = 15_000, 8


def write_photo(path, seed):
    """A JPEG of 512 pixels with the spectrum of natural images, 1 / frequency: about 150 kB."""
    draw = np.random.default_rng(seed)
    frequency = np.hypot(np.fft.fftfreq(512)[:, None], np.fft.rfftfreq(512))
    spectrum = np.exp(2j * np.pi * draw.random((3, *frequency.shape))) / np.maximum(frequency, 1 / 512)
    colors = np.fft.irfft2(spectrum, s=(512, 512))
    colors[1:] = 0.8 * colors[0] + 0.2 * colors[1:]
    pixels = 128 + 45 * colors / colors.std()
    Image.fromarray(pixels.clip(0, 255).astype(np.uint8).transpose(1, 2, 0)).save(path, quality=90)


@pytest.fixture(scope="module")
def photos(tmp_path_factory) -> Path:
    """root/half/<identity>/<photo>, twice; the photos are links to 16 files."""
    root = tmp_path_factory.mktemp("photos")
    for number in range(16):
        write_photo(root / f".{number}.jpg", number)
    for half in ("a", "b"):
        for identity in range(IDENTITIES // 2):
            folder = root / half / f"id{identity:05d}"
            folder.mkdir(parents=True)
            for view in range(VIEWS):
                os.link(root / f".{(identity + view) % 16}.jpg", folder / f"{view}.jpg")
    return root


def seconds(action):
    """CPU seconds, the smallest of three: other programs disturb them less than the time of day."""
    times = []
    for _ in range(3):
        start = time.process_time()
        action()
        times.append(time.process_time() - start)
    return min(times)


def memory():
    """MB of this process and its children, memory that they share counted once (PSS)."""
    children = Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()
    total = 0
    for process in ("self", *children):
        rollup = Path(f"/proc/{process}/smaps_rollup").read_text()
        total += int(next(line for line in rollup.splitlines() if line.startswith("Pss:")).split()[1])
    return total / 1000


def all_photos(root):
    """The set of both halves as one folder of identities."""
    merged = root.parent / "merged"
    if not merged.exists():
        merged.mkdir()
        for half in ("a", "b"):
            for folder in (root / half).iterdir():
                folder.rename(merged / f"{half}{folder.name}")
    return merged


def test_listing_is_fast_and_linear(photos):
    half = seconds(lambda: load_images("folder", size=224, root=photos / "a"))
    merged = all_photos(photos)
    whole = seconds(lambda: load_images("folder", size=224, root=merged))
    print(f"{IDENTITIES} identities, {IDENTITIES * VIEWS} photos: {whole:.2f} s; half of them {half:.2f} s")
    assert whole < 3 and whole < 3 * half


def test_two_workers_decode_300_photos_a_second_in_2_gb(photos):
    images = load_images("folder", size=224, root=all_photos(photos))
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))
    plan = order[:6400].split(128)
    batches = images.batches(plan, workers=2)
    assert next(batches).shape == (128, 3, 224, 224)
    start, peak = time.perf_counter(), 0.0
    for _ in batches:
        peak = max(peak, memory())
    rate = 128 * (len(plan) - 1) / (time.perf_counter() - start)
    print(f"{rate:.0f} photos a second with 2 workers; {peak:.0f} MB (PSS) with {len(images)} photos listed")
    assert peak < 2000
    assert rate > 300
