"""What is saved of a training that stops, and how it continues: minutes, damaged photos, other errors, interrupts."""

import json
import shutil
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from dissim_retrieval import cli
from dissim_retrieval.data import ImageFiles, load_images
from dissim_retrieval.data.decode import DamagedImageError
from dissim_retrieval.head import DissimilarityHead
from dissim_retrieval.losses import SoftMarginLoss
from dissim_retrieval.train import IdentityBatches, TrainConfig, load_trained, train
from PIL import Image
from torch import nn

CONFIG = TrainConfig(dim=4, steps=12, identities=4, checkpoint_every=5, validate_every=4)
IDENTITIES = 24


@pytest.fixture
def photos(tmp_path):
    """A folder of two photos of each identity. Also made is repaired.png, another photo."""
    draw = np.random.default_rng(0)
    for number in range(2 * IDENTITIES):
        path = tmp_path / "photos" / f"id{number // 2:02d}" / f"{number % 2}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(draw.integers(0, 256, (10, 12, 3), dtype=np.uint8)).save(path)
    Image.fromarray(draw.integers(0, 256, (10, 12, 3), dtype=np.uint8)).save(tmp_path / "repaired.png")
    return tmp_path / "photos"


class Network(nn.Module):
    """A linear layer; calls `before_batch` with the number of each batch."""

    def __init__(self, before_batch=None):
        super().__init__()
        torch.manual_seed(0)
        self.layer = nn.Linear(192, 4)
        self._batches, self._before_batch = 0, before_batch

    def forward(self, images):
        self._batches += 1
        if self._before_batch:
            self._before_batch(self._batches)
        return self.layer(images.flatten(1))


def start(photos, folder, *, config=CONFIG, validated=False, skip_damaged=False, before_batch=None):
    """Train on the photos of all identities, or on three quarters, with the others for validation."""
    images, validation = load_images("folder", size=8, root=photos, skip_damaged=skip_damaged), None
    if validated:
        images, validation = images.split_labels(0.75)
    network = Network(before_batch)
    return train(config, images, validation=validation, backbone=network, folder=folder, progress=False)


def steps_saved(folder):
    return torch.load(folder / "checkpoint.pt", weights_only=True)["steps"]


def damage(path):
    path.write_bytes(path.read_bytes()[:60])


def photo_of_step(photos, step):
    """A photo that no batch before that of this step, from 1 on, contains."""
    images = load_images("folder", size=8, root=photos)
    batches = IdentityBatches(images.labels, identities=4, views=2, steps=12, seed=CONFIG.seed)
    before = {row for batch in batches[: step - 1] for row in batch.tolist()}
    row = next(row for row in batches[step - 1].tolist() if row not in before)
    return photos / images.ids[row]


def test_a_checkpoint_is_also_written_when_the_last_is_a_minute_old(photos, tmp_path, monkeypatch):
    """The clock is that of the training: each step takes 25 s, in which the network turns it."""
    seconds = 0.0

    def turn_the_clock(batch):
        nonlocal seconds
        seconds += 25
        folder = tmp_path / "run"
        saved.append(steps_saved(folder) if (folder / "checkpoint.pt").exists() else 0)
        if batch == len(stop):
            raise KeyboardInterrupt

    whole = start(photos, tmp_path / "whole")
    monkeypatch.setattr(sys.modules["dissim_retrieval.train.loop"].time, "perf_counter", lambda: seconds)
    saved, stop = [], range(11)
    with pytest.raises(KeyboardInterrupt):
        start(photos, tmp_path / "run", before_batch=turn_the_clock)
    assert saved == [0, 0, 0, 3, 3, 5, 5, 5, 8, 8, 10], "after 75 s, and after every fifth step"
    resumed = start(photos, tmp_path / "run")
    assert torch.equal(resumed.backbone.layer.weight, whole.backbone.layer.weight)
    assert torch.equal(resumed.head.weight, whole.head.weight)


def test_a_training_continues_when_the_damaged_photo_is_repaired(photos, tmp_path):
    """The result is that of a training on the repaired photos."""
    photo = photo_of_step(photos, 4)
    damage(photo)
    with pytest.raises(DamagedImageError) as caught:
        start(photos, tmp_path / "run")
    message = str(caught.value)
    assert message.startswith(f"{photo}: expected an image that can be decoded, got ")
    assert "the same call or command continues after step 3." in message
    assert "--skip-damaged" in message and "choose a new folder" in message and "\n" not in message
    assert steps_saved(tmp_path / "run") == 3

    with pytest.raises(ValueError, match="these without damaged ones, need a new folder"):
        start(photos, tmp_path / "run", skip_damaged=True)
    shutil.copy(tmp_path / "repaired.png", photo)
    resumed = start(photos, tmp_path / "run")
    whole = start(photos, tmp_path / "whole")
    assert torch.equal(resumed.backbone.layer.weight, whole.backbone.layer.weight)
    assert resumed.provenance == whole.provenance == load_trained(tmp_path / "run", backbone=Network()).provenance
    assert (tmp_path / "run/config.json").read_text() == (tmp_path / "whole/config.json").read_text()


def test_only_the_damaged_photo_may_change(photos, tmp_path):
    photo = photo_of_step(photos, 4)
    damage(photo)
    with pytest.raises(DamagedImageError):
        start(photos, tmp_path / "run")
    shutil.copy(tmp_path / "repaired.png", photo)
    other = photo.with_name("1.png" if photo.name == "0.png" else "0.png")
    kept = other.read_bytes()
    shutil.copy(tmp_path / "repaired.png", other)
    with pytest.raises(ValueError, match=r"^images: expected the images that .* was made with"):
        start(photos, tmp_path / "run")
    other.write_bytes(kept)
    start(photos, tmp_path / "run")


def test_a_photo_that_was_damaged_while_it_was_trained_on_must_be_restored(photos, tmp_path):
    """Steps before have used it, so another in its place would be another training."""
    first = photos / "id00/0.png"
    kept = first.read_bytes()
    with pytest.raises(DamagedImageError, match="continues after step"):
        start(photos, tmp_path / "run", before_batch=lambda batch: damage(first) if batch == 1 else None)
    shutil.copy(tmp_path / "repaired.png", first)
    with pytest.raises(ValueError, match=r"^images: expected the images that .* was made with"):
        start(photos, tmp_path / "run")
    first.write_bytes(kept)
    start(photos, tmp_path / "run")


def test_a_damaged_validation_photo_may_be_repaired(photos, tmp_path):
    validation = load_images("folder", size=8, root=photos).split_labels(0.75)[1]
    photo = photos / validation.ids[0]
    damage(photo)
    config = replace(CONFIG, checkpoint_every=3)
    with pytest.raises(DamagedImageError, match=r"continues after step 3\. .* new folder"):
        start(photos, tmp_path / "run", config=config, validated=True)
    shutil.copy(tmp_path / "repaired.png", photo)
    resumed = start(photos, tmp_path / "run", config=config, validated=True)
    whole = start(photos, tmp_path / "whole", config=config, validated=True)
    assert resumed.provenance == whole.provenance


def test_a_photo_of_the_first_batch_names_what_to_do(photos, tmp_path):
    """Nothing is saved, so the folder may be used for other images."""
    damage(photo_of_step(photos, 1))
    with pytest.raises(
        DamagedImageError, match=r"Repair or remove it, or skip such files: skip_damaged=True, .*--skip"
    ):
        start(photos, tmp_path / "run")
    start(photos, tmp_path / "run", skip_damaged=True)


def test_another_error_of_reading_tells_after_which_step_the_run_continues(photos, tmp_path, monkeypatch, caplog):
    read, batches = ImageFiles.__getitem__, []

    def unplugged(files, rows):
        batches.append(rows)
        if len(batches) == 5:
            raise OSError("the disk is gone")
        return read(files, rows)

    monkeypatch.setattr(ImageFiles, "__getitem__", unplugged)
    with pytest.raises(OSError, match="the disk is gone"):
        start(photos, tmp_path / "run")
    assert caplog.messages == [
        f"{tmp_path / 'run'}: stopped by an error. The same call or command continues after step 4."
    ]
    assert steps_saved(tmp_path / "run") == 4
    start(photos, tmp_path / "run")


COMMAND = ["--size", "16", "--backbone", "small", "--dim", "4", "--identities", "4", "--steps", "6"]


def dissim(capsys, *arguments):
    """Exit code, stdout and the lines of stderr."""
    code = cli.main([str(argument) for argument in arguments])
    captured = capsys.readouterr()
    return code, captured.out, captured.err.splitlines()


@pytest.mark.parametrize(
    ("every", "told"),
    [
        (2, "The same call or command continues after step 4."),
        (100, "No step is saved yet: the same call or command begins again."),
    ],
)
def test_an_interrupt_tells_after_which_step_the_command_continues(
    photos, tmp_path, monkeypatch, capsys, every, told
):
    monkeypatch.chdir(tmp_path)
    command = ("train", "run", "--root", "photos", "--checkpoint-every", every, *COMMAND)
    update, steps = torch.optim.AdamW.step, []

    def interrupted(optimizer, *arguments):
        steps.append(1)
        if len(steps) == 6:
            raise KeyboardInterrupt
        return update(optimizer, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(torch.optim.AdamW, "step", interrupted)
        code, out, error = dissim(capsys, *command)
    assert code == 130 and not out
    assert error[-2:] == [f"run: interrupted. {told}", "dissim: interrupted"]
    code, out, error = dissim(capsys, *command)
    assert code == 0 and out.startswith("run: 6 steps, ")
    assert ("run: continues after step 4 of 6" in error) == (every == 2)


def test_the_command_tells_what_to_do_about_a_damaged_photo(photos, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    command = ("train", "run", "--root", "photos", "--val-fraction", "0", *COMMAND)
    photo = photo_of_step(photos, 3).relative_to(tmp_path)
    damage(photo)
    code, _, error = dissim(capsys, *command)
    assert code == 1 and error[-1].startswith(f"dissim: {photo}: expected an image that can be decoded, got ")
    assert "Repair only this file, and the same call or command continues after step 2." in error[-1]
    assert "--skip-damaged), choose a new folder." in error[-1]
    code, _, error = dissim(capsys, *command, "--skip-damaged")
    assert code == 1 and "(48 images" in error[-1] and "(47 images" in error[-1] and "new folder" in error[-1]
    shutil.copy("repaired.png", photo)
    code, _, error = dissim(capsys, *command)
    assert code == 0 and "run: continues after step 2 of 6" in error


def test_the_command_tells_that_a_finished_run_was_finished(photos, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    command = ("train", "run", "--root", "photos", *COMMAND)
    assert dissim(capsys, *command)[1].startswith("run: 6 steps, ")
    code, out, error = dissim(capsys, *command)
    assert code == 0 and out.startswith("run: finished before, after 6 steps; nothing was trained, validation mAP")
    assert "run: finished before, after step 6; nothing is trained" in error
    record = json.loads(dissim(capsys, *command, "--json")[1])
    assert record["steps"] == 6 and record["steps_now"] == 0
    code, _, error = dissim(capsys, *command, "--steps", 7)
    assert code == 1 and error[-1].startswith("dissim: steps: expected 6, as the run in run has, got 7.")


def test_patience_without_a_validation_part_is_an_error(photos, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    command = ("train", "run", "--root", "photos", *COMMAND, "--patience", 2)
    code, _, error = dissim(capsys, *command, "--val-fraction", 0)
    assert code == 1 and error[-1].startswith(
        "dissim: patience: expected validation images with patience=2, got none."
    )
    assert not (tmp_path / "run").exists()
    assert dissim(capsys, *command)[0] == 0


def test_info_and_report_do_not_take_an_own_loss_for_that_of_the_settings(photos, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    images = load_images("folder", size=16, root=photos)
    config = TrainConfig(backbone="small", dim=4, steps=1, identities=4)
    train(config, images, loss=SoftMarginLoss(DissimilarityHead(4)), folder="run", progress=False)
    _, out, _ = dissim(capsys, "info", "run")
    assert "own" in out and "hinge" not in out
    assert dissim(capsys, "evaluate", "run", "--root", "photos", "--part", "all")[0] == 0
    assert not [path for path in (tmp_path / "run/evaluation-all").iterdir() if b"hinge" in path.read_bytes()]


def test_the_command_has_no_own_loss(capsys):
    with pytest.raises(SystemExit):
        cli.main(["train", "run", "--loss", "own"])
    assert "own" in capsys.readouterr().err
