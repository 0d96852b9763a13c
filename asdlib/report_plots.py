"""Figures of the report: detectability curves.

Conventions as in `asdlib.plots`: tables come in, one figure goes out; Okabe and Ito's colours, and a marker and line style beside each; the
same system looks the same in every figure. Axes have units; what is not available is written. Notebook: 09_report.
"""

from __future__ import annotations

import math

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.lines import Line2D

from asdlib import detectability, plots

COLUMNS = 3  # panels in a row


@matplotlib.rc_context(plots.STYLE)
def detectability_curves(curves: pd.DataFrame, level: float = detectability.LEVEL) -> plots.Plot:
    """AUC over the severity of the fault, one panel per machine and one for all; whiskers are intervals, dashed the level to be reached.

    curves : detectability.CURVE_COLUMNS.  Systems stand side by side at each severity, so that their whiskers can be told apart; the dotted
    line leads to severity 0, where a fault is nothing.
    """
    machines, looks = list(dict.fromkeys(plots.some(curves, "curves")["machine"])), plots.looks_of(curves["system"])
    alt = f"AUC over fault severity of {', '.join(looks)} on {', '.join(machines)}; the numbers are in the table"
    rows = math.ceil(len(machines) / COLUMNS)
    figure, axes = plots.panels(rows, min(len(machines), COLUMNS), 0.9 + 2.5 * rows, alt, share="both")
    severities = np.sort(curves["severity"].unique())
    step = min(np.diff(np.concatenate([[0.0], severities[severities > 0]])), default=1.0)
    for axis, machine in zip(axes.flat, machines):
        axis.axhline(0.5, **plots.CHANCE)
        axis.axhline(level, color=plots.GREY, lw=1, ls="--")
        for place, (system, (colour, marker, line)) in enumerate(looks.items()):
            part = curves[(curves["machine"] == machine) & (curves["system"] == system)].sort_values("severity")
            part = part[part["value"].notna()]
            x = part["severity"] + 0.5 * step * ((place + 0.5) / len(looks) - 0.5)
            axis.plot([0, *x[:1]], [0.5, *part["value"][:1]], color=colour, lw=0.6, ls=":")
            axis.plot(x, part["value"], color=colour, ls=line, lw=1.4, marker=marker, ms=4)
            axis.vlines(x, part["low"], part["high"], color=colour, lw=0.9)
        axis.set(title=machine if machine != "all" else "all machines", ylabel="AUC (chance 0.5)", xlabel="severity of the fault")
        axis.set(xticks=[0, *severities[severities > 0]], ylim=(max(min(curves["low"].min(), 0.45) - 0.03, -0.03), 1.03))
        axis.label_outer()
    for axis in axes.flat[len(machines) :]:
        axis.set_axis_off()
    if len(machines) > COLUMNS:  # a panel with nothing below it keeps its axis
        for axis in axes.flat[len(machines) - COLUMNS : len(machines)]:
            axis.xaxis.set_tick_params(labelbottom=True)
            axis.set_xlabel("severity of the fault")
    handles = [Line2D([], [], color=c, marker=m, ls=line, label=s) for s, (c, m, line) in looks.items()]
    handles.append(Line2D([], [], color=plots.GREY, lw=1, ls="--", label=f"AUC {level:g}"))
    figure.legend(handles=handles, **plots.BELOW)
    return figure


PLOTS = {"detectability_curves": detectability_curves}
