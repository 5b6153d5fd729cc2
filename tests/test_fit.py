"""fit_head on stored embeddings: it learns, says how well, is deterministic; errors name the argument."""

import copy
import json
from dataclasses import asdict, replace
from typing import get_args, get_type_hints

import numpy as np
import pytest
import torch
from dissim_retrieval import DissimilarityHead, DissimilarityIndex, TrainConfig, retrieval_metrics
from dissim_retrieval.cli.fit import fit
from dissim_retrieval.embedding_file import read_features
from dissim_retrieval.evaluation import cosine
from dissim_retrieval.fit import LOSSES, fit_head, optimize
from dissim_retrieval.fit.identities import draw_batches, draw_parts
from dissim_retrieval.fit.start import (
    CHOICE_BATCH,
    DEFAULT_SHRINKAGE,
    LARGE_SHRINKAGE,
    POSITIVE_SHARE,
    Start,
    _starts,
    choose_start,
)
from dissim_retrieval.fit.training import Training
from dissim_retrieval.held_out import Comparison, average_precisions, check_held_out
from dissim_retrieval.projected import ProjectedHead
from dissim_retrieval.whitening import SHRINKAGES, within_class_whitening
from safetensors import safe_open
from safetensors.torch import save_file


def features(identities=60, rows=4, dim=48, informative=8, noise=3.0, seed=0):
    """Identities that differ in a few directions, with more noise in all others. Cosine sees mainly the noise."""
    draw = torch.Generator().manual_seed(seed)
    labels = torch.arange(identities).repeat_interleave(rows)
    signal = torch.randn(identities, informative, generator=draw)[labels]
    deviation = torch.tensor([0.3] * informative + [noise] * (dim - informative))
    within = torch.randn(len(labels), dim, generator=draw) * deviation
    within[:, :informative] += signal
    mixed = torch.linalg.qr(torch.randn(dim, dim, generator=draw)).Q
    return within @ mixed, labels


@pytest.fixture(scope="module")
def fitted():
    return fit_head(*features(), projection=16, steps=15)


def test_it_beats_cosine_on_held_out_identities_and_says_so(fitted):
    check = fitted.check
    assert check.identities == 12 and check.embeddings == 48
    assert check.mAP > check.baselines["cosine"].mAP + 0.2 and check.baselines["cosine"].beaten
    text = f"mAP {check.mAP:.3f} on 12 held-out identities: +{check.baselines['cosine'].gain:.3f} (standard error "
    assert str(check).startswith(text)


def test_it_does_not_claim_to_beat_what_is_as_good():
    """Isotropic noise: there is nothing to learn, so no gain may be called one."""
    rows, labels = features(informative=48)
    check = fit_head(rows, labels, projection=48, steps=5).check
    assert not check.baselines["cosine"].beaten and not check.baselines["whitening"].beaten
    assert "not clearly better" in str(check)


@pytest.mark.parametrize("loss", LOSSES)
def test_every_loss_improves_on_the_untrained_projection(loss, monkeypatch):
    """The start hardly whitens, so there is much to learn."""
    monkeypatch.setattr(
        "dissim_retrieval.fit.head.choose_start",
        lambda rows, identity, training, progress: Start(100.0, training),
    )
    rows, labels = features(identities=100, noise=1.0)
    new = labels >= 75
    options = {"projection": 16, "loss": loss, "lr": 1e-2, "held_out": 0}
    scorers = [fit_head(rows[~new], labels[~new], steps=steps, **options) for steps in (1, 20)]
    untrained, trained = (average_precisions(scorer, rows[new], labels[new]).mean().item() for scorer in scorers)
    assert trained > untrained + 0.1 and scorers[0].check is None


def test_check_is_what_the_metrics_measure(fitted):
    """The means over identities are those over queries here, because all have four rows."""
    rows, labels = features()
    held_out = torch.isin(labels, labels[::4][torch.randperm(60, generator=torch.Generator().manual_seed(0))[:12]])
    rows, labels = rows[held_out], labels[held_out]
    itself = torch.arange(len(rows))
    for scorer, expected in ((fitted, fitted.check.mAP), (cosine, fitted.check.baselines["cosine"].mAP)):
        found = retrieval_metrics(rows, rows, scorer, labels, labels, exclude_index=itself)["mAP"]
        assert found == pytest.approx(expected, abs=1e-12)


def test_standard_error_is_that_of_the_gain_over_identities():
    rows, labels = features(noise=1.0)
    fitted_rows = labels < 30
    parts = fitted_rows, ~fitted_rows
    check = check_held_out(cosine, rows, labels, *parts, 16)
    assert check.mAP == check.baselines["cosine"].mAP
    assert check.baselines["cosine"].gain == 0 == check.baselines["cosine"].standard_error
    gains = average_precisions(cosine, rows[~fitted_rows], labels[~fitted_rows]) - average_precisions(
        lambda q, r: -cosine(q, r), rows[~fitted_rows], labels[~fitted_rows]
    )
    worse = check_held_out(lambda q, r: -cosine(q, r), rows, labels, *parts, 16).baselines["cosine"]
    assert worse.gain == pytest.approx(-gains.mean().item())
    assert worse.standard_error == pytest.approx(gains.std().item() / 30**0.5) and not worse.beaten
    assert [Comparison(0.5, gain, 0.1).verdict for gain in (-0.3, -0.1, 0.1, 0.3)] == [
        "worse", "not clearly better", "not clearly better", "better",
    ]  # fmt: skip
    assert Comparison(0.5, -0.3, None).verdict == "not clearly better"


def test_one_held_out_identity_with_pairs_has_no_standard_error():
    """JSON has no infinity."""
    rows, labels = features()
    held_out = (labels == 1) | (torch.arange(len(labels)) == 0)
    check = check_held_out(lambda q, r: -torch.cdist(q, r), rows, labels, labels > 1, held_out, 16)
    one = check.baselines["cosine"]
    assert one.standard_error is None and not one.beaten and "standard error unknown" in str(check)
    assert json.loads(json.dumps(asdict(check), allow_nan=False))["baselines"]["cosine"]["standard_error"] is None


def test_whitening_has_unit_covariance_within_identities():
    rows, labels = features(identities=200)
    white = within_class_whitening(rows.double(), labels, shrinkage=1e-12)(rows.double())
    centers = torch.stack([white[labels == label].mean(0) for label in labels.unique()])
    within = white - centers[labels]
    torch.testing.assert_close(within.T @ within / len(rows), torch.eye(48).double(), atol=1e-6, rtol=1e-6)
    fewer = within_class_whitening(rows.double(), labels, shrinkage=1e-12).top(8)(rows.double())
    torch.testing.assert_close(torch.linalg.svdvals(fewer), torch.linalg.svdvals(white - white.mean(0))[:8])


@pytest.mark.parametrize("copies", [2, 3])
def test_identities_of_equal_rows_are_fitted(copies):
    draw = torch.Generator().manual_seed(0)
    rows, labels = torch.randn(30, 12, generator=draw).repeat_interleave(copies, 0), torch.arange(30)
    labels = labels.repeat_interleave(copies)
    assert within_class_whitening(rows, labels, 0.01).matrix.isfinite().all()
    found = fit_head(rows, labels, held_out=0, steps=5)(rows, rows)
    assert found.isfinite().all() and (found[:, 0].argsort()[-copies:] < copies).all()


@pytest.mark.parametrize("steps", range(1, 9))
def test_any_number_of_steps_is_trained(steps):
    fitted = fit_head(*features(identities=20), projection=4, held_out=0, steps=steps)
    assert fitted.projection.isfinite().all()


def test_options_of_the_head_are_used_and_saved(tmp_path):
    rows, labels = features()
    plain = fit_head(rows, labels, projection=16, steps=15, head={"learn_weight": False})
    assert plain.head.weight.unique().tolist() == pytest.approx([-0.25]) and plain.check.baselines["cosine"].beaten
    plain.save(tmp_path / "plain")
    assert not ProjectedHead.load(tmp_path / "plain").head.learn_weight


def test_same_seed_same_result_and_torch_s_generator_is_untouched(fitted):
    torch.manual_seed(5)
    state = torch.get_rng_state()
    again, other = (fit_head(*features(), projection=16, steps=15, seed=seed) for seed in (0, 1))
    assert torch.equal(torch.get_rng_state(), state)
    assert all(map(torch.equal, fitted.state_dict().values(), again.state_dict().values()))
    assert fitted.check == again.check != other.check
    assert not torch.equal(fitted.projection, other.projection)


@pytest.mark.parametrize("convert", [
    lambda rows, labels: (rows.numpy().astype(np.float64), labels.numpy().astype(np.int32)),
    lambda rows, labels: (rows.tolist(), labels.tolist()),
    lambda rows, labels: (rows, [f"{label:03d}" for label in labels.tolist()]),
    lambda rows, labels: (rows.requires_grad_(), labels + 2**40),
], ids=["arrays", "lists", "names", "large labels"])  # fmt: skip
def test_arrays_lists_and_names_give_what_tensors_give(fitted, convert):
    found = fit_head(*convert(*features()), projection=16, steps=15)
    assert torch.equal(found.projection, fitted.projection)


def test_half_precision_is_fitted_in_float32():
    rows, labels = features()
    found, expected = (fit_head(x, labels, projection=16, steps=3) for x in (rows.half(), rows.half().float()))
    assert found.projection.dtype == torch.float32 and torch.equal(found.projection, expected.projection)
    assert found(rows[:2].half(), rows.half()).isfinite().all()


def test_saved_and_loaded(fitted, tmp_path):
    fitted.save(tmp_path / "head.safetensors")
    loaded = ProjectedHead.load(tmp_path / "head.safetensors")
    rows, _ = features()
    assert torch.equal(loaded(rows, rows), fitted(rows, rows)) and loaded.check == fitted.check
    assert loaded.head.options() == fitted.head.options()
    assert torch.equal(loaded(rows.numpy(), rows.tolist()), fitted(rows, rows))


def test_projected_rows_can_be_searched(fitted):
    rows, _ = features()
    index = DissimilarityIndex(fitted.head)
    index.add(fitted.project(rows), torch.arange(len(rows)))
    found = index.search(fitted.project(rows), 3)
    expected = fitted(rows, rows).topk(3)
    torch.testing.assert_close(found.scores, expected.values)


def test_damaged_and_other_files_are_named(fitted, tmp_path):
    path = tmp_path / "head.safetensors"
    fitted.save(path)
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(
        ValueError, match=r"path: expected a file written by ProjectedHead.save, got .*head.safetensors"
    ):
        ProjectedHead.load(path)
    save_file({"x": torch.zeros(1)}, path)
    with pytest.raises(ValueError, match=r"head.safetensors of format None"):
        ProjectedHead.load(path)


@pytest.mark.parametrize(
    ("tensors", "metadata", "reason"),
    [
        ({"mean": None}, {}, "it has no 'mean'"),
        ({"mean": torch.zeros(5)}, {}, r"mean: expected shape \[48\], got \[5\]"),
        ({"projection": torch.zeros(48)}, {}, r"projection: expected shape \[D, dim\], got \[48\]"),
        ({"head.weight": torch.zeros(3)}, {}, r"head.weight: expected shape \[16\], got \[3\]"),
        ({"head.weight": torch.zeros(())}, {}, "0-d tensor"),
        ({"head.bias": torch.zeros(2)}, {}, "size mismatch for head.bias"),
        ({}, {"head": None}, "it has no 'head'"),
        ({}, {"head": "{"}, "Expecting property name"),
        ({}, {"head": '{"size": 3}'}, "'size'"),
        ({}, {"check": "[]"}, "not a mapping"),
        ({}, {"check": '{"baselines": 1}'}, "no attribute 'items'"),
        ({}, {"provenance": "[]"}, "provenance: expected a dict, got list"),
    ],
)
def test_a_file_with_other_content_is_named_with_the_reason(fitted, tmp_path, tensors, metadata, reason):
    path = tmp_path / "head.safetensors"
    fitted.save(path)
    with safe_open(path, "pt") as file:
        found = {name: file.get_tensor(name) for name in file.keys()} | tensors  # noqa: SIM118 (it is no dict)
        facts = file.metadata() | metadata
    kept = [{name: value for name, value in one.items() if value is not None} for one in (found, facts)]
    save_file(kept[0], path, metadata=kept[1])
    with pytest.raises(ValueError, match=rf"path: expected .*head\.safetensors, which is damaged: .*{reason}"):
        ProjectedHead.load(path)


def test_a_folder_is_no_fitted_head(tmp_path):
    with pytest.raises(ValueError, match=r"path: expected a file written by ProjectedHead\.save, got .*, a folder\."):
        ProjectedHead.load(tmp_path)


def test_provenance_that_is_no_json_cannot_be_saved(fitted, tmp_path):
    other = copy.deepcopy(fitted)
    other.provenance = {"rows": torch.ones(2)}
    with pytest.raises(TypeError, match="provenance: expected a dict that fits in JSON"):
        other.save(tmp_path / "head.safetensors")
    assert not list(tmp_path.iterdir())


TRAINING = Training(projection=8, loss="softmax", steps=2, lr=1e-2, batch=5000, seed=0)


def test_few_identities_are_fitted_with_the_default_shrinkage():
    rows, labels = features(identities=3)
    assert choose_start(rows, labels, TRAINING) == (DEFAULT_SHRINKAGE, TRAINING)
    assert fit_head(rows, labels, held_out=0, steps=2)(rows, rows).isfinite().all()


@pytest.mark.parametrize("best", [0, 1, 2])
def test_the_start_is_that_of_the_best_result(best, monkeypatch):
    """All are trained on the same identities, in small batches, and rank the others."""
    rows, labels = features()
    fits = []

    def scorer(query, reference):
        found = [labels[torch.cdist(part, rows).argmin(1)] for part in (query, reference)]
        return (found[0][:, None] == found[1]).float()

    def fit(training, rows, identity, shrinkage, progress):
        fits.append((rows, Start(shrinkage, training)))
        return scorer if len(fits) == 1 + best else lambda query, reference: -scorer(query, reference)

    monkeypatch.setattr(Training, "fit", fit)
    chosen = choose_start(rows, labels, TRAINING)
    starts = [start for _, start in fits]
    assert chosen == starts[best]._replace(training=replace(starts[best].training, batch=TRAINING.batch))
    assert [one.training.head for one in starts] == [{}, {}, {"positive_share": POSITIVE_SHARE}]
    assert starts[0].shrinkage in SHRINKAGES
    assert starts[1].shrinkage == starts[2].shrinkage == LARGE_SHRINKAGE != starts[0].shrinkage
    assert {one.training.batch for one in starts} == {CHOICE_BATCH}
    assert all(torch.equal(part, fits[0][0]) and len(part) == 48 * 4 for part, _ in fits)


def test_a_start_from_which_training_diverges_is_not_chosen(monkeypatch):
    trained = Training.fit

    def fit(training, rows, identity, shrinkage, progress=None):
        if shrinkage == LARGE_SHRINKAGE:
            raise FloatingPointError("fit: expected a finite loss")
        return trained(training, rows, identity, shrinkage)

    monkeypatch.setattr(Training, "fit", fit)
    chosen = choose_start(*features(), TRAINING)
    assert chosen.training == TRAINING and chosen.shrinkage in set(SHRINKAGES) - {LARGE_SHRINKAGE}


@pytest.mark.parametrize("head", [{"sign": "negative"}, {"learn_weight": False}, {"positive_share": 0.5}])
def test_options_that_determine_the_signs_leave_the_shrinkage_to_choose(head):
    assert [(one.shrinkage, one.training.head) for one in _starts(0.1, replace(TRAINING, head=head))] == [
        (0.1, head), (LARGE_SHRINKAGE, head),
    ]  # fmt: skip
    assert len(_starts(LARGE_SHRINKAGE, replace(TRAINING, head=head))) == 1
    rows, labels = features()
    fitted = fit_head(rows, labels, projection=16, steps=2, held_out=0, head=head)
    assert fitted.head.positive_share == head.get("positive_share", 0)


def test_at_most_5000_rows_are_held_out():
    labels = torch.arange(40_000) // 4
    fitted, checked = draw_parts(labels, 0.2, torch.Generator().manual_seed(0))
    assert checked.sum() == 5000 and torch.equal(fitted, ~checked)
    assert not torch.isin(labels[fitted], labels[checked]).any()


@pytest.mark.parametrize("small", [9, 1500])
def test_two_identities_with_more_rows_than_a_limit_have_half_of_it_each(small):
    """At most 5,000 rows are held out; a batch has 100. The rows are random."""
    labels = torch.arange(3).repeat_interleave(torch.tensor([small, 4000, 4000]))
    fitted, checked = draw_parts(labels, 0.7, torch.Generator().manual_seed(0))
    count = sorted(torch.bincount(labels[checked], minlength=3).tolist())
    whole, capped = [0, 9, 4000], [0, min(small, 2500), 2500]
    assert count in (whole if small == 9 else capped, [0, 2500, 2500])
    assert not torch.isin(labels[fitted], labels[checked]).any()
    batches = list(draw_batches(labels, 100, 6, torch.Generator().manual_seed(0)))
    assert len({tuple(rows.tolist()) for rows in batches}) == 6
    for rows in batches:
        drawn = torch.bincount(labels[rows], minlength=3).tolist()
        assert sorted(drawn) in ([0, 50, 50], [0, min(small, 50), 50]) and len(rows.unique()) == len(rows)


@pytest.mark.parametrize(
    ("steps", "message"), [(1, "finite parameters, got others after step 1"), (2, "a finite loss in step 2, got nan")]
)
def test_divergence_is_an_error_with_the_step(steps, message):
    """The derivative of the square root of 0 is not finite."""
    factor = torch.nn.Parameter(torch.zeros(48))
    with pytest.raises(FloatingPointError, match=f"fit: expected {message}. Lower lr"):
        optimize(
            lambda rows: rows * factor, lambda rows, labels: rows.abs().sqrt().sum(),
            [{"params": [factor], "lr": 0.1}], *features(), steps=steps, batch=300, draw=torch.Generator(),
        )  # fmt: skip


def test_large_sets_are_fitted_in_batches_of_whole_identities():
    labels = torch.randint(50, (400,), generator=torch.Generator().manual_seed(0))
    batches = [list(draw_batches(labels, 100, 8, torch.Generator().manual_seed(1))) for _ in range(2)]
    assert all(map(torch.equal, *batches))
    for rows in batches[0]:
        assert 50 < len(rows) <= 100 and len(rows.unique()) == len(rows)
        assert all((labels == label).sum() == (labels[rows] == label).sum() for label in labels[rows].unique())
    assert len({tuple(rows.tolist()) for rows in batches[0]}) == 8
    rows, labels = features()
    assert fit_head(rows, labels, projection=16, steps=25, batch=100).check.baselines["cosine"].beaten


GOOD = features(identities=20)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"embeddings": GOOD[0].clone().index_fill_(0, torch.tensor([7]), torch.nan)},
         "embeddings: expected finite numbers, got NaN or Inf in 1 of 80 rows, first in row 7"),
        ({"embeddings": torch.ones(80, 4)}, "embeddings: expected rows that differ, got 80 equal rows"),
        ({"embeddings": GOOD[0][0]}, r"embeddings: expected \[N, D\] with N and D above 0, got \[48\]"),
        ({"embeddings": GOOD[0][:0], "labels": []}, r"embeddings: expected \[N, D\] .* got \[0, 48\]"),
        ({"embeddings": [["a"]]}, "embeddings: expected a tensor, NumPy array or list of rows of numbers, got list"),
        ({"labels": GOOD[1][:3]}, r"labels: expected one for each of 80 embeddings, got shape \[3\]"),
        ({"labels": GOOD[1].double()}, "labels: expected integers or strings, got float64"),
        ({"labels": torch.zeros(80, dtype=torch.int64)}, "labels: expected two or more.* got 1 identities"),
        ({"labels": torch.arange(80)}, "labels: expected two or more identities.* with at most 1"),
        ({"held_out": 0.01}, "held_out: expected two or more .* got 20 and 0 of 20 identities with held_out=0.01"),
        ({"held_out": 1.0}, "held_out: expected a fraction from 0 to below 1, got 1.0"),
        ({"loss": "triplet"}, "loss: expected one of softmax, supcon, soft_margin, hinge, got 'triplet'"),
        ({"head": {"learn": False}}, "head: expected options of DissimilarityHead .constraint, .* got 'learn'"),
        ({"head": {"sign": "positive"}}, "sign: expected one of free, negative, got 'positive'"),
        ({"projection": 0}, "projection: expected at least 1, got 0"),
        ({"steps": 0}, "steps: expected at least 1, got 0"),
        ({"batch": 3}, "batch: expected at least 4, got 3"),
        ({"lr": float("nan")}, "lr: expected a positive finite number, got nan"),
        ({"lr": float("inf")}, "lr: expected a positive finite number, got inf"),
    ],
)  # fmt: skip
def test_errors_name_the_argument(change, message):
    with pytest.raises((TypeError, ValueError), match=message):
        fit_head(**({"embeddings": GOOD[0], "labels": GOOD[1]} | change))


def test_a_loss_has_the_same_name_everywhere():
    assert LOSSES.keys() <= set(get_args(get_type_hints(TrainConfig)["loss"]))
    assert set(LOSSES) == set(get_args(get_type_hints(fit)["loss"]))
    assert [type(build(DissimilarityHead(2))).__name__ for build in LOSSES.values()] == [
        "NCALoss", "SupConLoss", "SoftMarginLoss", "HingeLoss",
    ]  # fmt: skip


def test_rows_of_another_length_are_named(fitted):
    with pytest.raises(
        ValueError, match=r"embeddings: expected \[N, 48\], as the projection was fitted, got \[2, 5\]"
    ):
        fitted(torch.zeros(2, 5), torch.zeros(2, 48))


def test_features_are_read_from_npz_and_npy(tmp_path):
    rows, labels = (x.numpy() for x in GOOD)
    names = np.array([f"person {label}" for label in labels])
    np.savez(tmp_path / "both.npz", embeddings=rows, labels=labels, other=np.zeros(3))
    np.save(tmp_path / "rows.npy", rows)
    np.save(tmp_path / "labels.npy", labels)
    (tmp_path / "labels.txt").write_text("\n".join(names) + "\n")
    np.savez(tmp_path / "big-endian.npz", embeddings=rows.astype(">f4"), labels=labels.astype(">i8"))
    for arguments, expected in (
        (["both.npz"], labels), (["big-endian.npz"], labels), (["rows.npy", "labels.npy"], labels),
        (["rows.npy", "labels.txt"], names),
    ):  # fmt: skip
        found = read_features(*(tmp_path / name for name in arguments))
        assert np.array_equal(found[0].numpy(), rows) and np.array_equal(found[1], expected)


@pytest.mark.parametrize("ends", ["", "\n", "\r\n"])
def test_a_text_file_has_a_label_in_each_line(tmp_path, ends):
    np.save(tmp_path / "rows.npy", GOOD[0][:3].numpy())
    (tmp_path / "labels.txt").write_bytes(f"\ufeffada\r\nbob\u2028jr\nada{ends}".encode())
    assert read_features(tmp_path / "rows.npy", tmp_path / "labels.txt")[1].tolist() == ["ada", "bob\u2028jr", "ada"]
    (tmp_path / "labels.txt").write_bytes(b"")
    with pytest.raises(ValueError, match=r"one for each of the 3 rows .* got shape \[0\]"):
        read_features(tmp_path / "rows.npy", tmp_path / "labels.txt")


def test_every_changed_byte_of_a_compressed_file_is_read_or_named(tmp_path):
    path = tmp_path / "x.npz"
    np.savez_compressed(path, embeddings=np.zeros((4, 3), np.float32), labels=np.arange(4))
    content = path.read_bytes()
    for place in range(len(content)):
        path.write_bytes(content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :])
        try:
            read_features(path)
        except ValueError as error:
            assert str(path) in str(error) or str(error).startswith("labels: ")


def test_features_files_that_do_not_fit_are_named(tmp_path):
    rows, labels = (x.numpy() for x in GOOD)
    np.savez(tmp_path / "half.npz", embeddings=rows)
    np.savez(tmp_path / "both.npz", embeddings=rows, labels=labels)
    np.savez(tmp_path / "other.npz", rows=rows)
    np.savez(tmp_path / "ints.npz", embeddings=rows.astype(int), labels=labels)
    np.savez(tmp_path / "short.npz", embeddings=rows, labels=labels[:5])
    np.savez(tmp_path / "objects.npz", embeddings=rows, labels=np.array([{}] * 80))
    np.save(tmp_path / "rows.npy", rows)
    header = (tmp_path / "rows.npy").read_bytes()
    (tmp_path / "header.npy").write_bytes(header.replace(b"(80, 48)", b"(80) 48)"))
    for name, length in (("memory.npy", 10**13), ("overflow.npy", 10**22)):
        with open(tmp_path / name, "wb") as file:
            header_of = {"descr": "<f4", "fortran_order": False, "shape": (length, 48)}
            np.lib.format.write_array_header_1_0(file, header_of)
    (tmp_path / "type.npy").write_bytes(header.replace(b"<f4", b"<,4"))
    (tmp_path / "cut.npz").write_bytes((tmp_path / "half.npz").read_bytes()[:300])
    for arguments, message in (
        (["half.npz"], "labels: expected a file with the label of each row of .*half.npz, got None, and .*half.npz"
         " has no array 'labels'"),
        (["ints.npz", "rows.npy"], r"path: expected embeddings \[N, D\] of floats in .*ints.npz"),
        (["both.npz", "rows.npy"], "labels: expected None with .*both.npz, which has labels"),
        (["other.npz"], "path: expected an array 'embeddings' in .*other.npz, got rows"),
        (["rows.npy", "rows.npy"], r"labels: expected one for each of the 80 rows of .*rows.npy, got shape \[80,"),
        (["ints.npz"], r"path: expected embeddings \[N, D\] of floats in .*ints.npz, got int64 \[80, 48\]. .*astype"),
        (["short.npz"], r"path: expected labels \[80\], one for each embedding, got \[5\] in .*short.npz"),
        (["objects.npz"], "path: expected an .npz or .npy file of numbers and text, got .*objects.npz"),
        (["cut.npz"], "path: expected an .npz or .npy file of numbers and text, got .*cut.npz"),
        (["header.npy"], "path: expected an .npz or .npy file of numbers and text, got .*header.npy"),
        (["memory.npy"], "path: expected an .npz or .npy file of numbers and text, got .*memory.npy"),
        (["overflow.npy"], "path: expected an .npz or .npy file of numbers and text, got .*overflow.npy"),
        (["type.npy"], "path: expected an .npz or .npy file of numbers and text, got .*type.npy"),
        (["rows.npy"], "labels: expected a file with the label of each row of .*rows.npy, got None"),
        (["rows.npy", "half.npz"], "labels: expected an .npy file, or text in UTF-8, got .*half.npz"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=message):
            read_features(*(tmp_path / name for name in arguments))
