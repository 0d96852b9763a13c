"""Drawings of the tuner: one metric over ω, and the map of Ω over all points, as SVG in two layers.

Source: METHOD 8.5.  Notebook: 08_tuning
"""

from __future__ import annotations

import base64
import html

import matplotlib
import numpy as np

from asdlib.analysis.tuning import Choice
from asdlib.viz import plots, tables

LOOKS = (plots.BLUE, plots.ORANGE, plots.GREEN, plots.VERMILION)
LEFT, TOP, WIDE, HIGH = 56, 26, 600, 250  # of the panel, px
CELL_WIDE, CELL_HIGH, MAP_LEFT, MAP_TOP = 14, 20, 180, 24
FONT = 'font-family="system-ui,Helvetica,Arial,sans-serif" font-size="12"'
HALO = 'font-weight="700" paint-order="stroke" stroke="var(--jp-layout-color0, Canvas)" stroke-width="3"'
MAPPED = "map of Ω over ω, k and k_scale with the choices of the rules; they are in the table below"


def svg(width: float, height: float, body: str, label: str = "") -> str:
    """Return an SVG; without a label it is hidden from screen readers."""
    role = f'role="img" aria-label="{html.escape(label)}"' if label else 'aria-hidden="true"'
    frame = f'<svg xmlns="http://www.w3.org/2000/svg" width="{width:.0f}" height="{height:.0f}"'
    look = 'style="display:block;color-scheme:light dark"'  # for an <img>; inline, colors are inherited
    return f'{frame} viewBox="0 0 {width:.0f} {height:.0f}" {role} {FONT} {look}>{body}</svg>'


def text(x: float, y: float, words: str, anchor: str = "start", more: str = "") -> str:
    """Return text at (x, y), px, as SVG.  anchor : start, middle or end.  more : attributes, not escaped"""
    place = f'x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}"'
    return f'<text {place} fill="currentColor" {more}>{html.escape(words)}</text>'


def picture(drawing: str, alt: str) -> tables.Html:
    """Return a drawing as an <img>, as in reports."""
    data = base64.b64encode(drawing.encode()).decode()
    return tables.Html(
        f'<div class="plot" tabindex="0"><img alt="{html.escape(alt)}"'
        f' src="data:image/svg+xml;base64,{data}"></div>'
    )


def _path(points, more: str) -> str:
    return f'<path d="M{"L".join(f"{x:.1f} {y:.1f}" for x, y in points)}" {more}/>'


class Panel:
    """One metric over ω.

    The band is the interval of the *difference* from the default, drawn around the default's value: where it
    excludes the line of the default, the difference is significant.
    """

    size = LEFT + WIDE + 70, TOP + HIGH + 58

    def __init__(self):
        self.low, self.high = 0.0, 1.0

    def _place(self, omega, value) -> tuple:
        share = (np.asarray(value) - self.low) / (self.high - self.low)
        return LEFT + np.asarray(omega) * WIDE, TOP + HIGH * (1 - share)

    def omega_at(self, x: float) -> float:
        """Return ω at a position of the drawing, rounded to 0.01."""
        return round(min(max((x - LEFT) / WIDE, 0.0), 1.0), 2)

    def still(
        self,
        omegas: np.ndarray,
        curve: np.ndarray,
        band_omegas: np.ndarray,
        gains: np.ndarray,
        usual: float,
        name: str,
        paper: float,
    ) -> str:
        """Draw axes, curve (W,) and band (V, 2) around the default value `usual`; set the range of `live`."""
        out = [text(LEFT, 16, name, more='font-weight="600"')]
        out.append(
            f'<rect x="{LEFT}" y="{TOP}" width="{WIDE}" height="{HIGH}" fill="none" stroke="currentColor"'
            ' stroke-opacity="0.4"/>'
        )
        for value in np.linspace(0, 1, 11):
            out.append(text(LEFT + value * WIDE, TOP + HIGH + 16, f"{value:g}", "middle"))
        out.append(text(LEFT + WIDE / 2, TOP + HIGH + 34, "ω, share of α", "middle"))
        if not (np.isfinite(curve).all() and np.isfinite(usual)):
            return "".join([*out, text(LEFT + WIDE / 2, TOP + HIGH / 2, "not available", "middle")])
        band = usual + gains
        ends = np.array(
            [curve.min(), curve.max(), band.min(), band.max(), *[paper] * bool(np.isfinite(paper))]
        )
        room = max(0.06 * np.ptp(ends), 0.005)
        self.low, self.high = max(0.0, ends.min() - room), min(1.0, ends.max() + room)
        step = next(s for s in (0.005, 0.01, 0.02, 0.05, 0.1, 0.2) if (self.high - self.low) / s <= 9)
        for value in np.arange(np.ceil(self.low / step), np.floor(self.high / step) + 1) * step:
            y = float(self._place(0, value)[1])
            out.append(_path([(LEFT, y), (LEFT + WIDE, y)], 'stroke="currentColor" stroke-opacity="0.13"'))
            out.append(text(LEFT - 6, y + 4, f"{value:.3g}", "end"))
        (_, y), around = self._place(0, usual), [self._place(band_omegas, band[:, side]) for side in (0, 1)]
        edge = [*zip(*around[0]), *list(zip(*around[1]))[::-1]]
        out.append(_path(edge, f'fill="{plots.SKY}" fill-opacity="0.35"'))
        out.append(_path([(LEFT, y), (LEFT + WIDE, y)], 'stroke="currentColor" stroke-dasharray="5 3"'))
        out.append(text(LEFT + WIDE + 4, y + 4, "default"))
        out.append(
            _path(
                zip(*self._place(omegas, curve)), f'fill="none" stroke="{plots.VERMILION}" stroke-width="2.5"'
            )
        )
        if np.isfinite(paper):
            y = float(self._place(0, paper)[1])
            out.append(_path([(LEFT, y), (LEFT + WIDE, y)], 'stroke="currentColor" stroke-dasharray="1 3"'))
            out.append(text(LEFT + WIDE + 4, y + 4, "paper"))
        legend = "line: the metric; band: interval of its difference from the default, on the same resamples"
        return "".join([*out, text(LEFT, TOP + HIGH + 52, legend)])

    def live(self, omega: float, value: float, pins: dict[str, tuple[float, float]]) -> str:
        """Draw a line at ω, a mark at its value, and the letters of pinned points."""
        x = LEFT + omega * WIDE
        out = [_path([(x, TOP), (x, TOP + HIGH)], 'stroke="currentColor" stroke-opacity="0.5"')]
        for letter, (at, height) in pins.items():
            if np.isfinite(height):
                px, py = self._place(at, np.clip(height, self.low, self.high))
                out.append(text(float(px), float(py) + 4, letter, "middle", HALO))
        if np.isfinite(value):
            x, y = self._place(omega, np.clip(value, self.low, self.high))
            place = f'cx="{x:.1f}" cy="{y:.1f}" r="6"'
            out.append(f'<circle {place} fill="{plots.VERMILION}" stroke="currentColor" stroke-width="1.5"/>')
        return "".join(out)


class PointMap:
    """Ω over ω (columns) and every prior and k (rows), with the letters of the rules that choose a point."""

    def __init__(self, priors: list[str], ks: list[int], omegas: np.ndarray):
        self.rows, self.omegas = [(prior, k) for prior in priors for k in ks], omegas
        self.right = MAP_LEFT + len(omegas) * CELL_WIDE
        self.size = self.right + 30, MAP_TOP + len(self.rows) * CELL_HIGH + 56

    def place(self, choice: Choice) -> tuple[float, float]:
        """Return the center of a point's cell."""
        column, row = choice.omega * (len(self.omegas) - 1), self.rows.index((choice.prior, choice.k))
        return MAP_LEFT + (column + 0.5) * CELL_WIDE, MAP_TOP + (row + 0.5) * CELL_HIGH

    def point_at(self, x: float, y: float) -> tuple[str, int, float] | None:
        """Return prior, k and ω of the cell at a position of the drawing; None outside."""
        column, row = int((x - MAP_LEFT) // CELL_WIDE), int((y - MAP_TOP) // CELL_HIGH)
        if not (0 <= column < len(self.omegas) and 0 <= row < len(self.rows)):
            return None
        return *self.rows[row], float(self.omegas[column])

    def still(self, values: np.ndarray, name: str, letters: dict[str, Choice]) -> str:
        """Draw cells and letters.  values : (P, K, W).  name : of the values"""
        flat = values.reshape(len(self.rows), -1)
        low, high = (np.nanmin(flat), np.nanmax(flat)) if np.isfinite(flat).any() else (0.0, 1.0)
        colors = matplotlib.colormaps["cividis"]((flat - low) / max(high - low, 1e-9))
        out = [
            text(
                MAP_LEFT,
                14,
                f"{name} over all machines, {low:.3f} (dark) to {high:.3f} (light)",
                more='font-weight="600"',
            )
        ]
        for i, (prior, k) in enumerate(self.rows):
            y = MAP_TOP + i * CELL_HIGH
            if i == 0 or self.rows[i - 1][0] != prior:
                out.append(text(4, y + 14, f"k_scale {prior}"))
                out.append(_path([(4, y), (self.right, y)], 'stroke="currentColor" stroke-width="1.5"'))
            out.append(text(MAP_LEFT - 6, y + 14, f"k {k}", "end"))
            out += (
                f'<rect x="{MAP_LEFT + j * CELL_WIDE}" y="{y}" width="{CELL_WIDE}" height="{CELL_HIGH}"'
                f' fill="{matplotlib.colors.to_hex(c)}"/>'
                for j, c in enumerate(colors[i])
                if np.isfinite(flat[i, j])
            )
        bottom = MAP_TOP + len(self.rows) * CELL_HIGH
        for value in (0, 0.25, 0.5, 0.75, 1):
            x = MAP_LEFT + (value * (len(self.omegas) - 1) + 0.5) * CELL_WIDE
            out.append(text(x, bottom + 15, f"{value:g}", "middle"))
        out.append(text((MAP_LEFT + self.right) / 2, bottom + 31, "ω", "middle"))
        places: dict[tuple, str] = {}
        for letter, choice in letters.items():
            place = self.place(choice)
            places[place] = places.get(place, "") + letter
        out += [text(x, y + 4, letter, "middle", HALO) for (x, y), letter in places.items()]
        if any("*" in letter for letter in letters):
            out.append(text(MAP_LEFT, bottom + 48, "* chosen with another η; see the table"))
        return "".join(out)

    def live(self, choice: Choice, pins: dict[str, Choice]) -> str:
        """Draw a frame around the point, and the letters of pinned points."""
        x, y = self.place(choice)
        frame = f'x="{x - 16:.1f}" y="{y - CELL_HIGH / 2 - 1:.1f}" width="32" height="{CELL_HIGH + 2}" rx="3"'
        out = [
            f'<rect {frame} fill="none" stroke="#fff" stroke-width="4"/>'
            f'<rect {frame} fill="none" stroke="{plots.VERMILION}" stroke-width="2.5"/>'
        ]
        for letter, pin in pins.items():
            x, y = self.place(pin)
            out.append(text(x, y + 4, letter, "middle", HALO))
        return "".join(out)
