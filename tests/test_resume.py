"""Interrupted training: killed at random moments, with damaged files, or continued on something else."""

import csv
import json
import re
import resource
from dataclasses import replace
from uuid import uuid4

import pytest
import torch
from dissim_retrieval.data import ImageSet
from dissim_retrieval.head import DissimilarityHead
from dissim_retrieval.interop import PMLLoss, ScoreDistance
from dissim_retrieval.losses import HingeLoss, PrototypeLoss, SoftMarginLoss
from dissim_retrieval.models import build_backbone
from dissim_retrieval.train import TrainConfig, load_trained, train
from dissim_retrieval.train.own_modules import module_settings
from filelock import Timeout
from index_killing import error_in_a_process
from killed_training import count_kills_with_other_weights
from pytorch_metric_learning.losses import ContrastiveLoss
from torch import nn

CONFIG = TrainConfig(dim=4, steps=6, identities=4, checkpoint_every=2)


def image_set(seed=0, identities=6):
    labels = torch.arange(identities).repeat_interleave(3)
    pixels = torch.randint(256, (len(labels), 3, 8, 8), dtype=torch.uint8, generator=torch.manual_seed(seed))
    return ImageSet(pixels, labels, torch.zeros_like(labels), [str(i) for i in range(identities)], ["one"], "")


def network(width=4, pixels=192):
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(pixels, width))


def start(folder, images=None, config=CONFIG, backbone=None, **options):
    images = image_set() if images is None else images
    return train(config, images, backbone=backbone or network(), folder=folder, progress=False, **options)


class StopsAt(nn.Module):
    """A network whose nth batch is NaN, or stops the run. Its private attributes are no settings of a network."""

    def __init__(self, batch, error=None, layers=None):
        super().__init__()
        self.network, self._left, self._error = layers or network(), batch, error

    def forward(self, images):
        self._left -= 1
        if self._left == 0 and self._error:
            raise self._error
        return self.network(images) * (float("nan") if self._left == 0 else 1.0)


def interrupt(folder, batch=4, layers=None, **options):
    """Train in `folder` until the network gets this batch."""
    with pytest.raises(KeyboardInterrupt):
        start(folder, backbone=StopsAt(batch, KeyboardInterrupt(), layers), **options)


def files_in(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_killed_and_continued_training_ends_in_the_same_weights(tmp_path):
    different, _ = count_kills_with_other_weights(tmp_path, kills=2)
    assert different == 0


def test_unfinished_files_of_a_killed_run_are_deleted(tmp_path):
    """Those of the files that the run writes, with the random names that they have."""
    interrupt(tmp_path)
    kept = [f".checkpoint.pt.{32 * 'x'}", ".checkpoint.pt.copy", f".other.{32 * '0'}"]
    names = ("checkpoint.pt", "config.json", "log.csv", "model.safetensors")
    assert (tmp_path / "train.lock").exists()
    for name in (*kept, *(f".{name}.{uuid4().hex}" for name in names)):
        (tmp_path / name).write_bytes(b"half")
    with pytest.raises(ValueError, match=r"^seed: expected 0, as the run in .* has, got \d+\. Pass"):
        start(tmp_path, config=replace(CONFIG, seed=3))
    assert len(list(tmp_path.glob(".*"))) == 7
    start(tmp_path, backbone=StopsAt(99))
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([*kept, *names, "train.lock"])


def test_the_log_has_each_step_once(tmp_path):
    interrupt(tmp_path, 6)
    assert len((tmp_path / "log.csv").read_text().splitlines()) == 6  # the header and steps 1 to 5; checkpoint at 4
    start(tmp_path, backbone=StopsAt(99), validation=None)
    with open(tmp_path / "log.csv") as file:
        rows = list(csv.DictReader(file))
    assert [int(row["step"]) for row in rows] == [1, 2, 3, 4, 5, 6]
    assert all(float(row["loss"]) > 0 and float(row["seconds"]) > 0 for row in rows)
    assert [row["validation_mAP"] for row in rows] == [""] * 6


def test_not_a_number_stops_with_the_step_and_keeps_the_checkpoint(tmp_path):
    message = r"the loss of step 6 is nan\. The checkpoint before that is in .*Lower lr \(0.001\)"
    with pytest.raises(FloatingPointError, match=message):
        start(tmp_path, backbone=StopsAt(6))
    checkpoint = torch.load(tmp_path / "checkpoint.pt", weights_only=True)
    assert checkpoint["steps"] == 4
    assert all(weight.isfinite().all() for weight in checkpoint["objective"].values())
    with pytest.raises(ValueError, match=r"unfinished run \(4 of 6 steps\)"):
        load_trained(tmp_path, backbone=network())


def test_weights_that_are_not_finite_are_not_saved(tmp_path):
    """The loss of the only step is finite; its update is not."""
    with pytest.raises(FloatingPointError, match="a weight is not finite after step 1"):
        start(tmp_path, config=replace(CONFIG, steps=1, lr=1e30, weight_decay=1e30))
    assert not (tmp_path / "checkpoint.pt").exists()


@pytest.mark.parametrize(
    ("lr", "message"),
    [(1e30, "a weight is not finite after step 1"), (1e37, "embedding of the validation images is not finite after")],
)
def test_divergence_that_a_validation_finds_is_named(tmp_path, lr, message):
    config = replace(CONFIG, steps=1, lr=lr, weight_decay=1e30 if lr == 1e30 else 0.0)
    with pytest.raises(FloatingPointError, match=f"{message}.* Lower lr"):
        start(tmp_path, config=config, validation=image_set(2))
    assert not (tmp_path / "checkpoint.pt").exists()


@pytest.mark.parametrize(
    "options", [{"images": image_set(1)}, {"images": image_set(0, 5)}, {"validation": image_set(2)}]
)
def test_resume_on_other_images_raises_and_keeps_the_files(tmp_path, options):
    interrupt(tmp_path)
    before = files_in(tmp_path)
    message = r"^images: expected the (validation )?images that .* was made with \(.*\), got .* need a new folder\.$"
    with pytest.raises(ValueError, match=message):
        start(tmp_path, backbone=StopsAt(99), **options)
    assert files_in(tmp_path) == before


def test_resume_with_another_setting_raises(tmp_path):
    interrupt(tmp_path)
    told = r"^lr: expected 0\.001, as the run in .* has, got 0\.1; seed: expected 0, got 3\. Pass the run's values to"
    with pytest.raises(ValueError, match=told):
        start(tmp_path, config=replace(CONFIG, lr=0.1, seed=3))
    with pytest.raises(ValueError, match=r"^steps: expected 6, .* got 7\. .* cannot be extended, .* schedule"):
        start(tmp_path, config=replace(CONFIG, steps=7))


def activated(activation):
    return nn.Sequential(network(), activation)


@pytest.mark.parametrize(
    "other", [network(), nn.Sequential(network(), nn.Linear(4, 4)), activated(nn.ReLU()), activated(nn.ELU(0.5))]
)
def test_resume_with_another_own_network_raises(tmp_path, other):
    """Also with one whose weights have the same names and shapes."""
    interrupt(tmp_path, layers=activated(nn.ELU()))
    before = files_in(tmp_path)
    shown = r"\(a StopsAt with settings (\w+)\)"
    message = rf"^backbone: expected the network that .* was trained with {shown}, got another {shown}\."
    with pytest.raises(ValueError, match=message) as caught:
        start(tmp_path, backbone=StopsAt(99, layers=other))
    expected, found = re.match(message, str(caught.value)).groups()
    assert expected != found and files_in(tmp_path) == before
    start(tmp_path, backbone=StopsAt(99, layers=activated(nn.ELU())))


def test_resume_with_an_own_network_instead_of_a_named_one_and_vice_versa_raises(tmp_path):
    config = replace(CONFIG, backbone="small")
    images = image_set()
    images = replace(images, images=images.images.repeat_interleave(2, 2).repeat_interleave(2, 3))
    for folder, networks in (("named", (None, build_backbone("small", 4))), ("own", (network(4, 768), None))):
        first, second = networks
        train(config, images, backbone=first, folder=tmp_path / folder, progress=False)
        with pytest.raises(ValueError, match=r"^backbone: expected .* \((a|small,) .*\), got another \((a|small,) "):
            train(config, images, backbone=second, folder=tmp_path / folder, progress=False)


def hinge(**options):
    return HingeLoss(DissimilarityHead(4), **options)


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (
            lambda: hinge(margin=5.0, num_hard_negatives=None),
            r"HingeLoss, margin 1\.0, num_hard_negatives 2\), got .*, margin 5\.0, num_hard_negatives None\)",
        ),
        (
            lambda: HingeLoss(DissimilarityHead(4, scale=2.0)),
            r"HingeLoss, head\.scale 8\.0\), got another .*HingeLoss, head\.scale 2\.0\)",
        ),
        (lambda: SoftMarginLoss(DissimilarityHead(4)), r"HingeLoss\), got another .*losses\.SoftMarginLoss\)"),
        (lambda: None, r"HingeLoss\), got another \(one that TrainConfig\.loss names\)"),
    ],
)
def test_resume_with_another_own_loss_raises(tmp_path, other, message):
    interrupt(tmp_path, loss=hinge())
    before = files_in(tmp_path)
    with pytest.raises(ValueError, match=rf"^loss: expected the loss that .* was trained with \(.*{message}"):
        start(tmp_path, backbone=StopsAt(99), loss=other())
    assert files_in(tmp_path) == before
    trained = start(tmp_path, backbone=StopsAt(99), loss=hinge())
    assert trained.provenance["loss"].items() >= {"margin": 1.0, "head.scale": 8.0}.items()


def test_resume_of_a_named_loss_with_an_own_one_raises(tmp_path):
    interrupt(tmp_path)
    with pytest.raises(ValueError, match=r"^loss: .* \(one that TrainConfig\.loss names\), got .*HingeLoss\)"):
        start(tmp_path, backbone=StopsAt(99), loss=hinge())


def test_an_own_loss_is_not_recorded_as_that_of_the_settings(tmp_path):
    loss = PMLLoss(ContrastiveLoss(distance=ScoreDistance(DissimilarityHead(4))))
    trained = start(tmp_path, loss=loss)
    assert trained.config.loss == load_trained(tmp_path, backbone=network()).config.loss == "own"
    recorded = trained.provenance["loss"]
    assert recorded["class"] == "dissim_retrieval.interop.PMLLoss" and recorded["loss.class"].endswith(
        "ContrastiveLoss"
    )
    start(tmp_path, config=trained.config, loss=loss)
    with pytest.raises(ValueError, match=r"^loss: expected a module, .* got None"):
        start(tmp_path, config=trained.config)


def test_settings_of_modules_are_plain_and_public():
    module = nn.Conv2d(3, 4, (1, 2))
    module.limit, module._count, module.table, module.norms = float("inf"), 3, {1: 2}, (1, (float("nan"), None))
    settings = module_settings(nn.Sequential(module, nn.Dropout(0.25)))
    assert settings["0.kernel_size"] == [1, 2] and settings["1.p"] == 0.25
    assert settings["class"] == "torch.nn.modules.container.Sequential"
    assert settings["0.limit"] == "inf" and settings["0.norms"] == [1, ["nan", None]]
    assert not {"0._count", "0.table", "0.training", "0.weight"} & settings.keys()
    assert settings == json.loads(json.dumps(settings))


def test_a_run_of_an_earlier_version_continues(tmp_path):
    """It recorded the loss of the settings, which was not used, and no settings of the modules."""
    interrupt(tmp_path, loss=hinge())
    path = tmp_path / "config.json"
    content = json.loads(path.read_text())
    content["config"]["loss"] = "hinge"
    del content["provenance"]["loss"], content["provenance"]["backbone"]["settings"]
    path.write_text(json.dumps(content))
    with pytest.raises(ValueError, match="another network or loss"):
        start(tmp_path, backbone=StopsAt(99), loss=PrototypeLoss(DissimilarityHead(4), 6))
    start(tmp_path, backbone=StopsAt(99), loss=hinge(margin=5.0))


@pytest.mark.parametrize("keep", [0, 0.5])
@pytest.mark.parametrize(
    ("name", "read"),
    [
        ("config.json", start),
        ("checkpoint.pt", start),
        ("config.json", lambda folder: load_trained(folder, backbone=network())),
        ("model.safetensors", lambda folder: load_trained(folder, backbone=network())),
    ],
)
def test_a_damaged_file_is_named(tmp_path, name, read, keep):
    start(tmp_path)
    content = (tmp_path / name).read_bytes()
    (tmp_path / name).write_bytes(content[: int(keep * len(content))])
    with pytest.raises(ValueError, match=rf"{name}: expected .*, got a damaged file") as caught:
        read(tmp_path)
    assert "\n" not in str(caught.value)


def test_a_checkpoint_of_another_program_is_named(tmp_path):
    start(tmp_path)
    for content in ({"steps": 3}, [1, 2]):
        torch.save(content, tmp_path / "checkpoint.pt")
        with pytest.raises(ValueError, match=r"checkpoint.pt: expected a checkpoint, got .* \(without best, "):
            start(tmp_path)


def test_a_run_is_written_by_one_training_at_a_time(tmp_path):
    """The second starts while the first does its fourth step."""

    class StartsAnother(Exception):
        pass

    def another(*_):
        with pytest.raises(BlockingIOError, match=f"folder: another process trains in {re.escape(str(tmp_path))}"):
            start(tmp_path)
        raise StartsAnother

    first = network()
    first.register_forward_hook(another)
    with pytest.raises(StartsAnother):
        start(tmp_path, backbone=first)
    start(tmp_path)


def test_the_lock_of_another_file_is_not_that_of_the_run(tmp_path):
    def waits(*_):
        raise Timeout("gallery.lock")

    first = network()
    first.register_forward_hook(waits)
    with pytest.raises(Timeout, match=r"gallery\.lock"):
        start(tmp_path, backbone=first)
    start(tmp_path)


def limited_training(folder):
    """Train with a checkpoint that does not fit into the largest file that this process may write."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (2_000, 2_000))
    start(folder, backbone=StopsAt(99))


def test_a_full_disk_is_named_and_keeps_the_checkpoint(tmp_path):
    interrupt(tmp_path)
    before = (tmp_path / "checkpoint.pt").read_bytes()
    assert re.match(r"OSError: .*too large", error_in_a_process(limited_training, tmp_path))
    assert (tmp_path / "checkpoint.pt").read_bytes() == before
    start(tmp_path, backbone=StopsAt(99))


def test_a_row_of_the_log_that_is_cut_off_is_dropped(tmp_path):
    interrupt(tmp_path, 6)
    log = tmp_path / "log.csv"
    log.write_text(log.read_text() + "3")  # of step 36, say
    start(tmp_path, backbone=StopsAt(99))
    with open(log) as file:
        assert [int(row["step"]) for row in csv.DictReader(file)] == [1, 2, 3, 4, 5, 6]


@pytest.mark.parametrize("read", [start, lambda folder: load_trained(folder, backbone=network())])
@pytest.mark.parametrize(
    ("change", "reason"),
    [({"loss": "nca"}, "loss: expected one of hinge, .* got 'nca'"), ({"los": "hinge"}, ".* argument 'los'")],
)
def test_settings_of_another_version_are_named(tmp_path, read, change, reason):
    start(tmp_path)
    path = tmp_path / "config.json"
    content = json.loads(path.read_text())
    content["config"] |= change
    path.write_text(json.dumps(content))
    with pytest.raises(ValueError, match=rf"config.json: expected .* of another version \({reason}\)\. Restore it"):
        read(tmp_path)


def test_a_finished_run_is_not_overwritten(tmp_path, caplog):
    start(tmp_path)
    before = files_in(tmp_path)
    with caplog.at_level("INFO", "dissim_retrieval"):
        start(tmp_path)
    assert [record.getMessage() for record in caplog.records] == [
        f"{tmp_path}: finished before, after step 6; nothing is trained"
    ]
    assert files_in(tmp_path) == before
    (tmp_path / "checkpoint.pt").unlink()
    with pytest.raises(ValueError, match="a finished run without its checkpoint"):
        start(tmp_path)
    with pytest.raises(FileNotFoundError, match="expected a training run"):
        load_trained(tmp_path / "other")


def test_a_run_of_an_own_network_needs_it(tmp_path):
    start(tmp_path)
    with pytest.raises(ValueError, match="trained your own module, a Sequential"):
        load_trained(tmp_path)
    with pytest.raises(ValueError, match="backbone: expected the network that"):
        load_trained(tmp_path, backbone=network(5))
