"""Training: it learns, can be interrupted and resumed, and is reproducible."""

from dataclasses import replace

import pytest
import torch
from dissim_retrieval.data.glyphs import load_glyphs
from dissim_retrieval.embedding import embed_images
from dissim_retrieval.evaluate import cosine
from dissim_retrieval.metrics import retrieval_metrics
from dissim_retrieval.models import build_backbone
from dissim_retrieval.train import TrainConfig, load_trained, plan_batches, train

CONFIG = TrainConfig(backbone="small", dim=32, steps=6, identities=8, views=2, checkpoint_every=2)


@pytest.fixture(scope="module")
def glyphs():
    return load_glyphs(16, letters="ABCDEFGHIJKLMNOPQRSTUVWXYZabdefghijklmnqrt0123456789ÄÖÜß", progress=False)


def state(trained):
    return {**trained.backbone.state_dict(), **({} if trained.head is None else trained.head.state_dict())}


class Interrupted(torch.nn.Module):
    """A backbone that stops the run at its nth forward pass."""

    def __init__(self, backbone, forwards):
        super().__init__()
        self.backbone, self.left = backbone, forwards

    def forward(self, images):
        self.left -= 1
        if self.left < 0:
            raise KeyboardInterrupt
        return self.backbone(images)


@pytest.mark.parametrize("loss", ["hinge", "triplet"])
def test_interrupted_and_resumed_equals_uninterrupted(loss, glyphs, tmp_path):
    config = replace(CONFIG, loss=loss)
    torch.manual_seed(0)
    first = build_backbone("small", 32)
    start = {key: value.clone() for key, value in first.state_dict().items()}

    def fresh():
        backbone = build_backbone("small", 32)
        backbone.load_state_dict(start)
        return backbone

    whole = train(config, glyphs, backbone=Interrupted(first, 99), progress=False)
    with pytest.raises(KeyboardInterrupt):
        train(config, glyphs, backbone=Interrupted(fresh(), 5), folder=tmp_path, progress=False)
    with pytest.raises(ValueError, match=r"unfinished run \(4 of 6 steps\)"):
        load_trained(tmp_path, backbone=Interrupted(fresh(), 99))
    resumed = train(config, glyphs, backbone=Interrupted(fresh(), 2), folder=tmp_path, progress=False)
    loaded = load_trained(tmp_path, backbone=Interrupted(fresh(), 99))
    assert loaded.config == config
    for trained in (resumed, loaded):
        for key, value in state(whole).items():
            assert torch.equal(state(trained)[key], value), key
    assert not torch.equal(state(whole)["backbone.0.1.weight"], start["0.1.weight"])


def test_training_depends_only_on_its_seed(glyphs):
    torch.manual_seed(1)
    first = train(CONFIG, glyphs, progress=False)
    torch.manual_seed(2)
    expected = torch.rand(1)
    torch.manual_seed(2)
    second = train(CONFIG, glyphs, progress=False)
    assert torch.equal(torch.rand(1), expected)
    assert all(torch.equal(state(first)[key], value) for key, value in state(second).items())
    other = train(replace(CONFIG, seed=1), glyphs, progress=False)
    assert not torch.equal(other.head.weight, first.head.weight)


def test_unknown_loss_raises(glyphs):
    with pytest.raises(ValueError, match="loss: expected hinge or triplet, got 'hing'"):
        train(replace(CONFIG, loss="hing"), glyphs, progress=False)


def test_folder_of_another_run_raises(glyphs, tmp_path):
    train(CONFIG, glyphs, folder=tmp_path, progress=False)
    with pytest.raises(ValueError, match="another lr, seed"):
        train(replace(CONFIG, lr=0.1, seed=3), glyphs, folder=tmp_path, progress=False)


@pytest.mark.parametrize(("loss", "lr"), [("hinge", 3e-3), ("triplet", 3e-4)])
def test_training_separates_unseen_identities(loss, lr, glyphs):
    """mAP on letters that are not in the training set, before and after a few seconds of training."""
    seen, unseen = glyphs.split_labels(0.6)
    config = replace(CONFIG, loss=loss, steps=60, identities=16, lr=lr)
    untrained = train(replace(config, steps=1, lr=1e-9, head_lr=1e-9), seen, progress=False)

    def quality(trained):
        rows = embed_images(trained.backbone, unseen, progress=False)
        scorer = trained.head or (cosine)
        with torch.no_grad():
            return retrieval_metrics(
                rows, rows, scorer, unseen.labels, unseen.labels, exclude_index=torch.arange(len(unseen))
            )["mAP_mean"]  # fmt: skip

    before, after = quality(untrained), quality(train(config, seen, progress=False))
    assert after > before + 0.1, (before, after)


def test_batches_have_the_given_views_of_each_identity():
    labels = torch.arange(12).repeat_interleave(3)
    plan = plan_batches(labels, replace(CONFIG, steps=20, identities=5, views=3))
    assert plan.shape == (20, 15)
    for rows in plan:
        assert sorted(labels[rows].bincount(minlength=12).tolist()) == [0] * 7 + [3] * 5
        assert len(rows.unique()) == 15
    assert len({tuple(rows.tolist()) for rows in plan}) == 20
    with pytest.raises(ValueError, match="identities: expected at most 12"):
        plan_batches(labels, replace(CONFIG, identities=13))


def test_embedding_uses_eval_mode_with_any_batch_size(glyphs):
    backbone = build_backbone("small", 4).train()
    images = glyphs.take(torch.arange(10))
    rows = embed_images(backbone, images, batch=3, progress=False)
    assert backbone.training and rows.dtype == torch.float32 and not rows.requires_grad
    torch.testing.assert_close(rows, embed_images(backbone, images, progress=False))
    with torch.no_grad():
        torch.testing.assert_close(rows, backbone.eval()(images.images / 255))
