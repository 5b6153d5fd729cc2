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
    """root/small/<identity>/<photo> with an eighth of the identities, root/large with the others."""
    root = tmp_path_factory.mktemp("photos")
    for number in range(16):
        write_photo(root / f".{number}.jpg", number)
    for identity in range(IDENTITIES):
        folder = root / ("small" if identity % 8 == 0 else "large") / f"id{identity:05d}"
        folder.mkdir(parents=True)
        for view in range(VIEWS):
            os.link(root / f".{(identity + view) % 16}.jpg", folder / f"{view}.jpg")
    return root


def seconds(action):
    """CPU seconds, the smallest of three, so that other programs on the machine do not count."""
    times = []
    for _ in range(3):
        start = time.process_time()
        action()
        times.append(time.process_time() - start)
    return min(times)


def children():
    return Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()


def memory():
    """MB of this process and its children, memory that they share counted once (PSS)."""
    total = 0
    for process in ("self", *children()):
        rollup = Path(f"/proc/{process}/smaps_rollup").read_text()
        total += int(next(line for line in rollup.splitlines() if line.startswith("Pss:")).split()[1])
    return total / 1000


def cpu_seconds_of_children():
    ticks = 0
    for process in children():
        fields = Path(f"/proc/{process}/stat").read_text().rsplit(")", 1)[1].split()
        ticks += int(fields[11]) + int(fields[12])
    return ticks / os.sysconf("SC_CLK_TCK")


def all_photos(root):
    """All identities in one folder."""
    for folder in (root / "small").iterdir():
        folder.rename(root / "large" / folder.name)
    return root / "large"


def test_listing_is_fast_and_linear(photos):
    eighth = seconds(lambda: load_images("folder", size=224, root=photos / "small"))
    root = all_photos(photos)
    whole = seconds(lambda: load_images("folder", size=224, root=root))
    print(f"{IDENTITIES} identities, {IDENTITIES * VIEWS} photos: {whole:.2f} s; an eighth of them {eighth:.3f} s")
    assert whole < 3 and whole < 20 * eighth  # quadratic: 64


def test_two_workers_decode_300_photos_a_second_in_2_gb(photos):
    """The speed in CPU seconds of the workers, so that other programs on the machine do not count."""
    images = load_images("folder", size=224, root=all_photos(photos))
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))
    plan = order[:6400].split(128)
    batches = images.batches(plan, workers=2)
    for _ in range(4):  # the processes have started and filled their queue
        assert next(batches).shape == (128, 3, 224, 224)
    start, start_of_workers, peak, count = time.perf_counter(), cpu_seconds_of_children(), 0.0, 0
    for batch in batches:
        peak, count = max(peak, memory()), count + len(batch)
        busy = cpu_seconds_of_children() - start_of_workers
    rate, per_core = count / (time.perf_counter() - start), count / busy
    print(f"{per_core:.0f} photos per CPU second of a worker, {rate:.0f} per second with 2 workers")
    print(f"{peak:.0f} MB (PSS) with {len(images)} photos listed")
    assert 2 * per_core > 300
    assert peak < 2000
