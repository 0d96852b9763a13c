"""Figures of the report: score histograms with thresholds, detectability curves.

Conventions as in `asdlib.viz.plots`: tables come in, one figure goes out; Okabe and Ito's colors, and a
marker and line style beside each; the same system looks the same in every figure. Axes have units; what is
not available is written. Notebooks: 03_baseline, 05_oevae, 09_report.
"""

from __future__ import annotations

import itertools
import math

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator

from asdlib import schemas
from asdlib.evaluation import detectability
from asdlib.scoring import fusion
from asdlib.viz import plots

COLUMNS = 3  # panels in a row
UNSEEN = tuple(
    name for name in fusion.SYSTEMS if name.startswith("baseline_")
)  # a training clip is scored by models that never saw it
OUTLINES = {
    True: ("training, never seen", "-"),
    False: ("training, seen by the networks", (0, (1, 1))),
}  # never seen -> words, line style


def _kind(axis, values: np.ndarray, bins: np.ndarray, label: str) -> None:
    """A histogram of one label, area under hatch: as one patch, browsers would print it opaque."""
    color, hatch, _ = plots.KINDS[label]
    axis.stairs(values, bins, fill=True, fc=color + "73", lw=0)
    axis.stairs(values, bins, fill=True, fc="none", ec=color, hatch=hatch, hatchcolor=color, lw=0.9)


@matplotlib.rc_context(plots.STYLE)
def score_histograms(scores: pd.DataFrame, thresholds: pd.DataFrame) -> plots.Plot:
    """Scores of each machine and system: source upwards, target downwards, by label, with the decision
    threshold.

    scores : SCORE_COLUMNS, one seed of each system; train rows are an outline: solid where models scored them
        that never saw the clip (`UNSEEN`), dotted where networks trained on it did. Of the latter, distances
        leave the clip's own references out; α of OEVAE has none to leave out.
    thresholds : system, machine, threshold.  Notebooks: 03_baseline, 05_oevae, 09_report
    """
    table = plots.some(scores[scores["component"] == "score"], "scores")
    table = schemas.by_section(table)
    machines, systems = list(table["machine"].unique()), fusion.in_order(table["system"])
    limits = thresholds.drop_duplicates(["system", "machine"]).set_index(["system", "machine"])["threshold"]
    alt = f"histograms of the scores of {', '.join(systems)} on {', '.join(machines)}"
    figure, axes = plots.panels(
        len(machines), len(systems), 0.9 + 1.75 * len(machines), alt, max(plots.WIDTH, 1.7 * len(systems))
    )
    never_seen = {system: system.removesuffix(fusion.SEEDS) in UNSEEN for system in systems}
    for row, machine in zip(axes, machines, strict=True):
        for axis, system in zip(row, systems, strict=True):
            part = table[(table["machine"] == machine) & (table["system"] == system)]
            axis.set(
                yticks=[],
                title=system if machine == machines[0] else "",
                xlabel="score" if machine == machines[-1] else "",
            )
            axis.xaxis.set_major_locator(MaxNLocator(3, min_n_ticks=2))
            if len(part) == 0:
                plots.note(axis, 0.5, 0.5, "not available", axis.transAxes, ha="center")
                continue
            low, high = part["score"].quantile([0, 0.99])  # the last bin takes the largest 1 %
            bins = np.linspace(low, high if high > low else low + 1, 19)
            kinds = (*(("test", label) for label in plots.KINDS), ("train", "normal"))
            for (domain, sign), (split, label) in itertools.product((("source", 1), ("target", -1)), kinds):
                values = part.loc[
                    (part["domain"] == domain) & (part["split"] == split) & (part["label"] == label), "score"
                ]
                shares = sign * np.histogram(values.clip(low, bins[-1]), bins)[0] / max(len(values), 1)
                if len(values) and split == "test":
                    _kind(axis, shares, bins, label)
                elif len(values):
                    axis.stairs(shares, bins, color=plots.BLACK, lw=1.2, ls=OUTLINES[never_seen[system]][1])
            if (system, machine) in limits.index and np.isfinite(limits[(system, machine)]):
                axis.axvline(limits[(system, machine)], color=plots.BLACK, lw=1.2, ls="--")
            axis.axhline(0, color=plots.BLACK, lw=0.8)
            axis.set_ylim(*np.array([-1.05, 1.05]) * np.abs(axis.get_ylim()).max())
            for y, domain in ((0.92, "source"), (0.06, "target")):
                words = domain + (
                    ""
                    if ((part["split"] == "test") & (part["domain"] == domain)).any()
                    else ": no test clips"
                )
                axis.text(0.99, y, words, transform=axis.transAxes, ha="right", fontsize=8, color="#333333")
        row[0].set_ylabel(f"{machine}\nshare of clips")
    handles = []
    for kind in table.loc[table["split"] == "test", "label"].unique():
        color, hatch, _ = plots.KINDS[kind]
        handles.append(
            Patch(fc=plots.pale(color), ec=color, hatch=hatch, hatchcolor=color, label=f"test, {kind}")
        )
    lines = [OUTLINES[known] for known in sorted(set(never_seen.values()), reverse=True)]
    handles += [
        Line2D([], [], color=plots.BLACK, ls=ls, label=name) for name, ls in (*lines, ("threshold", "--"))
    ]
    figure.legend(handles=handles, **plots.BELOW)
    return figure


@matplotlib.rc_context(plots.STYLE)
def detectability_curves(curves: pd.DataFrame, level: float = detectability.LEVEL) -> plots.Plot:
    """AUC over the severity of the fault, one panel per machine and one for all; whiskers are intervals,
    dashed the level to be reached.

    curves : detectability.CURVE_COLUMNS.  Systems stand side by side at each severity, so that their whiskers
        can be told apart; the dotted
    line leads to severity 0, where a fault is nothing.
    """
    machines, looks = (
        list(dict.fromkeys(plots.some(curves, "curves")["machine"])),
        plots.looks_of(curves["system"]),
    )
    alt = (
        f"AUC over fault severity of {', '.join(looks)} on {', '.join(machines)}; the numbers are in the"
        " table"
    )
    rows = math.ceil(len(machines) / COLUMNS)
    figure, axes = plots.panels(rows, min(len(machines), COLUMNS), 0.9 + 2.5 * rows, alt, share="both")
    severities = np.sort(curves["severity"].unique())
    step = min(np.diff(np.concatenate([[0.0], severities[severities > 0]])), default=1.0)
    for axis, machine in zip(axes.flat, machines):
        axis.axhline(0.5, **plots.CHANCE)
        axis.axhline(level, color=plots.GRAY, lw=1, ls="--")
        for place, (system, (color, marker, line)) in enumerate(looks.items()):
            part = curves[(curves["machine"] == machine) & (curves["system"] == system)].sort_values(
                "severity"
            )
            part = part[part["value"].notna()]
            x = part["severity"] + 0.5 * step * ((place + 0.5) / len(looks) - 0.5)
            axis.plot([0, *x[:1]], [0.5, *part["value"][:1]], color=color, lw=0.6, ls=":")
            axis.plot(x, part["value"], color=color, ls=line, lw=1.4, marker=marker, ms=4)
            axis.vlines(x, part["low"], part["high"], color=color, lw=0.9)
        axis.set(
            title=machine if machine != "all" else "all machines",
            ylabel="AUC (chance 0.5)",
            xlabel="severity of the fault (0: none)",
        )
        axis.set(
            xticks=[0, *severities[severities > 0]],
            ylim=(max(min(curves["low"].min(), 0.45) - 0.03, -0.03), 1.03),
        )
        axis.label_outer()
    for axis in axes.flat[len(machines) :]:
        axis.set_axis_off()
    if len(machines) > COLUMNS:  # a panel with nothing below it keeps its axis
        for axis in axes.flat[len(machines) - COLUMNS : len(machines)]:
            axis.xaxis.set_tick_params(labelbottom=True)
            axis.set_xlabel("severity of the fault (0: none)")
    handles = [Line2D([], [], color=c, marker=m, ls=line, label=s) for s, (c, m, line) in looks.items()]
    handles.append(Line2D([], [], color=plots.GRAY, lw=1, ls="--", label=f"AUC {level:g}"))
    figure.legend(handles=handles, **plots.BELOW)
    return figure


PLOTS = {"score_histograms": score_histograms, "detectability_curves": detectability_curves}
