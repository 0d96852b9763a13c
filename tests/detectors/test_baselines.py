"""The baselines: the gather against slices, the scores against the official formulas by loops."""

import numpy as np
import pytest
import torch
from sizes import Context, detector_of, fit
from torch import nn

from asdlib import errors, features
from asdlib.data.store import Clips
from asdlib.detectors import base
from asdlib.detectors.autoencoder import Autoencoder
from asdlib.detectors.autoencoder_training import fold_of
from asdlib.detectors.nearest import NearestNeighbor
from asdlib.models import autoencoder
from asdlib.models.autoencoder import Vectors
from asdlib.studies import config

SETTINGS = autoencoder.AutoencoderSettings(epochs=2, n_mels=16, hidden=12, bottleneck=4)


def test_the_official_network_has_its_number_of_parameters():
    net = autoencoder.Autoencoder(autoencoder.AutoencoderSettings())
    assert sum(p.numel() for p in net.parameters()) == 267_928
    assert {(m.momentum, m.eps) for m in net.modules() if isinstance(m, nn.BatchNorm1d)} == {
        (0.01, 1e-3)
    }  # Keras' defaults


def test_vectors_are_five_frames_in_a_row_of_one_clip():
    parts = [torch.randn(n, 3) for n in (7, 5, 9)]
    vectors = Vectors(torch.cat(parts), [7, 5, 9], 5)
    expected = torch.stack([part[i : i + 5].reshape(-1) for part in parts for i in range(len(part) - 4)])
    assert len(vectors) == 9 and vectors.clip.tolist() == [0] * 3 + [1] + [2] * 5
    torch.testing.assert_close(vectors[torch.arange(9)], expected)
    with pytest.raises(errors.InputError, match="shortest clip has 4 frames, expected at least 5"):
        Vectors(torch.zeros(9, 3), [5, 4], 5)


def test_tones_that_moved_are_anomalous(context):
    table = base.detect(detector_of(NearestNeighbor, context), context.store, ["saw"])
    test = table[table["split"] == "test"]
    assert (
        test.loc[test["label"] == "anomaly", "score"].min()
        > test.loc[test["label"] == "normal", "score"].max()
    )


def test_nearest_neighbor_scores_by_loops(context):
    train = base.machine_rows(context.store.clips, "pump", "train")
    detector = detector_of(NearestNeighbor, context)
    fit(detector, context.store, train)
    x = detector.train.astype(np.float64)
    expected = []
    for i in range(len(x)):
        others = np.delete(x, i, axis=0)
        distance = np.sqrt((((others - x[i]) / others.std(0)) ** 2).sum(1))
        expected.append(np.sort(distance)[:2].mean())
    np.testing.assert_allclose(detector.training_components()["baseline_knn", "score"], expected, rtol=1e-5)
    test = base.machine_rows(context.store.clips, "pump", "test")[:1]
    distance = np.sqrt((((x - detector.embed(Clips(detector.store, test))[0]) / x.std(0)) ** 2).sum(1))
    np.testing.assert_allclose(
        detector.components(Clips(detector.store, test))["baseline_knn", "score"],
        [np.sort(distance)[:2].mean()],
        rtol=1e-4,
    )


def test_too_few_training_clips_for_k_are_refused(context):
    detector = detector_of(NearestNeighbor, context)
    fit(detector, context.store, base.machine_rows(context.store.clips, "pump", "train")[:2])
    with pytest.raises(
        errors.InputError, match=r"got 2 training clips, expected more than baseline_knn\.k = 2"
    ):
        detector.training_components()


def test_a_machine_without_training_clips_is_refused(context):
    with pytest.raises(errors.InputError, match="machine lathe has no usable training clip"):
        base.detect(detector_of(NearestNeighbor, context), context.store, ["lathe"])


def test_autoencoder_scores_equal_the_official_formulas_by_loops(context):
    rows = base.machine_rows(context.store.clips, "pump", "test")
    detector = detector_of(Autoencoder, context)
    fit(detector, context.store, base.machine_rows(context.store.clips, "pump", "train"))
    made = detector.components(Clips(detector.store, rows))
    for i in (0, 2, 7):
        mel = features.baseline_mel(context.store.audio(rows[i : i + 1]), n_mels=16)[0]
        x = torch.stack([mel[j : j + 5].reshape(-1) for j in range(len(mel) - 4)])
        with torch.no_grad():
            residual = (x - detector.net(x)).double().numpy()
        assert made["baseline_mse", "score"][i] == pytest.approx((residual**2).mean(), rel=1e-5)
        d = residual.reshape(-1, 16)
        forms = {name: (d @ matrix @ d.T).mean() for name, matrix in detector.precisions.items()}
        assert made["baseline_mahala", "score"][i] == pytest.approx(min(forms.values()), rel=1e-3)
        assert made["baseline_mahala", "target"][i] == pytest.approx(forms["pump/target"], rel=1e-3)


def test_the_per_frame_form_is_the_mean_of_per_frame_distances(context):
    cfg = config.StudySettings(autoencoder=SETTINGS.replace(mahala="per_frame"))
    context = Context(cfg, context.store, context.device)
    rows = base.machine_rows(context.store.clips, "pump", "test")[:2]
    detector = detector_of(Autoencoder, context)
    fit(detector, context.store, base.machine_rows(context.store.clips, "pump", "train"))
    mel = features.baseline_mel(context.store.audio(rows[:1]), n_mels=16)[0]
    x = torch.stack([mel[j : j + 5].reshape(-1) for j in range(len(mel) - 4)])
    with torch.no_grad():
        d = (x - detector.net(x)).double().numpy().reshape(-1, 16)
    expected = np.mean([row @ detector.precisions["pump/source"] @ row for row in d])
    assert detector.components(Clips(detector.store, rows))["baseline_mahala", "source"][0] == pytest.approx(
        expected, rel=1e-4
    )


def test_training_clips_are_scored_by_networks_that_never_saw_them(context):
    train = base.machine_rows(context.store.clips, "pump", "train")
    detector = detector_of(Autoencoder, context)
    fit(detector, context.store, train)
    by_fold = detector.training_components()
    first = np.flatnonzero(detector.fold == 0)
    net, precisions, _ = detector.by_fold[0]
    of_fold = detector._score(net, precisions, train)["baseline_mse", "score"]
    own = detector.components(Clips(detector.store, train))["baseline_mse", "score"]
    ratio = np.median(np.delete(own, first)) / np.median(np.delete(of_fold, first))
    np.testing.assert_allclose(by_fold["baseline_mse", "score"][first], ratio * of_fold[first])
    assert len(detector.history) == 2 and all(
        len(history) in (4, 5) for _, _, history in detector.by_fold
    )  # as many steps
    assert not np.array_equal(
        by_fold["baseline_mse", "score"],
        detector.components(Clips(detector.store, train))["baseline_mse", "score"],
    )


def test_a_training_that_ended_at_a_higher_error_moves_no_threshold(context):
    """A network whose errors are all twice as large says the same of a training clip."""
    train = base.machine_rows(context.store.clips, "pump", "train")
    detector = detector_of(Autoencoder, context)
    fit(detector, context.store, train)
    before, score = detector.training_components(), detector._score
    worse = detector.by_fold[0][0]
    detector._score = lambda net, *rest: {
        key: (2 if net is worse else 1) * values for key, values in score(net, *rest).items()
    }
    for key, values in detector.training_components().items():
        np.testing.assert_allclose(values, before[key])


def test_a_domain_with_too_few_clips_for_an_inverse_takes_the_covariance_of_the_other(context):
    cfg = config.StudySettings(
        autoencoder=autoencoder.AutoencoderSettings(epochs=1, n_mels=128, hidden=12, bottleneck=4)
    )
    wide = Context(cfg, context.store, context.device)
    clips = context.store.clips
    train = base.machine_rows(clips, "pump", "train")
    one_target = np.concatenate(
        [train[clips["domain"].iloc[train] == "source"], train[clips["domain"].iloc[train] == "target"][:1]]
    )
    detector = detector_of(Autoencoder, wide)
    fit(detector, context.store, one_target)
    np.testing.assert_array_equal(detector.precisions["pump/source"], detector.precisions["pump/target"])


def test_folds_hold_their_share_of_each_domain():
    domain = np.array(["source"] * 9 + ["target"] * 4)
    fold = fold_of(domain, 2)
    assert sorted(np.bincount(fold[:9])) == [4, 5] and sorted(np.bincount(fold[9:])) == [2, 2]
    assert fold_of(np.array(["source"]), 5).tolist() == [0]
