"""Batches decoded by worker processes: order, errors, scripts without a main guard, and no process left behind."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from dissim_retrieval.data import ImageSet, load_unlabeled
from dissim_retrieval.data.workers import default_workers
from PIL import Image

COUNT = 24


@pytest.fixture(scope="module")
def photos(tmp_path_factory) -> Path:
    """A folder of COUNT images, each of one gray."""
    folder = tmp_path_factory.mktemp("photos")
    for i in range(COUNT):
        Image.new("RGB", (20, 10), (i, i, i)).save(folder / f"{i:02d}.png")
    return folder


def grays(batches):
    return [batch[:, 0, 0, 0].tolist() for batch in batches]


def test_workers_return_the_batches_of_the_plan_in_order(photos):
    images = load_unlabeled(photos, (4, 8))
    order = torch.randperm(COUNT, generator=torch.Generator().manual_seed(0))
    plan = [order[:1], *order[1:].split(5), torch.tensor([3, 3])]
    before = torch.random.get_rng_state()
    for workers in (0, 2):
        batches = list(images.batches(plan, workers=workers))
        assert grays(batches) == [rows.tolist() for rows in plan]
        assert all(batch.dtype == torch.uint8 and batch.shape[1:] == (3, 4, 8) for batch in batches)
    assert torch.equal(torch.random.get_rng_state(), before), "the caller's random state is not used"


def test_tensors_need_no_workers():
    pixels = torch.arange(6, dtype=torch.uint8).view(6, 1, 1, 1).expand(6, 3, 2, 2)
    images = ImageSet(pixels, range(6), [0] * 6, list("abcdef"), ["one"], "")
    assert grays(images.batches(torch.arange(6).split(4), workers=2)) == [[0, 1, 2, 3], [4, 5]]
    with pytest.raises(ValueError, match="workers: expected 0 or more"):
        images.batches([], workers=-1)


def test_small_plans_start_no_processes():
    assert default_workers([]) == 0 and default_workers(torch.arange(512).split(64)) == 0
    assert 1 <= default_workers(torch.arange(4096).split(64)) <= 4


@pytest.mark.parametrize("workers", [0, 1])
def test_a_damaged_image_raises_one_line_with_its_name(photos, tmp_path, workers):
    for path in photos.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    (tmp_path / "05.png").write_bytes((photos / "05.png").read_bytes()[:40])
    (tmp_path / "13.png").unlink()
    (tmp_path / "13.png").symlink_to("nowhere.png")
    images = load_unlabeled(tmp_path, 4)
    plan = torch.arange(COUNT).split(4)
    with pytest.raises(ValueError, match=r"05\.png: expected an image that can be decoded") as caught:
        list(images.batches(plan, workers=workers))
    assert "\n" not in str(caught.value) and "Traceback" not in str(caught.value)
    with pytest.raises(FileNotFoundError, match=r"13\.png"):
        images[13]


@pytest.mark.parametrize("workers", [0, 1])
def test_damaged_images_are_skipped_and_told_on_request(photos, tmp_path, caplog, monkeypatch, workers):
    for path in photos.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    (tmp_path / "05.png").write_bytes(b"")
    monkeypatch.setattr("dissim_retrieval.data.image_set.default_workers", lambda plan: workers)
    whole = load_unlabeled(tmp_path, 4, skip_damaged=True)
    assert len(whole) == COUNT - 1 and "05.png" not in whole.ids
    assert whole.read(range(5, 7))[:, 0, 0, 0].tolist() == [6, 7]
    [line] = [record.getMessage() for record in caplog.records]
    assert f"skipped 1 of {COUNT} images" in line and "05.png" in line


# Without `if __name__ == "__main__"`, as people write scripts. Spawned processes of Python's own would run it again.
SCRIPT = """
import os, signal, sys, threading, time, torch
signal.signal(signal.SIGINT, signal.default_int_handler)  # tests in the background of a shell ignore it
from dissim_retrieval.data import load_unlabeled

print("start", flush=True)
images = load_unlabeled(sys.argv[1], 4)
batches = images.batches(torch.arange(len(images)).split(2), workers={workers})
{before}
print("pixels", next(batches).shape[0], flush=True)
{after}
print("end", sum(len(batch) for batch in batches))
"""


def run(tmp_path, photos, before="", after="", path="", workers=2):
    """(exit code, output, errors, processes still alive a moment later) of the script, in a session of its own.

    `path` is searched for modules first.
    """
    file = tmp_path / "script.py"
    file.write_text(SCRIPT.format(before=before, after=after, workers=workers))
    process = subprocess.Popen(
        [sys.executable, file, photos],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(path), *sys.path])},
        start_new_session=True,  # numbered like the process
    )
    process.wait(timeout=120)
    for _ in range(300):
        alive = session(process.pid)
        if not alive:
            break
        time.sleep(0.1)
    for number in alive:  # they would keep the pipes open
        os.kill(int(number), signal.SIGKILL)
    return process.returncode, process.stdout.read(), process.stderr.read(), alive


def session(number):
    """The processes of a session, without those that have ended."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            state, _, _, its_session = (folder / "stat").read_text().rsplit(")", 1)[1].split()[:4]
        except OSError:
            continue
        if int(its_session) == number and state != "Z":
            found.append(folder.name)
    return found


def test_a_script_without_a_main_guard_runs_once(tmp_path, photos):
    code, out, err, alive = run(tmp_path, photos)
    assert (code, out.split(), err, alive) == (0, ["start", "pixels", "2", "end", str(COUNT - 2)], "", [])


def test_no_process_remains_after_an_error(tmp_path, photos):
    code, _, err, alive = run(tmp_path, photos, after="raise RuntimeError('mine')", workers=1)
    assert code == 1 and not alive
    assert err.splitlines()[-1] == "RuntimeError: mine" and err.count("Traceback") == 1


# Python imports this at its start: the second process needs 20 seconds before it imports torch.
SLOW_START = """
import sys, time
if "--multiprocessing-fork" in sys.orig_argv:
    from multiprocessing import spawn
    prepare = spawn.prepare

    def prepare_slowly(data):
        prepare(data)
        if data["name"].endswith("-2"):
            time.sleep(20)

    spawn.prepare = prepare_slowly
"""


def test_the_error_of_the_script_is_the_only_one_while_processes_start(tmp_path, photos):
    (tmp_path / "sitecustomize.py").write_text(SLOW_START)
    code, out, err, alive = run(tmp_path, photos, after="raise RuntimeError('mine')", path=tmp_path)
    assert code == 1 and "pixels" in out and not alive
    assert err.splitlines()[-1] == "RuntimeError: mine" and err.count("Traceback") == 1


#: While two processes start, and while one works: a process takes seconds of CPU time to start.
moments = pytest.mark.parametrize(("when", "workers"), [("before", 2), ("after", 1)])


@moments
def test_ctrl_c_ends_all_processes_with_one_traceback(tmp_path, photos, when, workers):
    interrupt = "threading.Timer(0.5, os.killpg, (0, signal.SIGINT)).start()"
    sleep = "; time.sleep(60)" if when == "after" else ""
    code, out, err, alive = run(tmp_path, photos, **{when: interrupt + sleep}, workers=workers)
    assert code == -signal.SIGINT and "end" not in out and not alive
    assert err.splitlines()[-1] == "KeyboardInterrupt" and err.count("Traceback") == 1


@moments
def test_workers_end_when_their_parent_is_killed(tmp_path, photos, when, workers):
    kill = "threading.Timer(0.5, os.kill, (os.getpid(), signal.SIGKILL)).start()"
    sleep = "; time.sleep(60)" if when == "after" else ""
    code, _, _, alive = run(tmp_path, photos, **{when: kill + sleep}, workers=workers)
    assert code == -signal.SIGKILL and not alive
