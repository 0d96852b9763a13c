"""Figures: each draws, is labeled with units, leaves pyplot alone and says what is
missing.
"""

import sys

import matplotlib
import numpy as np
import pandas as pd
import pytest

from asdlib import errors, schemas
from asdlib.evaluation import detectability, metrics
from asdlib.scoring import fusion
from asdlib.viz import plots, report_plots

rng = np.random.default_rng(0)


def clip_table(machines=("fan", "valve"), domains=("source", "target")):
    rows = []
    for machine in machines:
        for domain in domains:
            kinds = [("train", "normal", 12), ("test", "normal", 8), ("test", "anomaly", 8)]
            for split, label, n in kinds:
                rows += [
                    (f"{machine}/{split}/{domain}_{label}_{i}.wav", machine, "00", split, domain, label)
                    for i in range(n)
                ]
    table = pd.DataFrame(rows, columns=["clip", "machine", "section", "split", "domain", "label"])
    return table.assign(path=table["clip"], level_db=rng.normal(-30, 2, len(table)), seconds=10.0)


def score_table(clips, systems=("baseline_knn", "baseline_mse")):
    parts = [
        clips.assign(
            system=s,
            component="score",
            seed=0,
            score=rng.gamma(5, 1, len(clips)) + (clips["label"] == "anomaly"),
        )
        for s in systems
    ]
    return pd.concat(parts, ignore_index=True)[list(schemas.SCORE_COLUMNS)]


SETTINGS = metrics.MetricsSettings(bootstrap=20, shuffles=10)
CLIPS = clip_table()
SCORES = score_table(CLIPS)
METRICS = metrics.table(SCORES, SETTINGS, 0)
CONTROLS = metrics.controls(CLIPS, SCORES, SETTINGS, 0)
DECISIONS = metrics.decisions(SCORES, SETTINGS)
MEL_HZ = 700 * (10 ** (np.linspace(100, 2800, 64) / 2595) - 1)
HISTORY = pd.DataFrame(
    {"name": ["fold 1"] * 9 + ["fold 2"] * 9, "epoch": [*range(1, 10)] * 2, "loss": 9.0 / np.arange(1, 19)}
)
INPUTS = {
    plots.metric_dots: (METRICS,),
    plots.roc: (SCORES, 0.1),
    report_plots.score_histograms: (SCORES, DECISIONS),
    plots.losses: (HISTORY,),
    plots.waveform: (rng.uniform(-1, 1, 32000), 16000, [(0.0, 1.0), (0.5, 1.5)]),
    plots.spectra: ({"normal": rng.uniform(0, 1, 8001), "anomaly": rng.uniform(0, 1, 8001)}, 0.5),
    plots.side_by_side: (
        {"one": rng.normal(size=(64, 30)), "other": rng.normal(size=(64, 29))},
        MEL_HZ,
        0.016,
    ),
    plots.spread: (CLIPS, "level_db"),
    plots.counts: (CLIPS,),
}


def words(figure):
    texts = figure.findobj(matplotlib.text.Text)
    return " | ".join(text.get_text() for text in texts if text.get_text())


@pytest.mark.parametrize("draw", INPUTS, ids=lambda draw: draw.__name__)
def test_contract(draw):
    before = dict(matplotlib.rcParams)
    figure = draw(*INPUTS[draw])
    assert figure.alt
    for kind, start in (("png", b"\x89PNG"), ("svg", b"<?xml")):
        assert plots.image(figure, kind).startswith(start)
    shown = figure._repr_html_()
    assert shown.startswith('<div class="plot" tabindex="0"><img alt="') and 'src="data:image/' in shown
    assert any(axis.get_xlabel() for axis in figure.axes)
    assert dict(matplotlib.rcParams) == before
    assert "matplotlib.pyplot" not in sys.modules or not sys.modules["matplotlib.pyplot"].get_fignums()


@pytest.mark.parametrize("draw", INPUTS, ids=lambda draw: draw.__name__)
def test_equal_input_gives_equal_bytes(draw):
    first, second = (plots.image(draw(*INPUTS[draw]), "svg") for _ in range(2))
    assert first == second


@pytest.mark.parametrize(
    ("draw", "unit"),
    [
        (plots.side_by_side, "frequency (Hz)"),
        (plots.side_by_side, "dB"),
        (plots.waveform, "time (s)"),
        (plots.spread, "dB re full scale"),
        (plots.counts, "clips"),
    ],
)
def test_units_are_written(draw, unit):
    assert unit in words(draw(*INPUTS[draw]))


def test_missing_target_is_said_in_words():
    clips = clip_table(("fan",), ("source",))
    scores = score_table(clips)
    table = metrics.table(scores, SETTINGS, 0)
    assert "not available" in words(plots.metric_dots(table))
    assert "no target normals" in words(plots.roc(scores))
    assert "target: no test clips" in words(
        report_plots.score_histograms(scores, metrics.decisions(scores, SETTINGS))
    )


def outlines(axis):
    """Line styles of the outlines of training clips: unfilled stairs."""
    return {str(patch.get_linestyle()) for patch in axis.patches if not patch.get_fill()}


def test_the_outline_says_whether_training_clips_were_seen():
    scores = score_table(CLIPS, ("baseline_knn", "oevae"))
    figure = report_plots.score_histograms(scores, metrics.decisions(scores, SETTINGS))
    assert "models without the clip" in words(figure) and "networks trained on it" in words(figure)
    left_out, seen = (outlines(axis) for axis in figure.axes[:2])
    assert len(left_out) == len(seen) == 1 and left_out != seen
    for systems, said, silent in (
        (("baseline_mse", "multires"), "without the clip", "trained on it"),
        (("oevae", "classifier", "ensemble", "ensemble_seeds"), "trained on it", "without the clip"),
    ):
        alone = score_table(CLIPS, systems)
        told = words(report_plots.score_histograms(alone, metrics.decisions(alone, SETTINGS)))
        assert said in told and silent not in told


def test_official_scores_and_gaps_are_drawn_from_the_tables():
    shown = report_plots.official_scores(METRICS, CONTROLS)
    own = METRICS.query("machine == 'all' and metric == 'omega' and system == 'baseline_mse'").iloc[0]
    assert f'autoencoder (MSE): {own.value:.3f} [{own.low:.3f}, {own.high:.3f}]"' in shown
    assert shown.count('class="scale"') == 3 and shown.count('class="band"') == 2  # the control has no band
    gaps = report_plots.domain_gaps(METRICS, CONTROLS)
    assert (
        gaps.count("<h3>") == 2 and gaps.count('class="dot source"') == gaps.count('class="dot target"') == 6
    )
    source = METRICS.query("machine == 'fan' and metric == 'auc_source' and system == 'baseline_knn'")[
        "value"
    ]
    assert f"nearest neighbor: AUC source {source.iloc[0]:.2f}, target" in gaps
    clips = clip_table(("fan",), ("source",))
    scores = score_table(clips)
    table, controls = metrics.table(scores, SETTINGS, 0), metrics.controls(clips, scores, SETTINGS, 0)
    gaps = report_plots.domain_gaps(table, controls)
    assert "target not available" in gaps and "nan" not in gaps and 'class="dot target"' not in gaps


def test_detectability_is_a_figure_per_machine_and_a_legend():
    rows = [
        (system, machine, severity, 0.5 + 0.1 * severity, 0.4, 0.9, 5)
        for system in ("multires", "oevae")
        for machine in ("fan", "all")
        for severity in (1.0, 3.0)
    ]
    curves = pd.DataFrame(rows, columns=list(detectability.CURVE_COLUMNS))
    *figures, legend = report_plots.detectability_curves(curves)
    assert [figure.axes[0].get_title() for figure in figures] == ["fan", "all machines"]
    names = [text.get_text() for text in legend.axes[0].get_legend().get_texts()]
    assert names == ["multi-resolution density", "OEVAE", f"AUC {detectability.LEVEL:g}"]
    assert report_plots.grid(figures).count('<div class="plot" tabindex="0"><img') == 2


def test_no_hatch_is_translucent():
    """Browsers print a translucent hatched area opaque: it would hide what lies below."""
    for figure in (draw(*INPUTS[draw]) for draw in (report_plots.score_histograms, plots.counts)):
        hatched = [patch for axis in figure.axes for patch in axis.patches if patch.get_hatch()]
        assert hatched and all(patch.get_facecolor()[3] in (0, 1) for patch in hatched)


def test_a_tone_is_drawn_at_its_frequency():
    values = np.zeros((65, 10))
    values[16] = 1.0
    axis = plots.side_by_side({"": values}, np.arange(65) * 125.0, 0.01, difference=False).axes[0]
    at = {
        label.get_text(): place
        for label, place in zip(axis.get_yticklabels(), axis.get_yticks(), strict=True)
    }
    assert at["2000"] == 16


def test_the_difference_is_the_second_less_the_first_on_one_scale():
    one, other = np.zeros((64, 12)), np.full((64, 10), 3.0)
    axes = plots.side_by_side({"one": one, "other": other}, MEL_HZ, 0.016).axes
    pictures = [image for axis in axes for image in axis.images if len(image.get_array()) == 64]
    assert [axis.get_title() for axis in axes[:3]] == ["one", "other", "second minus first"]
    assert pictures[0].get_clim() == pictures[1].get_clim() and (pictures[2].get_array() == 3.0).all()
    assert len(plots.side_by_side({"one": one}, MEL_HZ, 0.016, difference=False).axes) == 2


def test_contrast_is_that_of_the_middle_of_the_values():
    values = np.linspace(0, 1, 1001)
    values[0], values[-1] = -1000.0, 1000.0  # one dead and one clipping value
    low, high = plots.limits_of([values], "magma")
    assert 0 <= low < 0.02 and 0.98 < high <= 1
    assert plots.limits_of([values], "twilight") == (-np.pi, np.pi)
    low, high = plots.limits_of([np.zeros(5)], "PuOr")
    assert low == -high < 0


def test_mel_bands_are_labeled_where_they_are():
    axis = plots.side_by_side({"": np.zeros((64, 10))}, MEL_HZ, 0.01, difference=False).axes[0]
    for label, place in zip(axis.get_yticklabels(), axis.get_yticks(), strict=True):
        np.testing.assert_allclose(np.interp(place, np.arange(64), MEL_HZ), float(label.get_text()))


def test_a_system_looks_the_same_in_every_figure():
    alone = SCORES[SCORES["system"] == "baseline_mse"]
    for scores in (SCORES, alone):
        legend = plots.roc(scores).legends[0]
        line = next(
            handle
            for handle, text in zip(legend.legend_handles, legend.get_texts(), strict=True)
            if text.get_text() == "baseline_mse"
        )
        assert line.get_color() == plots.LOOKS["baseline_mse"][0]
    assert (
        len({look[1] for look in plots.LOOKS.values()})
        == len({str(look[2]) for look in plots.LOOKS.values()})
        == len(plots.LOOKS)
    )
    assert sorted(plots.LOOKS, key=list(fusion.ORDER).index) == fusion.ORDER and list(plots.LOOKS)[
        : len(fusion.SYSTEMS)
    ] == list(fusion.SYSTEMS)


def test_names_from_data_are_not_formulas():
    clips = clip_table(("$x^2$", "<b>"))
    assert "$x^2$" in words(plots.counts(clips))
    assert "<b>" not in plots.counts(clips)._repr_html_().partition("src=")[0]


def test_refusals():
    with pytest.raises(errors.InputError, match=r"clip table: empty table, expected at least one row"):
        plots.counts(CLIPS.iloc[:0])
    with pytest.raises(
        errors.InputError,
        match=r"got values of shape \(30, 64\) and 64 frequencies, expected \(bins, frames\)",
    ):
        plots.side_by_side({"": np.zeros((30, 64))}, MEL_HZ, 0.016)
