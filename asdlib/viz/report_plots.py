"""Figures of the report: official scores and AUCs as scales in HTML, score histograms, detectability curves.

Conventions as in `asdlib.viz.plots`. Notebooks: 03_baseline, 05_oevae, 09_report.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator

from asdlib import schemas
from asdlib.evaluation import detectability
from asdlib.scoring import fusion
from asdlib.viz import claims, pages, plots, tables

NARROW = 3.4  # inches: a figure next to others, or alone on a phone
# systems whose models exclude the training clip that they score
UNSEEN = (*claims.UNTRAINED, "baseline_mse", "baseline_mahala")
OUTLINES = {  # whether excluded -> label, line style
    True: ("training, scored by models without the clip", "-"),
    False: ("training, scored by networks trained on it", (0, (1, 1))),
}


def official_scores(table: pd.DataFrame, controls: pd.DataFrame) -> tables.Html:
    """Plot Ω of each system with its interval, and the controls (shuffled labels, level alone).

    table : METRIC_COLUMNS.  controls : from `metrics.controls`.  Notebook: 09_report
    """
    both = pd.concat([tables.own_scores(table), tables.own_scores(controls)])
    both = both.query("machine == 'all' and metric == 'omega'").set_index("system")
    chance = controls.query("machine == 'all' and metric == 'omega' and component != 'score'")
    chance = chance.groupby("component")[["low", "high"]].mean()
    ends = _ends([*both[["value", "low", "high"]].to_numpy().ravel(), *chance.to_numpy().ravel()])
    lines = []
    for system in fusion.in_order(both.index):
        row = both.loc[system]
        name, words = tables.system_name(system), tables.number(row["value"], row["low"], row["high"])
        band = tuple(chance.loc[system]) if system in chance.index else None
        dot = (row["value"], "hollow" if system == "control_level" else "")
        bar = (row["low"], row["high"])
        shown = pages.scale(ends, f"{name}: {words}", band=band, bar=bar, lines=(0.5,), dots=(dot,))
        lines.append((name, shown, words))
    note = (
        "Dot: official score Ω (harmonic mean of AUC source, AUC target and pAUC over all machines) with its"
    )
    note += " interval. Dashed: chance. Gray: range for shuffled labels."
    return tables.Html(f'{pages.rows(lines, _ticks(ends))}<p class="note">{note}</p>')


def domain_gaps(table: pd.DataFrame, controls: pd.DataFrame) -> tables.Html:
    """Plot AUC source, AUC target and their harmonic mean with pAUC, of each system, one panel per machine.

    table : METRIC_COLUMNS.  controls : from `metrics.controls`, whose level control comes last
    Notebook: 09_report
    """
    both = pd.concat([tables.own_scores(table), tables.own_scores(controls)]).query("machine != 'all'")
    values = both.pivot(index=["machine", "system"], columns="metric", values="value")
    ends = _ends(values[["auc_source", "auc_target"]].to_numpy().ravel())
    panels = []
    for machine, part in values.groupby("machine"):
        part, lines = part.droplevel("machine"), []
        for system in fusion.in_order(part.index):
            source, target = part.loc[system, ["auc_source", "auc_target"]]
            name, mean = tables.system_name(system), part.loc[system, "hmean"]
            label = f"{name}: AUC source {source:.2f}, target {target:.2f}, harmonic mean {mean:.2f}"
            bar, dots = tuple(sorted((source, target))), ((source, "source"), (target, "target"))
            shown = pages.scale(ends, label.replace("nan", "not available"), bar=bar, lines=(0.5,), dots=dots)
            lines.append((name, shown, "—" if np.isnan(mean) else f"{mean:.2f}"))
        panels.append(f"<h3>{tables.escape(machine)}</h3>{pages.rows(lines, _ticks(ends))}")
    note = "Round: AUC of the source domain; square: of the target domain. Number: harmonic mean of both and"
    note += " pAUC. Dashed: chance."
    return tables.Html(f'{grid(panels, wide=True)}<p class="note">{note}</p>')


def grid(shown: Iterable, wide: bool = False) -> tables.Html:
    """Arrange figures or HTML in as many columns as fit, at most two if `wide`."""
    texts = [one._repr_html_() if hasattr(one, "_repr_html_") else one for one in shown]
    cells = "".join(f"<div>{text}</div>" for text in texts)
    return tables.Html(f'<div class="panels{" wide" if wide else ""}">{cells}</div>')


def _ends(values: Iterable[float]) -> tuple[float, float]:
    """Return the ends of a scale of fractions that contains these values, in tenths; at least 0.4 to 0.7."""
    known = [value for value in values if not np.isnan(value)]
    return np.floor(10 * min([0.4, *known])) / 10, np.ceil(10 * max([0.7, *known])) / 10


def _ticks(ends: tuple[float, float]) -> list[tuple[float, str]]:
    low, high = ends
    at = {x: (x - low) / (high - low) for x in (low, 0.5, high)}
    return [(place, f"{x:.1f}") for x, place in at.items() if x >= 0.5 or at[0.5] > 0.3]  # with room between


def _kind(axis, values: np.ndarray, bins: np.ndarray, label: str) -> None:
    """Draw a histogram of one label; area and hatch separately, as browsers print them together opaque."""
    color, hatch, _ = plots.KINDS[label]
    axis.stairs(values, bins, fill=True, fc=color + "73", lw=0)
    axis.stairs(values, bins, fill=True, fc="none", ec=color, hatch=hatch, hatchcolor=color, lw=0.9)


@matplotlib.rc_context(plots.STYLE)
def score_histograms(scores: pd.DataFrame, thresholds: pd.DataFrame) -> plots.Plot:
    """Plot histograms of the scores of each machine and system, source upwards and target downwards.

    scores : SCORE_COLUMNS, one seed of each system. Training clips are outlines: solid if scored by models
        that exclude the clip (`UNSEEN`), dotted if scored by networks trained on it; distances of the latter
        exclude references made from the clip
    thresholds : system, machine, threshold.  Notebooks: 03_baseline, 05_oevae, 09_report
    """
    table = plots.some(scores[scores["component"] == "score"], "scores")
    table = schemas.by_section(table)
    machines, systems = list(table["machine"].unique()), fusion.in_order(table["system"])
    limits = thresholds.drop_duplicates(["system", "machine"]).set_index(["system", "machine"])["threshold"]
    alt = f"histograms of the scores of {', '.join(systems)} on {', '.join(machines)}"
    width = max(plots.WIDTH, 1.7 * len(systems)) if len(systems) > 1 else NARROW
    figure, axes = plots.panels(len(machines), len(systems), 0.9 + 1.75 * len(machines), alt, width)
    never_seen = {system: system.removesuffix(fusion.SEEDS) in UNSEEN for system in systems}
    for row, machine in zip(axes, machines, strict=True):
        for axis, system in zip(row, systems, strict=True):
            part = table[(table["machine"] == machine) & (table["system"] == system)]
            axis.set(
                yticks=[],
                title=tables.system_name(system) if machine == machines[0] and len(systems) > 1 else "",
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
                axis.text(0.99, y, words, transform=axis.transAxes, ha="right", fontsize=8, color="#555555")
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
    figure.legend(handles=handles, **plots.BELOW | ({"ncols": 2, "fontsize": 8} if width == NARROW else {}))
    return figure


@matplotlib.rc_context(plots.STYLE)
def detectability_curves(curves: pd.DataFrame, level: float = detectability.LEVEL) -> list[plots.Plot]:
    """Plot AUC against fault severity with intervals, one figure per machine and one for all, and a legend.

    Systems are shifted sideways so that their intervals do not overlap; the dotted lines start at AUC 0.5 for
    severity 0.

    curves : detectability.CURVE_COLUMNS.  level : AUC of the dashed line
    """
    looks = plots.looks_of(plots.some(curves, "curves")["system"])
    severities = np.sort(curves["severity"].unique())
    step = min(np.diff(np.concatenate([[0.0], severities[severities > 0]])), default=1.0)
    figures = []
    for machine, of_machine in curves.groupby("machine", sort=False):
        title = machine if machine != "all" else "all machines"
        names = ", ".join(map(tables.system_name, looks))
        alt = f"{title}: AUC over fault severity of {names}; the numbers are in the table"
        figure, [[axis]] = plots.panels(1, 1, 2.5, alt, NARROW)
        axis.axhline(0.5, **plots.CHANCE)
        axis.axhline(level, color=plots.GRAY, lw=1, ls="--")
        for place, (system, (color, marker, line)) in enumerate(looks.items()):
            part = of_machine[of_machine["system"] == system].sort_values("severity")
            part = part[part["value"].notna()]
            x = part["severity"] + 0.5 * step * ((place + 0.5) / len(looks) - 0.5)
            axis.plot([0, *x[:1]], [0.5, *part["value"][:1]], color=color, lw=0.6, ls=":")
            axis.plot(x, part["value"], color=color, ls=line, lw=1.4, marker=marker, ms=4)
            axis.vlines(x, part["low"], part["high"], color=color, lw=0.9)
        axis.set(title=title, ylabel="AUC (chance 0.5)", xlabel="severity of the fault (0: none)")
        axis.set(
            xticks=[0, *severities[severities > 0]],
            ylim=(max(min(curves["low"].min(), 0.45) - 0.03, -0.03), 1.03),
        )
        figures.append(figure)
    handles = [
        Line2D([], [], color=c, marker=m, ls=line, label=tables.system_name(name))
        for name, (c, m, line) in looks.items()
    ]
    handles.append(Line2D([], [], color=plots.GRAY, lw=1, ls="--", label=f"AUC {level:g}"))
    figure, [[axis]] = plots.panels(1, 1, 2.5, "legend of the preceding figures", NARROW)
    axis.set_axis_off()
    axis.legend(handles=handles, loc="center left")
    return [*figures, figure]
