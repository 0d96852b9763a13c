"""Sections are judged apart, in a study and by the official evaluation alike; a machine whose sections cannot
be stays whole.
"""

import numpy as np
import pandas as pd
import pytest
import soundfile
import torch
from sizes import BASELINE, SMALL, TINY, Context, detector_of, fit

from asdlib import detectors, errors, schemas
from asdlib.analysis import tuning
from asdlib.data import index
from asdlib.data.store import Clips, open_store, training_rows
from asdlib.detectors.base import detect
from asdlib.evaluation import challenge, metrics
from asdlib.scoring import fusion
from asdlib.studies import config, scorer

FEW = metrics.MetricsSettings(bootstrap=50, shuffles=10)


def made(sections, train=6, seed=0):
    """Clip table and scores of two machines whose sections have scores of quite different sizes."""
    rng, rows = np.random.default_rng(seed), []
    for machine in ("pump", "saw"):
        for number in range(sections):
            plan = [("train", domain, "normal", train) for domain in ("source", "target")]
            plan += [
                ("test", domain, label, 7)
                for domain in ("source", "target")
                for label in ("normal", "anomaly")
            ]
            for split, domain, label, count in plan:
                for i in range(count):
                    name = f"section_{number:02}_{domain}_{split}_{label}_{i:04}_noAttribute.wav"
                    score = 10.0**number * (rng.normal() + (label == "anomaly")) + 100 * number
                    rows.append(
                        (
                            f"{machine}/{split}/{name}",
                            f"{machine}/{split}/{name}",
                            machine,
                            f"{number:02}",
                            split,
                            domain,
                            label,
                            score,
                        )
                    )
    return pd.DataFrame(rows, columns=[*schemas.CLIP_COLUMNS, "score"])


def as_scores(table):
    return table.assign(system="a", component="score", seed=0)[list(schemas.SCORE_COLUMNS)]


@pytest.mark.parametrize("sections", [1, 2, 6])
def test_a_study_and_the_official_evaluation_agree(sections, tmp_path):
    table = made(sections)
    for (machine, section), rows in table[table["split"] == "test"].groupby(["machine", "section"]):
        for what, values in {
            "data": rows["label"] == "anomaly",
            "domain": rows["domain"] == "target",
        }.items():
            path = (
                tmp_path
                / "truth"
                / f"ground_truth_{what}"
                / f"ground_truth_{machine}_section_{section}_test.csv"
            )
            path.parent.mkdir(parents=True, exist_ok=True)
            lines = [f"{clip.rsplit('/', 1)[1]},{int(value)}\n" for clip, value in zip(rows["clip"], values)]
            path.write_text("".join(lines))
    scores = as_scores(table)
    challenge.write(
        tmp_path / "sub", table[list(schemas.CLIP_COLUMNS)], index.problem_table([]), scores, FEW, "a", 0
    )
    theirs, quality = challenge.evaluate(tmp_path / "sub", tmp_path / "truth", FEW)
    ours = metrics.table(scores, FEW, 0)
    keys, columns = ["machine", "metric"], ["value", "low", "high"]
    pd.testing.assert_frame_equal(
        ours.set_index(keys)[columns], theirs.set_index(keys)[columns], rtol=0, atol=1e-12
    )
    decided = metrics.decisions(scores, FEW)
    mine = decided[decided["domain"] != "all"].set_index(["machine", "domain"])[["precision", "recall", "f1"]]
    judged = quality[quality["machine"] != "all"].set_index(["machine", "domain"])[
        ["precision", "recall", "f1"]
    ]
    pd.testing.assert_frame_equal(
        mine.sort_index(), judged.sort_index(), rtol=0, atol=1e-12, check_dtype=False
    )


def test_a_submission_takes_the_threshold_of_the_machine_not_of_one_named_as_its_section(tmp_path):
    table = made(1).replace({"machine": {"saw": "pump_00"}})
    table["clip"] = table["clip"].str.replace("saw/", "pump_00/")
    table["score"] = np.where(table["machine"] == "pump", table["score"], table["score"] + 1000)
    problems = index.problem_table([])
    challenge.write(tmp_path / "sub", table, problems, as_scores(table), FEW, "a", 0)
    decided = metrics.decisions(as_scores(table), FEW).drop_duplicates("machine").set_index("machine")
    scores, found = (
        pd.read_csv(tmp_path / f"sub/{kind}_pump_section_00_test.csv", header=None)[1]
        for kind in challenge.KINDS
    )
    assert found.tolist() == (scores > decided.loc["pump", "threshold"]).astype(int).tolist() != [0] * 28


def test_scales_and_thresholds_are_of_the_section():
    """Other scores in other sections move neither the scale nor the threshold of this one."""
    scores = as_scores(made(3))
    other = scores.copy()
    other.loc[(scores["machine"] != "pump") | (scores["section"] != "01"), "score"] *= 7
    for of in (
        lambda t: fusion.aligned(t, [("a", "score")], "zscore").query(
            "machine == 'pump' and section == '01'"
        ),
        lambda t: metrics.decisions(t, FEW).query("machine == 'pump_01'"),
    ):
        pd.testing.assert_frame_equal(of(scores), of(other))
        assert len(of(scores))


def test_sections_of_test_clips_do_not_decide_what_others_are_held_against():
    table = made(3)
    bare = table[(table["machine"] != "pump") | (table["section"] != "02") | (table["split"] == "test")]
    every = {f"{machine}_0{i}" for machine in ("pump", "saw") for i in range(3)}
    assert set(schemas.by_section(bare)["machine"]) == set(schemas.by_references(bare)["machine"]) == every
    assert (
        set(schemas.by_references(made(1))["machine"])
        == set(schemas.by_section(made(1))["machine"])
        == {"pump", "saw"}
    )
    decided = metrics.decisions(as_scores(bare), FEW).drop_duplicates("machine").set_index("machine")
    whole = metrics.decisions(as_scores(table), FEW).drop_duplicates("machine").set_index("machine")
    assert decided.loc["pump_00", "threshold"] == whole.loc["pump_00", "threshold"]
    assert decided.loc["pump_02", "method"] == "none"
    with pytest.raises(
        errors.InputError, match="test clips of section 02, but training clips only of sections"
    ):
        training_rows(bare.reset_index(drop=True), "pump")
    assert len(training_rows(bare.reset_index(drop=True), "saw")) == 36
    some = (table["section"] == "02") & (table["split"] == "train")
    number = table.groupby(["machine", "section", "split"]).cumcount()
    few = table[~some | (number < 2)]
    assert set(schemas.by_references(few)["machine"]) == {
        "pump",
        "saw",
    }  # a section has too few: all together
    faulty = table.assign(label=table["label"].mask(some & (number > 1), "anomaly"))
    assert set(schemas.by_references(faulty)["machine"]) == {"pump", "saw"}
    with pytest.raises(
        errors.InputError,
        match="machine name pump_01 collides with a section of another machine; rename its folder",
    ):
        schemas.by_section(pd.concat([table, made(1).replace({"machine": {"saw": "pump_01"}})]))


@pytest.mark.parametrize("whole", [False, True])
def test_the_tuner_judges_sections_as_the_report_does(whole):
    table = made(2)
    if whole:
        table = table[(table["machine"] != "pump") | (table["section"] != "01") | (table["split"] == "test")]
    rng = np.random.default_rng(1)
    parts = [
        as_scores(table).assign(
            system="oevae", component=name, score=table["score"] + rng.normal(size=len(table))
        )
        for name in ("alpha", "beta", "beta_k1", "beta_k2", "beta_k4")
    ]
    scores, cfg = pd.concat(parts, ignore_index=True), config.StudySettings()
    tuned = tuning.from_scores(scores, cfg)
    official = metrics.table(fusion.systems(scores, cfg.fusion), FEW, 0).query("component == 'score'")
    assert tuned.machines == ("pump_00", "pump_01", "saw_00", "saw_01")
    point = tuned.point("oevae", tuned.default)
    np.testing.assert_allclose(point.ravel(), official["value"], atol=1e-12)


@pytest.fixture(scope="module")
def stores(tmp_path_factory):
    """The same recordings twice; in the second, those of section 01 of the pump are others."""
    out = []
    for other in (False, True):
        root, rng = tmp_path_factory.mktemp("tones"), np.random.default_rng(0)
        for machine, base in (("pump", 400.0), ("saw", 900.0)):
            for section in ("00", "01"):
                plan = [
                    ("train", "source", "normal", 5),
                    ("train", "target", "normal", 3),
                    ("test", "source", "anomaly", 2),
                ]
                for split, domain, label, count in plan:
                    for i in range(count):
                        hz = base * (1 + 0.3 * int(section)) * (1.5 if label == "anomaly" else 1.0)
                        noise = 0.02 * rng.normal(size=16000)
                        wave = 0.1 * np.sin(2 * np.pi * hz * np.arange(16000) / 16000 + i) + noise
                        if other and machine == "pump" and section == "01" and split == "train":
                            wave = 0.3 * noise[::-1] + 0.1 * np.sin(
                                2 * np.pi * 3000 * np.arange(16000) / 16000
                            )
                        path = (
                            root
                            / machine
                            / split
                            / f"section_{section}_{domain}_{split}_{label}_{i:04}_noAttribute.wav"
                        )
                        path.parent.mkdir(parents=True, exist_ok=True)
                        soundfile.write(path, wave, 16000)
        cfg = config.StudySettings(autoencoder=BASELINE, oevae=TINY, classifier=SMALL, precision="float32")
        out.append((cfg, open_store(*index.index([root]), tmp_path_factory.mktemp("store"), cfg.data)))
    return out


@pytest.mark.parametrize("name", list(detectors.DETECTORS))
def test_references_are_of_the_section(name, stores, tmp_path):
    """Training clips of another section are no references: with one network, other references elsewhere
    change no score here.
    """
    (cfg, store), (_, changed) = stores
    machines = ["pump", "saw"] if name == "classifier" else ["pump"]
    found = []
    for each in (store, changed):
        detector = detector_of(detectors.DETECTORS[name], Context(cfg, each, torch.device("cpu")))
        train = np.concatenate([training_rows(each.clips, machine) for machine in machines])
        fit(detector, each, train)
        detector.save(tmp_path)
        again = detector_of(detectors.DETECTORS[name], Context(cfg, each, torch.device("cpu")))
        again.restore(tmp_path, Clips(each, train))
        test = np.flatnonzero((each.clips["split"] == "test") & each.clips["machine"].isin(machines))
        scores = detector.components(Clips(detector.store, test))
        for key, values in again.components(Clips(again.store, test)).items():
            np.testing.assert_array_equal(values, scores[key])
        section = each.clips["section"].to_numpy()
        found.append((section[test], scores, detector, section[train], detector.training_components()))
    if name in (
        "baseline_knn",
        "multires",
        "pretrained",
    ):  # nothing is trained: the other section's clips change nothing
        key = (name, "score")
        for at, of in ((0, 1), (3, 4)):
            here = found[0][at] == "00"
            np.testing.assert_array_equal(found[0][of][key][here], found[1][of][key][here])
            assert not np.array_equal(found[0][of][key][~here], found[1][of][key][~here])
    if name == "autoencoder":
        assert sorted(found[0][2].precisions) == [
            "pump_00/source",
            "pump_00/target",
            "pump_01/source",
            "pump_01/target",
        ]
    if name == "oevae":
        detector = found[0][2]
        own = detector.groups(1, "pump_00")[0]
        sections = store.clips["section"].to_numpy()[detector.references.parents[own]]
        assert (sections == "00").all() and own.sum() < len(own)
    if name == "classifier":
        assert sorted(set(found[0][2].group)) == ["pump_00", "pump_01", "saw_00", "saw_01"]


def test_a_recording_is_held_against_the_section_it_is_said_to_be_of(stores, tmp_path):
    cfg, store = stores[0]
    detector = detector_of(detectors.DETECTORS["baseline_knn"], Context(cfg, store, torch.device("cpu")))
    scores = detect(detector, store, ["pump"])
    wave = tmp_path / "new.wav"
    soundfile.write(
        wave,
        store.int16(
            int(np.flatnonzero((store.clips["section"] == "01") & (store.clips["split"] == "train"))[0])
        ),
        16000,
    )
    found = [
        scorer.Scorer(cfg, {"baseline_knn": detector}, scores, "pump", "baseline_knn", 0, section)(
            [wave]
        ).iloc[0]
        for section in ("00", "01")
    ]
    decided = (
        metrics.decisions(scores, cfg.metrics).drop_duplicates("machine").set_index("machine")["threshold"]
    )
    assert [row["threshold"] for row in found] == [decided["pump_00"], decided["pump_01"]]
    assert found[0]["score"] > 2 * found[1]["score"]  # a training clip of section 01 is strange to section 00


def test_test_clips_of_a_section_without_training_clips_are_left_out_with_a_reason(tmp_path):
    table = made(3)
    bare = table[(table["machine"] != "pump") | (table["section"] != "02") | (table["split"] == "test")]
    for clip in bare["clip"]:
        path = tmp_path / clip
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    found, problems = index.index([tmp_path])
    kept = bare[(bare["machine"] != "pump") | (bare["section"] != "02")]
    assert set(found["clip"]) == set(kept["clip"])
    assert len(problems) == len(bare) - len(kept) == 28 and problems["left_out"].all()
    assert problems["reason"].str.startswith("section 02 of pump has no training clips").all()
    assert len(training_rows(found, "pump")) == 24
