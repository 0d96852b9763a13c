"""The view without a browser: controls linked to the model, what a tick re-sends, both faces, names for
screen readers.
"""

import json
import xml.etree.ElementTree as ElementTree

import numpy as np
import pytest
from matplotlib.font_manager import FontProperties
from matplotlib.textpath import TextPath

from asdlib.analysis import tuning
from asdlib.analysis.tuning import Choice
from asdlib.evaluation import metrics
from asdlib.studies import report
from asdlib.viz.widgets import controls, tuner
from asdlib.viz.widgets.tuner import Tuner, TunerView, paper_machines
from tests.analysis import test_tuning


def made(tmp_path, paper=False, **changed):
    scores = test_tuning.scored(machines=2, **changed)
    scores["machine"] = scores["machine"].replace({"m0": "fan"})
    found = tuning.from_scores(scores, test_tuning.CFG)
    return TunerView(Tuner(found, tuning.make(found, 0)), tmp_path / "tuned.toml", paper)


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
    expected = [
        "tuner",
        "omega",
        "eta",
        "k",
        "kscale",
        "system",
        "tuner-curves",
        "tuner-live",
        "tuner-table",
        "tuner-words",
    ]
    expected += [
        "tuner-map",
        "tuner-cell",
        "tuner-rules",
        "rule-default",
        "rule-training",
        "rule-oracle",
        "save",
    ]
    assert {f"asd-{name}" for name in expected} <= set(found)


def test_controls_and_model_follow_each_other(view):
    found = widgets(view.live.widget)
    found["asd-omega"].value = 0.25
    found["asd-k"].value = 4
    assert view.tuner.choice == Choice(0.25, 0.5, 4, "5 (trained)")
    view.tuner.choose(Choice(0.75, 0.1, 2, "1 (refitted)"))
    assert (
        found["asd-omega"].value,
        found["asd-eta"].value,
        found["asd-k"].value,
        found["asd-kscale"].value,
    ) == (0.75, 0.1, 2, "1 (refitted)")


def test_a_tick_of_omega_re_sends_marks_and_numbers_only(view):
    before = {name: widget.value for name, widget in view.drawn.items()} | {"words": view.words.value}
    view.tuner.omega = 0.9
    after = {name: widget.value for name, widget in view.drawn.items()} | {"words": view.words.value}
    changed = {name for name in before if before[name] != after[name]}
    assert changed == {"asd-tuner-live", "asd-tuner-table", "asd-tuner-cell", "words"}
    assert sum(len(after[name]) for name in changed) < 20_000 and "ω 0.90" in after["words"]
    view.tuner.k = 4
    assert (
        view.drawn["asd-tuner-curves"].value != before["asd-tuner-curves"]
        and view.drawn["asd-tuner-map"].value == before["asd-tuner-map"]
    )
    assert ">Ω of ensemble at η 0.5 over all machines" in view.drawn["asd-tuner-map"].value
    view.tuner.system = "oevae"
    assert ">Ω of oevae over all machines" in view.drawn["asd-tuner-map"].value
    assert view.drawn["asd-tuner-map"].value != before["asd-tuner-map"]


def test_the_table_shows_the_numbers_of_the_point(view):
    view.tuner.choose(Choice(0.33, 0.2, 2, "1 (refitted)"))
    table = view.tuner.table()
    for value in table.ravel():
        assert f"{value:.3f}" in view.drawn["asd-tuner-table"].value
    assert f"Ω {table[-1, 3]:.3f}" in view.words.value


def test_marks_lie_on_the_curves(view):
    view.tuner.omega = 0.4
    multiples, table = view.multiples, view.tuner.table()
    drawn = ElementTree.fromstring(view.drawn["asd-tuner-live"].value)
    marks = [p.get("transform") for p in drawn.iter("{http://www.w3.org/2000/svg}path") if p.get("transform")]
    x, y = multiples._place(2, 3, 0.4, table[2, 3])
    assert len(marks) == 12 and f"translate({x:.1f} {y:.1f})" in marks
    curve = view.tuner.curves()[20, 2, 3]
    assert curve == pytest.approx(table[2, 3], abs=1e-12)


@pytest.mark.parametrize("name", ["asd-tuner-curves", "asd-tuner-live", "asd-tuner-map", "asd-tuner-cell"])
def test_drawings_are_well_formed_and_layers_have_one_size(view, name):
    drawn = ElementTree.fromstring(view.drawn[name].value)
    partner = {"asd-tuner-live": "asd-tuner-curves", "asd-tuner-cell": "asd-tuner-map"}.get(name, name)
    assert drawn.get("viewBox") == ElementTree.fromstring(view.drawn[partner].value).get("viewBox")
    assert drawn.get("aria-label") or drawn.get("aria-hidden") == "true"


def test_both_faces_come_in_one_output_and_the_static_one_needs_no_script(view):
    for face in (view.live, view.chosen):
        bundle, _ = face._repr_mimebundle_()
        assert "application/vnd.jupyter.widget-view+json" in bundle and json.dumps(bundle)
        html = bundle["text/html"]
        assert (
            "<script" not in html
            and "http://" not in html.replace("http://www.w3.org", "")
            and "<table " in html
            and 'alt="' in html
        )
        assert next(kind for kind in report.FACES if kind in bundle) == "text/html"
    assert "oracle, not a claim" in view.chosen.html() and "fixed default" in view.chosen.html()


def test_buttons_go_to_the_choices_and_write_the_file(view):
    found = widgets(view.chosen.widget)
    found["asd-rule-oracle"].click()
    assert view.tuner.choice == view.tuner.rules["oracle"].choice
    found["asd-save"].click()
    assert (
        "oracle, not a claim; written by a person" in view.path.read_text()
        and str(view.path) in view.status.value
    )
    view.path.unlink()
    view.path.mkdir()
    found["asd-save"].click()
    assert "free space or choose a folder" in view.status.value


def test_every_control_has_a_name():
    script = controls.Weight(label="ω, share of α")._esm
    assert 'setAttribute("aria-label", name)' in script and "http" not in script
    assert "aria-live" in controls.Region._esm


def test_the_paper_is_beside_recorded_machines_only(tmp_path):
    drawn = made(tmp_path, paper=True)
    assert "fan, paper" in drawn.table_html(drawn.tuner.table()) and "0.330" in drawn.table_html(
        drawn.tuner.table()
    )  # Table 1, fan, target
    assert "paper" in drawn.drawn["asd-tuner-curves"].value
    without = made(tmp_path, paper=False)
    assert "paper" not in without.table_html(without.tuner.table())
    assert "the machines are synthetic" in paper_machines(
        ("fan",), True
    ) and "no machine of this study" in paper_machines(("pump",), False)
    np.testing.assert_allclose(tuner._paper_row("fan")[:3], np.array(metrics.PAPER_TABLE1["fan"][2]) / 100)


def test_what_is_missing_is_written_and_nothing_breaks(tmp_path):
    alone = made(tmp_path, classifier=False)
    assert "asd-eta" not in widgets(alone.live.widget)
    unlabeled = made(tmp_path, labels=False)
    assert "not available" in unlabeled.live.html() and "no labeled test clip" in unlabeled.chosen.html()
    assert widgets(unlabeled.chosen.widget)["asd-rule-oracle"].disabled
    unlabeled.tuner.omega = 0.1
    assert "not available" in unlabeled.words.value and isinstance(
        unlabeled.tuner.parts.settings, metrics.MetricsSettings
    )


def boxes(drawn):
    """(left, right, top) of the white boxes of a map's letters."""
    rects = [
        rect
        for rect in ElementTree.fromstring(drawn).iter("{http://www.w3.org/2000/svg}rect")
        if rect.get("rx") == "3"
    ]
    return sorted(
        (float(r.get("x")), float(r.get("x")) + float(r.get("width")), float(r.get("y"))) for r in rects
    )


def test_letters_stay_on_the_map_and_beside_each_other():
    points = tuner.Map(["5 (trained)"], [1, 2], np.linspace(0, 1, 51))
    letters = {
        "D": ("5 (trained)", 1, 0.5, ""),
        "T": ("5 (trained)", 1, 0.52, " (η 0.9)"),
        "O": ("5 (trained)", 2, 0.0, " (η 0.3)"),
    }
    at_the_end = {
        name: (prior, k, 1.0 if name == "T" else 0.98 if name == "D" else 1.0, after)
        for name, (prior, k, _, after) in letters.items()
    }
    left, right = tuner.MAP_LEFT, tuner.MAP_LEFT + 51 * tuner.CELL_WIDE
    for case in (letters, at_the_end):
        found = boxes(tuner.svg(*points.size, points.static(np.zeros((1, 2, 51)), "Ω", case)))
        assert len(found) == 3 and all(a >= left - 0.1 and b <= right + 0.1 for a, b, _ in found)
        first, second = (box for box in found if box[2] == min(box[2] for box in found))
        assert first[1] <= second[0]


def test_the_map_says_where_a_rule_chose_another_eta(view):
    best = view.tuner.rules["oracle"].choice
    view.tuner.choose(best._replace(eta=0.3 if best.eta != 0.3 else 0.7))
    assert f">O (η {best.eta:g})</text>" in view.drawn["asd-tuner-map"].value
    view.tuner.choose(best)
    assert ">O</text>" in view.drawn["asd-tuner-map"].value and (
        view.tuner.map()[0].max() == view.tuner._quality[1:].max()
    )


@pytest.mark.parametrize("longest", ["fan", "HoveringDrone", "BrushlessMotor", "WWWWWWWWWW"])
def test_names_of_machines_leave_room_for_the_numbers_of_the_axis(longest):
    multiples, omegas = tuner.Multiples(("valve", longest), False), np.linspace(0, 1, 3)
    drawn = multiples.static(omegas, np.full((3, 3, 4), 0.6), omegas, np.full((3, 2, 3, 4), 0.6))
    shown = ElementTree.fromstring(tuner.svg(*multiples.size, drawn, "x")).iter(
        "{http://www.w3.org/2000/svg}text"
    )
    begins, ends, bold = {}, [], FontProperties(family="DejaVu Sans", weight="bold")
    for words in shown:
        width = TextPath((0, 0), words.text, size=11, prop=bold).get_extents().width
        if words.text == longest:
            begins[longest] = float(words.get("x")) + width
        elif words.get("text-anchor") == "end":
            ends.append(float(words.get("x")) - width)
    assert begins[longest] < min(ends) and multiples.size[0] == multiples.left + 4 * (tuner.WIDE + tuner.GAP)
