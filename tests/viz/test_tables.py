"""Tables: what they say and what they escape."""

import math
import re

import numpy as np
import pandas as pd
import pytest

from asdlib import schemas
from asdlib.evaluation import metrics
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
