"""Training: it learns, can be interrupted and resumed, and is reproducible."""

import copy
import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from dissim_retrieval import DissimilarityIndex
from dissim_retrieval.data import ImageSet
from dissim_retrieval.data.glyphs import load_glyphs
from dissim_retrieval.embedding import embed_images
from dissim_retrieval.embedding_file import read_embedding_file, write_embeddings
from dissim_retrieval.evaluation import cosine, evaluate, retrieval_metrics
from dissim_retrieval.head import DissimilarityHead
from dissim_retrieval.losses import HingeLoss, PrototypeLoss
from dissim_retrieval.models import build_backbone
from dissim_retrieval.projected import ProjectedHead
from dissim_retrieval.provenance import check_same_model
from dissim_retrieval.train import TrainConfig, load_trained, train
from dissim_retrieval.train.state import rate_factor

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
        self.backbone, self._left = backbone, forwards

    def forward(self, images):
        self._left -= 1
        if self._left < 0:
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
    assert not torch.equal(state(whole)["backbone.features.0.1.0.weight"], start["features.0.1.0.weight"])


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


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("steps", 0), ("views", -2), ("identities", 0), ("checkpoint_every", 0), ("lr", -1.0), ("lr", float("nan")),
        ("flip", 1.5), ("crop", 0.0), ("color", 1.0), ("warmup", -0.1), ("clip_norm", 0.0), ("patience", 0),
        ("memory", -1), ("seed", -1), ("precision", "float8"), ("loss", "hing"), ("weight_decay", float("inf")),
        ("num_hard_negatives", -1), ("balance", "class"), ("constraint", "norm"), ("sign", "positive"),
        ("clip_norm", float("inf")), ("margin", float("nan")), ("radius", float("inf")),
    ],
)  # fmt: skip
def test_a_setting_that_cannot_be_raises(name, value):
    with pytest.raises(ValueError, match=f"^{name}: expected .*, got {value!r}"):
        replace(CONFIG, **{name: value})


@pytest.mark.parametrize("name", ["views", "identities"])
def test_losses_of_pairs_need_pairs(name, glyphs):
    """Of a batch, or of it with remembered rows; prototypes and an own loss need none."""
    config = replace(CONFIG, **{name: 1}, steps=2)
    for loss in ("hinge", "soft_margin", "infonce", "supcon", "softmax", "triplet"):
        with pytest.raises(ValueError, match=f"^{name}: expected at least 2 with loss {loss}, .* got 1"):
            train(replace(config, loss=loss, memory=9, warmup=1.0), glyphs, progress=False)
    train(replace(config, loss="prototype"), glyphs, progress=False)
    train(replace(config, loss="softmax", memory=9), glyphs, progress=False)
    train(config, glyphs, loss=PrototypeLoss(DissimilarityHead(32), len(glyphs.label_names)), progress=False)


@pytest.mark.parametrize("steps", [1, 2, 3, 4])
def test_a_few_steps_train(steps, glyphs):
    trained = train(replace(CONFIG, steps=steps), glyphs, progress=False)
    assert all(weight.isfinite().all() for weight in state(trained).values())


def test_the_learning_rate_rises_and_falls():
    rates = [rate_factor(step, 100, 0.2) for step in range(100)]
    assert rates[0] == 1 / 20 and max(rates) == rates[19] == rates[20] == 1
    assert rates[:20] == sorted(rates[:20]) and rates[20:] == sorted(rates[20:], reverse=True)
    assert 0 < rates[99] < 0.001 and rates[60] == pytest.approx(0.5)
    assert [rate_factor(0, 1, warmup) for warmup in (0, 1)] == [1, 1]


@pytest.mark.parametrize("loss", ["soft_margin", "infonce", "supcon", "softmax", "prototype"])
def test_every_loss_trains_a_head(loss, glyphs):
    """The labels of a part of a set are not consecutive; the loss gets consecutive ones."""
    part = glyphs.take(glyphs.labels >= 20)
    trained = train(replace(CONFIG, loss=loss), part, progress=False)
    assert trained.head is not None and not torch.equal(trained.head.weight, torch.full((32,), -(32**-0.5)))


def test_options_of_the_head_are_trained_with_and_reloaded(glyphs, tmp_path):
    plain = replace(CONFIG, learn_weight=False, initial_bias=2.0)
    for name, config in {"plain": plain, "signs": replace(CONFIG, positive_share=0.25)}.items():
        trained = train(config, glyphs, folder=tmp_path / name)
        loaded = load_trained(tmp_path / name).head
        assert loaded.options() == trained.head.options()
        assert torch.equal(loaded.weight, trained.head.weight) and torch.equal(loaded.bias, trained.head.bias)
        index = DissimilarityIndex(loaded)
        index.save(tmp_path / f"{name}.index")
        assert DissimilarityIndex.open(tmp_path / f"{name}.index").head.options() == loaded.options()
        assert (len(loaded.weight.unique()) == 1) == (name == "plain")


@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
def test_mixed_precision_is_close_to_float32_and_differs(precision, glyphs, tmp_path):
    losses = {}
    for name in ("float32", precision):
        train(replace(CONFIG, precision=name), glyphs, folder=tmp_path / name, progress=False)
        rows = (tmp_path / name / "log.csv").read_text().splitlines()[1:]
        losses[name] = torch.tensor([float(row.split(",")[1]) for row in rows])
    assert not torch.equal(losses[precision], losses["float32"])
    torch.testing.assert_close(losses[precision][0], losses["float32"][0], rtol=0.02, atol=0.02)


def test_clip_norm_limits_the_gradient(glyphs):
    """AdamW's step does not depend on the scale of the gradient, so look at the gradient itself."""
    norms = []
    backbone = build_backbone("small", 32)
    for clip in (None, 1e-3):
        train(
            replace(CONFIG, steps=1, clip_norm=clip),
            glyphs,
            backbone=(net := copy.deepcopy(backbone)),
            progress=False,
        )
        norms.append(torch.cat([p.grad.flatten() for p in net.parameters()]).norm().item())
    assert norms[0] > 0.01 and norms[1] <= 1e-3 + 1e-6


def test_frozen_stages_keep_their_weights_and_statistics(glyphs):
    torch.manual_seed(0)
    backbone = build_backbone("small", 32)
    before = copy.deepcopy(backbone.state_dict())
    after = train(replace(CONFIG, freeze=2), glyphs, backbone=backbone, progress=False).backbone.state_dict()
    changed = {name for name, value in after.items() if not torch.equal(value, before[name])}
    frozen = {name for name in before if name.startswith(("features.0.0.", "features.0.1."))}
    assert changed == set(before) - frozen
    everything = train(replace(CONFIG, freeze="all"), glyphs, backbone=backbone, progress=False).backbone.state_dict()
    assert {name for name in after if not torch.equal(everything[name], before[name])} >= {"projection.weight"}


def test_stages_are_frozen_during_one_run_only_and_own_frozen_parameters_always(glyphs):
    backbone = build_backbone("small", 32)
    own = "projection.bias"
    backbone.get_parameter(own).requires_grad_(False)
    flags = {name: parameter.requires_grad for name, parameter in backbone.named_parameters()}
    train(replace(CONFIG, freeze="all", steps=1), glyphs, backbone=backbone, progress=False)
    assert {name: parameter.requires_grad for name, parameter in backbone.named_parameters()} == flags
    before = copy.deepcopy(backbone.state_dict())
    after = train(replace(CONFIG, freeze=2, steps=1), glyphs, backbone=backbone, progress=False).backbone.state_dict()
    changed = {name for name in flags if not torch.equal(after[name], before[name])}
    assert changed == {name for name in flags if not name.startswith(("features.0.0.", "features.0.1."))} - {own}
    with pytest.raises(ValueError, match="freeze: expected"):
        train(replace(CONFIG, freeze=99), glyphs, backbone=backbone, progress=False)
    net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(768, 32))
    with pytest.raises(ValueError, match="leaves nothing to train"):
        train(replace(CONFIG, loss="triplet", freeze="all"), glyphs, backbone=net, progress=False)
    assert all(parameter.requires_grad for parameter in net.parameters())


def test_freezing_everything_of_an_own_network_leaves_nothing_to_train(glyphs):
    net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(768, 32))
    with pytest.raises(ValueError, match="freeze: 'all' leaves nothing to train"):
        train(replace(CONFIG, loss="triplet", freeze="all"), glyphs, backbone=net, progress=False)


@pytest.mark.parametrize(
    ("form", "error", "message"),
    [
        (lambda x: (x, x), TypeError, "got a tuple"),
        (lambda x: {"embedding": x}, TypeError, "got a dict"),
        (lambda x: x[:, :, None], ValueError, r"expected embeddings \[16, D\] of 16 images, got .* \[16, 32, 1\]"),
        (lambda x: x[:, :20], ValueError, "expected embeddings of dim = 32 numbers, got 20. Set dim=20"),
    ],
)
def test_a_backbone_that_returns_no_embeddings_raises(form, error, message, glyphs):
    class Returns(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = torch.nn.Linear(768, 32)

        def forward(self, images):
            return form(self.layer(images.flatten(1)))

    with pytest.raises(error, match=f"backbone: .*{message}"):
        train(CONFIG, glyphs, backbone=Returns(), progress=False)


def test_an_own_loss_is_trained_with_its_parameters(glyphs):
    """A proxy loss of pytorch-metric-learning: no head, and its proxies learn."""
    from pytorch_metric_learning.losses import ProxyAnchorLoss

    loss = ProxyAnchorLoss(len(glyphs.label_names), 32)
    proxies = loss.proxies.detach().clone()
    trained = train(CONFIG, glyphs, loss=loss, progress=False)
    assert trained.head is None and not torch.equal(loss.proxies, proxies)


def validation_log(folder):
    rows = [row.split(",") for row in (folder / "log.csv").read_text().splitlines()[1:]]
    return {int(row[0]): float(row[3]) for row in rows if row[3]}


def test_the_weights_with_the_best_validation_are_the_result(glyphs, tmp_path):
    """A learning rate that soon destroys the network: its first validation is the best, and training stops early."""
    seen, unseen = glyphs.split_labels(0.6)
    config = replace(CONFIG, steps=40, lr=3.0, warmup=0.5, validate_every=2, patience=3, checkpoint_every=50)
    trained = train(config, seen, validation=unseen, folder=tmp_path, progress=False)
    log = validation_log(tmp_path)
    best = max(log, key=log.get)
    assert list(log) == list(range(2, best + 7, 2)), "stops after three validations without a higher mAP"
    rows = embed_images(trained.backbone, unseen, progress=False)
    quality = evaluate("trained", rows, trained.head, unseen, progress=False).metrics["mAP_mean"]
    assert quality == pytest.approx(log[best], abs=1e-6)
    assert trained.provenance["validation"]["identities"] == len(unseen.labels.unique())
    loaded = load_trained(tmp_path)
    assert loaded.provenance == trained.provenance
    assert all(torch.equal(state(loaded)[key], value) for key, value in state(trained).items())


def test_patience_needs_validation_images(glyphs, tmp_path):
    with pytest.raises(ValueError, match=r"^patience: expected validation images with patience=2, got none"):
        train(replace(CONFIG, patience=2), glyphs, folder=tmp_path / "run", progress=False)
    assert not (tmp_path / "run").exists()


def test_validation_images_need_a_match(glyphs, tmp_path):
    one_camera = ImageSet(
        torch.zeros(4, 3, 8, 8, dtype=torch.uint8), [0, 0, 1, 1], [0, 0, 1, 1], ["a", "b"], ["1", "2"], ""
    )
    for validation, count in ((glyphs.take(torch.zeros(0, dtype=torch.int64)), 0), (one_camera, 4)):
        with pytest.raises(ValueError, match=f"^validation: expected two images .* got none in {count} images"):
            train(CONFIG, glyphs, validation=validation, folder=tmp_path / "run", progress=False)
    assert not (tmp_path / "run").exists()


def test_validation_images_have_the_size_of_those_to_train_on(glyphs):
    small = replace(glyphs, images=glyphs.images[:, :, ::2, ::2])
    with pytest.raises(ValueError, match=r"validation: expected images of 16x16 pixels, .* got 8x8"):
        train(CONFIG, glyphs, validation=small, progress=False)


class OtherHead(DissimilarityHead):
    def transform(self, embeddings):
        return embeddings.abs()


def test_a_head_that_cannot_be_stored_is_an_error_before_the_training(glyphs, tmp_path):
    trained = train(CONFIG, glyphs, loss=HingeLoss(OtherHead(32)), progress=False)
    assert isinstance(trained.head, OtherHead)
    message = "expected a DissimilarityHead, .* got a OtherHead with its own transform. Keep such a head in memory"
    with pytest.raises(TypeError, match=f"loss: {message}"):
        train(CONFIG, glyphs, loss=HingeLoss(OtherHead(32)), folder=tmp_path / "run", progress=False)
    index = DissimilarityIndex(trained.head)
    for store in (lambda: index.save(tmp_path / "g"), lambda: DissimilarityIndex.create(tmp_path / "g", index.head)):
        with pytest.raises(TypeError, match=f"head: {message}"):
            store()
    with pytest.raises(TypeError, match=f"head: {message}"):
        ProjectedHead(torch.zeros(4), torch.ones(4, 32), index.head).save(tmp_path / "g")
    assert not any(tmp_path.iterdir())


def test_embeddings_of_another_width_are_named_before_the_memory_gets_them(glyphs):
    backbone = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3 * 16 * 16, 8))
    with pytest.raises(ValueError, match=r"backbone: expected embeddings of dim = 32 numbers, got 8\. Set dim=8"):
        train(replace(CONFIG, memory=8, loss="triplet"), glyphs, backbone=backbone, progress=False)


def test_provenance_tells_data_transform_backbone_and_weights(glyphs, tmp_path):
    trained = train(CONFIG, glyphs, folder=tmp_path, progress=False, provenance={"split": {"seed": 3}})
    facts = trained.provenance
    assert facts["data"]["fingerprint"] == glyphs.fingerprint and facts["split"] == {"seed": 3}
    assert facts["transform"] == {"size": [16, 16], "mean": [0.5] * 3, "std": [0.5] * 3}
    assert facts["backbone"] == {"name": "small", "class": "Backbone"}
    assert load_trained(tmp_path).provenance == facts == json.loads(json.dumps(facts))
    other = train(replace(CONFIG, seed=1), glyphs, progress=False)
    assert other.provenance["model"] != facts["model"]
    check_same_model(facts, {}, argument="embeddings", source="run")
    with pytest.raises(ValueError, match=r"embeddings: expected embeddings by the model of run \(\w{12}\), got"):
        check_same_model(facts, other.provenance, argument="embeddings", source="run")
    check_same_model(None, facts, argument="embeddings", source="run")
    with pytest.raises(ValueError, match=r"by the model of run \(1\), got those of another model \(2\)"):
        check_same_model({"model": 1}, {"model": 2}, argument="embeddings", source="run")


def test_embedding_files_tell_ids_labels_and_provenance(glyphs, tmp_path):
    images = glyphs.take(torch.arange(5))
    rows = torch.randn(5, 3)
    write_embeddings(tmp_path / "e.npz", rows, images, provenance={"model": "abc"})
    content = read_embedding_file(tmp_path / "e.npz")
    assert torch.equal(content.embeddings, rows) and content.ids == images.ids
    assert np.array_equal(content.labels, images.labels)
    with np.load(tmp_path / "e.npz") as arrays:
        assert np.array_equal(arrays["cameras"], images.cameras)
        assert arrays["camera_names"].tolist() == images.camera_names
    assert content.provenance == {"model": "abc", "embedded": images.provenance()}
    np.savez(tmp_path / "plain.npz", embeddings=rows.numpy())
    plain = read_embedding_file(tmp_path / "plain.npz")
    assert plain.ids is None and plain.labels is None and plain.provenance == {}
    np.savez(tmp_path / "list.npz", embeddings=rows.numpy(), provenance=np.array("[1]"))
    with pytest.raises(ValueError, match=r"expected a JSON object in the array 'provenance' .* got \[1\]"):
        read_embedding_file(tmp_path / "list.npz")
    np.savez(tmp_path / "nan.npz", embeddings=rows.numpy(), provenance=np.array('{"loss": NaN}'))
    with pytest.raises(ValueError, match=r"expected JSON in the array 'provenance' .* got NaN"):
        read_embedding_file(tmp_path / "nan.npz")
    np.savez(tmp_path / "short.npz", embeddings=rows.numpy(), labels=np.arange(4))
    with pytest.raises(ValueError, match=r"expected labels \[5\], one for each embedding, got \[4\]"):
        read_embedding_file(tmp_path / "short.npz")


def test_a_file_of_embeddings_has_labels_and_cameras_by_name(tmp_path):
    path, rows = tmp_path / "x.npz", np.zeros((3, 2), np.float32)
    names = {"label_names": np.array(["ada", "bob"]), "camera_names": np.array(["c1"])}
    np.savez(path, embeddings=rows, labels=[1, 0, 1], cameras=[0, 0, 0], **names)
    columns = {name: values.tolist() for name, values in read_embedding_file(path).metadata().items()}
    assert columns == {"label": ["bob", "ada", "bob"], "camera": ["c1", "c1", "c1"]}
    np.savez(path, embeddings=rows, cameras=[4, 2, 4])
    assert read_embedding_file(path).metadata()["camera"].tolist() == [4, 2, 4]
    np.savez(path, embeddings=rows[:0], labels=np.zeros(0, int), label_names=names["label_names"])
    assert read_embedding_file(path).metadata()["label"].tolist() == []
    for own in (["a", "b", "a"], [b"a", b"b", b"a"]):
        np.savez(path, embeddings=rows, labels=own, label_names=names["label_names"])
        assert read_embedding_file(path).metadata()["label"].tolist() == ["a", "b", "a"]
    np.savez(path, embeddings=rows, labels=[b"a", b"\xff", b"c"])
    with pytest.raises(ValueError, match=r"labels: expected text in UTF-8, got b'\\xff'"):
        read_embedding_file(path).metadata()
    texts = {"ids": [b"x", b"y", b"z"], "label_names": [b"ada", b"bob"], "camera_names": [b"c1"]}
    np.savez(path, embeddings=rows, labels=[1, 0, 1], cameras=[0, 0, 0], **texts)
    found = read_embedding_file(path)
    assert found.ids == ["x", "y", "z"] and found.metadata()["label"].tolist() == ["bob", "ada", "bob"]
    np.savez(path, embeddings=rows[:0], labels=np.zeros(0, int), label_names=np.array("ada"))
    with pytest.raises(ValueError, match=r"label_names: expected an array \[n\], got \[\]"):
        read_embedding_file(path).metadata()
    for wrong in ([0, 1, 2], [-1, 0, 0]):
        np.savez(path, embeddings=rows, labels=wrong, label_names=names["label_names"])
        with pytest.raises(ValueError, match=r"labels: expected indices into the array label_names \[2\]"):
            read_embedding_file(path).metadata()


def test_embedding_uses_eval_mode_with_any_batch_size(glyphs):
    backbone = build_backbone("small", 4).train()
    images = glyphs.take(torch.arange(10))
    rows = embed_images(backbone, images, batch=3, progress=False)
    assert backbone.training and rows.dtype == torch.float32 and not rows.requires_grad
    torch.testing.assert_close(rows, embed_images(backbone, images, progress=False))
    with torch.no_grad():
        torch.testing.assert_close(rows, backbone.eval()(images.images / 255))


def test_progress_bar_has_the_given_title(glyphs, monkeypatch, capsys):
    monkeypatch.setattr("sys.stderr.isatty", lambda: True, raising=False)
    train(replace(CONFIG, steps=1), glyphs, progress="plain L1")
    assert "train plain L1:" in capsys.readouterr().err
