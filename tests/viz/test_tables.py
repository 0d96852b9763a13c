"""Tables and claims: what they say, what they escape, and what they refuse to claim."""

import math
import re

import numpy as np
import pandas as pd
import pytest

from asdlib import schemas
from asdlib.evaluation import comparison, metrics
from asdlib.studies import config, report
from asdlib.viz import tables

SETTINGS = metrics.MetricsSettings(bootstrap=50, shuffles=50)


def clip_table(domains=("source", "target"), machine="fan", level_leak=0.0):
    rng = np.random.default_rng(0)
    rows = []
    for domain in domains:
        for split, label, n in (("train", "normal", 30), ("test", "normal", 20), ("test", "anomaly", 20)):
            rows += [
                (f"{machine}/{split}/{domain}_{label}_{i:02d}.wav", machine, "00", split, domain, label)
                for i in range(n)
            ]
    table = pd.DataFrame(rows, columns=["clip", "machine", "section", "split", "domain", "label"])
    return table.assign(
        path=table["clip"],
        level_db=rng.normal(-30, 1, len(table)) + level_leak * (table["label"] == "anomaly"),
    )


def score_table(clips, gap, system="baseline_knn", seed=0):
    rng = np.random.default_rng(seed + 7)
    scores = rng.normal(size=len(clips)) + gap * (clips["label"] == "anomaly")
    return clips.assign(system=system, component="score", seed=seed, score=scores)[
        list(schemas.SCORE_COLUMNS)
    ]


def compared(scores):
    return tables.verdicts(comparison.all_pairs(scores, SETTINGS, 0), SETTINGS)


def claim_of(clips, scores):
    found = tables.claims(metrics.table(scores, SETTINGS, 0), metrics.controls(clips, scores, SETTINGS, 0))
    return found.set_index("system")["claim"]["baseline_knn"]


@pytest.mark.parametrize(
    ("gap", "leak", "words"),
    [
        (0.0, 0.0, "not distinguishable from chance"),
        (3.0, 0.0, "above what the level alone tells"),
        (2.0, 9.0, "no evidence of hearing faults"),
        (2.0, -9.0, "no evidence of hearing faults"),
        (-3.0, 0.0, "below chance"),
    ],
)
def test_claims_are_made_against_the_controls(gap, leak, words):
    clips = clip_table(level_leak=leak)
    assert words in claim_of(clips, score_table(clips, gap))


def test_an_interval_that_reaches_chance_carries_no_claim():
    """Above what shuffled labels reach, but other clips of the same machine could have given chance."""
    own, shuffled = (
        pd.Series({"value": 0.54, "low": 0.48, "high": 0.58}),
        pd.Series({"value": 0.49, "low": 0.45, "high": 0.53}),
    )
    assert tables._claim("Ω", own, shuffled, None) == "Ω is not distinguishable from chance"
    assert tables._claim("Ω", own + 0.02, shuffled, None) == "Ω is above chance"
    assert "below chance" in tables._claim(
        "Ω", pd.Series({"value": 0.43, "low": 0.38, "high": 0.47}), shuffled, None
    )
    assert "not distinguishable" in tables._claim(
        "Ω", pd.Series({"value": 0.43, "low": 0.38, "high": 0.5}), shuffled, None
    )


def test_without_target_the_claim_is_about_what_is_available():
    clips = clip_table(("source",))
    scores = score_table(clips, 3.0)
    table, controls = metrics.table(scores, SETTINGS, 0), metrics.controls(clips, scores, SETTINGS, 0)
    row = tables.claims(table, controls).iloc[0]
    assert row["AUC target"] == "— not available"
    assert row["claim"].startswith("Ω is above chance")
    assert "Ω: the harmonic mean of the 2 of 3 numbers that are available" in tables.reasons(table)
    assert "fan: AUC target not available, no normal test clip of the target domain" in tables.reasons(table)
    assert "not available" in tables.metrics_table(
        table
    ) and "no normal test clip of the target domain" in tables.metrics_table(table)


def test_without_labels_nothing_is_claimed():
    clips = clip_table().assign(label=lambda t: t["label"].where(t["split"] == "train", "unlabeled"))
    assert claim_of(clips, score_table(clips, 1.0)) == "no claim: no labeled test clips"


def test_best_of_a_row_is_marked_by_more_than_color():
    clips = clip_table()
    scores = pd.concat([score_table(clips, 0.2), score_table(clips, 3.0, "baseline_mse")])
    table = metrics.table(scores, SETTINGS, 0)
    controls = metrics.controls(
        clips.assign(level_db=clips["label"].eq("anomaly") * 9.0), scores, SETTINGS, 0
    )
    shown = tables.metrics_table(table, controls)
    assert "control_level" in shown and ">1.000" in shown and ">* 1.000" not in shown  # a control never wins
    best = (
        metrics.table(scores, SETTINGS, 0)
        .query("system == 'baseline_mse' and metric == 'omega'")["value"]
        .iloc[0]
    )
    assert f">* {best:.3f} [" in shown and shown.count(">* ") == 8 and "font-weight: bold" in shown


def test_systems_stand_in_their_order_and_seeds_are_averaged():
    clips = clip_table()
    table = pd.concat(
        [metrics.table(score_table(clips, 1.0, "baseline_mahala", s), SETTINGS, 0) for s in (0, 1)]
    )
    table = pd.concat([table, metrics.table(score_table(clips, 1.0, "baseline_knn"), SETTINGS, 0)])
    assert list(tables.wide(table).columns) == ["machine", "metric", "baseline_knn", "baseline_mahala"]
    own = tables.own_scores(table).set_index(["system", "machine", "metric"])
    mine = table[(table["system"] == "baseline_mahala") & (table["metric"] == "omega")]
    assert own.loc[("baseline_mahala", "all", "omega"), "value"] == pytest.approx(mine["value"].mean())
    assert "Mean of 2 seeds" in tables.metrics_table(table)


def test_training_clips_alone_leave_nothing_to_compare_or_to_hear():
    """Additional training sets without test clips: empty tables, no refusal of systems that are there."""
    clips = clip_table().query("split == 'train'")
    scores = pd.concat([score_table(clips, 0.0), score_table(clips, 4.0, "baseline_mse")])
    assert compared(scores).empty
    heard = tables.behind(scores, metrics.decisions(scores, SETTINGS), 8)
    assert list(heard) == ["clip", "caption"] and heard.empty


def test_what_comes_from_data_is_escaped():
    evil = "<script>alert(1)</script>"
    table = pd.DataFrame({evil: [evil, "a|b"], "value": [math.nan, 0.5], "left out": [True, False]})
    shown = tables.styled(table, evil)
    assert (
        "<script" not in shown and "&lt;script&gt;" in shown and "— not available" in shown and "yes" in shown
    )
    assert "<script" not in tables.markdown_table(table) and "a\\|b" in tables.markdown_table(table)
    assert tables.styled(table.iloc[:0], "Problems:") == '<p class="note">Problems: none</p>'
    machine = metrics.table(score_table(clip_table(machine="<b>"), 1.0), SETTINGS, 0)
    assert "<b>" not in tables.metrics_table(machine)


def test_missed_anomalies_and_false_alarms():
    clips = clip_table()
    scores = score_table(clips, 3.0)
    lowest, highest = "fan/test/source_anomaly_03.wav", "fan/test/target_normal_04.wav"
    scores.loc[scores["clip"] == lowest, "score"], scores.loc[scores["clip"] == highest, "score"] = -9.0, 99.0
    decisions = metrics.decisions(scores, SETTINGS)
    confused = tables.most_confused(scores, decisions, 1).set_index("why")["clip"]
    assert confused.to_dict() == {"missed anomaly": lowest, "false alarm": highest}
    assert tables.most_anomalous(scores, decisions, 1)["clip"].tolist() == [highest]
    train = scores[scores["split"] == "train"]["score"]
    found = tables.most_anomalous(scores, decisions, 1)["above_normal"].iloc[0]
    assert found == pytest.approx((99.0 - train.mean()) / train.std())
    heard = tables.behind(scores, decisions, 3)
    assert (
        heard["clip"].is_unique
        and len(heard) <= 3
        and "false alarm" in heard.set_index("clip")["caption"][highest]
    )


def test_numbers_are_written_for_people():
    shown = tables.styled(
        pd.DataFrame(
            {"a": [-0.25], "b": ["not reached [1.80, >2]"], "c": ["0.500 [0.400, 0.600]"], "d": ["fan-2"]}
        )
    )
    assert "−0.250" in shown and "-0.250" not in shown and "fan-2" in shown
    assert (
        "not reached [1.80,\u00a0&gt;2]<" in shown and "0.500 [0.400,\u00a00.600]<" in shown
    )  # an interval stays on one line
    right = re.search(
        r"(.col\d) {\n  text-align: right",
        tables.styled(pd.DataFrame({"a": [1], "b": ["x"], "c": ["[0.445, 0.529]"]})),
    )
    assert right[1] == ".col1"  # that of numbers, counted after the heads of the rows


def test_rows_and_columns_have_heads_for_screen_readers():
    shown = tables.styled(pd.DataFrame({"a": ["{x}", "{x}"], "<b>": [1, 2]}))  # names may repeat
    assert (
        shown.count("<th ") == 4
        and shown.count("row_heading") == 2
        and ">a</th>" in shown
        and ">&lt;b&gt;</th>" in shown
        and ">{x}</th>" in shown
    )
    assert ">2.5</th>" in tables.styled(pd.DataFrame({1: ["x"], 2.5: ["y"]}))
    assert ">a</th>" in tables.styled(pd.DataFrame({"a": [1]})) and "<caption" not in shown


def test_numbers_have_a_minus_sign():
    assert tables.signed("from -1.5 to 2-3, a-1") == "from −1.5 to 2-3, a-1"
    assert (
        report.settings(config.StudySettings()).set_index("setting").loc["synthetic.severity", "value"]
        == "1.0"
    )


def test_every_setting_is_listed():
    assert report.settings(config.StudySettings())["setting"].tolist() == [
        name for name, _, _ in config.describe()
    ]


def test_markdown_keeps_quotes_and_disarms_tags():
    assert tables.markdown('the project\'s "own" <b>') == 'the project\'s "own" &lt;b&gt;'
