"""The view without a browser: controls linked to the model, what a tick re-sends, both faces, names for
screen readers.
"""

import functools
import json
import xml.etree.ElementTree as ElementTree

import numpy as np
import pytest

from asdlib.analysis import tuning
from asdlib.analysis.tuning import Choice
from asdlib.evaluation import metrics
from asdlib.studies import report
from asdlib.viz.widgets import tuner
from asdlib.viz.widgets.tuner import Tuner, TunerView, paper_machines
from tests.analysis import test_tuning


@functools.cache
def swept(**changed):
    scores = test_tuning.scored(machines=2, **changed)
    scores["machine"] = scores["machine"].replace({"m0": "fan"})
    found = tuning.from_scores(scores, test_tuning.CFG)
    return found, tuning.make(found, 0)


def made(tmp_path, paper=False, **changed):
    return TunerView(Tuner(*swept(**changed)), tmp_path / "tuned.toml", paper)


@pytest.fixture
def view(tmp_path):
    return made(tmp_path)


def widgets(root):
    """Every widget below one, by class name."""
    found, todo = {}, [root]
    while todo:
        widget = todo.pop()
        found |= {name: widget for name in widget._dom_classes}
        todo += list(getattr(widget, "children", ()))
    return found


def test_the_classes_that_the_browser_test_looks_for_are_there(view):
    found = widgets(view.live.widget) | widgets(view.chosen.widget)
    expected = (
        "tuner omega eta k kscale system metric machine tuner-panel tuner-table tuner-counts tuner-words"
    )
    expected += " tuner-notes pin-A pin-B go-A tuner-pins tuner-all tuner-curves tuner-map tuner-rules save"
    expected += " rule-default rule-training rule-oracle"
    assert {f"asd-{name}" for name in expected.split()} <= set(found)


def test_controls_and_model_follow_each_other(view):
    found = widgets(view.live.widget)
    found["asd-omega"].value = 0.25
    found["asd-k"].value = 4
    assert view.tuner.choice == Choice(0.25, 0.5, 4, "5 (trained)")
    view.tuner.choose(Choice(0.75, 0.1, 2, "1 (refitted)"))
    names = ("asd-omega", "asd-eta", "asd-k", "asd-kscale")
    assert [found[name].value for name in names] == [0.75, 0.1, 2, "1 (refitted)"]


def states(view):
    """Everything that is sent to the browser, by name."""
    drawings = {
        f"{name} {layer}": getattr(view.drawn[name], layer)
        for name in ("panel", "map")
        for layer in ("still", "live")
    }
    shown = {name: one.value for name, one in view.drawn.items() if name not in ("panel", "map")}
    return drawings | shown | {"words": view.words.value}


def test_a_tick_of_omega_re_sends_marks_and_numbers_only(view):
    before = states(view)
    view.tuner.omega = 0.9
    after = states(view)
    changed = {name for name in before if before[name] != after[name]}
    assert changed - {"counts"} == {"panel live", "map live", "table", "words"}
    assert sum(len(after[name]) for name in changed) < 20_000 and "ω 0.90" in after["words"]
    view.tuner.k = 4
    assert (
        view.drawn["panel"].still != before["panel still"] and view.drawn["map"].still == before["map still"]
    )
    assert ">Ω of ensemble at η 0.5 over all machines" in view.drawn["map"].still
    view.tuner.system = "oevae"
    assert ">Ω of oevae over all machines" in view.drawn["map"].still != before["map still"]


def test_the_table_shows_the_numbers_of_the_point(view):
    view.tuner.choose(Choice(0.33, 0.2, 2, "1 (refitted)"))
    table = view.tuner.table()
    for value in table.ravel():
        assert f"{value:.3f}" in view.drawn["table"].value
    assert f"Ω {table[-1, 3]:.3f}" in view.words.value
    for count in tuning.counts(view.tuner.parts, "ensemble", view.tuner.choice).ravel():
        assert f">{count}</td>" in view.drawn["counts"].value


def test_words_say_whether_the_point_differs_from_the_default(view):
    assert view.words.value.endswith("this is the default")
    view.tuner.omega = 0.0
    low, high = view.tuner.interval(gain=True)[:, -1, 3]
    verdict = "better" if low > 0 else "worse" if high < 0 else "not significant"
    assert view.words.value.endswith(f"]: {verdict}")


def test_the_mark_lies_on_the_curve_and_the_band_holds_the_default_at_the_default(view):
    view.tuner.omega, view.menus["machine"].value, view.menus["metric"].value = 0.4, 1, 0
    table, curve = view.tuner.table(), view.tuner.curves()[:, 1, 0]
    drawn = ElementTree.fromstring(view.drawn["panel"].live)
    [mark] = drawn.iter("{http://www.w3.org/2000/svg}circle")
    x, y = view.panel._place(0.4, table[1, 0])
    assert (mark.get("cx"), mark.get("cy")) == (f"{x:.1f}", f"{y:.1f}")
    assert curve[20] == pytest.approx(table[1, 0], abs=1e-12)
    view.tuner.choose(view.tuner.parts.default)
    omegas, gains = view.tuner.gains()
    np.testing.assert_allclose(gains[np.isclose(omegas, 0.5)], 0, atol=1e-12)


@pytest.mark.parametrize("name", ["panel", "map"])
def test_drawings_are_well_formed_follow_the_theme_and_layers_have_one_size(view, name):
    still, live = (ElementTree.fromstring(getattr(view.drawn[name], layer)) for layer in ("still", "live"))
    assert still.get("viewBox") == live.get("viewBox") and still.get("aria-label")
    assert live.get("aria-hidden") == "true"
    words = [one.get("fill") for one in still.iter("{http://www.w3.org/2000/svg}text")]
    assert words and set(words) == {"currentColor"}


def test_clicks_and_hovers_on_the_drawings(view):
    sent = []
    for drawing in (view.drawn["panel"], view.drawn["map"]):
        drawing.send = sent.append
    x, _ = view.panel._place(0.3, 0.5)
    view._panel_message({"kind": "hover", "x": x, "y": 100})
    value = view.tuner.curves()[15, -1, 3]
    assert f"ω 0.30: harmonic mean, Ω {value:.3f}" in sent[-1]["text"]
    view._panel_message({"kind": "click", "x": x, "y": 100})
    assert view.tuner.omega == 0.3
    choice = Choice(0.62, 0.5, 2, "1 (refitted)")
    x, y = view.map.place(choice)
    view._map_message({"kind": "hover", "x": x, "y": y})
    assert f"{view.tuner.parts.point('ensemble', choice)[-1, 3]:.3f}" in sent[-1]["text"]
    view._map_message({"kind": "click", "x": x, "y": y})
    assert view.tuner.choice == choice
    view._map_message({"kind": "click", "x": 3, "y": 3})
    assert view.tuner.choice == choice and view.map.point_at(3, 3) is None


def test_two_points_are_pinned_and_compared(view):
    found = widgets(view.live.widget)
    assert found["asd-go-A"].disabled
    found["asd-pin-A"].click()
    first = view.tuner.choice
    view.tuner.choose(Choice(0.1, 0.9, 4, "1 (refitted)"))
    view.tuner.system = "oevae"
    found["asd-pin-B"].click()
    second = view.tuner.choice
    gained = view.tuner.gained(("oevae", second), ("ensemble", first))
    assert (
        f"{gained[3, 0]:.3f}".replace("-", "−") in view.drawn["pins"].value
        and "B − A" in view.drawn["pins"].value
    )
    found["asd-go-A"].click()
    assert (view.tuner.system, view.tuner.choice) == ("ensemble", first)
    assert ">A</text>" in view.drawn["panel"].live and ">B</text>" in view.drawn["panel"].live
    assert (
        ">A</text>" in view.drawn["map"].live and ">B</text>" not in view.drawn["map"].live
    )  # of another system


def test_controls_without_effect_are_disabled_and_say_why(view):
    found = widgets(view.live.widget)
    assert not found["asd-eta"].disabled and "Disabled" not in view.drawn["notes"].value
    view.tuner.system = "oevae"
    assert found["asd-eta"].disabled and "η (η has no effect on oevae alone" in view.drawn["notes"].value
    view.tuner.omega = 1.0
    assert found["asd-k"].disabled and "β has no weight" in view.drawn["notes"].value
    view.tuner.system, view.tuner.eta = "ensemble", 0.0
    assert [found[f"asd-{name}"].disabled for name in ("omega", "k", "kscale", "eta")] == [
        True,
        True,
        True,
        False,
    ]
    before = view.tuner.table()
    view.tuner.k, view.tuner.omega = 4, 0.3
    np.testing.assert_allclose(view.tuner.table(), before)  # it is so: nothing of OEVAE counts
    assert "Refitted: a VAE" in view.drawn["notes"].value


def test_all_curves_are_drawn_on_demand(view):
    assert view.drawn["curves"].value == ""
    view.all.value = True
    assert view.drawn["curves"].value.startswith('<div class="plot" tabindex="0"><img alt="')
    view.all.value = False
    assert view.drawn["curves"].value == ""


def test_both_faces_come_in_one_output_and_the_static_one_needs_no_script(view):
    for face in (view.live, view.chosen):
        bundle, _ = face._repr_mimebundle_()
        assert "application/vnd.jupyter.widget-view+json" in bundle and json.dumps(bundle)
        html = bundle["text/html"]
        assert "<script" not in html and "http://" not in html.replace("http://www.w3.org", "")
        assert "<table " in html and 'alt="' in html
        assert next(kind for kind in report.MIME_TYPES if kind in bundle) == "text/html"
    assert "oracle, not a claim" in view.chosen.html() and "fixed default" in view.chosen.html()


def test_buttons_go_to_the_choices_and_write_the_file(view):
    found = widgets(view.chosen.widget)
    found["asd-rule-oracle"].click()
    assert view.tuner.choice == view.tuner.rules["oracle"].choice
    found["asd-save"].click()
    assert "oracle, not a claim; written by a person" in view.path.read_text()
    assert str(view.path) in view.status.value
    view.path.unlink()
    view.path.mkdir()
    found["asd-save"].click()
    assert "free up disk space or choose a writable folder" in view.status.value


def test_the_paper_is_beside_recorded_machines_only(tmp_path):
    drawn = made(tmp_path, paper=True)
    table = drawn.table_html(drawn.tuner.table())
    assert "fan, paper" in table and "0.330" in table  # Table 1, fan, target
    drawn.menus["machine"].value = 0
    assert ">paper</text>" in drawn.drawn["panel"].still
    without = made(tmp_path, paper=False)
    assert "paper" not in without.table_html(without.tuner.table())
    assert "the machines are synthetic" in paper_machines(("fan",), True)
    assert "no machine of this study" in paper_machines(("pump",), False)
    np.testing.assert_allclose(tuner._paper_row("fan")[:3], np.array(metrics.PAPER_TABLE1["fan"][2]) / 100)


def test_what_is_missing_is_written_and_nothing_breaks(tmp_path):
    alone = made(tmp_path, classifier=False)
    assert "asd-eta" not in widgets(alone.live.widget) and alone.menus["system"].disabled
    unlabeled = made(tmp_path, labels=False)
    assert "not available" in unlabeled.live.html() and "no labeled test clip" in unlabeled.chosen.html()
    assert widgets(unlabeled.chosen.widget)["asd-rule-oracle"].disabled
    unlabeled.tuner.omega = 0.1
    assert "not available" in unlabeled.words.value


def test_the_map_says_where_a_rule_chose_another_eta(view):
    best = view.tuner.rules["oracle"].choice
    view.tuner.choose(best._replace(eta=0.3 if best.eta != 0.3 else 0.7))
    assert "O*" in view.drawn["map"].still and "another η" in view.drawn["map"].still
    view.tuner.choose(best)
    assert "O*" not in view.drawn["map"].still and view.tuner.map()[0].max() == view.tuner._quality[1:].max()
