"""Pages are self-contained and safe; players keep levels; summaries and the index are whole."""

import base64
import io
import json
import re
from types import SimpleNamespace

import nbformat
import numpy as np
import pandas as pd
import pytest
import soundfile

from asdlib import errors, schemas, settings
from asdlib.evaluation import comparison
from asdlib.studies import config, report
from asdlib.viz import audio, pages, plots, tables

EVIL = "<script>alert(1)</script>"


def notebook(path, outputs=(), heading="## What's *new*, here?"):
    cells = [
        nbformat.v4.new_markdown_cell("# Title\n\nText."),
        nbformat.v4.new_markdown_cell(heading),
        nbformat.v4.new_markdown_cell("## Second part"),
    ]
    cell = nbformat.v4.new_code_cell(
        "x = 1  # a line of code",
        outputs=[nbformat.v4.new_output("display_data", data=data) for data in outputs],
    )
    book = nbformat.v4.new_notebook(cells=[*cells, cell])
    book.metadata["widgets"] = {"application/vnd.jupyter.widget-state+json": {"state": {}}}
    nbformat.write(book, path)
    return path


@pytest.fixture
def page(tmp_path):
    outputs = [
        {"text/html": tables.styled(pd.DataFrame({"clip": [EVIL]})), "text/plain": "twin"},
        {
            "application/vnd.jupyter.widget-view+json": {"model_id": "1"},
            "text/html": "<p>static twin</p>",
            "text/plain": "Widget()",
        },
        {"application/javascript": "alert(2)", "text/plain": "script left out"},
        {"text/plain": EVIL},
    ]
    out = report.html(
        notebook(tmp_path / "n.ipynb", outputs),
        tmp_path / "index.html",
        {"study": EVIL, "commit": "abc123"},
        f"Report {EVIL}",
    )
    return out.read_text(encoding="utf-8")


def test_page_asks_nothing_of_the_network_and_runs_nothing(page):
    assert "<script" not in page and "alert(2)" not in page
    assert not re.findall(r"(?:src|href|url)\s*[=(]\s*[\"']?\s*(?:https?:)?//", page)
    assert "default-src 'none'" in page and "@import" not in page


def test_page_shows_data_as_text_and_static_twins(page):
    assert (
        page.count("&lt;script&gt;alert(1)&lt;/script&gt;") >= 4
    )  # title, contents, table, footer, plain text
    assert "static twin" in page and "Widget()" not in page and "widget-state" not in page


def test_page_folds_code_and_has_contents_and_footer(page):
    assert re.search(r'<details class="code"><summary>Code</summary>.*</details>', page, re.DOTALL)
    anchors = re.findall(r"<nav.*?</nav>", page, re.DOTALL)[0]
    links = re.findall(r'href="#([^"]+)"', anchors)
    assert len(links) == 3 and all(f'id="{link}"' in page for link in links)
    assert "abc123" in page and 'name="viewport"' in page and "@media print" in page


def test_page_is_refused_without_a_notebook(tmp_path):
    with pytest.raises(errors.InputError, match=r"no readable notebook .*; run the stage again"):
        report.html(tmp_path / "absent.ipynb", tmp_path / "index.html", {}, "t")
    (tmp_path / "half.ipynb").write_text('{"cells": [')
    with pytest.raises(errors.InputError, match="no readable notebook"):
        report.html(tmp_path / "half.ipynb", tmp_path / "index.html", {}, "t")
    assert not (tmp_path / "index.html").exists()


def decoded(shown):
    return soundfile.read(io.BytesIO(base64.b64decode(re.search(r"base64,([^\"]+)", shown)[1])))


def test_player_holds_the_clip_and_its_caption():
    wave = 0.25 * np.sin(2 * np.pi * 440 * np.arange(160000) / 16000)
    shown = pages.player(np.round(wave * 32768).astype(np.int16), 16000, f"clip {EVIL}", 2.0)
    samples, rate = decoded(shown)
    assert (
        rate == 16000 and len(samples) == 160000 and "<script" not in shown and 'preload="metadata"' in shown
    )
    assert np.argmax(np.abs(np.fft.rfft(samples))) == 4400
    assert np.std(samples) == pytest.approx(2 * np.std(wave), rel=0.05)
    assert len(shown) < 120_000


def test_players_share_one_gain_so_that_levels_stay_comparable():
    tone = np.sin(2 * np.pi * 300 * np.arange(32000) / 16000)
    waves = {"a": 0.3 * tone, "b": 0.03 * tone}
    store = SimpleNamespace(
        clips=pd.DataFrame({"clip": list(waves)}),
        int16=lambda row: np.round(list(waves.values())[row] * 32768).astype(np.int16),
    )
    shown = report.players(store, ["b", "a"], ["quiet", "loud"], 16000)
    quiet, loud = (decoded(part)[0] for part in shown.split("<figure")[1:])
    assert np.std(loud) / np.std(quiet) == pytest.approx(10, rel=0.1)
    assert np.abs(loud).max() == pytest.approx(audio.PEAK, abs=0.05) and "+9.5 dB" in shown
    assert "All with one gain" in shown and '<p class="note">Gain of ' in report.players(
        store, ["b"], ["fan/train_normal"], 16000
    )
    assert "<figcaption>fan/<wbr>train_<wbr>normal<" in report.players(
        store, ["b"], ["fan/train_normal"], 16000
    )
    with pytest.raises(errors.InputError, match="unknown clip 'c'"):
        report.players(store, ["c"], ["?"], 16000)


@pytest.mark.parametrize(
    ("waves", "gain"),
    [([np.zeros(9)], 1.0), ([], 1.0), ([np.full(9, 1e-6)], audio.MOST_GAIN), ([np.array([-0.45, 0.1])], 2.0)],
)
def test_common_gain(waves, gain):
    assert audio.common_gain(waves) == pytest.approx(gain)


def metric_table(value):
    rows = [
        ("baseline_knn", "score", m, name, value)
        for m in ("fan", "all")
        for name in ("auc_source", "auc_target", "pauc")
    ]
    rows += [
        ("baseline_knn", "score", "fan", "hmean", value),
        ("baseline_knn", "score", "all", "omega", value),
    ]
    table = pd.DataFrame(rows, columns=["system", "component", "machine", "metric", "value"])
    return table.assign(low=table["value"] - 0.1, high=table["value"] + 0.1, seed=0)[
        list(schemas.METRIC_COLUMNS)
    ]


CONTROLS = pd.concat(
    [
        metric_table(0.5).assign(system="control_level"),
        metric_table(0.5).assign(system="control_shuffled", component="baseline_knn"),
    ]
)
PROBLEMS = pd.DataFrame(
    {"path": ["a.wav", "b.wav"], "reason": ["no samples", "clipped"], "left_out": [True, False]}
)


@pytest.mark.parametrize("value", [0.7, np.nan])
def test_summary_for_people_and_machines(tmp_path, value):
    cfg = config.StudySettings(name="t", about=f"About {EVIL}")
    report.write_summary(tmp_path / "t", cfg, metric_table(value), CONTROLS, PROBLEMS)
    text = (tmp_path / "t" / "summary.md").read_text(encoding="utf-8")
    assert (
        "Clips left out: 1" in text
        and settings.digest(cfg) in text
        and "<script" not in text
        and "control_level" in text
    )
    facts = json.loads(
        (tmp_path / "t" / "report.json").read_text(encoding="utf-8"),
        parse_constant=lambda name: pytest.fail(name),
    )
    assert facts["omega"]["baseline_knn"][0] == (None if np.isnan(value) else value)
    assert facts["left_out"] == 1 and facts["machines"] == ["fan"] and len(facts["metrics"]) == 8
    index = (tmp_path / "index.html").read_text(encoding="utf-8")
    assert (
        ("not available" in index) == np.isnan(value)
        and 'href="t/index.html"' in index
        and "<script" not in index
    )
    assert not list(tmp_path.rglob(".*"))  # nothing half-written is left


def test_summary_and_numbers_hold_the_differences_to_the_reference(tmp_path):
    row = ("baseline_knn", "multires", "all", "omega", -0.1, -0.2, -0.01, 0.02, 0.02)
    pairs = pd.DataFrame([row], columns=[*comparison.PAIRED_COLUMNS, "p_holm"])
    cfg = config.StudySettings(name="t")
    report.write_summary(tmp_path / "t", cfg, metric_table(0.7), CONTROLS, PROBLEMS, pairs)
    text = (tmp_path / "t" / "summary.md").read_text(encoding="utf-8")
    assert "| no, below: −0.100 [−0.200, −0.010] |" in text and tables.ABOVE in text
    facts = json.loads((tmp_path / "t" / "report.json").read_text(encoding="utf-8"))
    assert facts["pairs"] == pairs.to_dict("records")


def test_the_index_lists_a_system_on_each_line(tmp_path):
    (tmp_path / "t").mkdir()
    facts = {"study": "t", "about": "", "finished": "2026-01-02 03:04:05", "machines": ["fan"], "left_out": 0}
    omega = {"oevae": [0.5, 0.4, 0.6], EVIL: [0.5, None, None], "baseline_knn": [0.7, 0.6, 0.8]}
    (tmp_path / "t" / "report.json").write_text(json.dumps(facts | {"omega": omega}))
    shown = report.write_index(tmp_path).read_text(encoding="utf-8")
    assert (
        "baseline_<wbr>knn 0.700 [0.600, 0.800]\noevae 0.500" in shown
        and "<script" not in shown
        and ">2026-01-02 03:04</td>" in shown
    )


def test_the_parameters_of_a_run_stand_beside_their_defaults(tmp_path):
    cells = [
        nbformat.v4.new_code_cell(text, metadata={"tags": [tag]})
        for text, tag in (("a = 1", "parameters"), ("a = 2", "injected-parameters"))
    ]
    nbformat.write(nbformat.v4.new_notebook(cells=cells), tmp_path / "n.ipynb")
    shown = report.html(tmp_path / "n.ipynb", tmp_path / "n.html", {}, "t").read_text(encoding="utf-8")
    assert (
        "<summary>Code: parameters and their defaults</summary>" in shown
        and "<summary>Code: parameters of this run</summary>" in shown
    )


def test_index_survives_a_broken_report(tmp_path):
    for name, text in (("bad", "{"), ("empty", "{}")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "report.json").write_text(text)
    shown = report.write_index(tmp_path).read_text(encoding="utf-8")
    assert shown.count("report.json is not readable") == 2


def test_pictures_are_written_whole(tmp_path):
    report.save_picture(
        plots.losses(pd.DataFrame({"name": ["a"], "epoch": [1], "loss": [1.0]})), tmp_path / "p.png"
    )
    assert (tmp_path / "p.png").read_bytes().startswith(b"\x89PNG") and len(list(tmp_path.iterdir())) == 1


def test_text_for_the_terminal():
    assert "0.700 [0.600, 0.800]" in report.metrics_text(metric_table(0.7))
