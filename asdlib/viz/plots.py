"""Figures from arrays and tables.

Every function takes plain tables or arrays and returns one figure; it reads and writes no files and does not
use pyplot's global state. A `Plot` is a matplotlib Figure that notebooks and reports display, with
alternative text.

Higher scores are more anomalous. AUC and pAUC are fractions, chance 0.5. Levels in dB re full scale, times in
s, frequencies in Hz. Colors are Okabe and Ito's (doi 10.1038/nmeth.1618) and never the only distinction:
systems also differ by marker and line style, domains and labels by side, marker or hatch. Curves are vector
graphics, spectrograms and scatter plots are pixels. Missing values are marked "not available".
"""

from __future__ import annotations

import base64
import html
import io
import re
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from typing import Literal

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import LogLocator, NullFormatter
from sklearn.metrics import roc_curve

from asdlib import errors, schemas
from asdlib.scoring import fusion
from asdlib.viz import tables

BLUE, ORANGE, GREEN, VERMILION, PURPLE, SKY, BLACK, GRAY, BROWN = (
    "#0072B2 #E69F00 #009E73 #D55E00 #CC79A7 #56B4E9 #000000 #6E6E6E #7A4A1E".split()
)
DARK = "#222222"  # text on colored areas; unlike black it is not changed in a dark color scheme
BELOW, CHANCE = {"loc": "outside lower center", "ncols": 5}, {"color": BLACK, "lw": 1, "ls": (0, (2, 2))}
# system -> color, marker, line style, in display order; other names cycle through them
LOOKS = {
    "baseline_knn": (BLUE, "o", "-"),
    "multires": (SKY, "X", (0, (3, 1))),
    "pretrained": (BROWN, "8", (0, (2, 1))),
    "baseline_mse": (VERMILION, "s", "--"),
    "baseline_mahala": (GREEN, "^", "-."),
    "oevae": (PURPLE, "D", ":"),
    "classifier": (ORANGE, "P", (0, (8, 3))),
    "ensemble": (BLACK, "v", (0, (6, 1, 1, 1))),
    "fusion": (GRAY, "p", (0, (4, 1, 1, 1, 1, 1))),
}
LOOKS |= {
    name + fusion.SEEDS: (look[0], [*"hd<.*>H", (4, 1, 0), (5, 1, 0)][i], (0, (1, i + 1)))
    for i, (name, look) in enumerate(LOOKS.items())
}
KINDS = {
    "normal": (BLUE, "", "o"),
    "anomaly": (VERMILION, "////", "X"),
    "unlabeled": (GRAY, "..", "s"),
}  # color, hatch, marker
DOMAIN_COLORS = {"source": BLUE, "target": ORANGE, "unknown": GRAY}
# Based on matplotlib's defaults, so that the user's matplotlibrc does not affect pages.
STYLE = {
    **{name: value for name, value in matplotlib.rcParamsDefault.items() if "backend" not in name},
    "font.size": 10,
    "axes.titlesize": 10,
    "legend.fontsize": 9,
    "xtick.labelsize": 9,
    "ytick.labelsize": 9,
    "hatch.linewidth": 0.7,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#DDDDDD",
    "axes.axisbelow": True,
    "legend.frameon": False,
    "figure.dpi": 96,
    "savefig.dpi": 120,
    "hatch.color": BLACK,
    "text.parse_math": False,
    "svg.hashsalt": "asdlib",
}
Colors = Literal["magma", "twilight", "PuOr"]
WIDTH = 8.6  # inches; the text column of a report


# A figure is an SVG image that follows the color scheme of its page: text and background by system colors,
# grays by two values. JupyterLab's theme does not set a color scheme, so each figure includes THEME.
SCHEME = {
    "#000000": "CanvasText",
    "#ffffff": "Canvas",
    "#dddddd": "light-dark(#dddddd, #3a3a3a)",
    "#bbbbbb": "light-dark(#bbbbbb, #5a5a5a)",
    "#555555": "light-dark(#555555, #b0b0b0)",
}
THEME = (
    '<style>[data-jp-theme-light="false"] .plot img { color-scheme: dark }'
    '[data-jp-theme-light="true"] .plot img { color-scheme: light }</style>'
)


class Plot(Figure):
    """A Figure that is displayed as one <img> in the page's color scheme.

    alt : alternative text.  vector : False draws scatter plots as pixels
    """

    alt = ""
    vector = True

    def _repr_html_(self) -> str:
        for artist in [one for axis in self.axes for one in axis.collections if not self.vector]:
            artist.set_rasterized(True)
        drawing = re.sub(
            r"(?<=: )#[0-9a-f]{6}(?=[;\"])", lambda c: SCHEME.get(c[0], c[0]), image(self, "svg").decode()
        )
        drawing = drawing.replace("<svg ", '<svg style="color-scheme: light dark; fill: CanvasText" ', 1)
        data, width = base64.b64encode(drawing.encode()).decode(), round(self.get_figwidth() * 96)
        return (
            f'<div class="plot" tabindex="0"><img alt="{html.escape(self.alt)}" width="{width}"'
            f' src="data:image/svg+xml;base64,{data}">{THEME}</div>'
        )


def image(figure: Figure, kind: Literal["svg", "png"]) -> bytes:
    """Return the content of an image file; equal figures give equal bytes.  Notebook: 09_report"""
    out = io.BytesIO()
    with matplotlib.rc_context(STYLE):
        figure.savefig(out, format=kind, metadata={"Date": None} if kind == "svg" else {})
    return out.getvalue()


def panels(
    rows: int, columns: int, height: float, alt: str, width=WIDTH, share="none", vector=True
) -> tuple[Plot, np.ndarray]:
    """Return an empty figure with its alternative text, and its axes (rows, columns); sizes in inches."""
    figure = Plot(figsize=(width, height), layout="constrained")
    figure.alt, figure.vector = alt, vector
    return figure, figure.subplots(
        rows, columns, squeeze=False, sharex=share in ("x", "both"), sharey=share in ("y", "both")
    )


def by_machine(machines: Sequence[str], height: float, label: str, alt: str, vector: bool = True):
    """Return a figure and one axis per machine, up to four per row; `label` of the y axis once per row."""
    columns = min(len(machines), 4)
    rows = -(-len(machines) // columns)
    figure, axes = panels(rows, columns, 0.5 + (height - 0.5) * rows, alt, vector=vector)
    for unused in axes.ravel()[len(machines) :]:
        unused.set_visible(False)
    for first in axes[:, 0]:
        first.set_ylabel(label)
    return figure, axes.ravel()[: len(machines)]


def log_axis(axis) -> None:
    """Make the y axis logarithmic with plain numbers."""
    axis.set_yscale("log")
    axis.yaxis.set(major_formatter="{x:g}", minor_formatter=NullFormatter())


def some(table: pd.DataFrame, what: str) -> pd.DataFrame:
    """Return the table.

    raises : errors.InputError if it is empty
    """
    if table.empty:
        raise errors.InputError(
            f"{what}: empty table, expected at least one row; was the previous stage run?"
        )
    return table


def looks_of(names: Iterable[str]) -> dict[str, tuple]:
    """Return color, marker and line style of each system, in display order."""
    return {
        name: LOOKS.get(name, list(LOOKS.values())[i % len(LOOKS)])
        for i, name in enumerate(fusion.in_order(names))
    }


def pale(color: str) -> tuple[float, ...]:
    """Return a color mixed with white.

    Used below hatches instead of transparency, because browsers print semitransparent patterns as opaque.
    """
    return tuple(1 - 0.45 * (1 - part) for part in to_rgb(color))


def note(axis, x: float, y: float, words: str, transform, **place) -> None:
    """Write a remark in place of missing data."""
    box = {"fc": "white", "ec": "none", "pad": 1}
    axis.text(
        x,
        y,
        words,
        transform=transform,
        color="#555555",
        style="italic",
        fontsize=8,
        va="center",
        bbox=box,
        **place,
    )


def _rows(axis, names: Sequence[str]) -> None:
    axis.set(yticks=range(len(names)), yticklabels=names, ylim=(len(names) - 0.4, -0.6))
    axis.grid(axis="y", visible=False)


def _whisker(axis, y: float, row, color: str, marker: str, fill: str) -> None:
    if np.isnan(row.value):
        return note(axis, 0.98, y, "not available", axis.get_yaxis_transform(), ha="right")
    axis.plot([row.low, row.high], [y, y], color=color, lw=2, solid_capstyle="butt")
    axis.plot(row.value, y, marker, color=fill, mec=color, ms=6, mew=1.2)


@matplotlib.rc_context(STYLE)
def metric_dots(metrics: pd.DataFrame, names: Sequence[str] = ("auc_source", "auc_target", "pauc")) -> Plot:
    """Plot metrics with intervals per machine and system, one panel per metric.

    metrics : METRIC_COLUMNS.  Notebooks: 03_baseline, 09_report
    """
    table = some(tables.own_scores(metrics).query("machine != 'all' and metric in @names"), "metrics")
    machines, looks = list(table["machine"].unique()), looks_of(table["system"])
    alt = (
        f"{', '.join(tables.METRIC_NAMES[n] for n in names)} of {', '.join(looks)} on {', '.join(machines)};"
        " the numbers are in the table"
    )
    figure, axes = panels(1, len(names), 1.15 + len(machines) * (0.22 + 0.15 * len(looks)), alt, share="both")
    for axis, name in zip(axes[0], names, strict=True):
        axis.axvline(0.5, **CHANCE)
        for row in table[table["metric"] == name].itertuples():
            place = list(looks).index(row.system) - (len(looks) - 1) / 2
            color, marker, _ = looks[row.system]
            _whisker(axis, machines.index(row.machine) + 0.8 * place / len(looks), row, color, marker, color)
        least = np.nanmin([0.4, *table["low"], *table["value"]])
        axis.set(title=tables.METRIC_NAMES[name], xlabel="area (chance 0.5)", xlim=(least - 0.02, 1.02))
        _rows(axis, machines)
        axis.hlines(np.arange(len(machines) - 1) + 0.5, *axis.get_xlim(), color="#DDDDDD", lw=0.8)
    figure.legend(
        handles=[Line2D([], [], color=c, marker=m, lw=2, label=s) for s, (c, m, _) in looks.items()], **BELOW
    )
    return figure


@matplotlib.rc_context(STYLE)
def roc(scores: pd.DataFrame, max_fpr: float = 0.1) -> Plot:
    """Plot ROC curves of each machine: source and target (all anomalies in both), and all clips.

    scores : SCORE_COLUMNS, test clips; several systems share a panel, scores are averaged over seeds
    max_fpr : 0..1, limit of the shaded pAUC region.  Source: METHOD 7.3.  Notebooks: 03_baseline, 09_report
    """
    table = scores[
        (scores["component"] == "score") & (scores["split"] == "test") & (scores["label"] != "unlabeled")
    ]
    clip = ["system", "machine", "clip", "domain", "label"]
    table = some(table, "labeled test scores").groupby(clip, sort=False)["score"].mean().reset_index()
    machines, looks = list(table["machine"].unique()), looks_of(table["system"])
    figure, axes = panels(
        len(machines), 3, 0.8 + 2.25 * len(machines), f"ROC curves of {', '.join(machines)}", share="both"
    )
    for row, machine in zip(axes, machines, strict=True):
        for axis, domain in zip(row, ("source", "target", "all"), strict=True):
            axis.plot([0, 1], [0, 1], **CHANCE)
            if domain == "all":
                axis.axvspan(0, max_fpr, facecolor="#F3E3B3", edgecolor=ORANGE, hatch="\\\\", lw=0)
            for system, (color, _, line) in looks.items():
                part = table[(table["machine"] == machine) & (table["system"] == system)]
                part = (
                    part[(part["domain"] == domain) | (part["label"] == "anomaly")]
                    if domain != "all"
                    else part
                )
                if part["label"].nunique() == 2:
                    false, true, _ = roc_curve(part["label"] == "anomaly", part["score"])
                    axis.plot(false, true, color=color, ls=line, lw=1.5)
            if len(axis.lines) == 1:
                words = f"not available:\nno {domain} normals or no anomalies".replace("all ", "")
                note(axis, 0.5, 0.5, words, axis.transAxes, ha="center")
            axis.set(xlim=(-0.01, 1.01), ylim=(-0.01, 1.02), xticks=[0, 0.5, 1], yticks=[0, 0.5, 1])
            title = f"{machine}, " + (domain if domain != "all" else f"all clips (FPR ≤ {max_fpr:g} shaded)")
            axis.set(title=title, ylabel="true positive rate", xlabel="false positive rate")
            axis.label_outer()
    handles = [Line2D([], [], color=c, ls=line, label=s) for s, (c, _, line) in looks.items()] + [
        Line2D([], [], label="chance", **CHANCE)
    ]
    figure.legend(handles=handles, **BELOW)
    return figure


@matplotlib.rc_context(STYLE)
def losses(history: pd.DataFrame, label: str = "mean squared error") -> Plot:
    """Plot training curves.

    history : columns name (of the curve), epoch (from 1), loss.  label : of the loss.  Notebook: 03_baseline
    """
    looks = looks_of(some(history, "training history")["name"])
    figure, axes = panels(1, 1, 3.0, f"{label} over epochs of {', '.join(looks)}", width=6.8)
    for name, part in history.groupby("name", sort=False):
        color, marker, line = looks[name]
        look = {"color": color, "ls": line, "ms": 4, "markevery": max(len(part) // 10, 1), "label": name}
        axes[0, 0].plot(part["epoch"], part["loss"], marker, **look)
    axes[0, 0].set(xlabel="epoch", ylabel=label)
    axes[0, 0].xaxis.get_major_locator().set_params(integer=True)
    if (history["loss"] > 0).all() and history["loss"].max() > 5 * history["loss"].min():
        log_axis(axes[0, 0])
        axes[0, 0].yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes[0, 0].legend()
    return figure


def limits_of(pictures: Sequence[np.ndarray], colors: Colors) -> tuple[float, float]:
    """Return the limits of a color scale, without outliers that would reduce the contrast.

    Levels: 1st and 99.5th percentile; angles: -π to π; signed values: ± the 99th percentile.

    pictures : float arrays (bins, frames) that share the scale
    """
    every = np.concatenate([np.ravel(values) for values in pictures])
    if colors == "magma":
        low, high = np.percentile(every, (1, 99.5))
        return float(low), float(max(high, low + 1e-6))
    limit = np.pi if colors == "twilight" else max(float(np.percentile(np.abs(every), 99)), 1e-6)
    return -limit, limit


def _picture(axis, values, frequencies_hz, hop_s, colors, limits):
    look = {"origin": "lower", "aspect": "auto", "interpolation": "nearest", "cmap": colors}
    extent = (0, values.shape[1] * hop_s, -0.5, len(values) - 0.5)
    shown = axis.imshow(values, extent=extent, vmin=limits[0], vmax=limits[1], **look)
    even = np.ptp(np.diff(frequencies_hz)) < 0.01 * frequencies_hz[-1] / len(values)
    nice = np.arange(0, frequencies_hz[-1] + 1, 1000) if even else 125 * 2.0 ** np.arange(8)
    nice = nice[(nice >= frequencies_hz[0]) & (nice <= frequencies_hz[-1])]
    axis.set_yticks(np.interp(nice, frequencies_hz, np.arange(len(values))), [f"{hz:g}" for hz in nice])
    axis.set_xlabel("time (s)")
    axis.grid(False)
    return shown


@matplotlib.rc_context(STYLE)
def side_by_side(
    pictures: Mapping[str, np.ndarray],
    frequencies_hz: np.ndarray,
    hop_s: float,
    *,
    unit: str = "dB",
    colors: Colors = "magma",
    difference: bool = True,
) -> Plot:
    """Plot time-frequency pictures side by side on one color scale, and the second minus the first.

    pictures : title -> float (bins, frames); all are cut to the length of the shortest
    frequencies_hz : float (bins,), ascending, with any spacing.  hop_s : s between frames
    colors : magma for levels, twilight for angles, PuOr for signed values.  difference : whether to show it
    raises : errors.InputError if the numbers of frequencies and bins differ
    Notebooks: 02_preprocessing, 07_latents
    """
    for values in pictures.values():
        if values.ndim != 2 or len(frequencies_hz) != len(values):
            raise errors.InputError(
                f"got values of shape {values.shape} and {len(frequencies_hz)} frequencies, expected (bins,"
                " frames) and one frequency per bin"
            )
    frames = min(values.shape[1] for values in pictures.values())
    shown = {title: values[:, :frames] for title, values in pictures.items()}
    alt = f"{'; '.join(shown)}, {frames * hop_s:.1f} s"
    figure, axes = panels(1, len(shown) + difference, 2.7, alt, share="y", vector=False)
    limits = limits_of(list(shown.values()), colors)
    for axis, (title, values) in zip(axes[0], shown.items()):
        picture = _picture(axis, values, frequencies_hz, hop_s, colors, limits)
        axis.set_title(textwrap.fill(title, 28), fontsize=9)
    figure.colorbar(picture, ax=list(axes[0, : len(shown)]), label=unit, pad=0.01, aspect=30)
    if difference:
        one, other = list(shown.values())[:2]
        gap = other - one
        picture = _picture(axes[0, -1], gap, frequencies_hz, hop_s, "PuOr_r", limits_of([gap], "PuOr"))
        figure.colorbar(picture, ax=axes[0, -1], label=unit, pad=0.02, aspect=30)
        axes[0, -1].set_title("second minus first", fontsize=9)
    axes[0, 0].set_ylabel("frequency (Hz)")
    return figure


@matplotlib.rc_context(STYLE)
def spectra(magnitudes: Mapping[str, np.ndarray], bin_hz: float) -> Plot:
    """Plot two whole-clip spectra, and the second minus the first, as the maxima of about 400 bands.

    magnitudes : title -> float (bins,).  bin_hz : Hz per bin.  Notebook: 02_preprocessing
    """
    figure, axes = panels(2, 1, 3.8, f"magnitude spectra: {'; '.join(magnitudes)}", share="x")
    levels = []
    for (title, magnitude), color, line in zip(magnitudes.items(), (BLUE, VERMILION), ("-", (0, (4, 1)))):
        step = max(len(magnitude) // 400, 1)
        peaks = magnitude[: len(magnitude) // step * step].reshape(-1, step).max(1)
        levels.append(20 * np.log10(np.maximum(peaks, 1e-9)))
        hz = (np.arange(len(peaks)) + 0.5) * step * bin_hz
        axes[0, 0].plot(hz, levels[-1], color=color, ls=line, lw=0.9, label=title)
    axes[1, 0].plot(hz, levels[1] - levels[0], color=BLACK, lw=0.9)
    axes[1, 0].axhline(0, **CHANCE)
    axes[0, 0].set(ylabel="magnitude (dB)", xlim=(0, hz[-1]))
    axes[1, 0].set(ylabel="second minus\nfirst (dB)", xlabel="frequency (Hz)")
    figure.legend(**(BELOW | {"ncols": 2}))
    return figure


@matplotlib.rc_context(STYLE)
def waveform(
    samples: np.ndarray, sample_rate: int, marks: Sequence[tuple[float, float]] = (), title: str = ""
) -> Plot:
    """Plot the waveform of a clip with numbered segments below.

    samples : float (n,), full scale 1.  marks : (start s, stop s) of each segment
    Notebook: 02_preprocessing
    """
    alt = f"waveform {title} with {len(marks)} segments"
    figure, axes = panels(2 if marks else 1, 1, 2.2 + 0.12 * len(marks), alt, share="x")
    # an envelope of at most 4000 points looks the same and keeps the file small
    step = max(len(samples) // 2000, 1)
    blocks = samples[: len(samples) // step * step].reshape(-1, step)
    axes[0, 0].fill_between(
        np.arange(len(blocks)) * step / sample_rate, blocks.min(1), blocks.max(1), color=BLUE, lw=0.4
    )
    axes[0, 0].set(ylabel="amplitude\n(full scale 1)", title=title, xlim=(0, len(samples) / sample_rate))
    for i, (start, stop) in enumerate(marks):
        axes[1, 0].barh(i, stop - start, left=start, height=0.72, color=SKY, ec=BLUE, lw=0.8)
        words = {"ha": "center", "va": "center", "fontsize": 7, "color": DARK}
        axes[1, 0].text((start + stop) / 2, i, str(i + 1), **words)
    if marks:
        axes[1, 0].set(yticks=[], ylabel="segment", ylim=(len(marks) - 0.4, -0.6))
    axes[-1, 0].set_xlabel("time (s)")
    return figure


@matplotlib.rc_context(STYLE)
def spread(clips: pd.DataFrame, column: Literal["level_db", "seconds"]) -> Plot:
    """Plot levels or lengths of all clips and their median, per machine, domain and label.

    clips : clip table with `level_db` (dB re full scale) or `seconds` (s).  Notebook: 01_data
    """
    rows = list(some(clips, "clip table").groupby(["machine", "domain", "label"], sort=False))
    label = {"level_db": "level of the clip (dB re full scale)", "seconds": "length of the clip (s)"}[column]
    alt = f"{label} of {len(clips)} clips per machine, domain and label"
    figure, axes = panels(1, 1, 0.9 + 0.27 * len(rows), alt, vector=False)
    generator = np.random.default_rng(0)  # jitter for display; seeded, so that figures are reproducible
    for y, ((_, _, kind), part) in enumerate(rows):
        color, _, marker = KINDS[kind]
        apart = y + generator.uniform(-0.26, 0.26, len(part))
        axes[0, 0].scatter(part[column], apart, s=13, color=color, marker=marker, alpha=0.45, lw=0)
        axes[0, 0].plot([part[column].median()] * 2, [y - 0.38, y + 0.38], color=BLACK, lw=2)
    _rows(
        axes[0, 0], [f"{machine}, {domain}, {kind} ({len(part)})" for (machine, domain, kind), part in rows]
    )
    axes[0, 0].set_xlabel(label + "; bar: median")
    if column == "seconds":  # equal lengths would make an axis of rounding errors
        axes[0, 0].set_xlim(clips[column].min() - 0.5, clips[column].max() + 0.5)
    return figure


@matplotlib.rc_context(STYLE)
def counts(clips: pd.DataFrame) -> Plot:
    """Plot the number of training and test clips per machine, domain and label.

    clips : clip table.  Notebook: 01_data
    """
    machines = list(some(clips, "clip table")["machine"].unique())
    figure, axes = panels(
        1, 2, 1.2 + 0.36 * len(machines), f"number of clips of {', '.join(machines)}", share="y"
    )
    groups = dict.fromkeys(zip(clips["domain"], clips["label"], strict=True))
    looks = {
        (d, k): {"fc": pale(DOMAIN_COLORS[d]), "ec": DOMAIN_COLORS[d], "hatch": KINDS[k][1]}
        for d, k in groups
    }
    for axis, split in zip(axes[0], schemas.SPLITS, strict=True):
        part = clips[clips["split"] == split]
        left = np.zeros(len(machines))
        for domain, kind in looks:
            group = part.loc[(part["domain"] == domain) & (part["label"] == kind), "machine"]
            number = group.value_counts().reindex(machines, fill_value=0).to_numpy()
            bars = axis.barh(range(len(machines)), number, left=left, height=0.7, **looks[domain, kind])
            words = [str(n) if n > 0.06 * len(part) / len(machines) else "" for n in number]
            axis.bar_label(bars, words, label_type="center", fontsize=8, color=DARK)
            left += number
        axis.set(title=split, xlabel="clips")
        _rows(axis, machines)
    figure.legend(handles=[Patch(**look, label=", ".join(group)) for group, look in looks.items()], **BELOW)
    return figure
