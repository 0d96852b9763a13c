"""Figures of training: curves over epochs and steps, accuracy, scores of training clips; items of SMOTE.

Conventions as in `asdlib.viz.plots`.  Source: METHOD 3.4, 3.5.
Notebooks: 02_preprocessing, 04_classifier, 05_oevae.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence

import matplotlib
import numpy as np
import pandas as pd
import torch
from scipy import stats
from torch import Tensor

from asdlib import errors
from asdlib.viz import plots, tables
from asdlib.viz.plots import (
    BLACK,
    BLUE,
    CHANCE,
    DOMAIN_COLORS,
    GREEN,
    ORANGE,
    PURPLE,
    SKY,
    STYLE,
    VERMILION,
    Plot,
)


def _curves(axis, table: pd.DataFrame, title: str, looks: Mapping[str, tuple]) -> None:
    """Plot columns over epochs.  looks : column -> color, marker, line, label; missing columns are skipped"""
    for name, (color, marker, line, label) in looks.items():
        if name in table:
            axis.plot(table["epoch"], table[name], marker, color=color, ls=line, ms=4, label=label)
    axis.set(title=title, xlabel="epoch")
    axis.xaxis.get_major_locator().set_params(integer=True)


@matplotlib.rc_context(STYLE)
def oevae_curves(history: pd.DataFrame, channels: tuple[int, int]) -> Plot:
    """Plot losses, separation accuracy and active latent channels of an OEVAE over epochs.

    history : from `training.fit`: epoch, machine, kl_d, kl_c, recon, accuracy and, if clips were held out,
        held_out_loss, held_out_accuracy, alive_d, alive_c
    channels : number of channels of z_d and z_c.  Notebook: 05_oevae
    """
    table = plots.some(history, "training history")
    alive = {name: total for name, total in zip(("alive_d", "alive_c"), channels) if name in table}
    table = table.assign(**{name: table[name] / total for name, total in alive.items()})
    alt = "losses, separation accuracy and active latent channels over epochs; the numbers are printed"
    figure, axes = plots.panels(1, 3, 3.8, alt)
    losses = {
        "machine": (VERMILION, "o", "-", "binary (Eq. 2)"),
        "held_out_loss": (VERMILION, "s", ":", "binary, held out"),
        "kl_d": (ORANGE, "^", "--", "KL of z_d"),
        "kl_c": (BLUE, "v", "-.", "KL of z_c"),
        "recon": (GREEN, "D", (0, (6, 2)), "reconstruction"),
        "attribute": (PURPLE, "P", (0, (1, 1)), "attribute head"),
    }
    accuracy = {
        "accuracy": (BLUE, "o", "-", "training batches"),
        "held_out_accuracy": (BLUE, "s", ":", "held-out clips"),
    }
    active = {
        "alive_d": (ORANGE, "^", "-", f"z_d, of {channels[0]}"),
        "alive_c": (SKY, "v", "-", f"z_c, of {channels[1]}"),
    }
    _curves(axes[0, 0], table.clip(lower=1e-6), "losses (nats; squared units)", losses)
    plots.log_axis(axes[0, 0])
    _curves(axes[0, 1], table, "separation accuracy", accuracy)
    axes[0, 1].axhline(0.5, **CHANCE)
    axes[0, 1].set_ylim(0.4, 1.03)
    _curves(axes[0, 2], table, "share of active channels", active)
    axes[0, 2].set_ylim(-0.03, 1.03)
    for axis in axes[0]:
        if axis.get_legend_handles_labels()[0]:  # below: curves may be anywhere above
            axis.legend(fontsize=8, loc="upper center", bbox_to_anchor=(0.5, -0.22), ncols=2)
    return figure


@matplotlib.rc_context(STYLE)
def classifier_curves(history: pd.DataFrame, machines: int) -> Plot:
    """Plot losses of both heads, held-out accuracy, mean largest cosine, and scale over epochs.

    history : epoch, plain, max_cosine, scale, and if available featex, machine_accuracy, class_accuracy
    machines : their number; chance accuracy is about 1 / machines.  Notebook: 04_classifier
    raises : errors.InputError for a history without epochs
    """
    plots.some(history, "training history")
    figure, axes = plots.panels(2, 2, 4.6, f"loss, accuracy, cosine and scale over {len(history)} epochs")
    one, two = (BLUE, "o", "-"), (VERMILION, "s", "--")
    loss = {"plain": (*one, "plain head"), "featex": (*two, "FeatEx head")}
    accuracy = {"machine_accuracy": (*one, "machine"), "class_accuracy": (*two, "class")}
    _curves(axes[0, 0], history, "loss of the heads (nats)", loss)
    _curves(axes[0, 1], history, "accuracy on held-out clips", accuracy)
    _curves(axes[1, 0], history, "mean largest cosine to a center", {"max_cosine": (*one, "")})
    _curves(axes[1, 1], history, "scale s of the plain head", {"scale": (*one, "")})
    axes[0, 0].legend()
    if axes[0, 1].lines:
        axes[0, 1].legend()
    else:
        plots.note(axes[0, 1], 0.5, 0.5, "no clip was held out", axes[0, 1].transAxes, ha="center")
    axes[0, 1].axhline(1 / machines, **CHANCE)
    axes[0, 1].set_ylim(-0.02, 1.05)
    axes[1, 0].set_ylim(0, 1)
    return figure


@matplotlib.rc_context(STYLE)
def accuracy_dots(accuracy: pd.DataFrame, confidence: float = 0.95) -> Plot:
    """Plot the accuracy of machine and class on held-out training clips, with Wilson intervals.

    accuracy : machine, clips, machine_accuracy, class_accuracy (`ClassifierDetector.accuracy`).  Notebook:
        04_classifier
    raises : errors.InputError for an empty table
    """
    names = [f"{row.machine} ({row.clips} clips)" for row in plots.some(accuracy, "accuracy").itertuples()]
    alt = f"accuracy on held-out clips of {', '.join(accuracy['machine'])}"
    figure, axes = plots.panels(1, 2, 1.0 + 0.32 * len(names), alt)
    for axis, what in zip(axes[0], ("machine", "class")):
        for y, (share, n) in enumerate(zip(accuracy[f"{what}_accuracy"], accuracy["clips"])):
            interval = stats.binomtest(round(share * n), int(n)).proportion_ci(confidence, "wilson")
            axis.plot([interval.low, interval.high], [y, y], color=BLUE, lw=2)
            axis.plot(share, y, "o", color=BLUE, ms=6)
        axis.set(title=f"correct {what}", xlabel="share of clips", xlim=(-0.02, 1.02))
        axis.set(yticks=range(len(names)), yticklabels=names, ylim=(len(names) - 0.5, -0.5))
        axis.label_outer()
    return figure


@matplotlib.rc_context(STYLE)
def seen_and_unseen(table: pd.DataFrame, groups: Sequence[str]) -> Plot:
    """Plot scores of normal clips in groups (used in training, held out, test), with medians.

    table : machine, group, score.  groups : to plot, in order.  Notebook: 04_classifier
    raises : errors.InputError for an empty table
    """
    machines = list(plots.some(table, "scores")["machine"].unique())
    alt = f"scores of normal clips of {', '.join(machines)}: {', '.join(groups)}"
    figure, axes = plots.by_machine(machines, 2.6, "score; bar: median", alt, vector=False)
    generator = np.random.default_rng(0)  # jitter for display
    for axis, machine in zip(axes, machines):
        for x, group in enumerate(groups):
            values = table.loc[(table["machine"] == machine) & (table["group"] == group), "score"]
            apart = x + generator.uniform(-0.25, 0.25, len(values))
            axis.scatter(apart, values, s=12, color=BLUE, alpha=0.45, lw=0)
            if len(values):
                axis.plot([x - 0.36, x + 0.36], [values.median()] * 2, color=BLACK, lw=2)
        axis.set(title=machine, xticks=range(len(groups)), xlim=(-0.6, len(groups) - 0.4))
        axis.set_xticklabels(groups, rotation=30, ha="right")
    return figure


@matplotlib.rc_context(STYLE)
def interpolation(points: np.ndarray, domain: np.ndarray, new: np.ndarray, title: str = "") -> Plot:
    """Plot items in two dimensions by domain, and synthetic items.

    points : float (n, 2).  domain : (n,).  new : float (m, 2), synthetic items.  Notebook: 02_preprocessing
    """
    figure, axes = plots.panels(1, 1, 3.6, f"{len(points)} items and {len(new)} synthetic ones {title}", 6.4)
    for name, marker in (("source", "o"), ("target", "s"), ("unknown", "D")):
        rows = points[domain == name]
        if len(rows):
            look = {"c": DOMAIN_COLORS[name], "marker": marker, "label": name}
            axes[0, 0].scatter(*rows.T, **look, s=22, alpha=0.6, lw=0)
    axes[0, 0].scatter(*new.T, s=34, c=VERMILION, marker="x", lw=1.2, label="SMOTE")
    axes[0, 0].set(title=title, xlabel="first principal component", ylabel="second")
    axes[0, 0].legend()
    return figure


class Live:
    """Curves that are updated while a loop runs, in one output.

    Redrawn by `draw`, and automatically at most every two seconds and for at most a tenth of the time.

    >>> live = Live("first steps")
    >>> for batch in batches:
    ...     live(L_machine=loss)
    >>> live.draw()

    `table` has a row per step. Notebooks: 04_classifier, 05_oevae
    """

    def __init__(self, title: str):
        self.title, self.rows, self.handle, self.next = title, [], None, time.monotonic() + 2.0

    @property
    def table(self) -> pd.DataFrame:
        """One row per step: step (from 1) and the values, float."""
        return pd.DataFrame(self.rows)

    def __call__(self, **values: float | Tensor) -> None:
        """Record the values of one step."""
        numbers = {name: torch.as_tensor(value).detach().item() for name, value in values.items()}
        self.rows.append({"step": len(self.rows) + 1} | numbers)
        if time.monotonic() > self.next:
            self.draw()

    def draw(self) -> None:
        """Redraw all steps so far."""
        from IPython.display import display  # here: only a notebook has a display

        began = time.monotonic()
        shown = tables.Html(steps(self.table, self.title)._repr_html_())
        self.next = time.monotonic() + max(2.0, 10 * (time.monotonic() - began))
        if self.handle is None:
            self.handle = display(shown, display_id=True)
        else:
            self.handle.update(shown)


@matplotlib.rc_context(STYLE)
def steps(table: pd.DataFrame, title: str = "") -> Plot:
    """Plot values over training steps, on a logarithmic scale if their range is large.

    table : step, and a column for each curve.  Notebooks: 04_classifier, 05_oevae
    """
    names = [name for name in plots.some(table, "training steps") if name != "step"]
    figure, axes = plots.panels(1, 1, 2.8, f"{', '.join(names)} over {len(table)} steps", 6.8)
    looks = zip(names, (VERMILION, ORANGE, GREEN, BLUE, PURPLE), ("-", "--", "-.", ":", (0, (6, 2))))
    for name, color, line in looks:
        axes[0, 0].plot(table["step"], table[name].clip(lower=1e-6), color=color, ls=line, label=name)
    axes[0, 0].set(xlabel="step", title=title)
    if table[names].max(axis=None) > 20 * table[names].clip(lower=1e-6).min(axis=None):
        plots.log_axis(axes[0, 0])
    axes[0, 0].legend(loc="upper left", bbox_to_anchor=(1.0, 1.0))
    return figure


def as_systems(metrics: pd.DataFrame, names: Sequence[str]) -> pd.DataFrame:
    """Rename components of a system to systems, for `plots.metric_dots`.

    metrics : METRIC_COLUMNS.  names : of components, in display order
    returns : METRIC_COLUMNS with system = the component and component = score
    raises : errors.InputError for a component that is not in the table
    """
    for name in names:
        errors.check_choice("component", name, list(dict.fromkeys(metrics["component"])))
    parts = [metrics[metrics["component"] == name].assign(system=name, component="score") for name in names]
    return pd.concat(parts, ignore_index=True)
