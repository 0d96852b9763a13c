"""OEVAE as a whole: batches, masks and references by loops, scores that depend on no other test clip,
resuming, the tie of z_d to v.
"""

import dataclasses
import shutil
import warnings
from pathlib import Path

import numpy as np
import oracle
import pandas as pd
import pytest
import soundfile
import torch
from sizes import TINY, Context, bound, detector_of, fit

from asdlib import errors
from asdlib.analysis import ablation, explain, latents
from asdlib.data import decode, synthetic
from asdlib.data import index as clip_index
from asdlib.data.condition import condition
from asdlib.data.store import (
    Clips,
    machine_statistics,
    open_store,
    segment_starts,
    standardize,
    training_clips,
)
from asdlib.detectors import exposure, oevae_training
from asdlib.detectors.base import detect, machine_rows, score_all
from asdlib.detectors.oevae import OEVAE
from asdlib.models import losses
from asdlib.models import oevae as oevae_model
from asdlib.scoring import fusion, pooling
from asdlib.studies import config


def changed(context, **settings):
    """The same context with other OEVAE settings; mixup and smote as dicts."""
    for name in ("mixup", "smote", "features", "condition"):
        if name in settings:
            settings[name] = getattr(TINY, name).replace(**settings[name])
    return dataclasses.replace(context, cfg=context.cfg.replace(oevae=TINY.replace(**settings)))


def fitted(context, machine="pump", **settings):
    detector = detector_of(OEVAE, changed(context, **settings))
    fit(detector, context.store, machine_rows(context.store.clips, machine, "train"))
    return detector


def batches_of(context, machine="pump", **settings):
    """The exposure that a detector would train on, without training."""
    context = changed(context, **settings)
    table, rows = context.store.clips, machine_rows(context.store.clips, machine, "train")
    front = exposure.SegmentFeatures(context.store, context.device, context.cfg.oevae.features, rows)
    others = machine_rows(table, "saw", "train")
    labels = np.eye(2, dtype=np.float32)[(table["domain"].to_numpy()[rows] == "target").astype(int)]
    target = exposure.target_items(
        front, rows, np.arange(len(rows), dtype=np.float32), np.arange(len(rows)) % 4 != 0, labels
    )
    weights = exposure.draw_weights(
        np.repeat(table["machine"].to_numpy()[others], front.settings.segments), [], 0.0
    )
    return exposure.OutlierExposureBatches(front, context.cfg.oevae, target, front.items(others), weights)


@pytest.fixture(scope="module")
def trained(context):
    return fitted(context)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


# ---------------------------------------------------------------- batches


def test_an_epoch_holds_every_target_segment_once_and_as_many_others(context):
    made = batches_of(context)
    n = len(made.target)
    index, _ = made.plan(generator())
    assert n == 13 * 3 and made.steps == 5 and len(index) == 2 * n
    assert sorted(index[index < n].tolist()) == list(range(n))
    sizes = []
    for part in index.split(2 * made.half):  # within a batch: target first, then as many pseudo-anomalies
        half = len(part) // 2
        assert (part[:half] < n).all() and (part[half:] >= n).all()
        sizes.append(half)
    assert sizes == [8, 8, 8, 8, 7]
    for batch, size in zip(made.batches(generator()), sizes):
        assert (
            batch.x.shape == (2 * size, 1, 16, 32)
            and batch.t.tolist() == [1.0] * size + [0.0] * size
            and torch.isfinite(batch.x).all()
        )


def test_sound_label_and_prior_of_a_batch_move_together(context):
    made = batches_of(context, mixup={"prob": 0.7})
    index, blend = made.plan(generator(3))
    for number, batch in enumerate(made.batches(generator(3))):
        low = 2 * made.half * number
        for i in range(0, len(batch.t), 5):
            one, other, w = (
                int(index[blend.first[low + i]]),
                int(index[blend.second[low + i]]),
                float(blend.weight[low + i]),
            )
            wave = w * made.front.waves(made.items[torch.tensor([one])]) + (1 - w) * made.front.waves(
                made.items[torch.tensor([other])]
            )
            torch.testing.assert_close(batch.x[i], made.front.log_mel(wave)[0], rtol=1e-3, atol=1e-2)
            torch.testing.assert_close(
                batch.attributes[i], w * made.labels[one] + (1 - w) * made.labels[other]
            )
            known = made.conditioned[one] if w == 1 else made.conditioned[one] and made.conditioned[other]
            assert bool(batch.conditioned[i]) == bool(known)
            expected = w * float(made.prior[one]) + (1 - w) * float(made.prior[other]) if known else 0.0
            assert float(batch.prior[i]) == pytest.approx(expected, abs=1e-5)
            assert (one < len(made.target)) == (other < len(made.target))  # partners of its own side


def test_pseudo_anomalies_and_mixtures_with_them_never_reach_the_vae(context):
    made = batches_of(context, mixup={"outliers": True, "prob": 0.8})
    torch.manual_seed(0)
    model = oevae_model.OEVAE(changed(context).cfg.oevae).eval()
    soft = 0
    for batch in made.batches(generator()):
        normal = batch.t == 1
        soft += int(((batch.t > 0) & (batch.t < 1)).sum())
        assert not batch.conditioned[~normal].any() and (batch.prior[~normal] == 0).all()

        def gradients(x, batch=batch):
            parts = model.loss(batch._replace(x=x), generator(1))
            return torch.autograd.grad(parts["loss"], list(model.vae.parameters()))

        other = torch.where(normal.reshape(-1, 1, 1, 1), batch.x, batch.x.flip(2) - 30)
        for one, two in zip(gradients(batch.x), gradients(other)):
            assert torch.equal(one, two)
    assert soft > 10


def test_machines_are_drawn_alike_and_near_ones_more():
    machine = np.array(["a"] * 10 + ["b"] * 90 + ["c"] * 100)
    weights = exposure.draw_weights(machine, [], 0.0)
    for name in "abc":
        assert weights[machine == name].sum() == pytest.approx(1 / 3)
    near = exposure.draw_weights(machine, ["b"], 0.5)
    assert near.sum() == pytest.approx(1) and near[machine == "b"].sum() == pytest.approx(1 / 6 + 0.5)
    assert len(set(near[machine == "b"])) == 1


def test_draws_follow_the_weights(context):
    made = batches_of(context)
    drawn = made.draw_others(20000, generator())
    share = np.bincount(drawn.numpy(), minlength=len(made.others)) / 20000
    np.testing.assert_allclose(share, 1 / len(made.others), atol=0.006)


def test_segments_are_cut_from_the_standardized_clip(context):
    rows = machine_rows(context.store.clips, "pump", "train")
    for norm in ("clip", "machine"):
        front = exposure.SegmentFeatures(
            context.store,
            context.device,
            changed(context, features={"wave_norm": norm}).cfg.oevae.features,
            rows,
        )
        made = front.waves(front.items(rows)).reshape(len(rows), 3, -1)
        mean, std = machine_statistics(context.store, rows)
        for i, row in enumerate(rows):
            wave = context.store.audio([row])
            whole = standardize(wave) if norm == "clip" else standardize(wave, mean, std)
            starts = segment_starts(wave.shape[1], 3, 8000)
            expected = torch.stack([whole[0, start : start + 8000] for start in starts])
            torch.testing.assert_close(made[i], expected, rtol=1e-3, atol=1e-3)


def test_clips_shorter_than_a_segment_are_tiled(context):
    rows = machine_rows(context.store.clips, "pump", "train")[:2]
    front = exposure.SegmentFeatures(
        context.store, context.device, changed(context, features={"segment_s": 3.0}).cfg.oevae.features, rows
    )
    items = front.items(rows)
    assert not items.whole
    wave = standardize(context.store.audio(rows[:1]))
    torch.testing.assert_close(front.waves(items)[0], wave[0].repeat(3)[:48000], rtol=1e-3, atol=1e-3)


def test_of_segments_that_are_all_the_same_one_is_used(context, capsys):
    for seconds, segments, told in (
        (1.25, 3, True),
        (1.25, 1, False),
        (1.0, 3, False),
    ):  # the longest clip has 1.25 s
        words = "no clip is longer than a segment (1.25 s): its 3 segments are identical, so only one is used"
        detector = fitted(
            context, features={"segment_s": seconds, "segments": segments}, epochs=1, k_scales=(1.0,)
        )
        assert (words in capsys.readouterr().out) == told
        samples = context.store.clips["samples"].to_numpy()[detector.train_rows]
        wanted = np.where(samples <= seconds * 16000, 1, segments)
        real = detector.references.parents[: wanted.sum(), 0]  # before the synthetic ones and the mixtures
        assert [int((real == row).sum()) for row in detector.train_rows] == wanted.tolist()
        for scores in (
            detector.training_components(),
            detector.components(Clips(detector.store, detector.train_rows[:2])),
        ):
            assert all(np.isfinite(values).all() for values in scores.values())


def test_classes_of_the_attribute_head():
    table = pd.DataFrame(
        {"section": "00", "attr_vel": ["4", "8", "4"], "attr_loc": ["A", "", "B"], "attr_car": ""}
    )
    labels = exposure.attribute_labels(table, np.zeros(3))
    assert labels.tolist() == [[1, 0, 1, 0], [0, 1, 0, 0], [1, 0, 0, 1]]  # vel_4, vel_8, loc_A, loc_B
    bare = table.assign(attr_vel="", attr_loc="")
    assert exposure.attribute_labels(bare.assign(section=["00", "01", "00"]), np.zeros(3)).tolist() == [
        [1, 0],
        [0, 1],
        [1, 0],
    ]
    assert exposure.attribute_labels(bare, np.array([0.0, 1.0, 2.0])).tolist() == np.eye(3).tolist()
    assert exposure.attribute_labels(bare, np.zeros(3)).shape == (3, 0)


def test_clips_are_held_out_of_each_group():
    groups = np.array(["source"] * 20 + ["target"] * 3 + ["unknown"])
    kept = exposure.held_out(groups, 0.1, np.random.default_rng(0))
    assert [int(kept[groups == name].sum()) for name in ("source", "target", "unknown")] == [2, 1, 0]
    assert not exposure.held_out(groups, 0.0, np.random.default_rng(0)).any()


def test_k_is_5_over_the_smallest_step_of_the_real_attribute_values():
    """Bearing of DCASE 2024 (METHOD 7.1): vel 4, 8, 12, 16; k = 1.25, neighboring speeds 5 prior standard
    deviations apart.
    """
    speeds = ["4", "8", "12", "16"]
    table = pd.DataFrame(
        {
            "machine": "bearing",
            "split": "train",
            "domain": "source",
            "attr_vel": speeds,
            "attr_loc": list("ABCD"),
            "level_db": 0.0,
        }
    )
    found = condition(table, choice="most_values", missing="power", bins=4, seed=0, machine="bearing")
    assert found.key == "vel" and found.k(5.0) == 1.25
    prior, known = exposure.prior_means(found.v.to_numpy(), found.k(5.0), found.v.mean())
    assert known.all() and prior.tolist() == [-7.5, -2.5, 2.5, 7.5]
    prior, known = exposure.prior_means(np.array([np.nan, 4.0]), 1.25, 4.0)
    assert known.tolist() == [False, True] and prior.tolist() == [0, 0]


def test_the_prior_is_k_v_or_counts_from_the_mean(context):
    centered, printed = (
        detector_of(OEVAE, changed(context, condition={"center": center})) for center in (True, False)
    )
    for detector in (centered, printed):
        detector._bind(Clips(context.store, machine_rows(context.store.clips, "pump", "train")))
        detector._open()
    v, k = printed._v(printed.train_rows), printed.condition.k(5.0)
    assert len(set(v)) > 1 and v.mean() != 0
    prior, known = printed._prior(printed.train_rows, 5.0)
    np.testing.assert_allclose(prior, k * v, rtol=1e-6)
    np.testing.assert_allclose(centered._prior(centered.train_rows, 5.0)[0], k * (v - v.mean()), rtol=1e-5)
    assert known.all() and printed.training_settings() != centered.training_settings()


# ---------------------------------------------------------------- scores


def test_references_hold_segments_mixtures_and_smote(trained):
    parents, target = trained.references.parents, trained.references.target
    own = parents[:, 0] == parents[:, 1]
    assert (parents[:39, 0] == np.repeat(trained.train_rows, 3)).all() and own[:39].all()
    assert len(parents) > 45 and set(parents.ravel()) <= set(trained.train_rows)
    table = trained.store.clips["domain"].to_numpy()
    np.testing.assert_array_equal(target[:39], table[parents[:39, 0]] == "target")
    np.testing.assert_array_equal(
        trained.references.h[:39], trained.embed(Clips(trained.store, trained.train_rows))[0]
    )


@pytest.mark.parametrize("domains", ["pooled", "min"])
def test_beta_of_training_clips_by_loops(context, domains):
    detector = fitted(context, neighbor_domains=domains, neighbors=3, smote={"ratio": 1.0})
    h, clip = detector.embed(Clips(detector.store, detector.train_rows))
    references, parents, target = detector.references
    scores = detector.training_components(as_seen=True)
    for name, k in (("beta_k1", 1), ("beta_k2", 2), ("beta", 3), ("beta_k4", 4)):
        for i in (0, 5, 12):
            row, values = detector.train_rows[i], []
            for item in np.flatnonzero(clip == i):
                sides = []
                for side in [target, ~target] if domains == "min" else [np.ones(len(target), bool)]:
                    gaps = []
                    for j in np.flatnonzero(side):
                        if row not in parents[j]:
                            gaps.append(np.linalg.norm(h[item].astype(float) - references[j].astype(float)))
                    sides.append(np.mean(sorted(gaps)[:k]))
                values.append(min(sides))
            assert scores["oevae", name][i] == pytest.approx(np.mean(values), rel=1e-4)


def test_new_clips_are_measured_against_all_references(trained):
    row = machine_rows(trained.store.clips, "pump", "test")[3:4]
    h, _ = trained.embed(Clips(trained.store, row))
    gaps = np.linalg.norm(h[:, None].astype(float) - trained.references.h[None].astype(float), axis=2)
    assert trained.components(Clips(trained.store, row))["oevae", "beta_k2"][0] == pytest.approx(
        np.sort(gaps, axis=1)[:, :2].mean(), rel=1e-5
    )


def test_every_component_is_kept_and_alpha_is_the_chosen_mode(context, trained):
    rows = machine_rows(context.store.clips, "pump", "test")[:4]
    names = {component for _, component in trained.components(Clips(trained.store, rows))}
    modes = {f"alpha_{mode}" for mode in ("nll", "expected_nll", "kl", "recon", "neg_elbo")}
    assert names == modes | {"alpha", "beta", "beta_k1", "beta_k2", "beta_k4", "alpha_k1", "alpha_k5"}
    scores = trained.components(Clips(trained.store, rows))
    np.testing.assert_array_equal(scores["oevae", "alpha"], scores["oevae", "alpha_nll"])
    other = fitted(context, alpha_mode="recon").components(Clips(context.store, rows))
    np.testing.assert_array_equal(other["oevae", "alpha"], other["oevae", "alpha_recon"])


def test_no_test_clip_moves_another_in_the_whole_system(context, tmp_path):
    """Trained and scored beside all test clips, and beside three of them: decoded, trained, referenced,
    refitted, fused anew.
    """
    whole = fusion.systems(detect(detector_of(OEVAE, context), context.store, ["pump"]), context.cfg.fusion)
    root = tmp_path / "raw"
    for row in context.store.clips.itertuples():
        if row.split == "train" or row.machine == "saw" or "0001" in row.clip:
            (root / row.clip).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(row.path, root / row.clip)
    store = open_store(*clip_index.index([root]), tmp_path / "store", context.cfg.data)
    few = Context(context.cfg, store, context.device)
    alone = fusion.systems(detect(detector_of(OEVAE, few), few.store, ["pump"]), context.cfg.fusion)
    assert (alone["split"] == "test").sum() == 4 * alone["component"].nunique() and "score" in set(
        alone["component"]
    )
    both = alone.merge(whole, on=["component", "clip"], suffixes=("", "_whole"))
    assert len(both) == len(alone)
    np.testing.assert_allclose(both["score"], both["score_whole"], rtol=1e-3, atol=1e-4)


def test_an_interrupted_training_ends_in_the_same_scores(context, tmp_path):
    rows = machine_rows(context.store.clips, "pump", "train")
    test = machine_rows(context.store.clips, "pump", "test")
    found = []
    for epochs, folder in ((3, None), (1, tmp_path), (3, tmp_path)):
        kept = dataclasses.replace(changed(context, epochs=epochs, kl_warmup=2.0), folder=folder)
        detector = detector_of(OEVAE, kept)
        fit(detector, context.store, rows)
        found.append(
            (
                detector.components(Clips(detector.store, test)),
                detector.training_components(),
                detector.history.drop(columns="seconds"),
            )
        )
    unbroken, _, resumed = found
    for one, two in zip(unbroken[:2], resumed[:2]):
        for key, values in one.items():
            np.testing.assert_array_equal(values, two[key])
    pd.testing.assert_frame_equal(unbroken[2], resumed[2])


def test_kl_terms_are_warmed_up(context):
    made = batches_of(context)
    torch.manual_seed(0)
    model = oevae_model.OEVAE(changed(context).cfg.oevae).train()
    seen = []
    for batch in made.batches(generator(), lambda: (model.steps / 4).clamp(max=1.0)):
        seen.append(float(batch.kl_weight))
        model.loss(batch, generator())
    assert seen == [0.0, 0.25, 0.5, 0.75, 1.0]


def test_history_and_held_out_clips(context, trained):
    assert {
        "held_out_accuracy",
        "held_out_loss",
        "alive_d",
        "alive_c",
        "machine",
        "kl_d",
        "kl_c",
        "recon",
    } <= set(trained.history)
    assert trained.trained.sum() == 11 and len(trained.trained) == 13  # one of each domain
    bare = fitted(context, holdout=0.0)
    assert bare.trained.all() and "held_out_accuracy" not in bare.history


def test_smote_in_log_mel_space_joins_training_and_references(context):
    detector = fitted(context, smote={"space": "logmel", "ratio": 1.0}, holdout=0.0, mixup={"prob": 0.0})
    target = detector._target(detector.train_rows)
    assert len(target) == 60 and len(target.mels) == 21  # 3 target clips grow to the size of 10 source clips
    assert (
        len(detector.references.h) == 60
        and (detector.references.parents[39:, 0] != detector.references.parents[39:, 1]).all()
    )
    others = detector.front.items(machine_rows(context.store.clips, "saw", "train"))
    made = exposure.OutlierExposureBatches(detector.front, detector.settings, target, others, np.ones(39))
    index, _ = made.plan(generator())
    assert sorted(index[index < 60].tolist()) == list(range(60))
    batch = made.batch(
        torch.tensor([0, 59]),
        exposure.augment.MixPairs(torch.tensor([0, 1]), torch.tensor([0, 1]), torch.ones(2)),
    )
    torch.testing.assert_close(batch.x[1], target.mels[20])
    assert batch.t.tolist() == [1, 1] and np.isfinite(detector.training_components()["oevae", "beta"]).all()


@pytest.mark.parametrize("space", ["embed", "logmel"])
@pytest.mark.parametrize(("sources", "targets"), [(10, 1), (10, 2), (1, 3), (2, 1), (10, 0)])
def test_smote_takes_any_number_of_clips_per_domain(context, space, sources, targets):
    """A domain of one clip has no partner and one of two has few neighbors: that ends no study (the second
    clip may be held out).
    """
    table = context.store.clips
    rows = machine_rows(table, "pump", "train")
    domain = table["domain"].to_numpy()[rows]
    chosen = np.sort(np.concatenate([rows[domain == "source"][:sources], rows[domain == "target"][:targets]]))
    detector = detector_of(
        OEVAE,
        changed(context, epochs=1, neighbors=1, smote={"space": space, "ratio": 1.0, "k": 5}, k_scales=()),
    )
    fit(detector, context.store, chosen)
    parents = detector.references.parents
    assert set(parents.ravel()) <= set(chosen) and all(
        np.isfinite(values).all() for values in detector.training_components().values()
    )


@pytest.mark.parametrize(
    "settings",
    [
        {"near": 1.0},
        {"attribute_weight": 1.0},
        {"mixup": {"outliers": True, "beta": 0.2}},
        {"vae_grad": "literal"},
        {"features": {"wave_norm": "machine"}},
        {"condition": {"missing": "zero"}},
    ],
)
def test_every_setting_trains_and_scores(context, settings):
    detector = fitted(context, epochs=1, **settings)
    scores = detector.components(Clips(detector.store, machine_rows(context.store.clips, "pump", "test")))
    assert all(np.isfinite(values).all() for values in scores.values())


def test_bfloat16_trains_and_scores_in_float32(context):
    bf16 = dataclasses.replace(context, cfg=context.cfg.replace(precision="bf16"))
    detector = detector_of(OEVAE, bf16)
    fit(detector, context.store, machine_rows(context.store.clips, "pump", "train"))
    assert detector.embed(Clips(detector.store, detector.train_rows))[0].dtype == np.float32
    assert all(np.isfinite(values).all() for values in detector.training_components().values())


def test_supplemental_clips_are_pseudo_anomalies_and_nothing_else(context, tmp_path):
    root, data = tmp_path / "tones", decode.DataSettings(supplemental=True)
    shutil.copytree(Path(context.store.clips["path"][0]).parents[2], root)
    off = open_store(*clip_index.index([root]), tmp_path / "store", decode.DataSettings())
    assert off.fingerprint == context.store.fingerprint and off.supplemental.empty
    with pytest.raises(errors.InputError, match=r"data\.supplemental is true; expected a folder"):
        clip_index.index([root], (), True)
    rng, names = (
        np.random.default_rng(0),
        ("pump/supplemental/section_00_noise", "saw/supplemental/section_00_machine"),
    )
    for name in (*names, "pump/supplemental/section_00_machine"):
        path = root / f"{name}_0000.wav"
        path.parent.mkdir(exist_ok=True)
        soundfile.write(path, 0.1 * rng.normal(size=16000), 16000)
    store = open_store(*clip_index.index([root], (), True), tmp_path / "store", data)
    pd.testing.assert_frame_equal(store.clips.drop(columns="path"), off.clips.drop(columns="path"))
    assert len(store.supplemental) == 3
    store.verify()
    detectors = [
        OEVAE(context.cfg.oevae, seed=0, device="cpu", precision="float32").fit(
            *training_clips(one, ["pump"])
        )
        for one in (off, store)
    ]
    rows, pool = exposure.with_supplemental(store, "pump", np.array([3]))
    assert [f"{name}_0000.wav" for name in names] == store.every["clip"].iloc[rows[1:]].tolist()
    assert pool.tolist() == [store.clips["machine"][3], "supplemental", "supplemental"]
    without, joined = (detector.training_table_ for detector in detectors)
    assert joined["clip"].tolist() == without["clip"].tolist()
    assert not np.allclose(joined["score"], without["score"])
    assert max(detectors[1].references.parents.max(), *detectors[1].train_rows) < len(store)
    scored = score_all(detectors[1], store, ["pump"])
    assert set(scored["clip"]) == set(off.clips["clip"][off.clips["machine"] == "pump"])


def test_one_machine_alone_is_refused(context):
    table = context.store.clips
    alone = dataclasses.replace(
        context.store, clips=table.assign(split=table["split"].where(table["machine"] == "pump", "test"))
    )
    detector = detector_of(OEVAE, dataclasses.replace(context, store=alone))
    with pytest.raises(
        errors.InputError,
        match=(
            "pump is the only machine with training clips, expected others as pseudo-anomalies; add"
            " recordings"
        ),
    ):
        fit(detector, alone, machine_rows(alone.clips, "pump", "train"))
    with pytest.raises(errors.InputError, match="got training clips of pump, saw, expected a single machine"):
        fit(detector_of(OEVAE, context), context.store, np.flatnonzero(table["split"] == "train"))


def test_ablation_has_a_row_for_every_setting(context, trained):
    assert set(ablation.EVERYTHING) == set(ablation.OFF)
    rows = ablation.table(trained, context.cfg.metrics, 1)
    assert list(rows["settings"]) == [*ablation.ROWS, "all of them"]
    assert (
        rows["accuracy, held out"].between(0, 1).all()
        and rows[["α alone", "β alone"]].stack().between(0, 1).all()
    )
    on = ablation.variant(TINY, 4, **ablation.EVERYTHING)
    assert (
        on.mixup.outliers
        and on.kl_warmup == 2.0
        and on.near == 0.5
        and on.k_scales == ()
        and on.features == TINY.features
    )


# ---------------------------------------------------------------- inner layers


def inner_by_hook(detector, rows, layer):
    """Output of a stage of torchvision's own forward pass, (clips, segments, channels, bins, frames)."""
    found, net = [], detector.net
    handle = getattr(net.extractor, layer).register_forward_hook(lambda *args: found.append(args[2].clone()))
    front = detector.front
    with torch.inference_mode():
        for row in rows:
            net.embed(front.log_mel(front.waves(front.items(np.array([row])))))
    handle.remove()
    return torch.stack(found).numpy()


@pytest.fixture(scope="module")
def beside(context, trained):
    """Detectors of other scoring settings around the network of `trained`, as the store by key makes them."""

    def make(**settings):
        detector = detector_of(OEVAE, changed(context, **settings))
        detector._bind(Clips(trained.store, trained.train_rows))
        detector._open()
        detector.net, detector.heads, detector.trained = trained.net, trained.heads, trained.trained
        detector._prepare()
        return detector

    return make


def test_the_last_layer_and_the_mean_are_the_report_to_the_bit(trained, beside):
    same = beside(layers=("layer4",), pooling="mean", backend="knn")
    np.testing.assert_array_equal(same.references.h, trained.references.h)
    rows = machine_rows(trained.store.clips, "pump", "test")
    for scores in (lambda d: d.components(Clips(d.store, rows)), lambda d: d.training_components()):
        for key, values in scores(trained).items():
            np.testing.assert_array_equal(values, scores(same)[key])
    stages = trained.net.stages(torch.randn(3, 1, 16, 32))
    assert [one.shape[1] for one in stages.values()] == [4, 8, 16, 32]
    x = torch.randn(3, 1, 16, 32)
    torch.testing.assert_close(trained.net.stages(x)["layer4"].mean((2, 3)), trained.net.embed(x))


@pytest.mark.parametrize(
    ("layer", "how"), [("layer1", "mean_std"), ("layer2", "bands"), ("layer4", "mean_std")]
)
def test_vectors_of_inner_layers_are_those_of_the_network(beside, trained, layer, how):
    detector = beside(layers=(layer,), pooling=how)
    rows = trained.train_rows[:3]
    maps = inner_by_hook(trained, rows, layer)
    expected = [oracle.pooled(one, how) for clip in maps for one in clip]
    h, clip = detector.embed(Clips(detector.store, rows))
    np.testing.assert_allclose(h, expected, rtol=1e-4, atol=1e-5)
    assert clip.tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 2]
    both = beside(layers=(layer, "layer3"), pooling=how).embed(Clips(detector.store, rows))[0]
    np.testing.assert_array_equal(both[:, : h.shape[1]], h)
    assert both.shape[1] > h.shape[1]


def test_beta_of_an_inner_layer_is_the_distance_to_its_references(beside, trained):
    detector = beside(layers=("layer1",), pooling="bands", neighbors=2)
    bank, row = detector.references, machine_rows(trained.store.clips, "pump", "test")[3:4]
    assert bank.h.shape == (len(trained.references.h), 4 * 4 * 2)  # channels, bands of 4 bins, two moments
    for rows, own in ((row, None), (trained.train_rows[4:5], trained.train_rows[4])):
        h, _ = detector.embed(Clips(detector.store, rows))
        allowed = [j for j in range(len(bank.h)) if own not in bank.parents[j]]
        gaps = [sorted(np.linalg.norm(v.astype(float) - bank.h[j]) for j in allowed)[:2] for v in h]
        found = (
            detector.components(Clips(detector.store, rows))["oevae", "beta"][0]
            if own is None
            else detector.training_components(as_seen=True)["oevae", "beta"][4]
        )
        assert found == pytest.approx(np.mean(gaps), rel=1e-5)


@pytest.mark.parametrize(
    ("layers", "how"), [(("layer4",), "mean"), (("layer1",), "bands"), (("layer1", "layer2"), "mean_std")]
)
def test_local_density_of_clips_by_loops(beside, trained, layers, how):
    detector = beside(layers=layers, pooling=how, backend="local_density")
    rows = machine_rows(trained.store.clips, "pump", "test")

    def profiles(of):
        return detector.embed(Clips(detector.store, of))[0].reshape(len(of), 3, -1).astype(float).mean(1)

    train, test = profiles(detector.train_rows), profiles(rows)
    expected = [oracle.standardized_density(x, list(train)) for x in test]
    found = detector.components(Clips(detector.store, rows))["oevae", "beta"]
    np.testing.assert_allclose(found, expected, rtol=1e-3)
    left_out = [oracle.standardized_density(x, list(np.delete(train, i, 0))) for i, x in enumerate(train)]
    own = detector.training_components(as_seen=True)["oevae", "beta"]
    np.testing.assert_allclose(own, left_out, rtol=1e-3)
    alone = [detector.components(Clips(detector.store, rows[i : i + 1]))["oevae", "beta"][0] for i in (0, 5)]
    assert alone == [found[0], found[5]]  # no test clip moves another's score
    each = detector.segment_scores(np.concatenate([detector.train_rows[:2], rows[:2]]))["beta"]
    both = [*own[:2], *found[:2]]
    np.testing.assert_allclose(each, np.repeat(np.array(both)[:, None], 3, 1), rtol=1e-12)


def test_a_local_density_of_inner_layers_is_saved_and_scores_clips_of_another_store(context, tmp_path):
    detector = fitted(context, layers=("layer1",), pooling="bands", backend="local_density", epochs=1)
    detector.save(tmp_path)
    clips = Clips(detector.store, detector.train_rows)
    again = OEVAE.load(tmp_path, clips, device="cpu")
    test = Clips(detector.store, machine_rows(context.store.clips, "pump", "test"))
    for key, values in detector.components(test).items():
        np.testing.assert_array_equal(again.components(test)[key], values)
    other = dataclasses.replace(context.store, clips=context.store.clips.copy())
    elsewhere = again.components(Clips(other, test.rows))
    for key, values in detector.components(test).items():
        np.testing.assert_array_equal(elsewhere[key], values)
    as_new = again.components(Clips(other, detector.train_rows))["oevae", "beta"]
    assert (as_new < again.training_components()["oevae", "beta"]).all()  # each is its own reference there


def test_no_epochs_leave_the_seeded_network(context, trained):
    blank = fitted(context, epochs=0, k_scales=())
    assert len(blank.history) == 0 and blank.settings.epochs == 0
    for name, value in trained.untrained().state_dict().items():
        assert torch.equal(value, blank.net.state_dict()[name]), name
    assert not torch.equal(trained.net.machine.weight, blank.net.machine.weight)
    scores = blank.components(Clips(blank.store, machine_rows(context.store.clips, "pump", "test")))
    assert all(np.isfinite(values).all() for values in scores.values())
    assert latents.saturation(blank.history).startswith("Not trained")


@pytest.fixture(scope="module")
def dropping(context):
    return fitted(context, drop_alpha=True, holdout=0.3, k_scales=())


def test_alpha_leaves_the_fusion_where_held_out_clips_show_that_it_tells_nothing(dropping, tmp_path):
    detector, kept = dropping, dropping.train_rows[~dropping.trained]
    found = detector._pass(kept)
    norm = np.linalg.norm(found.h, axis=1)
    expected = np.corrcoef(found.alpha["nll"], norm)[0, 1]
    assert detector.held_out_alpha["nll"] == pytest.approx(expected)
    assert detector.held_out_alpha["alive"] == (found.mu[:, 3:].var(0) > 0.01).sum()
    clips = Clips(detector.store, machine_rows(detector.store.clips, "pump", "test"))
    cases = [
        ({"alive": 0.0, "nll": 0.2}, "no channel of z_c is active on held-out clips"),
        ({"alive": 2.0, "nll": -0.97}, "its correlation with the norm of the embedding is -0.970"),
        ({"alive": 2.0, "nll": 0.2}, ""),
        ({}, ""),
    ]
    for facts, words in cases:
        detector.held_out_alpha = facts
        assert detector.alpha_fault.startswith(words) and bool(detector.alpha_fault) == bool(words)
        scores = detector.components(clips)
        assert (scores["oevae", "alpha"] == 0).all() if words else (scores["oevae", "alpha"] != 0).all()
        assert (scores["oevae", "alpha_nll"] != 0).all()
        row = ablation.diagnosis(detector).iloc[0]
        assert row["α in the fusion"].startswith(f"no: {words}" if words else "yes")
        assert row["machine"] == "pump" and (row["active z_c"] == facts["alive"] if facts else True)
    detector.history = pd.DataFrame({"epoch": [1, 2, 3], "machine": [0.4, 0.002, 0.001]})
    assert ablation.diagnosis(detector)["saturated from epoch"].item() == 2
    detector.held_out_alpha = {"alive": 0.0, "nll": 0.2}
    table = detector.score(clips).pivot(index="clip", columns="component", values="score")
    assert (table["score"].rank() == table["beta"].rank()).all()  # the fusion ranks as β alone
    detector.save(tmp_path)
    again = OEVAE.load(tmp_path, Clips(detector.store, detector.train_rows), device="cpu")
    assert again.held_out_alpha == detector.held_out_alpha


def test_the_control_is_the_detector_of_no_epochs(context, trained):
    scores = detect(fitted(context), context.store, ["pump"])
    table = ablation.control(trained, scores, context.cfg.metrics).set_index("component")
    blank = fitted(context, epochs=0, k_scales=())
    test = machine_rows(context.store.clips, "pump", "test")
    facts = context.store.clips.iloc[test]
    for kind, detector in (("trained", trained), ("untrained", blank)):
        beta = detector.components(Clips(detector.store, test))["oevae", "beta"]
        reached = oracle.official_metrics(beta, list(facts["domain"]), list(facts["label"]))
        assert table.loc["beta", kind] == pytest.approx(oracle.harmonic_mean(reached), abs=1e-9)
    np.testing.assert_allclose(table["gain"], table["trained"] - table["untrained"], atol=1e-9)
    assert (table["low"] <= table["gain"] + 1e-9).all() and (table["gain"] <= table["high"] + 1e-9).all()


def test_the_table_of_layers_is_beta_of_such_detectors(context, trained, beside):
    before = trained.net.state_dict()["machine.weight"].clone()
    table = ablation.inner_layers(trained, context.cfg.metrics)
    assert torch.equal(trained.net.state_dict()["machine.weight"], before)
    assert list(table.columns) == ["layer", "pooling", "dim", "trained", "untrained", "gain"]
    assert len(table) == 12 and table[["trained", "untrained"]].stack().between(0, 1).all()
    for layer, how in (("layer4", "mean"), ("layer1", "bands")):
        settings = {"layers": (layer,), "pooling": how, "backend": "local_density"}
        (row,) = table[(table["layer"] == layer) & (table["pooling"] == how)].itertuples()
        pair = ((beside(**settings), row.trained), (fitted(context, epochs=0, **settings), row.untrained))
        for detector, expected in pair:
            test = machine_rows(context.store.clips, "pump", "test")
            scores = detector.components(Clips(detector.store, test))["oevae", "beta"]
            facts = context.store.clips.iloc[test]
            reached = oracle.official_metrics(scores, list(facts["domain"]), list(facts["label"]))
            assert expected == pytest.approx(oracle.harmonic_mean(reached), abs=1e-9)
            assert row.dim == detector.embed(Clips(detector.store, test[:1]))[0].shape[1]


def test_refusals_of_layers():
    with pytest.raises(errors.InputError, match="at least one layer, without duplicates"):
        TINY.replace(layers=("layer1", "layer1"))
    with pytest.raises(errors.InputError, match="at least one layer"):
        TINY.replace(layers=())
    with pytest.raises(errors.InputError, match="setting layers: got 'layer5', expected one of 'layer1'"):
        TINY.replace(layers=("layer5",))
    assert TINY.replace(layers="layer1").layers == ("layer1",)


# ---------------------------------------------------------------- α of a VAE of its own

OWN_VAE = {"alpha_vae": "vectors", "alpha_mode": "neg_elbo", "layers": ("layer1",), "pooling": "bands"}


def alpha_by_loops(vae, v, domain):
    """−ELBO without z_d of one vector, from the weights, in float64."""
    w = {name: value.double().numpy() for name, value in vae.state_dict().items()}
    h = [(x - m) / s for x, m, s in zip(v.tolist(), w["mean"], w["deviation"])]

    def layer(x, name):
        return [
            sum(a * b for a, b in zip(row, x)) + c for row, c in zip(w[f"{name}.weight"], w[f"{name}.bias"])
        ]

    def two(x, part):
        return layer([max(value, 0.0) for value in layer(x, f"{part}.0")], f"{part}.2")

    out = two(h, "encoder")
    mu, logvar = out[: len(out) // 2], out[len(out) // 2 :]
    kl = sum(0.5 * (np.exp(s) + m**2 - 1 - s) for m, s in zip(mu[domain:], logvar[domain:]))
    return kl + sum((a - b) ** 2 for a, b in zip(h, two(mu, "decoder")))


def test_alpha_of_the_vectors_by_loops(beside, trained):
    detector = beside(**OWN_VAE)
    rows = machine_rows(trained.store.clips, "pump", "test")[:4]
    own, known = detector._vectors(detector.train_rows), np.repeat(detector.trained, 3)
    assert not known.all()
    np.testing.assert_allclose(detector.alpha_vae.mean, own[known].mean(0), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(detector.alpha_vae.deviation, np.maximum(own[known].std(0), 1e-3), rtol=1e-4)
    found = detector.components(Clips(detector.store, rows))
    for i, row in enumerate(rows):
        segments = detector.embed(Clips(detector.store, [row]))[0].astype(float)
        expected = np.mean([alpha_by_loops(detector.alpha_vae, v, 3) for v in segments])
        assert found["oevae", "alpha"][i] == pytest.approx(expected, rel=1e-4)
    alone = detector.components(Clips(detector.store, rows[2:3]))
    assert alone["oevae", "alpha"][0] == found["oevae", "alpha"][2]  # no test clip moves another's score
    of_report = trained.components(Clips(trained.store, rows))
    for mode in ("nll", "neg_elbo"):  # readings of the VAE trained with the extractor stay
        np.testing.assert_array_equal(found["oevae", f"alpha_{mode}"], of_report["oevae", f"alpha_{mode}"])
    kept = np.repeat(~detector.trained, 3)
    with torch.inference_mode():
        mu = detector.alpha_vae(torch.from_numpy(own[kept])).mu[:, 3:]
    assert detector.held_out_alpha["alive"] == (mu.var(0, correction=0) > 0.01).sum()


def test_the_unit_of_a_dimension_does_not_matter_to_a_standardized_vae():
    h = torch.randn(60, 6, generator=generator())
    unit, known = torch.tensor([1e-2, 1.0, 8.0, 64.0, 512.0, 2.0]), torch.zeros(60, dtype=torch.bool)
    settings = TINY.replace(refit_epochs=2)

    def alpha(x, **how):
        vae = oevae_training.refit(x, torch.zeros(60), known, settings, seed=0, **how)
        with torch.inference_mode():
            return losses.alpha_scores(vae(x), domain=3)["neg_elbo"].numpy()

    moved = h * unit + 5
    np.testing.assert_allclose(alpha(moved, standardized=True), alpha(h, standardized=True), rtol=2e-3)
    assert not np.allclose(alpha(moved), alpha(h), rtol=0.5)


def test_a_vae_of_the_vectors_is_saved_and_its_slope_is_what_a_small_change_does(context, tmp_path):
    detector = fitted(context, epochs=1, k_scales=(), holdout=0.3, **OWN_VAE)
    detector.save(tmp_path)
    again = OEVAE.load(tmp_path, Clips(detector.store, detector.train_rows), device="cpu")
    rows = machine_rows(context.store.clips, "pump", "test")[:3]
    for key, values in detector.components(Clips(detector.store, rows)).items():
        np.testing.assert_array_equal(again.components(Clips(detector.store, rows))[key], values)
    assert again.held_out_alpha == detector.held_out_alpha
    found = explain.slope(detector, rows[:1], "alpha")
    x = torch.from_numpy(found.log_mel[0][:, None]).double()
    detector.net.double(), detector.alpha_vae.double()
    step, ways = 1e-3, torch.zeros_like(x)
    ways[1, 0, 6, 9] = step
    with torch.inference_mode():
        high, low = (
            losses.alpha_scores(
                detector.alpha_vae(pooling.bands(detector.net.stages(mel)["layer1"].double())), domain=3
            )["neg_elbo"].double()
            for mel in (x + ways, x - ways)
        )
    expected = float((high - low)[1]) / (2 * step)
    scale = float(np.abs(found.per_db[0, 1]).max())
    assert found.per_db[0, 1, 6, 9] == pytest.approx(expected, abs=0.02 * scale)


# ---------------------------------------------------------------- the tie of z_d to v, without an extractor


def known_condition(shuffled=False):
    """Latents of a VAE refitted on embeddings that hold v and something else, and their fresh items."""
    rng = np.random.default_rng(0)
    v = rng.integers(0, 4, 400).astype(float)
    h = rng.normal(size=(400, 12)).astype(np.float32)
    h[:, 0] += 2 * v - 3
    told = rng.permutation(v) if shuffled else v
    prior, known = exposure.prior_means(told, 5.0, told.mean())
    settings = TINY.replace(hidden=64, batch=32, lr=3e-3, refit_epochs=30)
    fit = slice(0, 300)
    vae = oevae_training.refit(
        *(torch.as_tensor(values[fit]) for values in (h, prior, known)), settings, seed=0
    )
    with torch.no_grad():
        mu = vae(torch.from_numpy(h)).mu.numpy()
    return latents.r_squared(mu[fit, :3], v[fit], mu[300:, :3], v[300:]), latents.r_squared(
        h[fit], v[fit], h[300:], v[300:]
    )


def test_refit_ties_z_d_to_the_condition_and_shuffled_conditions_do_not():
    tied, there = known_condition()
    assert there > 0.75 and tied > 0.7
    assert known_condition(shuffled=True)[0] < 0.35


DEV = ("bearing", "fan", "gearbox", "slider", "valve", "ToyCar:gearbox", "ToyTrain:fan")
ADDITIONAL = (
    "3DPrinter:slider",
    "AirCompressor:fan",
    "BrushlessMotor:bearing",
    "HairDryer:fan",
    "HoveringDrone:fan",
    "RoboticArm:slider",
    "Scanner:slider",
    "ToothBrush:valve",
    "ToyCircuit:gearbox",
)


def test_paper_on_all_machines_by_name_with_and_without_attributes(tmp_path):
    """The literal study but for sizes: 16 machines, of which the additional ones have no test clips; three of
    them, one whose condition is an attribute, are trained for an epoch.
    """
    small = [
        "oevae.epochs=1",
        "oevae.refit_epochs=1",
        "oevae.width=4",
        "oevae.features.n_mels=32",
        "oevae.batch=16",
        "precision=float32",
    ]
    cfg = config.load("paper", small)
    assert cfg.oevae.vae_grad == "literal" and cfg.oevae.smote.space == "logmel" and cfg.oevae.holdout == 0
    for folder, names, test in (("dev", DEV, 1), ("additional", ADDITIONAL, 0)):
        settings = synthetic.SyntheticSettings(
            machines=names, train_source=3, train_target=2, test=test, seconds=2.2
        )
        synthetic.write_tree(tmp_path / folder, settings)
    store = open_store(
        *clip_index.index([tmp_path / "dev", tmp_path / "additional"]), tmp_path / "store", cfg.data
    )
    here, keys = Context(cfg, store, torch.device("cpu")), {}
    for name in sorted(set(store.clips["machine"])):
        detector = detector_of(OEVAE, here)
        bound(detector, store, machine_rows(store.clips, name, "train"))._open()
        keys[name] = detector.condition.key
    assert len(keys) == 16 and "power" in keys.values() and len(set(keys.values())) > 2
    told = next(name for name, key in keys.items() if key != "power")
    for name in (told, "gearbox", "AirCompressor"):
        detector = detector_of(OEVAE, here)
        scores = fusion.systems(detect(detector, store, [name]), cfg.fusion)
        assert np.isfinite(scores["score"]).all() and "score" in set(scores["component"])
        assert detector.center == 0 and detector.trained.all()


def test_a_study_without_oevae_needs_no_other_machine():
    assert "oevae" not in config.load("real").systems and "oevae" in config.load("paper").systems


@pytest.mark.gpu
def test_an_epoch_on_a_gpu_waits_for_nothing(context):
    on_gpu = dataclasses.replace(context, device=torch.device("cuda"))
    made = batches_of(on_gpu)
    draws = torch.Generator("cuda").manual_seed(0)
    list(made.batches(draws))  # filter banks and windows are made once
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # that the mode is new
            torch.cuda.set_sync_debug_mode("error")
        for batch in made.batches(draws):
            assert batch.x.device.type == "cuda"
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize(("width", "layout"), [(4, torch.contiguous_format), (16, torch.channels_last)])
def test_a_narrow_network_is_not_channels_last(context, width, layout):
    """Below 16 channels its backward pass corrupted the heap on CPUs without AVX-512."""
    net = fitted(context, width=width, epochs=1, k_scales=()).net
    kernels = [weight for weight in net.parameters() if weight.ndim == 4 and min(weight.shape[1:]) > 1]
    assert kernels and all(weight.is_contiguous(memory_format=layout) for weight in kernels)
