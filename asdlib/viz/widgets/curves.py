"""Drawings of the tuner as SVG text: small multiples of metrics over ω, a map of Ω over ω × k, and the layers that mark the point.

Every drawing has a static layer, re-sent only when the curves change, and a live one of the same size that holds the marks alone: a tick
sends a few kB. Colours are Okabe and Ito's, each metric has its own mark too. Values are fractions; chance is 0.5.
Source: METHOD 8.5 (inline SVG, 76 ms from key to pixels).  Notebook: 08_tuning
"""

from __future__ import annotations

import base64
import html

import matplotlib
import numpy as np
from matplotlib.font_manager import FontProperties
from matplotlib.textpath import TextPath

from asdlib.analysis.tuning import COLUMNS
from asdlib.evaluation import metrics
from asdlib.viz import plots, tables

LOOKS = {"auc_source": plots.BLUE, "auc_target": plots.ORANGE, "pauc": plots.GREEN, "hmean": plots.VERMILION}
MARKS = {  # of 9 px around the origin
    "auc_source": "M-4.5 0a4.5 4.5 0 1 0 9 0a4.5 4.5 0 1 0 -9 0", "auc_target": "M-4-4h8v8h-8z", "pauc": "M0-5l5 9h-10z",
    "hmean": "M0-5.5l5.5 5.5l-5.5 5.5l-5.5-5.5z",
}  # fmt: skip
LEFT, TOP, WIDE, HIGH, GAP, FOOT = 96, 22, 138, 62, 10, 34
CELL_WIDE, CELL_HIGH, MAP_LEFT, MAP_TOP = 9, 17, 170, 24
NUMBERS = 34  # px beside the longest name of a machine, for the numbers of the axis
BOLD = FontProperties(family="DejaVu Sans", weight="bold")  # wider than what browsers show
FONT = 'font-family="system-ui,Helvetica,Arial,sans-serif" font-size="11"'


def svg(width: float, height: float, body: str, label: str = "") -> str:
    """A drawing; without a label it is a layer that adds nothing for a screen reader."""
    role = f'role="img" aria-label="{html.escape(label)}"' if label else 'aria-hidden="true"'
    frame = f'<svg xmlns="http://www.w3.org/2000/svg" width="{width:.0f}" height="{height:.0f}" viewBox="0 0 {width:.0f} {height:.0f}"'
    return f'{frame} {role} {FONT} style="display:block;color:#1b1f24">{body}</svg>'


def text(x: float, y: float, words: str, anchor: str = "start", more: str = "") -> str:
    """Words at (x, y), px, as SVG.  anchor : start, middle or end.  more : further attributes, not escaped"""
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" fill="#1b1f24" {more}>{html.escape(words)}</text>'


def picture(drawing: str, alt: str) -> tables.Html:
    """A drawing as one <img>, as reports show figures."""
    data = base64.b64encode(drawing.encode()).decode()
    return tables.Html(f'<div class="plot"><img alt="{html.escape(alt)}" src="data:image/svg+xml;base64,{data}"></div>')


class Multiples:
    """Small multiples: a row for each machine and for all, a column for each metric, one curve with its band in each panel.

    machines : names.  paper : whether rows of the paper's Table 1 belong beside them (recorded machines of its names)
    """

    def __init__(self, machines: tuple[str, ...], paper: bool):
        self.rows = (*machines, "all")
        self.left = max(LEFT, max(TextPath((0, 0), machine, size=11, prop=BOLD).get_extents().width for machine in machines) + NUMBERS)
        self.size = self.left + len(COLUMNS) * (WIDE + GAP), TOP + len(self.rows) * (HIGH + GAP) + FOOT
        self.paper = {m: _paper_row(m) for m in machines if paper and m in metrics.PAPER_TABLE1}
        self.low = 0.3

    def _place(self, row: int, column: int, omega, value) -> tuple:
        x = self.left + column * (WIDE + GAP) + np.asarray(omega) * WIDE
        y = TOP + row * (HIGH + GAP) + HIGH * (1 - (np.asarray(value) - self.low) / (1 - self.low))
        return x, y

    def static(self, omegas: np.ndarray, curves: np.ndarray, band_omegas: np.ndarray, bands: np.ndarray) -> str:
        """Curves (W, rows, 4) and bands (V, 2, rows, 4); fixes the range of the axes for `live`."""
        seen = [np.nanmin(values) for values in (curves, bands, *self.paper.values()) if np.isfinite(values).any()]
        self.low = max(0.0, np.floor(10 * min([0.45, *seen])) / 10)
        return "".join(self._panel(i, j, omegas, curves[:, i, j], band_omegas, bands[:, :, i, j]) for i in range(len(self.rows)) for j in range(4))

    def _panel(self, i: int, j: int, omegas, curve, band_omegas, band) -> str:
        (x0, x1), (y1, y0) = self._place(i, j, np.array([0, 1]), np.array([self.low, 1.0]))
        out, name = [f'<rect x="{x0:.1f}" y="{y0:.1f}" width="{WIDE}" height="{HIGH}" fill="#FFFFFF" stroke="#C8CDD2"/>'], COLUMNS[j]
        middle = self._place(i, j, 0, 0.5)[1]
        out.append(f'<path d="M{x0:.1f} {middle:.1f}H{x1:.1f}" stroke="#6E6E6E" stroke-dasharray="2 2"/>')
        if i == 0:
            words = "harmonic mean, Ω" if name == "hmean" else tables.METRIC_NAMES[name]
            out.append(text((x0 + x1) / 2, TOP - 8, words, "middle", 'font-weight="600"'))
        if j == 0:
            out.append(text(4, (y0 + y1) / 2 + 4, self.rows[i], more='font-weight="600"'))
            for value, down in ((self.low, 1), (0.5, 4), (1.0, 9)):
                if value != self.low or self.low < 0.35:  # no room for it beside 0.5
                    out.append(text(x0 - 4, float(self._place(i, 0, 0, value)[1]) + down, f"{value:g}", "end"))
        if i == len(self.rows) - 1:
            out += [text(x, y1 + 14, words, anchor) for x, words, anchor in ((x0, "0", "start"), ((x0 + x1) / 2, "ω", "middle"), (x1, "1", "end"))]
        if not np.isfinite(curve).all():
            return "".join([*out, text((x0 + x1) / 2, (y0 + y1) / 2 + 4, "not available", "middle", 'font-style="italic"')])
        edge = [self._place(i, j, band_omegas, band[:, side]) for side in (0, 1)]
        around = [*zip(*edge[0]), *list(zip(*edge[1]))[::-1]]
        out.append(f'<path d="{_line(around)}Z" fill="{LOOKS[name]}" fill-opacity="0.2"/>')
        out.append(f'<path d="{_line(zip(*self._place(i, j, omegas, curve)))}" fill="none" stroke="{LOOKS[name]}" stroke-width="2"/>')
        if self.rows[i] in self.paper:
            y = float(self._place(i, j, 0, self.paper[self.rows[i]][j])[1])
            out.append(f'<path d="M{x0:.1f} {y:.1f}H{x1:.1f}" stroke="#000000" stroke-dasharray="7 3"/>')
            out.append(text(x1 - 2, y - 3, "paper", "end", 'font-size="9"'))
        return "".join(out)

    def live(self, omega: float, table: np.ndarray) -> str:
        """Marks of one point: a line at ω, and each metric's mark at its value. table : (rows, 4)"""
        out = []
        for j, name in enumerate(COLUMNS):
            x, top = self._place(0, j, omega, 1.0)
            bottom = TOP + (len(self.rows) - 1) * (HIGH + GAP) + HIGH
            out.append(f'<path d="M{x:.1f} {top:.1f}V{bottom}" stroke="#1b1f24" stroke-opacity="0.35"/>')
            values = self._place(np.arange(len(self.rows)), j, omega, table[:, j])[1]
            out += [
                f'<path transform="translate({x:.1f} {y:.1f})" d="{MARKS[name]}" fill="{LOOKS[name]}" stroke="#000000"/>'
                for y in values[np.isfinite(values)]
            ]
        return "".join(out)


class Map:
    """Ω over ω (columns) and every prior and k (rows), with the letters of the rules that choose a point."""

    def __init__(self, priors: list[str], ks: list[int], omegas: np.ndarray):
        self.rows, self.omegas = [(prior, k) for prior in priors for k in ks], omegas
        self.size = MAP_LEFT + len(omegas) * CELL_WIDE + 90, MAP_TOP + len(self.rows) * CELL_HIGH + 36

    def _place(self, prior: str, k: int, omega: float) -> tuple[float, float]:
        """The middle of a point's cell."""
        column = omega * (len(self.omegas) - 1)
        return MAP_LEFT + (column + 0.5) * CELL_WIDE, MAP_TOP + (self.rows.index((prior, k)) + 0.5) * CELL_HIGH

    def static(self, values: np.ndarray, name: str, letters: dict[str, tuple[str, int, float, str]]) -> str:
        """values : (P, K, W).  name : of what they are.  letters : letter -> prior, k, ω, and what is to be said after it"""
        flat = values.reshape(len(self.rows), -1)
        low, high = (np.nanmin(flat), np.nanmax(flat)) if np.isfinite(flat).any() else (0.0, 1.0)
        colours = matplotlib.colormaps["cividis"]((flat - low) / max(high - low, 1e-9))
        out = [text(MAP_LEFT, 14, f"{name} over all machines, {low:.3f} (dark) to {high:.3f} (light)", more='font-weight="600"')]
        for i, (prior, k) in enumerate(self.rows):
            y = MAP_TOP + i * CELL_HIGH
            first = i == 0 or self.rows[i - 1][0] != prior
            out += [text(4, y + 13, f"k_scale {prior}")] if first else []
            out.append(text(MAP_LEFT - 6, y + 13, f"k {k}", "end"))
            cells = (f'<rect x="{MAP_LEFT + j * CELL_WIDE}" y="{y}" width="{CELL_WIDE}" height="{CELL_HIGH}" fill="{matplotlib.colors.to_hex(c)}"/>'
                     for j, c in enumerate(colours[i]) if np.isfinite(flat[i, j]))  # fmt: skip
            out += cells
            out += [f'<path d="M4 {y}H{MAP_LEFT + len(self.omegas) * CELL_WIDE}" stroke="#FFFFFF" stroke-width="2"/>'] if first and i else []
        bottom = MAP_TOP + len(self.rows) * CELL_HIGH
        for value in (0, 0.25, 0.5, 0.75, 1):
            out.append(text(MAP_LEFT + (value * (len(self.omegas) - 1) + 0.5) * CELL_WIDE, bottom + 14, f"{value:g}", "middle"))
        out.append(text(MAP_LEFT + len(self.omegas) * CELL_WIDE / 2, bottom + 29, "ω", "middle"))
        places: dict[tuple, str] = {}
        for letter, point in letters.items():
            places[point] = f"{places.get(point, '')}{letter}"
        boxes: list[tuple[float, float, float]] = []
        for (*point, after), letter in sorted(places.items(), key=lambda place: place[0][2]):
            words = letter + after
            x, y, half = self._box(*point, 4 * len(words) + 2, boxes)
            boxes.append((x, y, half))
            cell = self._place(*point)[0]
            if abs(cell - x) > half:  # made room for another
                out.append(f'<path d="M{cell:.1f} {y:.1f}H{x:.1f}" stroke="#000000"/>')
            out.append(f'<rect x="{x - half:.1f}" y="{y - 7:.1f}" width="{2 * half:.0f}" height="14" rx="3" fill="#FFFFFF" stroke="#000000"/>')
            out.append(text(x, y + 4, words, "middle", 'font-weight="700"'))
        return "".join(out)

    def _box(self, prior: str, k: int, omega: float, half: float, others: list[tuple[float, float, float]]) -> tuple[float, float, float]:
        """Middle and half width of the box of a letter: over its cell, within the map, beside those that stand in its row already."""
        (x, y), right = self._place(prior, k, omega), MAP_LEFT + len(self.omegas) * CELL_WIDE
        x = min(max(x, MAP_LEFT + half), right - half)
        there = [(other, wide) for other, row, wide in others if row == y]
        if any(abs(x - other) < half + wide for other, wide in there):
            x = max(other + wide for other, wide in there) + half + 2
            x = x if x <= right - half else min(other - wide for other, wide in there) - half - 2
        return x, y, half

    def live(self, prior: str, k: int, omega: float) -> str:
        """A frame around the point."""
        x, y = self._place(prior, k, omega)
        frame = f'x="{x - 17:.1f}" y="{y - CELL_HIGH / 2 - 1:.1f}" width="34" height="{CELL_HIGH + 2}" rx="4" fill="none"'  # letters fit in
        return f'<rect {frame} stroke="#000000" stroke-width="4"/><rect {frame} stroke="{plots.VERMILION}" stroke-width="2"/>'


def _paper_row(machine: str) -> np.ndarray:
    """The paper's own system on a machine, fractions: AUC source, AUC target, pAUC, harmonic mean."""
    rows = metrics.paper_table1()
    own = rows[(rows["system"] == f"paper_{metrics.PAPER_SYSTEMS[-1]}") & (rows["machine"] == machine)].set_index("metric")["value"]
    return own[list(COLUMNS)].to_numpy()


def _line(points) -> str:
    return "M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in points)
