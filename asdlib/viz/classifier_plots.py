"""Figures of the classifier: how it learnt, what it recognises, how unseen clips differ from seen ones.

Every function takes plain tables, draws one figure and returns it as a `plots.Plot`; conventions and colours are those of
`asdlib.viz.plots`. Metrics of branches, back-ends and ablations are drawn by `plots.metric_dots` from `as_systems`.

Notebook: 04_classifier.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import matplotlib
import numpy as np
import pandas as pd
from scipy import stats

from asdlib import errors
from asdlib.viz import plots

PER_ROW = 4  # machines side by side
NAMES = {"plain": "plain head", "featex": "FeatEx head"}
NEVER_EMPTY = "{}: an empty table came, expected at least one row; was the stage before it run?"


def _figure(rows: int, columns: int, height: float, alt: str) -> tuple[plots.Plot, np.ndarray]:
    figure = plots.Plot(figsize=(plots.WIDTH, height), layout="constrained")
    figure.alt = alt
    return figure, figure.subplots(rows, columns, squeeze=False)


def as_systems(metrics: pd.DataFrame, names: Mapping[str, str]) -> pd.DataFrame:
    """Components of one system as if they were systems, for `plots.metric_dots`.

    metrics : METRIC_COLUMNS;  names : component -> its name in the figure, in the order shown
    returns : METRIC_COLUMNS with system = name and component = score
    raises : errors.Refusal for a component that is not in the table
    """
    for name in names:
        errors.known_name("component", name, list(dict.fromkeys(metrics["component"])))
    parts = [metrics[metrics["component"] == name].assign(system=shown, component="score") for name, shown in names.items()]
    return pd.concat(parts, ignore_index=True)


@matplotlib.rc_context(plots.STYLE)
def training_curves(history: pd.DataFrame, machines: int) -> plots.Plot:
    """Losses of both heads, accuracy on held-out clips, the mean largest cosine, and the scale, over epochs.

    history : epoch, plain, max_cosine, scale, and where there are such: featex, machine_accuracy, class_accuracy
    machines : how many; guessing names the right machine with about 1 / machines.  Notebook: 04_classifier
    raises : errors.Refusal for a history without epochs
    """
    if history.empty:
        raise errors.Refusal(NEVER_EMPTY.format("training history"))
    figure, axes = _figure(2, 2, 4.6, f"loss, accuracy, cosine and scale over {len(history)} epochs")
    panels = (
        ("loss of the heads (nats)", ("plain", "featex")), ("accuracy on held-out clips", ("machine_accuracy", "class_accuracy")),
        ("mean largest cosine to a centre", ("max_cosine",)), ("scale s of the plain head", ("scale",)),
    )  # fmt: skip
    looks = ((plots.BLUE, "o", "-"), (plots.VERMILION, "s", "--"))
    for axis, (title, columns) in zip(axes.flat, panels, strict=True):
        axis.set(title=title, xlabel="epoch")
        axis.xaxis.get_major_locator().set_params(integer=True)
        there = [name for name in columns if name in history]
        for name, (colour, marker, line) in zip(there, looks):
            axis.plot(history["epoch"], history[name], marker, color=colour, ls=line, ms=4, label=NAMES.get(name, name.replace("_", " ")))
        if not there:
            axis.text(0.5, 0.5, "no clip was held out", transform=axis.transAxes, ha="center", style="italic")
        elif len(columns) > 1:
            axis.legend()
    axes[0, 1].axhline(1 / machines, **plots.CHANCE)
    axes[0, 1].set_ylim(-0.02, 1.05)
    axes[1, 0].set_ylim(0, 1)
    return figure


@matplotlib.rc_context(plots.STYLE)
def accuracy_dots(accuracy: pd.DataFrame, confidence: float = 0.95) -> plots.Plot:
    """Accuracy of machine and class per machine on held-out training clips, with Wilson intervals.

    accuracy : machine, clips, machine_accuracy, class_accuracy (`ClassifierDetector.accuracy`).  Notebook: 04_classifier
    raises : errors.Refusal for an empty table
    """
    if accuracy.empty:
        raise errors.Refusal(NEVER_EMPTY.format("accuracy"))
    names = [f"{row.machine} ({row.clips} clips)" for row in accuracy.itertuples()]
    figure, axes = _figure(1, 2, 1.0 + 0.32 * len(names), f"accuracy on held-out clips of {', '.join(accuracy['machine'])}")
    for axis, column, title in zip(axes[0], ("machine_accuracy", "class_accuracy"), ("the right machine", "the right class")):
        for y, (share, n) in enumerate(zip(accuracy[column], accuracy["clips"])):
            interval = stats.binomtest(round(share * n), int(n)).proportion_ci(confidence, "wilson")
            axis.plot([interval.low, interval.high], [y, y], color=plots.BLUE, lw=2)
            axis.plot(share, y, "o", color=plots.BLUE, ms=6)
        axis.set(title=title, xlabel="share of clips", xlim=(-0.02, 1.02), yticks=range(len(names)), yticklabels=names, ylim=(len(names) - 0.5, -0.5))
        axis.label_outer()
    return figure


@matplotlib.rc_context(plots.STYLE)
def seen_and_unseen(table: pd.DataFrame, groups: Sequence[str]) -> plots.Plot:
    """Scores of normal clips the network saw, of held-out ones, and of test ones: every clip, and the median as a bar.

    table : machine, group, score;  groups : those shown, in order.  Notebook: 04_classifier
    raises : errors.Refusal for an empty table
    """
    if table.empty:
        raise errors.Refusal(NEVER_EMPTY.format("scores"))
    machines = list(table["machine"].unique())
    rows, columns = math.ceil(len(machines) / PER_ROW), min(len(machines), PER_ROW)
    figure, axes = _figure(rows, columns, 2.6 * rows, f"scores of normal clips of {', '.join(machines)}: {', '.join(groups)}")
    figure.vector = False
    generator = np.random.default_rng(0)  # only moves points apart; the picture is the same every time
    for axis in axes.flat[len(machines) :]:
        axis.set_axis_off()
    for axis, machine in zip(axes.flat, machines):
        for x, group in enumerate(groups):
            values = table.loc[(table["machine"] == machine) & (table["group"] == group), "score"]
            axis.scatter(x + generator.uniform(-0.25, 0.25, len(values)), values, s=12, color=plots.BLUE, alpha=0.45, lw=0)
            if len(values):
                axis.plot([x - 0.36, x + 0.36], [values.median()] * 2, color=plots.BLACK, lw=2)
        axis.set(title=machine, xticks=range(len(groups)), xlim=(-0.6, len(groups) - 0.4))
        axis.set_xticklabels(groups, rotation=30, ha="right")
    for axis in axes[:, 0]:
        axis.set_ylabel("score; bar: median")
    return figure


PLOTS = {"training_curves": training_curves, "accuracy_dots": accuracy_dots, "seen_and_unseen": seen_and_unseen}
