"""Figures of the embedding maps and of explanations of scores, and fast inline pictures.

Conventions as in `asdlib.viz.plots`. `picture` writes an SVG around an image instead of a matplotlib figure,
which takes 10 ms instead of 300 ms, so that it can follow the selection of clips.

Marks of a map: color and shape are redundant; with a numeric coloring, the shape shows the label. Filled:
test clips; hollow: training clips.
Sources: METHOD 8.5.  Notebook: 06_embeddings
"""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import matplotlib
import numpy as np
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator
from PIL import Image

from asdlib.analysis import changes, explain
from asdlib.viz import pages, plots, tables
from asdlib.viz.plots import BLACK, BLUE, GRAY, GREEN, ORANGE, PURPLE, SKY, STYLE, VERMILION, Plot

SHAPES = ("circle", "cross", "square", "triangle", "diamond", "plus", "down", "star")
MARKERS = dict(zip(SHAPES, ("o", "X", "s", "^", "D", "P", "v", "*")))
GLYPHS = dict(zip(SHAPES, "●✖■▲◆✚▼★"))
COLORS = (BLUE, VERMILION, GREEN, ORANGE, PURPLE, SKY, BLACK, GRAY)
NUMBERS = "viridis"  # perceptually uniform, also for color-blind readers and in print
LEFT, TOP, WIDE, HIGH = 62, 22, 560, 150  # of a picture, px
BRANCHES = (
    (BLUE, ""),
    (ORANGE, "////"),
    (GREEN, "...."),
    (PURPLE, "xxxx"),
    (SKY, "----"),
    (VERMILION, "++++"),
)


@dataclass(frozen=True, eq=False)
class Points:
    """Points of a map.

    x, y : float32 (n,), 0..1, y upwards; equal scales in PCA, independent ones in UMAP
    row, segment : int (n,), store row, number of the segment (-1: clip)
    test : bool (n,).  group : int (n,), index into `names`; with a numeric coloring, that of the label
    value : float (n,), NaN: unknown; None for a coloring by names.  looks : (color, shape) of each name
    limits : of a numeric coloring.  color : name of the coloring.  projection : UMAP or PCA
    """

    x: np.ndarray
    y: np.ndarray
    row: np.ndarray
    segment: np.ndarray
    test: np.ndarray
    group: np.ndarray
    names: list[str]
    looks: list[tuple[str, str]]
    color: str
    value: np.ndarray | None = None
    limits: tuple[float, float] = (0.0, 1.0)
    projection: str = "PCA"


# ---------------------------------------------------------------- maps


def _draw(axis, points: Points, size: float) -> None:
    """Draw all points of a map, training clips below test clips."""
    span = points.limits if points.value is not None else (0.0, 1.0)
    scale = ScalarMappable(Normalize(*span, clip=True), NUMBERS)
    for test in (False, True):
        for number, (color, shape) in enumerate(points.looks):
            chosen = (points.group == number) & (points.test == test)
            if not chosen.any():
                continue
            tint = (
                color
                if points.value is None
                else scale.to_rgba(np.nan_to_num(points.value[chosen], nan=span[0]))
            )
            look = (
                {"facecolors": tint, "lw": 0}
                if test
                else {"facecolors": "none", "edgecolors": tint, "lw": 0.7}
            )
            axis.scatter(
                points.x[chosen],
                points.y[chosen],
                s=size if test else 0.7 * size,
                marker=MARKERS[shape],
                alpha=0.85,
                **look,
            )
    axis.set(xlim=(-0.03, 1.03), ylim=(-0.03, 1.03), xticks=[], yticks=[], aspect="equal")
    axis.grid(False)
    for side in axis.spines.values():
        side.set(visible=True, color="#BBBBBB")


@matplotlib.rc_context(STYLE)
def map_grid(rows: Mapping[str, Sequence[Points | None]], title: str) -> Plot:
    """Plot maps in a grid: one row per space, one column per coloring, each with a legend.

    rows : space -> points in each coloring, the same number in every row; None: coloring not available
    title : of the figure.  Notebook: 06_embeddings
    """
    columns = len(next(iter(rows.values())))
    alt = (
        f"{title}: {', '.join(rows)}, colored by"
        f" {', '.join(dict.fromkeys(one.color for row in rows.values() for one in row if one))}"
    )
    figure, axes = plots.panels(len(rows), columns, 0.45 + 2.8 * len(rows), alt, vector=False)
    figure.get_layout_engine().set(h_pad=0.1, w_pad=0.05)
    for line, (space, row) in zip(axes, rows.items()):
        line[0].set_ylabel(space, fontsize=10)
        for axis, points in zip(line, row):
            if points is None:
                axis.set_axis_off()
                plots.note(axis, 0.5, 0.5, "no attribute", axis.transAxes, ha="center")
                continue
            _draw(axis, points, 26 if len(points.x) < 500 else 12)
            axis.set_title(points.color, fontsize=9)
            _key(figure, axis, points)
    figure.suptitle(f"{title}. Filled: test clips, hollow: training clips", fontsize=10)
    return figure


def _key(figure: Plot, axis, points: Points) -> None:
    """Draw the legend or the numeric scale below a map."""
    if points.value is not None:
        below = axis.inset_axes([0.1, -0.07, 0.8, 0.035])
        figure.colorbar(
            ScalarMappable(Normalize(*points.limits), NUMBERS), cax=below, orientation="horizontal"
        )
        below.tick_params(labelsize=7, length=2, pad=1)
        below.set_xlabel("sd from the training mean", fontsize=7, labelpad=1)
        return
    pairs = list(zip(points.names, points.looks))
    marks = [
        Line2D([], [], ls="", marker=MARKERS[shape], color=color, ms=5, label=word)
        for word, (color, shape) in pairs[:8]
    ]
    marks += [Line2D([], [], ls="", label=f"and {len(pairs) - 8} more")] if len(pairs) > 8 else []
    columns = 2 if max(len(name) for name in points.names) > 9 else 3
    axis.legend(
        handles=marks,
        loc="upper center",
        bbox_to_anchor=(0.5, 0.0),
        ncols=columns,
        fontsize=7,
        handletextpad=0.1,
        columnspacing=0.8,
    )


# ---------------------------------------------------------------- why


@matplotlib.rc_context(STYLE)
def why(found: explain.Why, usual: Mapping[str, tuple[float, float]], title: str = "") -> Plot:
    """Plot the explanation of one clip.

    Level, residual, contributions to α or β, and α and β of each segment share a time axis; the shares of the
    branches are below.

    usual : alpha and beta -> mean and sd over training clips.  title : description of the clip
    Notebook: 06_embeddings
    """
    maps = [("log-mel (dB)", found.level, "magma", None)]
    if found.residual is not None:
        maps.append(
            (
                "autoencoder: squared\nresidual (dB²)",
                found.residual,
                "magma",
                float(np.quantile(found.residual.values, 0.995)),
            )
        )
    if found.raised is not None:
        limit = float(np.quantile(np.abs(found.raised.values), 0.995)) or 1.0
        maps.append(
            (
                f"OEVAE: what raised {dict(alpha='α', beta='β')[found.of]}\n(gradient · dB above usual)",
                found.raised,
                "PuOr_r",
                limit,
            )
        )
    lines = list(found.segments or {})
    heights = [1.0] * len(maps) + [0.6] * len(lines) + ([0.36] if found.branches else [])
    parts = [*(" ".join(name.split()) for name, *_ in maps), *(f"{name} of each segment" for name in lines)]
    figure = Plot(figsize=(plots.WIDTH, 0.9 + 1.4 * sum(heights)), layout="constrained")
    figure.alt, figure.vector = (
        f"{title}: explanation of the score; {', '.join(parts)}, share of the branches",
        False,
    )
    axes = figure.subplots(
        len(heights), 2, squeeze=False, height_ratios=heights, width_ratios=(1, 0.018)
    )  # on the right: color scales
    for (axis, scale), (label, one, colors, limit) in zip(axes, maps):
        _picture(figure, axis, scale, one, label, colors, limit, found.seconds)
    for scale in axes[len(maps) :, 1]:
        scale.set_axis_off()
    for axis, name in zip(axes[len(maps) :, 0], lines):
        _segments(axis, found, name, usual.get(name))
    timed = axes[: len(maps) + len(lines), 0]
    for axis in timed[:-1]:
        axis.set_xticklabels([])
    timed[-1].set_xlabel("time (s)")
    if found.branches:
        _shares(axes[-1, 0], found.branches)
    if lines:
        figure.legend(*timed[-1].get_legend_handles_labels(), **plots.BELOW)
    axes[0, 0].set_title(title)
    return figure


def _picture(
    figure: Plot, axis, scale, one: explain.Map, label: str, colors: str, limit: float | None, seconds: float
) -> None:
    bands, frames = one.values.shape
    look = (
        {"vmin": -limit if colors.startswith("PuOr") else 0.0, "vmax": limit}
        if limit
        else {"vmin": float(one.values.max()) - 80}
    )
    extent = (-0.5 * one.hop_s, (frames - 0.5) * one.hop_s, -0.5, bands - 0.5)
    shown = axis.imshow(
        one.values, origin="lower", aspect="auto", interpolation="nearest", cmap=colors, extent=extent, **look
    )
    nice = _nice_hz(one.hz)
    axis.set_yticks(np.interp(nice, one.hz, np.arange(bands)), [f"{hz:g}" for hz in nice])
    axis.set(ylabel="frequency (Hz)", xlim=(0, seconds))
    axis.grid(False)
    figure.colorbar(shown, cax=scale).set_label(label, fontsize=8)


def _nice_hz(hz: np.ndarray) -> np.ndarray:
    even = np.ptp(np.diff(hz)) < 0.01 * hz[-1] / len(hz)
    nice = (
        np.arange(0.0, hz[-1], 2000.0 * max(round(hz[-1] / 10000), 1)) if even else 125 * 4.0 ** np.arange(5)
    )
    return nice[(nice >= hz[0]) & (nice <= hz[-1])]


def _segments(axis, found: explain.Why, name: str, usual: tuple[float, float] | None) -> None:
    """Plot one component of each segment over time, the clip's mean, and the range of training clips."""
    values, symbol = found.segments[name], {"alpha": "α", "beta": "β (distance)"}.get(name, name)
    if usual is not None:
        axis.axhspan(
            usual[0] - usual[1], usual[0] + usual[1], color="#DDDDDD", label="training clips, mean ± sd"
        )
    axis.hlines(values, found.starts_s, found.starts_s + found.segment_s, color=BLUE, lw=2.5)
    axis.plot(found.starts_s + found.segment_s / 2, values, "o", color=BLUE, ms=5, label="segment")
    axis.axhline(values.mean(), color=BLACK, lw=1, ls="--", label="clip: mean of its segments")
    ends = [
        values.min(),
        values.max(),
        *(
            [usual[0] - usual[1], usual[0] + usual[1]]
            if usual is not None and np.isfinite(usual).all()
            else []
        ),
    ]
    room = 0.12 * (max(ends) - min(ends)) or 1e-3 * (abs(values[0]) or 1.0)  # margin
    axis.set(xlim=(0, found.seconds), ylim=(min(ends) - room, max(ends) + room), ylabel=symbol)
    axis.yaxis.set_major_locator(MaxNLocator(3))


def _shares(axis, branches: Mapping[str, float]) -> None:
    left = 0.0
    for (name, share), (color, hatch) in zip(branches.items(), BRANCHES):
        axis.barh(0, share, left=left, height=0.8, fc=color + "40", ec=color, hatch=hatch)
        if share > 0.06:  # the name fits; all shares are listed below the bar
            box = {"fc": "white", "ec": "none", "pad": 1.5}
            axis.text(left + share / 2, 0, name, ha="center", va="center", fontsize=8, bbox=box)
        left += share
    shares = ", ".join(f"{name} {100 * share:.1f} %" for name, share in branches.items())
    title = "classifier: share of each branch in the squared distance to the deciding reference"
    axis.set(xlim=(0, 1), yticks=[], xlabel=f"{title}\n{shares}")
    axis.grid(False)


# ---------------------------------------------------------------- changes

MAX_DB = 15.0  # limits of the scale of a change
CELLS = 120  # number of cells of a strip


def strip(name: str, values: np.ndarray, limit: float, seconds: float) -> tables.Html:
    """Draw values along a clip as a strip in orange (above 0) and purple, with a time axis.

    values : (n,), evenly spaced, averaged for each cell.  limit : value at full color
    """
    cells = np.array([part.mean() for part in np.array_split(values, min(CELLS, len(values)))])
    top = seconds * (cells.argmax() + 0.5) / len(cells)
    label = f"{name}: highest at {top:.1f} s of {seconds:.1f} s"
    ticks = [(share, f"{round(share * seconds, 1):g} s") for share in (0, 0.5, 1)]
    shown = pages.rows([(name, pages.strip(cells, limit, label), f"± {limit:.3g}")], ticks)
    return tables.Html(f'<div style="--value:3rem;max-width:45rem">{shown}</div>')


CHANGE_COLORS = ("louder than in the most similar normal clips", "softer")  # for `pages.legend`


def change(found: changes.Change, whole: bool = True) -> tables.Html:
    """Show how a clip differs from normal: description, strip, and (if `whole`) picture with legend.

    Notebook: 06_embeddings
    """
    seconds = len(found.course) * found.difference.hop_s
    place = "the changed band" if found.hz == found.hz else "all bands"
    parts = [f'<p class="change">{tables.escape(found.words)}</p>']
    parts.append(strip(f"level of {place} (dB)", found.course, MAX_DB, seconds))
    if whole:
        title = "level relative to the most similar normal clips"
        limits = (-MAX_DB, MAX_DB)
        parts.append(picture(found.difference, title=title, unit="dB", colors="PuOr_r", limits=limits))
        parts.append(pages.legend(*CHANGE_COLORS))
    return tables.Html("".join(parts))


# ---------------------------------------------------------------- pictures


def picture(
    one: explain.Map,
    *,
    title: str,
    unit: str,
    colors: str,
    limits: tuple[float, float],
    weight: np.ndarray | None = None,
) -> tables.Html:
    """Draw a time-frequency picture as inline SVG with axes and color scale; takes about 10 ms.

    one.values : (bands, frames).  limits : of the color scale.  weight : opacity (bands, frames), 0..1
    Notebook: 06_embeddings
    """
    bands, frames = one.values.shape
    share = np.clip((one.values - limits[0]) / max(limits[1] - limits[0], 1e-12), 0, 1)
    pixels = matplotlib.colormaps[colors](share)[::-1, :, :3]
    if weight is not None:
        pixels = np.concatenate([pixels, np.clip(weight, 0, 1)[::-1, :, None]], axis=2)
    seconds = frames * one.hop_s
    rows = [
        f'<image x="{LEFT}" y="{TOP}" width="{WIDE}" height="{HIGH}" preserveAspectRatio="none"'
        f' href="{_png(pixels)}"/>'
    ]
    for hz in _nice_hz(one.hz):
        y = TOP + HIGH * (1 - (np.interp(hz, one.hz, np.arange(bands)) + 0.5) / bands)
        rows.append(f'<text x="{LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{hz:g}</text>')
    step = next(s for s in (0.25, 0.5, 1, 2, 5, 10, 30, 60, 120, 600) if seconds / s <= 8)
    for second in np.arange(0, seconds + 1e-9, step):
        rows.append(
            f'<text x="{LEFT + WIDE * second / seconds:.1f}" y="{TOP + HIGH + 15}"'
            f' text-anchor="middle">{second:g}</text>'
        )
    bar = _png(matplotlib.colormaps[colors](np.linspace(1, 0, 64))[:, None, :3])
    right = LEFT + WIDE + 12
    rows.append(
        f'<image x="{right}" y="{TOP}" width="12" height="{HIGH}" preserveAspectRatio="none" href="{bar}"/>'
    )
    rows += [
        f'<text x="{right + 16}" y="{y}">{value:.3g}</text>'
        for y, value in ((TOP + 8, limits[1]), (TOP + HIGH, limits[0]))
    ]
    rows.append(f'<text x="{right + 16}" y="{TOP + HIGH / 2 + 4}">{tables.escape(unit)}</text>')
    rows.append(
        f'<text x="{LEFT}" y="14" font-weight="600">{tables.escape(title)}</text><text x="4" y="14">Hz</text>'
    )
    rows.append(f'<text x="{LEFT + WIDE / 2}" y="{TOP + HIGH + 30}" text-anchor="middle">time (s)</text>')
    frame = (
        f'<rect x="{LEFT}" y="{TOP}" width="{WIDE}" height="{HIGH}" fill="none"'
        ' stroke="currentColor" stroke-opacity="0.5"/>'
    )
    alt = tables.escape(f"{title}, {seconds:.1f} s, {one.hz[0]:.0f} to {one.hz[-1]:.0f} Hz")
    size = (
        f'viewBox="0 0 {LEFT + WIDE + 90} {TOP + HIGH + 36}"'
        f' style="width:100%;max-width:{LEFT + WIDE + 90}px;height:auto"'
    )
    look = 'font-size="12" font-family="sans-serif" fill="currentColor"'
    return tables.Html(f'<svg role="img" aria-label="{alt}" {size} {look}>{"".join(rows)}{frame}</svg>')


def _png(pixels: np.ndarray) -> str:
    """Return pixels, float (h, w, 3 or 4), 0..1, as a data URI."""
    out = io.BytesIO()
    Image.fromarray(np.rint(pixels * 255).astype(np.uint8)).save(out, "PNG", compress_level=1)
    return f"data:image/png;base64,{base64.b64encode(out.getvalue()).decode()}"


PLOTS = {"map_grid": map_grid, "why": why}
