"""Figures of the latents of OEVAE: active channels, z_d against the condition, α by condition and label.

Conventions as in `asdlib.viz.plots`.  Source: METHOD 3.4, 3.9.  Notebooks: 05_oevae, 07_latents.
"""

from __future__ import annotations

from collections.abc import Sequence

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from scipy import stats

from asdlib.detectors.oevae_training import ALIVE
from asdlib.viz import plots
from asdlib.viz.plots import BELOW, BLACK, BLUE, CHANCE, DOMAIN_COLORS, GRAY, KINDS, ORANGE, SKY, STYLE, Plot

PARTS = {"z_d": (ORANGE, "////"), "z_c": (SKY, "")}
SPACES = {"embedding": (GRAY, ".."), "z_d": PARTS["z_d"], "z_c": PARTS["z_c"]}


@matplotlib.rc_context(STYLE)
def kl_channels(channels: pd.DataFrame, title: str = "") -> Plot:
    """Plot KL and variance of the mean of every latent channel; dashed: lower limit of active channels.

    channels : channel, part, kl (nats), variance, alive.  Notebook: 05_oevae
    """
    alive = int(plots.some(channels, "latent channels")["alive"].sum())
    alt = f"KL and variance of {len(channels)} latent channels {title}; {alive} are active"
    figure, axes = plots.panels(2, 1, 3.8, alt, share="x")
    for part, rows in channels.groupby("part", sort=False):
        look = {"color": PARTS[part][0], "hatch": PARTS[part][1], "ec": BLACK, "lw": 0.3}
        for axis, column in zip(axes[:, 0], ("kl", "variance"), strict=True):
            axis.bar(rows["channel"], np.maximum(rows[column], 1e-7), **look)
            plots.log_axis(axis)
    axes[0, 0].set(ylabel="KL (nats)", title=title)
    axes[1, 0].set(ylabel="variance of μ", xlabel="latent channel")
    axes[1, 0].axhline(ALIVE, color=BLACK, ls="--", lw=1)
    figure.legend(handles=[Patch(fc=c, hatch=h, ec=BLACK, label=p) for p, (c, h) in PARTS.items()], **BELOW)
    return figure


@matplotlib.rc_context(STYLE)
def tie(latents: pd.DataFrame) -> Plot:
    """Plot z_d (mean over its channels) of each normal clip against the condition, with the prior mean.

    latents : machine, v, prior, z_d (mean over channels), domain, trained.  Notebook: 07_latents
    """
    machines = list(plots.some(latents, "latents")["machine"].unique())
    alt = f"z_d over the condition v of {', '.join(machines)}; R² is in the table"
    figure, axes = plots.by_machine(machines, 3.2, "z_d, mean over its channels", alt)
    marks = {"source": "o", "target": "s", "unknown": "D"}
    for axis, machine in zip(axes, machines, strict=True):
        part = latents[(latents["machine"] == machine) & latents["v"].notna()]
        line = part[["v", "prior"]].drop_duplicates().sort_values("v")
        axis.plot(line["v"], line["prior"], color=BLACK, lw=1, ls="--")
        for (domain, trained), rows in part.groupby(["domain", "trained"]):
            color = DOMAIN_COLORS[domain]
            look = {"facecolors": "none" if trained else color, "edgecolors": color, "marker": marks[domain]}
            axis.scatter(rows["v"], rows["z_d"], **look, s=16, alpha=0.6, lw=0.8)
        axis.set(title=machine, xlabel="condition v")
        if part.empty:
            plots.note(axis, 0.5, 0.5, "no v", axis.transAxes, ha="center")
    handles = [
        Line2D([], [], ls="", marker=marks[domain], mfc=fill, mec=color, label=f"{domain}, {kind}")
        for domain, color in DOMAIN_COLORS.items()
        if domain != "unknown"
        for kind, fill in (("not used in training", color), ("used in training", "none"))
    ]
    figure.legend(handles=[*handles, Line2D([], [], color=BLACK, ls="--", label="prior mean k·v")], **BELOW)
    return figure


@matplotlib.rc_context(STYLE)
def knowledge(measures: pd.DataFrame, of: str) -> Plot:
    """Plot the accuracy of a classifier that predicts v or the domain from each space, and chance.

    measures : machine, space, of, measure, value, chance.  of : "v" or "domain".  Notebook: 07_latents
    """
    selected = measures[(measures["of"] == of) & (measures["measure"] == "balanced accuracy")]
    table = plots.some(selected, "measures")
    machines = list(table["machine"].unique())
    alt = f"balanced accuracy of predicting {of} from {', '.join(SPACES)}; the numbers are in the table"
    figure, axes = plots.panels(1, 1, 2.9, alt, 7.0)
    for i, (space, (color, hatch)) in enumerate(SPACES.items()):
        rows = table[table["space"] == space].set_index("machine").reindex(machines)
        place = np.arange(len(machines)) + 0.26 * (i - 1)
        axes[0, 0].bar(place, rows["value"].fillna(0), 0.24, color=color, hatch=hatch, ec=BLACK, lw=0.4)
    for x, machine in enumerate(machines):
        rows = table[table["machine"] == machine]
        axes[0, 0].plot([x - 0.42, x + 0.42], [rows["chance"].iloc[0]] * 2, **CHANCE)
        if rows["value"].isna().all():
            plots.note(axes[0, 0], x, 0.5, "not available", axes[0, 0].transData, ha="center")
    label_style = {"rotation": 30, "ha": "right"} if len(machines) > 6 else {}
    axes[0, 0].set_xticks(range(len(machines)), machines, **label_style)
    axes[0, 0].set(ylim=(0, 1.03), ylabel=f"balanced accuracy, {of}")
    handles = [Patch(fc=c, hatch=h, ec=BLACK, label=s) for s, (c, h) in SPACES.items()]
    figure.legend(handles=[*handles, Line2D([], [], label="chance", **CHANCE)], **BELOW)
    return figure


@matplotlib.rc_context(STYLE)
def traversal(table: pd.DataFrame) -> Plot:
    """Plot the v of the training segments nearest to the decoder's output against the v set in z_d.

    table : machine, set, found, low, high (all in units of v).  Notebook: 07_latents
    """
    machines = list(plots.some(table, "traversal")["machine"].unique())
    alt = f"condition found over condition set of {', '.join(machines)}"
    figure, axes = plots.by_machine(machines, 3.1, "v of the nearest training segment", alt)
    for axis, machine in zip(axes, machines, strict=True):
        rows = table[table["machine"] == machine].sort_values("set")
        ends = [rows["set"].min(), rows["set"].max()]
        axis.plot(ends, ends, **CHANCE)
        axis.fill_between(rows["set"], rows["low"], rows["high"], color=BLUE, alpha=0.2, lw=0)
        axis.plot(rows["set"], rows["found"], "o-", color=BLUE, ms=4)
        axis.set(title=machine, xlabel="v set in z_d")
    handles = [
        Line2D([], [], color=BLUE, marker="o", ms=4, label="found, with quartiles"),
        Line2D([], [], label="found = set", **CHANCE),
    ]
    figure.legend(handles=handles, **BELOW)
    return figure


@matplotlib.rc_context(STYLE)
def by_condition(scores: pd.DataFrame, label: str = "α") -> Plot:
    """Plot a score of each test clip against its condition, by label.

    A score that is independent of the condition has the same median for normal clips at every condition.

    scores : machine, v, score, label, domain.  label : of the score, with its unit.  Notebook: 07_latents
    """
    machines = list(plots.some(scores, "scores")["machine"].unique())
    alt = f"{label} over the condition of {', '.join(machines)}"
    figure, axes = plots.by_machine(machines, 3.2, label, alt, vector=False)
    rng = np.random.default_rng(0)  # jitter for display
    for axis, machine in zip(axes, machines, strict=True):
        part = scores[(scores["machine"] == machine) & scores["v"].notna()]
        values = np.unique(part["v"])
        apart = 0.12 * (np.diff(values).min() if len(values) > 1 else 1.0)
        for kind, rows in part.groupby("label", sort=False):
            color, _, marker = KINDS[kind]
            v = rows["v"] + rng.uniform(-apart, apart, len(rows))
            axis.scatter(v, rows["score"], s=15, c=color, marker=marker, alpha=0.5, lw=0)
        middle = part[part["label"] == "normal"].groupby("v")["score"].median()
        axis.plot(middle.index, middle, "_", color=BLACK, ms=14, mew=2)
        axis.set(title=machine, xlabel="condition v")
    handles = [
        Line2D([], [], ls="", marker=KINDS[k][2], color=KINDS[k][0], label=k)
        for k in dict.fromkeys(scores["label"])
    ]
    median = Line2D([], [], ls="", marker="_", ms=12, mew=2, color=BLACK, label="median of normals")
    figure.legend(handles=[*handles, median], **BELOW)
    return figure


@matplotlib.rc_context(STYLE)
def priors(scales: Sequence[float] = (1.0, 2.5, 5.0)) -> Plot:
    """Plot the priors of two conditions that differ by d_min, for k = scale / d_min, and their overlap.

    Notebook: 05_oevae
    """
    alt = f"priors of neighboring conditions for {scales}"
    figure, axes = plots.panels(1, len(scales), 2.3, alt, share="y")
    for axis, scale in zip(axes[0], scales):
        z = np.linspace(-3, scale + 3, 200)
        both = [stats.norm.pdf(z, mean) for mean in (0, scale)]
        for density, color, line, label in zip(both, (BLUE, ORANGE), ("-", "--"), ("v", "v + d_min")):
            axis.plot(z, density, color=color, ls=line, label=label)
        axis.fill_between(z, np.minimum(*both), color=GRAY, alpha=0.4)
        shared = f"{2 * stats.norm.cdf(-scale / 2):.1%}".replace("%", " %")
        axis.set(title=f"k = {scale:g} / d_min: overlap {shared}", xlabel="z_d − k·v", yticks=[])
    axes[0, 0].legend(fontsize=8)
    return figure


@matplotlib.rc_context(STYLE)
def by_label(table: pd.DataFrame, x: str, y: str) -> Plot:
    """Plot two values of each clip by label.

    table : label, and the columns `x` and `y`, whose names label the axes.  Notebook: 05_oevae
    """
    figure, axes = plots.panels(1, 1, 3.2, f"{y} over {x} of {len(table)} clips by label", 6.4, vector=False)
    for kind, rows in plots.some(table, "clips").groupby("label", sort=False):
        color, _, marker = KINDS[kind]
        axes[0, 0].scatter(rows[x], rows[y], s=22, c=color, marker=marker, alpha=0.6, lw=0, label=kind)
    axes[0, 0].set(xlabel=x, ylabel=y)
    axes[0, 0].legend()
    return figure
