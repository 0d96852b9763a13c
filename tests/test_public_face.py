"""The public face: what a researcher types in a fresh notebook, and PyOD's contract over all detectors, on
plain arrays.
"""

import subprocess
import sys
import time

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.base import clone

import asdlib as asd
from asdlib.data import synthetic

RATE = 16000
SMALL = {
    "NearestNeighbor": {},
    "MultiResolution": {},
    "Pretrained": {},
    "Autoencoder": {"epochs": 2, "n_mels": 16, "hidden": 12, "bottleneck": 4},
    "Classifier": {
        "clip_seconds": 1.0,
        "n_fft": 256,
        "hop_length": 256,
        "n_mels": 40,
        "dim": 8,
        "subclusters": 2,
        "kmeans": 4,
        "epochs": 1,
        "batch": 8,
    },
    "OEVAE": {
        "features": {
            "segments": 2,
            "segment_s": 0.5,
            "n_mels": 16,
            "n_fft": 512,
            "win_length": 512,
            "hop_length": 256,
        },
        "width": 4,
        "hidden": 16,
        "latent": 8,
        "domain_latent": 3,
        "batch": 16,
        "epochs": 1,
        "refit_epochs": 2,
        "k_scales": (5.0,),
    },
}
FREE = {"NearestNeighbor": "k", "MultiResolution": "k", "Pretrained": "neighbors"}  # nothing is trained


def detector(name, **more):
    return getattr(asd, name)(**(SMALL[name] | {"precision": "float32"} | more))


@pytest.fixture(scope="module")
def clips():
    """Two machines of tones, without any folder; anomalies are higher tones."""
    rng, waves, rows = np.random.default_rng(0), [], []
    for machine, base in (("pump", 400.0), ("saw", 900.0)):
        plan = [("train", "source", "normal", 9), ("train", "target", "normal", 3)]
        plan += [
            ("test", domain, label, 3) for domain in ("source", "target") for label in ("normal", "anomaly")
        ]
        for split, domain, label, count in plan:
            for _ in range(count):
                hz = base * (1.5 if label == "anomaly" else 1.0) * (1.02 if domain == "target" else 1.0)
                tone = 0.1 * np.sin(2 * np.pi * hz * np.arange(RATE) / RATE + rng.uniform(0, 6))
                waves.append((tone + 0.01 * rng.normal(size=RATE)).astype(np.float32))
                rows.append((machine, split, domain, label))
    return asd.from_arrays(
        waves, pd.DataFrame(rows, columns=["machine", "split", "domain", "label"]), sample_rate=RATE
    )


def fitted(name, clips, **more):
    own = clips.train() if name == "Classifier" else clips.train("pump")
    return detector(name, **more).fit(own, others=clips.train(without="pump") if name == "OEVAE" else None)


@pytest.fixture(scope="module")
def every(clips):
    return {name: fitted(name, clips) for name in SMALL}


def test_import_is_quick_and_loads_nothing_heavy():
    code = (
        "import sys, asdlib as asd; print(asd.__version__, {'torch', 'pandas', 'sklearn', 'scipy', 'numpy'} &"
        " set(sys.modules))"
    )
    began = time.perf_counter()
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    print(f"{time.perf_counter() - began:.2f} s")
    assert said.stdout.strip() == f"{asd.__version__} set()"


@pytest.mark.parametrize("name", asd.__all__)
def test_everything_that_is_promised_is_there(name):
    assert getattr(asd, name).__doc__ and name in dir(asd)


def test_an_unknown_name_is_said():
    with pytest.raises(AttributeError, match=r"has no attribute 'OVEA'; it has .*OEVAE"):
        asd.OVEA  # noqa: B018


@pytest.mark.parametrize("name", SMALL)
def test_fit_twice_gives_the_same_numbers(name, clips, every):
    again = fitted(name, clips)
    test = clips.test("pump")
    np.testing.assert_array_equal(again.decision_function(test), every[name].decision_function(test))
    np.testing.assert_array_equal(again.decision_scores_, every[name].decision_scores_)


@pytest.mark.parametrize("name", SMALL)
def test_parameters_can_be_read_set_and_cloned(name):
    one = detector(name, seed=3, contamination=0.2)
    same = clone(one)
    assert same is not one and same.get_params() == one.get_params() and same.seed == 3
    assert one.set_params(seed=4).seed == 4 and type(one).__name__ in repr(one) and "seed=4" in repr(one)


@pytest.mark.parametrize("name", SMALL)
def test_unknown_and_impossible_settings_are_refused_at_once(name):
    field = FREE.get(name, "epochs")
    with pytest.raises(asd.InputError, match=rf"{field}.*got -5, expected"):
        detector(name, **{field: -5})
    with pytest.raises(asd.InputError, match=r"unknown .*epocs|unknown .*nmels"):
        detector(name, **({"nmels": 64} if name in FREE else {"epocs": 5}))
    with pytest.raises(asd.InputError, match="contamination: got 2, expected a fraction between 0 and 1"):
        detector(name, contamination=2)
    with pytest.raises(asd.InputError, match="contamination: got 'auto', expected a fraction"):
        detector(name, contamination="auto")
    with pytest.raises(asd.InputError, match="unknown precision 'bfloat'"):
        detector(name, precision="bfloat")
    with pytest.raises(asd.InputError, match="unknown device 'mps'"):
        detector(name, device="mps")


@pytest.mark.parametrize("name", SMALL)
def test_one_clip_does_not_depend_on_others(name, clips, every):
    test = clips.test("pump")
    together = every[name].decision_function(test)
    alone = [every[name].decision_function(test.where(np.arange(len(test)) == i))[0] for i in (0, 7)]
    np.testing.assert_array_equal(alone, together[[0, 7]])
    shifted = asd.from_arrays(
        [test.store.int16(row) for row in test.rows[:2]], test.table.iloc[:2].drop(columns="clip")
    )
    np.testing.assert_array_equal(
        every[name].decision_function(shifted), together[:2]
    )  # the same audio in another store


@pytest.mark.parametrize("name", SMALL)
def test_new_clips_that_are_named_like_training_clips_are_scored_alone(name, clips, every):
    det, test, train = every[name], clips.test("pump"), clips.train("pump").table["clip"]
    table = test.table[["machine"]].assign(split="train", clip=train.to_numpy()[: len(test)])
    again = asd.from_arrays([test.store.int16(row) for row in test.rows], table)
    np.testing.assert_array_equal(det.decision_function(again), det.decision_function(test))
    np.testing.assert_array_equal(det.predict(again), det.predict(test))
    scores = det.score(again)
    assert len(scores) == len(det.score(test)) and set(scores["clip"]) == set(table["clip"])
    assert set(scores["split"]) == {"train"}


@pytest.mark.parametrize("name", SMALL)
def test_scores_of_training_clips_leave_the_clip_out(name, clips, every):
    det = every[name]
    train = clips.train("pump")
    own = det.decision_function(train)
    expected = det.decision_scores_[np.isin(det.train_rows, train.rows)]
    np.testing.assert_array_equal(own, expected)
    if name == "NearestNeighbor":  # as a new clip it would find itself
        assert det.components(train)["baseline_knn", "score"].mean() < own.mean()


@pytest.mark.parametrize("name", SMALL)
def test_thresholds_decisions_and_metrics(name, clips, every):
    det, test = every[name], clips.test("pump")
    value = det.thresholds_["pump"].value
    assert (det.predict(test) == (det.decision_function(test) > value)).all()
    if name == "Classifier":
        with pytest.raises(asd.InputError, match="fitted to pump, saw, each with its own threshold"):
            det.threshold_  # noqa: B018
    else:
        assert det.threshold_ == value
    scores = det.score(test)
    assert set(scores["clip"]) == set(test.table["clip"])
    table = asd.evaluate(scores, bootstrap=50)
    assert {"auc_source", "auc_target", "pauc", "omega"} <= set(table["metric"])
    assert set(table["system"]) <= set(det.systems) and table["value"].between(0, 1).all()


@pytest.mark.parametrize("name", SMALL)
def test_what_is_saved_is_loaded(name, clips, every, tmp_path):
    det = every[name]
    det.save(tmp_path / "det")
    loaded = type(det).load(tmp_path / "det", asd.Clips(det.store, det.train_rows))
    test = clips.test("pump")
    np.testing.assert_array_equal(loaded.decision_function(test), det.decision_function(test))
    np.testing.assert_array_equal(loaded.decision_scores_, det.decision_scores_)
    assert loaded.get_params() == det.get_params() | {"device": "auto"}
    with pytest.raises(asd.InputError, match="does not contain a detector"):
        type(det).load(tmp_path, clips.train("pump"))


@pytest.mark.parametrize("name", SMALL)
def test_bad_input_is_refused_in_words(name, clips, every):
    with pytest.raises(asd.InputError, match="not fitted yet; call fit first"):
        detector(name).decision_function(clips.test("pump"))
    with pytest.raises(asd.InputError, match="got ndarray, expected Clips"):
        detector(name).fit(np.zeros((3, RATE)))
    with pytest.raises(asd.InputError, match="no training clips given"):
        detector(name).fit(clips.where(np.zeros(len(clips), bool)))
    with pytest.raises(asd.InputError, match="is anomaly, expected only normal clips in fit"):
        detector(name).fit(clips)
    slow = asd.from_arrays([np.zeros(8000, np.int16)], sample_rate=8000)
    with pytest.raises(asd.InputError, match="clips have 8000 Hz, but the detector was fitted at 16000 Hz"):
        every[name].decision_function(slow)


@pytest.mark.parametrize("name", SMALL)
def test_the_order_of_training_clips_changes_no_score(name, clips, every):
    det = every[name]
    order = np.random.default_rng(0).permutation(len(det.train_rows))
    mixed = asd.Clips(clips.store, det.train_rows[order])
    other = detector(name).fit(mixed, others=clips.train(without="pump") if name == "OEVAE" else None)
    np.testing.assert_array_equal(other.decision_scores_, det.decision_scores_[order])
    test = clips.test("pump")
    np.testing.assert_array_equal(other.decision_function(test), det.decision_function(test))
    assert other.thresholds_["pump"].value == pytest.approx(det.thresholds_["pump"].value, rel=1e-9)


def test_only_different_training_clips_are_fitted(clips):
    normal = clips.where((clips.table["machine"] == "pump") & (clips.table["label"] == "normal"))
    with pytest.raises(asd.InputError, match=r"pump/test/.* is a test clip, expected only training clips"):
        detector("NearestNeighbor").fit(normal)
    own = clips.train("pump")
    with pytest.raises(asd.InputError, match="given more than once, expected different training clips"):
        detector("NearestNeighbor").fit(asd.Clips(own.store, np.r_[own.rows, own.rows[:1]]))


@pytest.mark.parametrize("name", SMALL)
def test_clips_of_another_machine_are_refused(name, clips, every):
    if name == "Classifier":
        det = detector(name).fit(clips.train("pump"))
    else:
        det = every[name]
    for call in (det.score, det.predict, det.components, det.decision_function):
        with pytest.raises(asd.InputError, match="got clips of saw, but the detector was fitted to pump"):
            call(clips.test("saw"))
    for call in (det.score, det.predict, det.components, det.decision_function, det.embed, det.accept):
        with pytest.raises(asd.InputError, match="got ndarray, expected Clips"):
            call(np.zeros(RATE))


@pytest.mark.parametrize("name", [name for name in SMALL if name != "OEVAE"])
def test_a_machine_may_be_named_as_a_section_of_another(name, clips):
    def scores(other):
        table = clips.table.drop(columns=["clip", "path"]).replace({"machine": {"saw": other}})
        both = asd.from_arrays([clips.store.int16(row) for row in clips.rows], table)
        det = detector(name).fit(both.train())
        return det.decision_function(both.test("pump")), det.predict(both.test("pump"))

    for found, expected in zip(scores("pump_00"), scores("quill"), strict=True):
        np.testing.assert_array_equal(found, expected)


def test_a_test_clip_of_another_section_moves_no_score(clips):
    table = clips.table.drop(columns=["clip", "path"])
    table["section"] = np.where(np.arange(len(table)) % 2, "00", "01")
    waves, found = [clips.store.int16(row) for row in clips.rows], []
    last = len(table) - 1  # a test clip of the saw
    for section in ("00", "02"):
        table.loc[table.index[last], ["machine", "section"]] = "pump", section
        both = asd.from_arrays(waves, table)
        det = detector("NearestNeighbor").fit(both.train("pump"))
        assert list(det.thresholds_) == ["pump_00", "pump_01"]
        test = both.test("pump")
        found.append(det.decision_function(test.where(test.rows < last)))
    np.testing.assert_array_equal(*found)
    with pytest.raises(asd.InputError, match="fitted to pump_00, pump_01"):
        det.score(test)


@pytest.mark.parametrize("name", SMALL)
def test_a_detector_is_loaded_for_its_training_clips_only(name, clips, every, tmp_path):
    det = every[name]
    det.save(tmp_path)
    table, test = clips.table, clips.test("pump")
    first = np.r_[test.rows, np.flatnonzero((table["split"] == "train").to_numpy())]  # other rows in a store
    again = asd.from_arrays([clips.store.int16(row) for row in first], table.iloc[first])
    own = again.train() if name == "Classifier" else again.train("pump")
    loaded = type(det).load(tmp_path, own)
    np.testing.assert_array_equal(loaded.decision_function(again.test("pump")), det.decision_function(test))
    np.testing.assert_array_equal(loaded.decision_scores_, det.decision_scores_)
    named = table.iloc[det.train_rows]  # the same names, other recordings
    louder = asd.from_arrays([clips.store.int16(row) // 2 for row in det.train_rows], named)
    for other in (clips.train("saw"), asd.Clips(own.store, own.rows[:-1]), louder):
        with pytest.raises(asd.InputError, match="was fitted to other training clips than the"):
            type(det).load(tmp_path, other)


@pytest.mark.parametrize("name", SMALL)
def test_clips_are_accepted_under_any_name(name, clips, every, tmp_path):
    det, own, test = every[name], clips.train("pump"), clips.test("pump")
    waves, table = [clips.store.int16(row) for row in own.rows[:2]], own.table.iloc[:2]
    new, same = (asd.from_arrays(waves, table.assign(clip=names)) for names in (["x", "y"], table["clip"]))
    one, other = det.accept(new), det.accept(same)
    for some in (test, own):
        np.testing.assert_allclose(one.decision_function(some), other.decision_function(some), rtol=1e-12)
    assert len(other.decision_scores_) == len(det.train_rows)
    with pytest.raises(asd.InputError, match="has accepted clips, which are not saved"):
        one.save(tmp_path)


def test_what_cannot_be_accepted_is_refused(clips, every):
    det, test = every["NearestNeighbor"], clips.test("pump")
    with pytest.raises(asd.InputError, match="of the store of the training clips"):
        det.accept(test)
    with pytest.raises(asd.InputError, match="no clips to accept given"):
        det.accept(test.where(np.zeros(len(test), bool)))
    apart = asd.from_arrays([test.store.int16(row) for row in test.rows], test.table)
    with pytest.raises(asd.InputError, match="is an anomaly, expected only normal clips in accept"):
        det.accept(apart)
    with pytest.raises(asd.InputError, match="got clips of machine, but the detector was fitted to pump"):
        det.accept(asd.from_arrays([np.zeros(RATE, np.int16)]))


@pytest.mark.parametrize("rows", [[-1], [10**6], [0.5], [True], [[0]], ["a"]])
def test_rows_that_are_none_are_refused(rows, clips):
    with pytest.raises(asd.InputError, match="rows: got"):
        asd.Clips(clips.store, np.array(rows))
    assert asd.Clips(clips.store, [1, 0]).table["clip"].tolist() == clips.table["clip"].tolist()[1::-1]


def test_masks_that_are_none_are_refused(clips):
    few = clips.where(np.arange(len(clips)) < 3)
    for mask in ([0, 1, 2], [True, False], [np.nan, 1, 0], ["a", "b", "c"], 1):
        with pytest.raises(asd.InputError, match="expected a boolean mask of 3 clips"):
            few.where(mask)


@pytest.mark.parametrize(
    ("waves", "words"),
    [
        ([], "got 0 waveforms and a table of 0 rows"),
        ([np.zeros((RATE, 100))], r"did you give \(samples, channels\)\?"),
        ([np.full(RATE, np.nan)], "waveform 0: masked, NaN or infinite values"),
        ([np.ma.masked_greater(np.linspace(0, 1, RATE), 0.5)], "waveform 0: masked, NaN or infinite values"),
        (None, "waves: got NoneType, expected one array per clip"),
        ([np.full(RATE, 3.0)], r"values up to 3, expected floats in \[-1, 1\]; did you mean int16\?"),
        ([np.zeros(10)], "10 samples, expected at least 0.15 s"),
        ([np.zeros(RATE, np.int32)], r"int32 array, expected int16, or floats in \[-1, 1\]"),
        ([torch.zeros(RATE, requires_grad=True)], "not an array of numbers .*; convert it to numpy"),
    ],
)
def test_waves_that_cannot_be_are_refused(waves, words):
    with pytest.raises(asd.InputError, match=words):
        asd.from_arrays(waves)


@pytest.mark.parametrize("kind", [np.float16, np.float32, np.float64, ">f4"])
def test_floats_of_any_kind_mean_the_same(kind):
    wave = np.resize([1.0, -1.0, 0.5, -0.25], RATE)
    expected = np.resize([32767, -32768, 16384, -8192], RATE)
    np.testing.assert_array_equal(asd.from_arrays([wave.astype(kind)]).store.int16(0), expected)


@pytest.mark.parametrize(
    ("table", "words"),
    [
        (
            pd.DataFrame({"attr_speed": [1.5]}),
            r"attributes are texts.*attr_speed contains 1\.5, expected strings",
        ),
        (pd.DataFrame({"attr_speed": [np.nan]}), "attr_speed contains nan, expected strings"),
        (pd.DataFrame({"attr_speed": [[1]]}), r"attr_speed contains \[1\], expected strings"),
        (pd.DataFrame([[1]], columns=pd.MultiIndex.from_tuples([("a", "b")])), "unique column names"),
        (pd.DataFrame({0: ["x"]}), "unique column names"),
        (pd.DataFrame({"machine": [""]}), "a machine is named '', which means all machines"),
        (pd.DataFrame({"machine": ["all"]}), "a machine is named 'all', which means all machines"),
    ],
)
def test_tables_that_cannot_be_are_refused(table, words):
    with pytest.raises(asd.InputError, match=words):
        asd.from_arrays([np.zeros(RATE, np.int16)], table)


@pytest.mark.parametrize("channel", [0.5, "0", None])
def test_channels_that_cannot_be_are_refused(channel):
    with pytest.raises(asd.InputError, match=r"channel: got .*, expected an integer"):
        asd.from_arrays([np.zeros((2, RATE), np.int16)], channel=channel)


@pytest.mark.parametrize("name", SMALL)
@pytest.mark.parametrize("seed", [-1, 0.5, None, "0", 2**70])
def test_seeds_that_cannot_be_are_refused_at_once(name, seed):
    with pytest.raises(asd.InputError, match=r"seed: got .*, expected an integer >= 0"):
        detector(name, seed=seed)


@pytest.mark.parametrize("rate", [0, -1, True, 16000.5, np.nan, "16000"])
def test_rates_that_cannot_be_are_refused(rate):
    with pytest.raises(asd.InputError, match=r"sample_rate: got .*, expected whole Hz from 1000 to 192000"):
        asd.from_arrays([np.zeros(RATE)], sample_rate=rate)


def test_tables_and_waves_in_other_forms():
    waves, table = [0.5 * np.ones(RATE)] * 2, pd.DataFrame({"machine": ["pump"] * 2})
    given = asd.from_arrays((wave for wave in waves), table.astype("category"), sample_rate=np.float64(RATE))
    assert given.table.equals(asd.from_arrays(waves, table).table)
    big_endian = asd.from_arrays([(wave * 2**15).astype(">i2") for wave in waves])
    assert big_endian.store.int16(0).tolist() == [16384] * RATE
    for wrong in (table.to_dict("list"), pd.concat([table, table], axis=1)):
        with pytest.raises(asd.InputError, match=r"table: got .*, expected a DataFrame"):
            asd.from_arrays(waves, wrong)


def test_a_score_that_is_no_number_is_told_with_its_clip(clips, every):
    scores = every["NearestNeighbor"].score(clips.test("pump"))
    with pytest.raises(asd.InputError, match=f"score of {scores['clip'][0]} is nan, expected a finite"):
        asd.evaluate(scores.assign(score=np.nan))


def test_a_channel_is_chosen():
    wave = np.stack([np.zeros(RATE), 0.5 * np.ones(RATE)])
    assert asd.from_arrays([wave], channel=1).store.int16(0).tolist() == [16384] * RATE
    with pytest.raises(asd.InputError, match="got channel 2, expected 0 to 1"):
        asd.from_arrays([wave], channel=2)


def test_oevae_needs_other_machines(clips):
    with pytest.raises(asd.InputError, match="pump is the only machine"):
        detector("OEVAE").fit(clips.train("pump"))
    with pytest.raises(asd.InputError, match="others contains clips of pump"):
        detector("OEVAE").fit(clips.train("pump"), others=clips.train())


def test_recordings_in_folders_without_a_study(tmp_path):
    """The block of the README, on a synthetic tree in an empty folder."""
    few = {"train_source": 8, "train_target": 4, "test": 3, "seconds": 1.0}
    synthetic.write_tree(tmp_path / "raw", synthetic.SyntheticSettings(machines=("fan", "valve"), **few))
    clips = asd.load_dcase(tmp_path / "raw", machines=["fan", "valve"])
    det = detector("OEVAE", seed=0).fit(clips.train("fan"), others=clips.train(without="fan"))
    table = asd.evaluate(det.score(clips.test("fan")), bootstrap=50)
    assert set(table["machine"]) == {"fan", "all"} and not len(clips.problems)
    assert det.predict(clips.test("fan")).shape == (12,) and np.isfinite(det.threshold_)
    with pytest.raises(asd.InputError, match="unknown machine 'fann'; did you mean fan"):
        clips.train("fann")


# ---------------------------------------------------------------- recipes of notebooks/README.md


def test_recipe_back_ends_on_embeddings_of_your_own():
    rng = np.random.default_rng(0)
    here, there = np.eye(5)[0] * 4, np.eye(5)[1] * 4
    train = rng.normal(here, 1, (60, 5))
    test = np.concatenate([rng.normal(here, 1, (20, 5)), rng.normal(there, 1, (20, 5))])
    for estimator in (
        asd.scoring.KNN(k=2),
        asd.scoring.KMeansCosine(clusters=4),
        asd.scoring.LocalDensity(k=3),
        asd.scoring.StandardizedDensity(k=2, neighbors=3),
        asd.scoring.Mahalanobis(shrinkage=0.1),
    ):
        found = clone(estimator).fit(train)
        scores = found.decision_function(test)
        assert scores[20:].mean() > scores[:20].mean() and found.decision_scores_.shape == (60,)
        np.testing.assert_allclose(
            [found.decision_function(test[i : i + 1])[0] for i in (0, 30)], scores[[0, 30]], rtol=1e-6
        )
        assert set(found.predict(test)) <= {0, 1} and np.isfinite(found.threshold_)
    away = np.sort(np.linalg.norm(test[:, None] - train[None], axis=2), axis=1)[:, :2].mean(1)
    np.testing.assert_allclose(asd.scoring.KNN(k=2).fit(train).decision_function(test), away, rtol=1e-5)
    with pytest.raises(asd.InputError, match="vectors have 3 dimensions, expected 5"):
        asd.scoring.KNN().fit(train).decision_function(test[:, :3])
    with pytest.raises(asd.InputError, match="k: got 0, expected an integer >= 1"):
        asd.scoring.KNN(k=0)


def test_recipe_sub_cluster_adacos_in_your_own_training_loop():
    torch.manual_seed(0)
    net, loss = torch.nn.Linear(10, 16), asd.losses.SubClusterAdaCos(dim=16, classes=4, subclusters=2)
    optimizer = torch.optim.Adam([*net.parameters(), *loss.parameters()], lr=0.01)
    y = torch.arange(64) % 4
    x = torch.randn(64, 10) + 3 * torch.nn.functional.one_hot(y, 10)
    first = None
    for _ in range(60):
        value = loss(net(x), torch.nn.functional.one_hot(y, 4).float()).mean()
        first = float(value.detach()) if first is None else first
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
    assert float(value.detach()) < 0.5 * first


def test_recipe_a_feature_of_your_own_in_a_nearest_neighbor(clips):
    """Any function from waveforms to vectors, scored by the library's back-end and judged by its metrics."""
    train, test = clips.train("pump"), clips.test("pump")

    def feature(part):
        wave = part.store.audio(part.rows)
        return asd.features.log_mel(wave, n_mels=32, hop=512)[:, 0].mean(-1).numpy()

    scores = asd.scoring.KNN(k=1).fit(feature(train)).decision_function(feature(test))
    facts = test.table[["machine", "section", "split", "domain", "label", "clip"]]
    table = asd.evaluate(facts.assign(system="mine", component="score", score=scores, seed=0), bootstrap=50)
    assert table.query("metric == 'omega'")["value"].item() > 0.9
