"""Challenge files: exactly as the official evaluator reads them, evaluated as it does, and everything hostile
refused with a list.
"""

import json
import shutil

import numpy as np
import pandas as pd
import pytest
import scipy.stats
from sklearn import metrics as sk

from asdlib import cli, errors, schemas
from asdlib.data import index, synthetic
from asdlib.evaluation import challenge, metrics
from asdlib.scoring import thresholds

FEW = metrics.MetricsSettings(bootstrap=50, shuffles=10)


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    """Synthetic machines with the names of the nine evaluation machines; every second one as the challenge
    hands it out, without labels.
    """
    root = tmp_path_factory.mktemp("nine") / "raw"
    kinds = ("fan", "gearbox", "slider", "valve")
    names = tuple(f"{name}:{kinds[i % 4]}" for i, name in enumerate(challenge.EVALUATION))
    synthetic.write_tree(
        root, synthetic.SyntheticSettings(machines=names, train_source=6, train_target=6, test=3, seconds=1.0)
    )
    return root


@pytest.fixture(scope="module")
def study(tree):
    """Clip table, problems and made-up scores of two seeds, as a study leaves them."""
    table, problems = index.index([tree])
    rng = np.random.default_rng(0)
    parts = []
    for seed in (0, 1):
        facts = table[["machine", "section", "split", "domain", "label", "clip"]].assign(
            system="baseline_knn", component="score", seed=seed
        )
        parts.append(
            facts.assign(score=rng.normal(0, 1, len(table)) + (table["label"] == "anomaly"))[
                list(schemas.SCORE_COLUMNS)
            ]
        )
    return table, problems, pd.concat(parts, ignore_index=True)


@pytest.fixture(scope="module")
def truth(study, tmp_path_factory):
    """Ground truth in the evaluator's layout: 1 anomalous, 1 target, names with attributes."""
    root = tmp_path_factory.mktemp("evaluator")
    test = study[0][study[0]["split"] == "test"]
    for machine, rows in test.groupby("machine"):
        names = [clip.rsplit("/", 1)[1] for clip in rows["clip"]]
        columns = {
            "data": (rows["label"] == "anomaly").astype(int),
            "domain": (rows["domain"] == "target").astype(int),
        }
        columns["attributes"] = [f"full_{name[:-4]}" for name in names]
        for what, values in columns.items():
            path = root / f"ground_truth_{what}" / f"ground_truth_{machine}_section_00_test.csv"
            path.parent.mkdir(exist_ok=True)
            path.write_text("".join(f"{name},{value}\n" for name, value in zip(names, values)))
    return root


@pytest.fixture
def written(study, tmp_path):
    table, problems, scores = study
    challenge.write(tmp_path / "sub", table, problems, scores, FEW, "baseline_knn", 0)
    return tmp_path / "sub"


def official(folder, truth):
    """Second derivation after the evaluator's README: read by pandas, measured by scikit-learn, averaged by
    scipy.
    """
    values, quality = {}, {}
    for machine in challenge.EVALUATION:
        name = f"{machine}_section_00_test.csv"
        read = {
            what: pd.read_csv(path, header=None, index_col=0)[1]
            for what, path in {
                "score": folder / f"anomaly_score_{name}",
                "decision": folder / f"decision_result_{name}",
                "y": truth / "ground_truth_data" / f"ground_truth_{name}",
                "domain": truth / "ground_truth_domain" / f"ground_truth_{name}",
            }.items()
        }
        t = pd.DataFrame(read)
        for code, domain in enumerate(("source", "target")):
            auc = t[(t["domain"] == code) | (t["y"] == 1)]
            values[machine, f"auc_{domain}"] = sk.roc_auc_score(auc["y"], auc["score"])
            own = t[t["domain"] == code]
            quality[machine, domain] = sk.precision_recall_fscore_support(
                own["y"], own["decision"], average="binary", zero_division=0.0
            )[:3]
        values[machine, "pauc"] = sk.roc_auc_score(t["y"], t["score"], max_fpr=0.1)
    return values, quality, scipy.stats.hmean(np.maximum(list(values.values()), np.finfo(float).eps))


def test_the_official_result_agrees_with_a_second_derivation(written, truth):
    table, quality = challenge.evaluate(written, truth, FEW)
    values, expected, omega = official(written, truth)
    found = table.set_index(["machine", "metric"])["value"]
    for key, value in values.items():
        assert abs(found[key] - value) <= 1e-12, key
    assert abs(found["all", "omega"] - omega) <= 1e-12
    for (machine, domain), row in quality.groupby(["machine", "domain"]):
        if machine != "all":
            np.testing.assert_allclose(
                row[["precision", "recall", "f1"]].to_numpy()[0], expected[machine, domain], atol=1e-12
            )
    means = quality[quality["machine"] == "all"].set_index("domain")["precision"]
    floored = [max(expected[machine, "target"][0], np.finfo(float).eps) for machine in challenge.EVALUATION]
    assert means["target"] == pytest.approx(scipy.stats.hmean(floored), rel=1e-12)


def test_files_are_as_the_evaluator_reads_them(written, study):
    scores = study[2]
    assert sorted(path.name for path in written.iterdir()) == sorted(
        f"{kind}_{machine}_section_00_test.csv"
        for machine in challenge.EVALUATION
        for kind in ("anomaly_score", "decision_result")
    )
    own = scores[(scores["seed"] == 0) & (scores["machine"] == "Scanner")]
    train = own[own["split"] == "train"]["score"].to_numpy()
    threshold = thresholds.gamma_threshold(train, FEW.decision_quantile).value
    test = {row.clip.rsplit("/", 1)[1]: row.score for row in own[own["split"] == "test"].itertuples()}
    lines = (written / "anomaly_score_Scanner_section_00_test.csv").read_text().splitlines()
    assert {
        name: float(value) for name, value in (line.split(",") for line in lines)
    } == test  # every digit, no header
    lines = (written / "decision_result_Scanner_section_00_test.csv").read_text().splitlines()
    assert dict(line.split(",") for line in lines) == {
        name: str(int(value > threshold)) for name, value in test.items()
    }


def test_full_names_of_renamed_clips_are_taken_as_the_evaluator_takes_them(written, truth):
    before, _ = challenge.evaluate(written, truth, FEW)
    for path in written.glob("*_Scanner_*"):
        path.write_text("".join(f"full_{line}\n" for line in path.read_text().splitlines()))
    after, _ = challenge.evaluate(written, truth, FEW)
    pd.testing.assert_frame_equal(before, after)


def change(path, edit):
    path.write_text("".join(f"{line}\n" for line in edit(path.read_text().splitlines())))


HOSTILE = {
    "header": (lambda lines: ["file,score", *lines], "starts with a header"),
    "nan": (
        lambda lines: [lines[0].split(",")[0] + ",nan", *lines[1:]],
        "line 1: .* has 'nan', expected a finite number",
    ),
    "infinite": (
        lambda lines: [*lines[:-1], lines[-1].split(",")[0] + ",inf"],
        "has 'inf', expected a finite number",
    ),
    "text": (
        lambda lines: [lines[0], lines[1].split(",")[0] + ",high", *lines[2:]],
        "line 2: .* has 'high', expected a finite number",
    ),
    "short": (lambda lines: lines[:-2], "2 test clips are missing"),
    "twice": (lambda lines: [*lines, lines[0]], "1 duplicate names"),
    "other names": (
        lambda lines: [f"x{line}" for line in lines],
        r"12 names are not test clips \(first: 'xsection_00",
    ),
    "three fields": (lambda lines: [lines[0], lines[1] + ",1", *lines[2:]], "line 2 has 3 fields"),
    "empty": (lambda lines: [], "12 test clips are missing"),
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_hostile_files_are_refused_with_a_list(kind, written, truth):
    edit, words = HOSTILE[kind]
    change(written / "anomaly_score_Scanner_section_00_test.csv", edit)
    (written / "decision_result_HairDryer_section_00_test.csv").unlink()
    change(
        written / "decision_result_ToyCircuit_section_00_test.csv",
        lambda lines: [lines[0][:-1] + "2", *lines[1:]],
    )
    (written / "anomaly_score_scanner_section_00_test.csv").write_text("")
    with pytest.raises(
        errors.InputError, match=f"anomaly_score_Scanner_section_00_test.csv: .*{words}"
    ) as refused:
        challenge.evaluate(written, truth, FEW)
    told = str(refused.value)
    assert (
        "decision_result_HairDryer_section_00_test.csv: missing; the evaluator skips the whole system" in told
    )
    assert "decision_result_ToyCircuit_section_00_test.csv: line 1" in told and "expected 0 or 1" in told
    assert "anomaly_score_scanner_section_00_test.csv: unexpected machine or section" in told


def test_bytes_that_are_no_text_are_refused(written, truth):
    (written / "anomaly_score_Scanner_section_00_test.csv").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(
        errors.InputError, match=r"anomaly_score_Scanner_section_00_test\.csv: cannot be read"
    ):
        challenge.evaluate(written, truth, FEW)


def test_what_cannot_be_submitted_is_refused_with_a_list(study, tmp_path):
    table, problems, scores = study
    gone = str(table[table["split"] == "test"]["path"].iloc[0])
    with_gap = pd.concat([problems, index.problem_table([(gone, "truncated", True)])])
    lost = scores[scores["clip"] != table[table["split"] == "test"]["clip"].iloc[5]]
    broken = scores.assign(score=np.where(scores["clip"] == lost["clip"].iloc[-1], np.nan, scores["score"]))
    bare = table[~((table["machine"] == "Scanner") & (table["split"] == "test"))]
    for args, words in (
        ((table, with_gap, scores), "excluded from the study (truncated)"),
        ((table, problems, lost), "no score"),
        ((bare, problems, scores), "Scanner: no test clips; run the study without it"),
        (
            (bare[bare["machine"] != "Scanner"], problems, scores),
            "Scanner: machine of the evaluation set has no test clips",
        ),
        ((table, problems, broken), "score is nan, expected a finite number"),
    ):
        with pytest.raises(errors.InputError) as refused:
            challenge.write(tmp_path / "sub", *args, FEW, "baseline_knn", 0)
        assert words in str(refused.value) and not (tmp_path / "sub").exists()


@pytest.mark.parametrize(
    ("what", "change", "words"),
    [
        (
            "data",
            lambda lines: [*lines, lines[0][:-1] + "7"],
            "occurs a second time, expected every clip once",
        ),
        ("domain", lambda lines: [*lines, lines[0]], "occurs a second time, expected every clip once"),
        ("data", lambda lines: [lines[0], "", *lines[1:]], "ground_truth_data, line 2 has 0 fields"),
        ("domain", lambda lines: [lines[0] + ",1", *lines[1:]], "ground_truth_domain, line 1 has 3 fields"),
        (
            "attributes",
            lambda lines: [line.split(",")[0] + ",same" for line in lines],
            "ground_truth_attributes gives two clips the same name",
        ),
    ],
)
def test_a_ground_truth_that_says_two_things_is_refused(what, change, words, truth, tmp_path):
    shutil.copytree(truth, tmp_path / "truth")
    path = next((tmp_path / "truth" / f"ground_truth_{what}").glob("*.csv"))
    path.write_text("\n".join(change(path.read_text().splitlines())) + "\n")
    with pytest.raises(errors.InputError, match=words):
        challenge.ground_truth(tmp_path / "truth")


def test_a_submission_is_never_overwritten(written, study):
    table, problems, scores = study
    before = {path: path.stat().st_mtime_ns for path in written.iterdir()}
    with pytest.raises(errors.InputError, match="exists and is not empty, expected a new folder"):
        challenge.write(written, table, problems, scores, FEW, "baseline_knn", 1)
    assert before == {path: path.stat().st_mtime_ns for path in written.iterdir()}


def test_the_command_prints_the_official_score(written, truth, capsys):
    assert cli.main(["evaluate", str(written), "--truth", str(truth), "--bootstrap", "30"]) == 0
    text = capsys.readouterr().out
    assert "official score" in text and all(name in text for name in challenge.EVALUATION)
    assert cli.main(["evaluate", str(written), "--truth", str(truth), "--bootstrap", "30", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    omega = next(row["value"] for row in rows["metrics"] if row["metric"] == "omega")
    assert f"{100 * omega:.4f}" in text
    assert cli.main(["evaluate", str(written), "--truth", str(written)]) == 2
    assert "no ground_truth_data/ground_truth_<machine>" in capsys.readouterr().err


@pytest.mark.parametrize(
    "file, content, words",
    [
        ("ground_truth_data", "a.wav,2\n", "values other than 0 and 1"),
        (
            "ground_truth_domain",
            "b.wav,0\n",
            "ground_truth_data and ground_truth_domain list different clips",
        ),
        ("ground_truth_domain", "b.wav\n", "expected name,value"),
    ],
)
def test_ground_truth_that_does_not_fit_is_refused(file, content, words, written, tmp_path):
    for what in ("ground_truth_data", "ground_truth_domain"):
        (tmp_path / what).mkdir()
        (tmp_path / what / "ground_truth_fan_section_00_test.csv").write_text(
            content if what == file else "a.wav,0\n"
        )
    with pytest.raises(errors.InputError, match=words):
        challenge.evaluate(written, tmp_path, FEW)
