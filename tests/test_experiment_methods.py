"""The methods that the experiments compare: losses on a matrix of scores, camera pairs, batches, whitening."""

from dataclasses import replace
from functools import partial

import pytest
import torch
from dissim_retrieval import demo
from dissim_retrieval.data import ImageSet
from dissim_retrieval.evaluation import cosine, retrieval_metrics
from dissim_retrieval.evidence import tuned_settings
from dissim_retrieval.head import DissimilarityHead
from dissim_retrieval.losses import HingeLoss, NCALoss, SoftMarginLoss
from dissim_retrieval.train import TrainConfig
from dissim_retrieval.whitening import within_class_whitening
from synthetic_features import GROUP, synthetic

from bench.experiments import camera_pairs, factors, frozen, joint, runner, score_matrix, similar_identities
from bench.experiments.plan import Group
from bench.experiments.tuning import settings_to_try


@pytest.mark.parametrize(
    ("on_matrix", "ours"),
    [
        (score_matrix.hinge, HingeLoss),
        (partial(score_matrix.log_sum_exp, alpha=2.0, beta=7.0), partial(SoftMarginLoss, alpha=2.0, beta=7.0)),
        (score_matrix.softmax, partial(NCALoss, scale=1.0)),
    ],
    ids=["hinge", "log-sum-exp", "softmax"],
)
def test_losses_on_a_score_matrix_are_those_of_the_library(on_matrix, ours):
    """So the cosine is compared under the same losses. One identity has one row, thus no positive."""
    draw = torch.Generator().manual_seed(0)
    rows = torch.randn(9, 6, generator=draw, dtype=torch.float64)
    labels = torch.tensor([0, 0, 1, 1, 1, 2, 2, 3, 4])
    head = DissimilarityHead(6, scale=2.0).double()
    found = score_matrix.ScoreMatrixLoss(head, on_matrix)(rows, labels)
    torch.testing.assert_close(found, ours(head)(rows, labels))


def test_cosine_score_of_equal_rows_is_the_bias():
    score = score_matrix.CosineScore(scale=3.0, initial_bias=0.5)
    rows = torch.tensor([[2.0, 0.0], [0.0, 1.0]])
    torch.testing.assert_close(score(rows, rows).detach(), torch.tensor([[0.5, -2.5], [-2.5, 0.5]]))


def test_every_joint_loss_has_a_gradient_and_every_factor_a_setting():
    rows = torch.nn.functional.normalize(torch.randn(12, 4, generator=torch.Generator().manual_seed(0)), dim=1)
    labels = torch.arange(6).repeat(2)
    for loss, space in joint.SPACES.items():
        for score in joint.SCORES:
            settings = settings_to_try(space, 1)[0]
            embeddings = rows.clone().requires_grad_()
            built = joint.build_loss(loss, score, 4, settings)
            built(embeddings, labels).backward()
            assert embeddings.grad.isfinite().all() and embeddings.grad.abs().sum() > 0
            heads = [module for module in built.modules() if isinstance(module, DissimilarityHead)]
            assert [(head.learn_weight, head.sign) for head in heads] == {
                "w": [(True, "free")], "w <= 0": [(True, "negative")], "L1": [(False, "free")], "cosine": [],
            }[score]  # fmt: skip
    configs = [joint.base_config(GROUP, 0, **changes) for changes in factors.CHANGES.values()]
    assert len({str(config) for config in configs}) == len(configs)


def test_classifier_of_camera_pairs_is_the_shared_one_plus_an_addend():
    head = DissimilarityHead(3, normalize=False)
    score = camera_pairs.CameraPairHead(head, 3)
    rows = torch.randn(6, 3, generator=torch.Generator().manual_seed(0))
    cameras = torch.tensor([0, 1, 2, 0, 1, 2])
    with_cameras = torch.cat([rows, cameras[:, None].float()], 1)
    torch.testing.assert_close(score(with_cameras, with_cameras), head(rows, rows))
    with torch.no_grad():
        score.weight[0, 2] = torch.tensor([1.0, 0.0, 0.0])
        score.bias[0, 2] = 0.5
    pair = (cameras[:, None] - cameras).abs() == 2  # in both orders
    expected = head(rows, rows) + pair * ((rows[:, None, 0] - rows[:, 0]).abs() + 0.5)
    torch.testing.assert_close(score(with_cameras, with_cameras), expected)
    assert score.penalty().item() == 1.25
    loss = camera_pairs.CameraPairLoss(score, shrinkage=2.0)
    labels = torch.tensor([0, 0, 0, 1, 1, 1])
    plain = score_matrix.ScoreMatrixLoss(score, score_matrix.softmax)(with_cameras, labels)
    torch.testing.assert_close(loss(with_cameras, labels), plain + 2.5)
    loss(with_cameras, labels).backward()
    assert (score.weight.grad.abs().sum(2) > 0).tolist() == [[True] * 3, [False, True, True], [False, False, True]]


def test_cosine_with_a_bias_of_camera_pairs():
    score = camera_pairs.CameraPairCosine(2.0, 2)
    rows = torch.tensor([[3.0, 0.0, 0], [0.0, 1.0, 1], [1.0, 0.0, 1]])
    with torch.no_grad():
        score.bias[:] = torch.tensor([[0.5, 1.0], [2.0, 0.0]])  # 1 for the pair (0, 0), 3 for (0, 1), 0 for (1, 1)
    expected = torch.tensor([[4.0, 6.0, 8.0], [6.0, 2.0, 0.0], [8.0, 0.0, 2.0]])
    torch.testing.assert_close(score(rows, rows).detach(), expected)
    assert score.penalty().item() == 1 + 9


@pytest.mark.parametrize("name", [name for name in frozen.CAMERA_METHODS if "pairs" in name])
def test_scores_of_camera_pairs_lower_images_of_the_query_s_camera(name):
    """No image with the query's camera is a match here, so a bias of that pair must become lower than the other."""
    method, content = frozen.CAMERA_METHODS[name], synthetic()
    settings = settings_to_try(method.space, 1)[0] | {"dims": 4, "pair_shrinkage": 1e-6}
    score = method.fit(replace(GROUP, steps=10), content, settings, 0).scorer
    rows = torch.tensor([[1.0, 2.0, 0.0, 1.0, camera] for camera in (0, 1)])
    same, other = score(rows, rows)[0].tolist()
    assert same < other - 0.01


def test_similar_identities_are_the_first_by_the_score():
    rows = torch.tensor([[0.0], [1.0], [3.0], [7.0]])
    found = similar_identities.nearest_by_score(rows, lambda q, r: -(q - r.T).abs(), 3)
    assert [set(row) for row in found.tolist()] == [{0, 1, 2}, {1, 0, 2}, {2, 1, 0}, {3, 2, 1}]
    assert found[:, 0].tolist() == [0, 1, 2, 3]


def test_training_on_similar_identities_learns():
    draw = torch.Generator().manual_seed(0)
    labels = torch.arange(8).repeat(4)
    patterns = torch.randint(0, 256, (8, 3, 16, 16), generator=draw)
    noise = torch.randint(-60, 60, (32, 3, 16, 16), generator=draw)
    pixels = (patterns[labels] + noise).clamp(0, 255).to(torch.uint8)
    images = ImageSet(pixels, labels, labels * 0, list("abcdefgh"), ["c"], "")
    group = replace(GROUP, backbone="small", steps=6)
    config = replace(joint.base_config(group, 0), identities=3)
    rows = torch.arange(32)
    found = []
    for steps in (6, 6, 1):
        fitted = similar_identities.fit_on_similar_identities(replace(config, steps=steps), images)
        found.append(fitted.embed(images))
    assert torch.equal(found[0], found[1]) and not torch.equal(found[0], found[2])
    metrics = retrieval_metrics(found[0], found[0], fitted.scorer, labels, labels, exclude_index=rows)
    assert metrics["recall@1"] > 0.5


def test_centering_removes_what_images_of_a_camera_have_in_common():
    content = synthetic()
    method, draw = frozen.CAMERA_METHODS["projection, w, cameras centered"], torch.Generator().manual_seed(0)
    shifted = replace(content, rows=content.rows + torch.randn(2, 12, generator=draw)[content.cameras])
    settings = settings_to_try(method.space, 1)[0] | {"dims": 4}
    embedded = [method.fit(GROUP, one, settings, 0).embed(one) for one in (content, shifted)]
    torch.testing.assert_close(*embedded, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(("shrinkage", "dims"), [(0.3, 12), (1e-9, 5)])
def test_whitening_is_scikit_learn_s_linear_discriminant_analysis(shrinkage, dims):
    """Shrinkage s of scikit-learn is (1 - s) C + s m I, ours C + s / (1 - s) m I: the same map up to its scale.

    With fewer dimensions than there are, only without shrinkage, because scikit-learn shrinks the covariance between
    classes, too.
    """
    analysis = pytest.importorskip("sklearn.discriminant_analysis")
    content = synthetic(cameras=3, names="abc")
    rows = content.rows.double() - content.rows.double().mean(0)  # its transform does not center
    lda = analysis.LinearDiscriminantAnalysis(solver="eigen", shrinkage=shrinkage, n_components=dims)
    theirs = torch.from_numpy(lda.fit(rows.numpy(), content.labels.numpy()).transform(rows.numpy()))
    ours = within_class_whitening(rows, content.labels, shrinkage / (1 - shrinkage)).top(dims)(rows)
    torch.testing.assert_close(cosine(ours, ours), cosine(theirs, theirs), atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("whiten", [False, True])
def test_pca_is_that_of_scikit_learn(whiten):
    decomposition = pytest.importorskip("sklearn.decomposition")
    content = synthetic()
    rows = content.rows.double()
    settings = {"dims": 5, "shrinkage": 0.0}
    ours = frozen._fit_pca(GROUP, content, settings, 0, whiten).embed(content)
    theirs = decomposition.PCA(5, whiten=whiten, svd_solver="full").fit_transform(rows.numpy())
    theirs = torch.from_numpy(theirs).float()
    torch.testing.assert_close(cosine(ours, ours), cosine(theirs, theirs), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", joint.IN_DEMO)
def test_the_demo_trains_as_its_experiment(name):
    """From the same settings, with the same images, batches and seed: the same embeddings and scores, bit by bit."""
    draw = torch.Generator().manual_seed(0)
    labels = torch.arange(66).repeat_interleave(2)
    pixels = torch.randint(256, (132, 3, 16, 16), generator=draw, dtype=torch.uint8)
    images = ImageSet(pixels, labels, labels * 0, [str(i) for i in range(66)], ["c"], "")
    training = TrainConfig(backbone="small", steps=2, identities=64, flip=0.0)
    found, scorer, _ = demo._train_and_embed(
        joint.IN_DEMO[name], 0, training=training, seen=images, unseen=images, threads=torch.get_num_threads()
    )
    group = Group("demo", "demo", "emoji", "small", 16, steps=2, dim=512)
    fitted = runner.METHODS["demo"][name].fit(group, images, tuned_settings(joint.IN_DEMO[name]), 0)
    rows = fitted.embed(images)
    assert torch.equal(found, rows) and torch.equal(scorer(found, found), fitted.scorer(rows, rows))


def test_multi_similarity_of_the_demo_has_its_settings():
    loss = demo.multi_similarity({"alpha": 2.0, "beta": 3.0, "base": 0.25}).loss
    assert (loss.alpha, loss.beta, loss.base) == (2.0, 3.0, 0.25)
