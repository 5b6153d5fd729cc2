"""Batches of P identities with K images each, and their random augmentation."""

import logging

import pytest
import torch
from dissim_retrieval.train import IdentityBatches, TrainConfig
from dissim_retrieval.train.augmentation import Augmentation
from torch.utils.data import DataLoader, TensorDataset

LABELS = torch.arange(12).repeat_interleave(3)[torch.randperm(36, generator=torch.Generator().manual_seed(0))]


def batches(labels=LABELS, **options):
    return IdentityBatches(labels, **{"identities": 5, "views": 3, "steps": 20, **options})


def test_batches_have_the_given_views_of_each_identity():
    plan = list(batches())
    assert len(plan) == 20
    for rows in plan:
        assert sorted(LABELS[rows].bincount(minlength=12).tolist()) == [0] * 7 + [3] * 5
        assert len(rows.unique()) == 15
        assert (LABELS[rows].view(5, 3) == LABELS[rows][::3, None]).all()
    assert len({tuple(rows.tolist()) for rows in plan}) == 20


def test_a_batch_depends_on_the_seed_and_its_step_only():
    plan = batches()
    assert (
        torch.equal(plan[7], list(plan)[7]) and torch.equal(plan[5:][2], plan[7]) and torch.equal(plan[-1], plan[19])
    )
    assert torch.equal(plan[5:].part(slice(3, 6))[2], plan[7][3:6])
    assert not torch.equal(batches(seed=1)[7], plan[7])
    with pytest.raises(IndexError):
        plan[20]


def test_every_identity_occurs_equally_often():
    """12 identities, 4 in a batch: each occurs once in three batches."""
    plan = batches(identities=4, views=1, steps=30)
    for first in range(0, 30, 3):
        assert LABELS[torch.cat([plan[step] for step in range(first, first + 3)])].sort().values.tolist() == [
            *range(12)
        ]


def test_images_are_repeated_only_if_an_identity_has_too_few():
    labels = torch.tensor([0, 0, 0, 0, 1, 2, 2])
    for rows in batches(labels, identities=3, views=3):
        assert labels[rows].bincount().tolist() == [3, 3, 3]
        assert len(rows[labels[rows] == 0].unique()) == 3


def test_more_identities_than_there_are_lowers_the_number(caplog):
    with caplog.at_level(logging.WARNING):
        plan = batches(identities=64)
    assert plan.identities == 12 and plan[0].shape == (36,)
    assert "identities: a batch has all 12 identities: there are fewer than 64 (--identities)" in caplog.text


def test_identities_of_one_image_each_are_told(caplog):
    with caplog.at_level(logging.WARNING):
        batches(torch.arange(12), views=1)
        batches(torch.tensor([0, 1, 2, 2]))
        assert not [record for record in caplog.records if "images:" in record.message]
        batches(torch.arange(12), views=2)
    assert "images: none of the 12 identities has two images, so their views repeat the same image" in caplog.text


@pytest.mark.parametrize("labels", [torch.zeros(5, dtype=torch.int64), torch.zeros(0, dtype=torch.int64)])
def test_fewer_than_two_identities_raises(labels):
    with pytest.raises(ValueError, match=f"at least 2 identities to train on, got {min(len(labels), 1)} with"):
        batches(labels)


@pytest.mark.parametrize(("name", "value"), [("identities", 0), ("views", 0), ("seed", -1)])
def test_settings_that_cannot_be_are_named(name, value):
    options = {"identities": 2, "views": 2, "steps": 1} | {name: value}
    with pytest.raises(ValueError, match=f"{name}: expected at least {value + 1}, got {value}"):
        IdentityBatches(torch.arange(8) // 2, **options)


def test_a_data_loader_takes_the_batches():
    plan = batches()
    loader = DataLoader(TensorDataset(torch.arange(36)), batch_sampler=plan)
    assert all(torch.equal(rows, expected) for (rows,), expected in zip(loader, plan, strict=True))


SIZE = (16, 12)


def augmented(images, seed=0, rows=slice(None), batch=None, **options):
    config = TrainConfig(**{"flip": 0.0, **options})
    return Augmentation(config, SIZE)(images, seed, rows, batch or len(images))


@pytest.fixture
def images():
    return torch.rand(16, 3, *SIZE, generator=torch.Generator().manual_seed(0))


def test_without_settings_images_stay_as_they_are(images):
    assert torch.equal(augmented(images), images)


def test_flip_mirrors_some_images(images):
    flipped = augmented(images, flip=0.5)
    mirrored = (flipped == images.flip(3)).flatten(1).all(1)
    assert 3 <= mirrored.sum() <= 13
    assert torch.equal(flipped[~mirrored], images[~mirrored])


@pytest.mark.parametrize("options", [{"crop": 0.5}, {"color": 0.3}, {"erase": 1.0}], ids=lambda o: next(iter(o)))
def test_each_setting_changes_images_within_their_range(options, images):
    changed = augmented(images, **options)
    assert changed.shape == images.shape and changed.min() >= 0 and changed.max() <= 1
    assert (changed != images).flatten(1).any(1).all()


def test_crop_keeps_a_part_and_fills_the_image():
    """A horizontal ramp stays one: its range is that of the part, and between the smallest part and all."""
    ramp = torch.linspace(0, 1, SIZE[1]).expand(16, 3, *SIZE).contiguous()
    changed = augmented(ramp, crop=0.4)
    extent = changed[:, 0, 8, -1] - changed[:, 0, 8, 0]
    assert (changed.diff(dim=3) >= -1e-6).all()
    assert extent.min() > 0.3 and extent.max() <= 1 and extent.std() > 0.05


@pytest.mark.parametrize("size", [(16, 16), (32, 16)])
@pytest.mark.parametrize("share", [0.5, 0.9])
def test_crop_keeps_the_promised_share_of_images_of_any_shape(size, share):
    """Of two ramps, the ranges of a crop are its width and its height, as shares of the image."""
    height, width = size
    ramps = torch.zeros(200, 3, *size)
    ramps[:, 0], ramps[:, 1] = torch.linspace(0, 1, width), torch.linspace(0, 1, height)[:, None]
    changed = Augmentation(TrainConfig(flip=0.0, crop=share), size)(ramps, 0, slice(None), 200)
    across = changed[:, 0, 0, -1] - changed[:, 0, 0, 0]
    down = changed[:, 1, -1, 0] - changed[:, 1, 0, 0]
    area, distortion = across * down, across / down
    assert share - 0.1 < area.min() < share + 0.1 and area.max() > 0.94
    assert 0.65 < distortion.min() < 1 < distortion.max() < 1.5  # corners are whole pixels


def test_an_image_depends_on_the_seed_and_its_row_only(images):
    options = {"flip": 0.5, "crop": 0.5, "color": 0.3, "erase": 0.5}
    whole = augmented(images, seed=3, **options)
    assert torch.equal(augmented(images, seed=3, **options), whole)
    parts = [augmented(images[rows], 3, rows, 16, **options) for rows in (slice(0, 4), slice(4, 16))]
    torch.testing.assert_close(torch.cat(parts), whole)
    assert not torch.allclose(augmented(images, seed=4, **options), whole)
