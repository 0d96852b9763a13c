"""Why a score: exact parts, gradients against finite differences, and a planted fault that shows up where it
is.
"""

import dataclasses

import numpy as np
import oracle
import pytest
import soundfile
import torch
from sizes import BASELINE, SMALL, TINY, Context, detector_of, fit

from asdlib import errors, features
from asdlib.analysis import explain
from asdlib.data import index
from asdlib.data.store import Clips, open_store
from asdlib.detectors.autoencoder import Autoencoder
from asdlib.detectors.base import machine_rows
from asdlib.detectors.classifier import Classifier
from asdlib.detectors.oevae import OEVAE
from asdlib.scoring import backends
from asdlib.studies import config

BURST_HZ, BURST_S = 3000.0, (1.3, 1.6)  # of a clip of 2 s
RATE = 16000


@pytest.fixture(scope="module")
def planted(tmp_path_factory):
    """Two machines of noise with steady lines; the anomaly is a tone burst in the second half of the clip."""
    root, rng = tmp_path_factory.mktemp("planted"), np.random.default_rng(1)
    t = np.arange(2 * RATE) / RATE
    for machine, base in (("pump", 300.0), ("saw", 700.0)):
        for split, label, count in (("train", "normal", 16), ("test", "normal", 3), ("test", "anomaly", 3)):
            for i in range(count):
                wave = 0.1 * np.sin(2 * np.pi * base * t + rng.uniform(0, 6)) + 0.02 * rng.normal(size=len(t))
                if label == "anomaly":
                    wave += 0.15 * np.sin(2 * np.pi * BURST_HZ * t) * ((t >= BURST_S[0]) & (t < BURST_S[1]))
                domain = "target" if i % 4 == 3 and split == "train" else "source"
                path = root / machine / split / f"section_00_{domain}_{split}_{label}_{i:04}_noAttribute.wav"
                path.parent.mkdir(parents=True, exist_ok=True)
                soundfile.write(path, wave, RATE)
    oevae = TINY.replace(epochs=6, features=TINY.features.replace(segments=4, n_mels=32))
    autoencoder = BASELINE.replace(epochs=25, batch=32, n_mels=32, hidden=32, lr=3e-3)
    cfg = config.StudySettings(autoencoder=autoencoder, oevae=oevae, classifier=SMALL, precision="float32")
    store = open_store(*index.index([root]), tmp_path_factory.mktemp("store"), cfg.data)
    return Context(cfg, store, torch.device("cpu"))


def rows_of(context, label, machine="pump"):
    table = context.store.clips
    return np.flatnonzero(
        (table["machine"] == machine) & (table["split"] == "test") & (table["label"] == label)
    )


@pytest.fixture(scope="module")
def trained(planted):
    """The three detectors of the pump."""
    table = planted.store.clips
    train = machine_rows(table, "pump", "train")
    found = {}
    for kind, rows in (
        (Autoencoder, train),
        (OEVAE, train),
        (Classifier, np.flatnonzero(table["split"] == "train")),
    ):
        found[kind] = fit(detector_of(kind, planted), planted.store, rows)
    return found


def test_the_residual_map_is_the_score(planted, trained):
    detector = trained[Autoencoder]
    rows = np.concatenate([rows_of(planted, "anomaly"), rows_of(planted, "normal")])
    scores = detector.components(Clips(detector.store, rows))["baseline_mse", "score"]
    for one, score in zip(explain.residual_map(detector, rows), scores, strict=True):
        weight = explain.vectors_per_frame(one.shape[1], detector.settings.frames)
        assert (one.mean(0) @ weight) / weight.sum() == pytest.approx(score, rel=1e-4)


def test_the_residual_map_finds_the_burst(planted, trained):
    detector, (row, *_) = trained[Autoencoder], rows_of(planted, "anomaly")
    s, (found,) = detector.settings, explain.residual_map(detector, [row])
    hz = features.band_hz(s.n_mels, n_fft=s.n_fft, low_hz=0.0, high_hz=RATE / 2, rate=RATE, slaney=True)
    usual = np.mean(explain.residual_map(detector, rows_of(planted, "normal")), 0)
    band, frame = np.unravel_index(np.argmax(found - usual), found.shape)
    assert (
        abs(hz[band] - BURST_HZ) < 300 and BURST_S[0] - 0.1 < frame * s.hop_length / RATE < BURST_S[1] + 0.1
    )


@pytest.mark.parametrize("of", ["alpha", "beta"])
def test_a_slope_is_what_a_small_change_does(planted, trained, of):
    detector, (row, *_) = trained[OEVAE], rows_of(planted, "anomaly")
    found = explain.slope(detector, [row], of)
    front, net = detector.front, detector.net
    x = front.log_mel(front.waves(front.items(np.array([row])))).double()
    np.testing.assert_allclose(found.log_mel[0], x[:, 0].numpy(), rtol=1e-5)
    net.double()

    def score(mel):
        with torch.inference_mode():
            h = net.extractor(mel)
            if of == "alpha":
                return (
                    0.5 * net.vae(h).mu[:, net.vae.domain :].square().sum(1).numpy()
                )  # less a constant, in float64: a dead α moves by 1e-10
            return np.linalg.norm(h.numpy()[:, None] - detector.references.h[None].astype(float), axis=2).min(
                1
            )

    try:
        for segment, band, frame in ((0, 3, 5), (2, 20, 11), (3, 24, 2)):
            step, moved = 1e-3, []
            for sign in (1, -1):
                mel = x.clone()
                mel[segment, 0, band, frame] += sign * step
                moved.append(score(mel)[segment])
            expected = (moved[0] - moved[1]) / (2 * step)
            scale = float(np.abs(found.per_db[0, segment]).max())
            assert found.per_db[0, segment, band, frame] == pytest.approx(float(expected), abs=0.02 * scale)
    finally:
        net.float()


@pytest.mark.parametrize("backend", ["knn", "local_density"])
def test_a_slope_of_an_inner_layer_is_what_a_small_change_does(planted, trained, backend):
    """Of the clip's β: a segment's own where distances are of segments, the mean's where they are of clips."""
    table, (row, *_) = planted.store.clips, rows_of(planted, "anomaly")
    settings = planted.cfg.oevae.replace(
        layers=("layer1", "layer2"), pooling="mean_std", backend=backend, epochs=1, k_scales=()
    )
    detector = detector_of(OEVAE, dataclasses.replace(planted, cfg=planted.cfg.replace(oevae=settings)))
    fit(detector, planted.store, machine_rows(table, "pump", "train"))
    own = detector.train_rows[2]
    for of, place in ((row, None), (own, 2)):
        found = explain.slope(detector, [of], "beta")
        front = detector.front
        x = front.log_mel(front.waves(front.items(np.array([of]))))

        def score(mel, place=place, of=of, detector=detector):
            with torch.inference_mode():
                v = detector.vectors(mel).numpy()
            if backend == "local_density":
                known = detector.profiles if place is None else np.delete(detector.profiles, place, 0)
                return oracle.standardized_density(v.astype(float).mean(0), list(known.astype(float)))
            bank = detector.references
            bank = bank.h if place is None else bank.h[~(bank.parents == of).any(1)]
            return np.linalg.norm(v[:, None].astype(float) - bank[None], axis=2).min(1).mean()

        assert found.per_db.shape[:2] == (1, 4)
        direction = torch.from_numpy(found.per_db[0][:, None] / np.abs(found.per_db).max())
        step = 2e-3
        expected = (score(x + step * direction) - score(x - step * direction)) / (2 * step)
        along = float((found.per_db[0] * direction[:, 0].numpy()).sum() / 4)
        assert along == pytest.approx(expected, rel=0.03) and along > 0


def test_segments_and_slope_find_the_burst(planted, trained):
    detector = trained[OEVAE]
    loud, quiet = rows_of(planted, "anomaly"), rows_of(planted, "normal")
    starts = explain.segment_starts(detector, loud[0])
    holds = (starts + 0.5 > BURST_S[0]) & (starts < BURST_S[1])
    assert holds.any() and not holds.all()
    for row in loud:
        beta = explain.segment_scores(detector, [row])["beta"][0]
        assert (
            beta[holds].max() > beta[~holds].max()
        )  # a segment may hold little more than the edge of the burst
    assert (
        explain.segment_scores(detector, quiet)["beta"].max()
        < explain.segment_scores(detector, loud)["beta"].max()
    )
    raised = explain.slope(detector, [loud[0]], "beta").raised[0]
    s, (segment,) = detector.front.settings, np.flatnonzero(holds)[:1]
    hz = features.band_hz(s.n_mels, n_fft=s.n_fft, low_hz=s.low_hz, high_hz=s.high_hz, rate=RATE)
    near = np.abs(hz - BURST_HZ) < 400
    assert np.abs(raised[segment][near]).mean() > 1.5 * np.abs(raised[segment][~near]).mean()
    of_segment = np.abs(raised[:, near]).mean((1, 2))
    assert of_segment[holds].min() > 1.5 * of_segment[~holds].max()


def test_segment_scores_average_to_the_scores(planted, trained):
    detector = trained[OEVAE]
    loud = rows_of(planted, "anomaly")
    for rows, whole in (
        (loud, detector.components(Clips(detector.store, loud))),
        (detector.train_rows, detector.training_components(as_seen=True)),
    ):
        for name, values in explain.segment_scores(detector, rows).items():
            np.testing.assert_allclose(values.mean(1), whole["oevae", name], rtol=1e-6)


def test_maps_laid_along_the_clip_keep_their_sum():
    rng = np.random.default_rng(0)
    maps, starts = rng.normal(size=(3, 4, 11)), np.array([0.0, 0.25, 0.5])
    laid = explain.along_clip(maps, starts, 0.05, 1.0)
    assert laid.shape == (4, 21) and laid.sum() == pytest.approx(maps.sum(axis=(1, 2)).mean())
    np.testing.assert_allclose(laid[:, :5], maps[0, :, :5] / 3)
    np.testing.assert_allclose(laid[:, 7], (maps[0, :, 7] + maps[1, :, 2]) / 3)


@pytest.mark.parametrize("name", list(backends.BACKENDS))
def test_branch_parts_add_up_to_the_distance_that_scored(planted, trained, name):
    detector = trained[Classifier]
    rows = np.concatenate([rows_of(planted, "anomaly"), rows_of(planted, "normal", "saw")])
    scores = detector.components(Clips(detector.store, rows))["classifier", name]
    before, detector.settings = detector.settings, detector.settings.replace(backend=name)
    try:
        parts = detector.branch_parts(rows)
        shares = explain.branch_shares(detector, rows)
        own = detector.branch_parts(detector.train_rows)
    finally:
        detector.settings = before
    if not name.endswith("density"):  # whose distance is divided by a density
        np.testing.assert_allclose(
            parts.sum(1) / 2 if name == "kmeans" else np.sqrt(parts.sum(1)), scores, rtol=1e-6, atol=1e-9
        )
    np.testing.assert_allclose(shares.sum(1), 1)
    assert parts.shape == (len(rows), 3) and (parts >= 0).all()
    assert (
        name == "kmeans" or (own.sum(1) > 1e-9).all()
    )  # no training clip is its own reference; a center of a single clip is that clip


def test_a_clip_does_not_change_anothers_reasons(planted, trained):
    rows = rows_of(planted, "anomaly")
    for function, kind in (
        (explain.branch_shares, Classifier),
        (lambda d, r: explain.slope(d, r).per_db, OEVAE),
    ):
        together = function(trained[kind], rows)
        np.testing.assert_allclose(together[1], function(trained[kind], rows[1:2])[0], rtol=1e-4, atol=1e-7)


def test_why_has_what_the_study_has(planted, trained):
    row, *_ = rows_of(planted, "anomaly")
    every = {"autoencoder": trained[Autoencoder], "oevae": trained[OEVAE], "classifier": trained[Classifier]}
    whole = explain.why(planted.store, row, planted.cfg.oevae.features, **every)
    assert (
        whole.seconds == 2.0
        and set(whole.branches) == set(SMALL.branches)
        and set(whole.segments) == {"alpha", "beta"}
    )
    assert whole.level.values.shape[0] == len(whole.level.hz) == whole.raised.values.shape[0]
    alone = explain.why(planted.store, row, planted.cfg.oevae.features, classifier=trained[Classifier])
    assert (
        alone.residual is None
        and alone.raised is None
        and alone.segments is None
        and alone.branches == whole.branches
    )


def test_refusals(trained):
    with pytest.raises(
        errors.InputError, match="no clip to explain was given; expected at least one store row"
    ):
        explain.residual_map(trained[Autoencoder], [])
    with pytest.raises(errors.InputError, match="unknown component of a slope 'gamma'"):
        explain.slope(trained[OEVAE], [0], "gamma")


def test_band_hz_is_where_a_tone_lands():
    wave = torch.sin(2 * torch.pi * 1000.0 * torch.arange(RATE) / RATE)[None]
    for n_mels, slaney in ((64, False), (128, True)):
        low, high = (0.0, RATE / 2) if slaney else (50.0, 7800.0)
        made = (
            features.baseline_mel(wave)[0].mean(0)
            if slaney
            else features.log_mel(wave, n_mels=n_mels)[0, 0].mean(1)
        )
        hz = features.band_hz(n_mels, n_fft=1024, low_hz=low, high_hz=high, rate=RATE, slaney=slaney)
        assert (np.diff(hz) >= 0).all() and hz[int(made.argmax())] == pytest.approx(1000, abs=40)
