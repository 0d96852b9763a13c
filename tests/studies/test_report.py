"""Pages are self-contained and safe; players keep levels; summaries and the index are whole."""

import base64
import io
import json
import re
from pathlib import Path
from types import SimpleNamespace

import nbformat
import numpy as np
import pandas as pd
import pytest
import soundfile

from asdlib import errors, settings
from asdlib.evaluation import metrics
from asdlib.scoring import fusion
from asdlib.scoring.thresholds import gamma_threshold
from asdlib.studies import config, report
from asdlib.viz import audio, pages, tables
from tests.viz.test_tables import clip_table, score_table

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
    anchors = re.findall(r'<nav [^>]*class="contents".*?</nav>', page, re.DOTALL)[0]
    links = re.findall(r'href="#([^"]+)"', anchors)
    assert len(links) == 3 and all(f'id="{link}"' in page for link in links)
    assert "abc123" in page and 'name="viewport"' in page and "@media print" in page


def test_page_is_refused_without_a_notebook(tmp_path):
    with pytest.raises(errors.InputError, match=r"not a readable notebook .*; run the stage again"):
        report.html(tmp_path / "absent.ipynb", tmp_path / "index.html", {}, "t")
    (tmp_path / "half.ipynb").write_text('{"cells": [')
    with pytest.raises(errors.InputError, match="not a readable notebook"):
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
    [([np.zeros(9)], 1.0), ([], 1.0), ([np.full(9, 1e-6)], audio.MAX_GAIN), ([np.array([-0.45, 0.1])], 2.0)],
)
def test_common_gain(waves, gain):
    assert audio.common_gain(waves) == pytest.approx(gain)


PROBLEMS = pd.DataFrame(
    {"path": ["a.wav", "b.wav"], "reason": ["no samples", "clipped"], "left_out": [True, False]}
)


def study(clips, scores, **changes):
    """What `report.findings` asks of a run."""
    small = metrics.MetricsSettings(bootstrap=40, shuffles=20)
    cfg = config.StudySettings(**{"name": "t", "systems": ("multires", "oevae"), "metrics": small} | changes)
    return SimpleNamespace(
        cfg=cfg,
        clips=clips,
        seed=0,
        home=Path("/"),
        withdrawn=[],
        synthetic=False,
        unseen=lambda s: s["split"] == "train",
        measure=lambda s: (metrics.table(s, small, 0), metrics.controls(clips, s, small, 0)),
        load_table=lambda *_: pd.DataFrame({"machine": ["fan"], "verdict": ["fan: this VAE is dead: x."]}),
    )


def two_systems(clips, *gaps):
    return pd.concat([score_table(clips, gap, name) for gap, name in zip(gaps, ("multires", "oevae"))])


def found_in(clips=None, gaps=(3.0, 0.0), **changes):
    clips = clip_table() if clips is None else clips
    return report.findings(study(clips, None, **changes), two_systems(clips, *gaps))


def test_a_fusion_stands_beside_itself_without_each_view():
    run = study(clip_table(), None, fusion={"views": ["multires", "oevae"]})
    scores = two_systems(run.clips, 3.0, 0.0)
    fused = fusion.systems(scores, run.cfg.fusion)
    shown = re.sub(r"<[^>]+>", " ", report.views_table(run, fused))
    table = metrics.table(fused, run.cfg.metrics, 0).query("machine == 'all' and metric == 'omega'")
    omega = table.set_index("system")["value"]
    assert f"Ω of the mean of all views: {omega['fusion']:.3f}" in shown
    for view, rest in (("multires", "oevae"), ("oevae", "multires")):
        gain = tables.signed(f"{omega['fusion'] - omega[rest]:.3f}")
        assert re.search(rf"\b{view}\s+{omega[rest]:.3f}\s+{re.escape(gain)} \[", shown), shown
    bare = scores[scores["split"] == "train"]
    assert "no test clips" in report.views_table(run, fusion.systems(bare, run.cfg.fusion))


def without_labels():
    clips = clip_table()
    return clips.assign(label=clips["label"].where(clips["split"] == "train", "unlabeled"))


def test_the_first_screen_says_what_was_found():
    shown = report.first_screen(found_in())
    assert "Multi-resolution density has the highest official score" in shown
    assert "OEVAE is at chance. The VAE of OEVAE is dead on fan." in shown
    assert "dead VAE: fan" in shown and "each network trained once" in shown
    assert re.search(r"<strong>fan</strong>: \d+ of 40 faults found, \d+ false alarms? in ", shown)
    assert shown.count('role="img"') == 3 and "level of the clip alone" in shown  # a scale for each


def test_other_thresholds_are_counted_on_the_same_clips():
    """Against counting by hand; a row of the study's own quantile; nothing is made up without labels."""
    scores, found = two_systems(clip_table(), 3.0, 0.0), found_in()
    told = report.quantile_table(found, scores).set_index("quantile")
    own = scores[(scores["system"] == "multires") & (scores["component"] == "score")]
    assert list(told.index) == ["0.8", "0.9", "0.95", "0.99", "0.999"] and found.system == "multires"
    for quantile, row in told.iterrows():
        limit = gamma_threshold(own.query("split == 'train'")["score"], float(quantile)).value
        above = own[own["score"] > limit].groupby(["split", "label"]).size()
        share = above.get(("train", "normal"), 0) / 60
        assert row["normal training clips above"] == f"{share:.1%} of 60"
        assert row["false alarms"] == f"{above.get(('test', 'normal'), 0)}/40"
        assert row["faults found"] == f"{above.get(('test', 'anomaly'), 0)}/40"
    assert told["faults found"]["0.8"] != told["faults found"]["0.999"]
    blind = report.quantile_table(found_in(without_labels()), two_systems(without_labels(), 3.0, 0.0))
    assert set(blind["false alarms"]) == set(blind["faults found"]) == {"—"}


def test_the_first_screen_is_of_use_without_labels_or_test_clips():
    shown = report.first_screen(found_in(without_labels()))
    assert "No labeled test clips: 2 systems with scores and thresholds" in shown
    assert re.search(r"<strong>fan</strong>: \d+ of 80 unlabeled clips above the threshold", shown)
    assert "expect slightly lower scores" not in shown and 'class="scale"' not in shown
    shown = report.first_screen(found_in(clip_table().query("split == 'train'")))
    assert re.search(r"fan</strong>: no test clips; threshold \S+, from 60 normal training clips", shown)


def test_test_clips_that_were_accepted_are_told(tmp_path):
    clips = clip_table()
    run = study(clips, None)
    run.withdrawn = clips["clip"][clips["split"] == "test"].tolist()[:2]
    found = report.findings(run, two_systems(clips, 3.0, 0.0))
    assert "2 accepted clips withdrawn" in report.first_screen(found)
    report.write_summary(tmp_path / "t", found, PROBLEMS)
    told = (tmp_path / "t" / "summary.md").read_text(encoding="utf-8")
    assert "2 test clips accepted as normal by hand are excluded from all figures here" in told


def test_a_study_tuned_on_test_labels_is_stamped_everywhere(tmp_path):
    found = found_in(chosen_by="oracle")
    assert found.headline.startswith("No claim: ω, η and k were chosen on the test labels (oracle).")
    report.write_summary(tmp_path / "t", found, PROBLEMS)
    facts = json.loads((tmp_path / "t" / "report.json").read_text(encoding="utf-8"))
    assert facts["chosen_by"] == "oracle" and ["tuned on test labels", True] in facts["warnings"]
    for text in (
        report.first_screen(found),
        (tmp_path / "t" / "summary.md").read_text(encoding="utf-8"),
        (tmp_path / "index.html").read_text(encoding="utf-8"),
    ):
        assert "chosen on the test labels (oracle)" in text and "is above chance" not in text


@pytest.mark.parametrize("labeled", [True, False])
def test_summary_for_people_and_machines(tmp_path, labeled):
    found = found_in(clip_table() if labeled else without_labels(), about=f"About {EVIL}")
    report.write_summary(tmp_path / "t", found, PROBLEMS)
    text = (tmp_path / "t" / "summary.md").read_text(encoding="utf-8")
    assert f"**{found.headline}**" in text and "Clips left out: 1" in text and "control_level" in text
    assert settings.digest(found.cfg) in text and "<script" not in text
    facts = json.loads(
        (tmp_path / "t" / "report.json").read_text(encoding="utf-8"),
        parse_constant=lambda name: pytest.fail(name),
    )
    omega = found.table.query("system == 'multires' and metric == 'omega'")["value"].iloc[0]
    assert facts["omega"]["multires"][0] == (pytest.approx(omega) if labeled else None)
    assert facts["left_out"] == 1 and facts["machines"] == ["fan"] and facts["headline"] == found.headline
    assert len(facts["pairs"]) == int(labeled)
    index = (tmp_path / "index.html").read_text(encoding="utf-8")
    assert found.headline in index and 'href="t/index.html"' in index and "<script" not in index
    assert 'href="t/summary.md"' in index and 'href="t/report.json"' in index and "model_card" not in index
    assert ("not available" in index) != labeled
    assert not list(tmp_path.rglob(".*"))  # nothing half-written is left


# ---------------------------------------------------------------- cards of clips


def places(*rows):
    columns = ["machine", "clip", "label", "domain", "above_normal", "above_threshold"]
    return pd.DataFrame(rows, columns=columns).assign(system="multires")


def test_notable_clips_are_misses_false_alarms_and_finds_of_every_machine():
    rows = [
        (machine, f"{machine}{i}", label, "source", above + 1, above)
        for machine in ("fan", "pump")
        for i, (label, above) in enumerate(
            [("anomaly", -3.0), ("anomaly", -1.0), ("anomaly", 5.0), ("normal", 2.0), ("normal", -2.0)]
        )
    ]
    found = report.notable(places(*rows), 6)
    for machine in ("fan", "pump"):
        own = found[found["machine"] == machine]
        assert own["kind"].tolist() == ["missed fault", "false alarm", "fault found"]
        assert own["clip"].tolist() == [f"{machine}0", f"{machine}3", f"{machine}2"]
    assert len(report.notable(places(*rows), 99)) == 8  # a normal clip below the threshold tells nothing
    assert report.notable(places(*rows), 2)["machine"].tolist() == ["fan", "pump"]  # shared evenly
    unlabeled = places(
        ("fan", "a", "unlabeled", "unknown", 1.0, 0.5), ("fan", "b", "unlabeled", "unknown", 9.0, 8.0)
    )
    assert report.notable(unlabeled, 1)[["clip", "kind"]].to_numpy().tolist() == [["b", "most anomalous"]]


def test_cards_show_and_play_a_clip_beside_the_normal_one_most_alike(context):
    clips = context.store.clips
    scores = two_systems(clips, 3.0, 0.0)
    run = study(clips, scores, report={"players": 12})
    run.store = context.store
    found = report.findings(run, scores)
    shown = report.clip_cards(run, found)
    cards = shown.split("<article")[1:]
    assert 2 <= len(cards) <= 6 and shown.count("<audio") == shown.count("<img") == 2 * len(cards)
    assert shown.count("data:image/jpeg;base64,") == 2 * len(cards) and "All clips have one gain" in shown
    assert shown.count("softer") == 1  # one legend for all cards
    for card in cards:
        machine = re.search(r"<h3>(\w+): ", card)[1]
        like = re.search(r"most similar normal clip: ([^<\"]+wav)", card)[1]
        row = clips[clips["clip"].str.endswith(like) & (clips["machine"] == machine)].iloc[0]
        assert (row["split"], row["label"]) == ("train", "normal")
        assert re.search(r"score [+−]\d+\.\d, threshold [+−]\d+\.\d<", card)
        assert re.search(r'class="change">[^<]+normal training clips[^<]+\.<', card)
        assert card.count('class="strip"') == 1
        asked = re.search(r"<code>asd score t --machine (\w+) --system \w+ --accept (\S+)</code>", card)
        assert bool(asked) == ("false alarm" in card) and (not asked or (Path("/") / asked[2]).is_file())
    assert "false alarm</h3>" in shown
    none = study(clips[clips["split"] == "train"].reset_index(drop=True), scores, report={"players": 12})
    assert "No test clips" in report.clip_cards(
        none, report.findings(none, two_systems(none.clips, 1.0, 1.0))
    )


def test_a_scale_puts_values_where_they_belong():
    shown = pages.scale((0.0, 2.0), EVIL, band=(0.5, 1.0), lines=(1.0, np.nan), dots=((3.0, "target"),))
    assert '<i class="band" style="left:25.0%;width:25.0%">' in shown and "<script" not in shown
    assert shown.count('class="mark" style="left:50.0%"') == 1 and shown.count('class="mark"') == 1
    assert '<i class="dot target" style="left:100.0%">' in shown  # beyond the end stands at the end


# ---------------------------------------------------------------- pages of a study


def test_pages_of_a_study_are_linked_by_stage_machine_and_seed(tmp_path):
    folder = tmp_path / "reports" / "t"
    folder.mkdir(parents=True)
    names = [f"05_oevae_{machine}_seed{seed}" for machine in ("fan", "pump_00") for seed in (0, 1)]
    for name in (*names, "06_embeddings_seed1", "01_data", "index"):
        text = (
            f'<nav class="series"></nav><a href="05_oevae.ipynb">5</a><a href="08_tuning.ipynb">8</a>{name}'
        )
        (folder / f"{name}.html").write_text(text)
    (folder / "sweep.html").write_text('<nav class="series"></nav>')
    for _ in range(2):  # again, with what is there already
        pages.link_series(folder, tmp_path / "reports" / "index.html")
    text = (folder / "05_oevae_pump_00_seed1.html").read_text()
    assert text.startswith('<nav class="series" aria-label') and text.count("<nav") == 1
    links = re.findall(r'href="([^"]+)"', text)
    assert links[:5] == [
        "../index.html",
        "01_data.html",
        "05_oevae_pump_00_seed1.html",
        "06_embeddings_seed1.html",
        "index.html",
    ]
    assert links[5:9] == [  # machine, then seed
        "05_oevae_fan_seed1.html",
        "05_oevae_pump_00_seed1.html",
        "05_oevae_pump_00_seed0.html",
        "05_oevae_pump_00_seed1.html",
    ]
    assert links[9:] == ["05_oevae_pump_00_seed1.html", "#"] and text.count('aria-current="page"') == 3
    assert (folder / "sweep.html").read_text() == '<nav class="series"></nav>'
    assert pages.about(folder / "05_oevae_pump_00_seed1.html") == ["pump_00", "seed 1"]
    assert pages.about(folder / "06_embeddings_seed1.html") == ["seed 1"]
    assert pages.about(folder / "index.html") == []


def test_the_index_links_everything_of_a_study(tmp_path):
    (tmp_path / "t").mkdir()
    facts = {"study": "t", "about": "", "finished": "2026-01-02 03:04:05", "machines": ["fan"], "left_out": 0}
    facts |= {"headline": f"Best {EVIL}", "warnings": [["dead VAE: fan", True]]}
    omega = {"oevae": [0.5, 0.4, 0.6], EVIL: [0.5, None, None], "baseline_knn": [0.7, 0.6, 0.8]}
    (tmp_path / "t" / "report.json").write_text(json.dumps(facts | {"omega": omega}))
    for name in ("01_data.html", "05_oevae_fan_seed0.html", "index.html", "model_card.md"):
        (tmp_path / "t" / name).write_text("x")
    shown = report.write_index(tmp_path).read_text(encoding="utf-8")
    assert "nearest neighbor 0.700 [0.600, 0.800]; OEVAE 0.500" in shown
    assert (
        "<script" not in shown
        and "2026-01-02 03:04;" in shown
        and '<li class="serious">dead VAE: fan' in shown
    )
    for name in ("01_data.html", "05_oevae_fan_seed0.html", "index.html", "model_card.md"):
        assert f'href="t/{name}"' in shown


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


def test_text_for_the_terminal():
    found = found_in()
    said = report.claims_text(found.claims)
    assert re.search(
        r"^multires +Ω is above chance.*; above the training-free reference: the reference$", said, re.M
    )
    omega = found.claims.set_index("system")["Ω"]["multires"]
    assert omega in report.metrics_text(found.table)
