"""The view of a tuner: sliders with number boxes, live curves and table, the map, and what each rule chooses.

`TunerView(tuner, path)` has two outputs, each with a static face for reports: `live` (controls, curves,
table) and `chosen` (map, rules, buttons). A change of ω re-sends marks and numbers only; η, k and k_scale
re-send the curves too. Everything works by keyboard.

Class names for tests and styles: asd-tuner, asd-omega, asd-eta, asd-k, asd-kscale, asd-system,
asd-tuner-curves (static), asd-tuner-live (marks), asd-tuner-table, asd-tuner-words (read out), asd-tuner-map,
asd-tuner-cell, asd-tuner-rules, asd-rule-default, -training, -oracle, asd-save.
Source: METHOD 8.5.  Notebook: 08_tuning

Drawings of the tuner as SVG text: small multiples of metrics over ω, a map of Ω over ω × k, and the layers
that mark the point.

Every drawing has a static layer, re-sent only when the curves change, and a live one of the same size that
holds the marks alone: a tick sends a few kB. Colors are Okabe and Ito's, each metric has its own mark too.
Values are fractions; chance is 0.5.
Source: METHOD 8.5 (inline SVG, 76 ms from key to pixels).  Notebook: 08_tuning

The tuner: one point of ω, η, k and k_scale with all its metrics, its curves, and the file that keeps it.

A `Tuner` is a traitlets class without widgets: set `omega`, `eta`, `k`, `prior` or `system`, read `table()`,
`curves()`, `bands()`, `map()`. A tick (`table`) costs less than 1 ms for 7 machines × 200 clips and equals
recomputation by scikit-learn; curves are looked up in the `Sweep`, or made at once for an η that is not in
it.

`save` writes the point as a TOML file that any study can include, with the rule that chose it: a point chosen
by hand was chosen in sight of test labels.
Sources: METHOD 3.7, 8.5.  Notebook: 08_tuning
"""

from __future__ import annotations

import base64
import html
from pathlib import Path

import ipywidgets
import matplotlib
import numpy as np
import pandas as pd
import traitlets
from matplotlib.font_manager import FontProperties
from matplotlib.textpath import TextPath

from asdlib import errors, io
from asdlib.analysis import tuning as sweeps
from asdlib.analysis.tuning import COLUMNS, Choice, Parts
from asdlib.evaluation import metrics
from asdlib.viz import plots, tables
from asdlib.viz.widgets import controls

LETTERS = {"default": "D", "training": "T", "oracle": "O"}
MAPPED = "map of Ω over ω, k and k_scale with the choices of the rules; they are in the table below"
LABELS = {"omega": "ω, share of α", "eta": "η, share of OEVAE"}


class TunerView:
    """A tuner to look at.

    tuner : the model.  path : where the button writes.  paper : whether the paper's rows belong beside ours
        (never for synthetic machines)
    """

    def __init__(self, tuner: Tuner, path: Path, paper: bool):
        self.tuner, self.path = tuner, path
        parts = tuner.parts
        self.multiples = Multiples(parts.machines, paper)
        self.points = Map(list(parts.alphas), list(parts.betas), tuner.sweep.omegas)
        names = (
            "asd-tuner-curves",
            "asd-tuner-live",
            "asd-tuner-table",
            "asd-tuner-map",
            "asd-tuner-cell",
            "asd-tuner-rules",
        )
        self.drawn = {name: _classed(ipywidgets.HTML(), name) for name in names}
        self.words, self.status = (
            _classed(controls.Region(), name) for name in ("asd-tuner-words", "asd-tuner-status")
        )
        self.live = controls.DualView(self._live_widget(), self.live_html)
        self.chosen = controls.DualView(self._chosen_widget(), self.chosen_html)
        self.drawn["asd-tuner-rules"].value = self.rules_html(tuner)
        self._mapped: tuple = ()
        self._redraw()
        tuner.observe(self._moved, ["omega", "eta", "k", "prior", "system"])

    # ---------------------------------------------------------------- controls

    def _live_widget(self) -> ipywidgets.Widget:
        tuner, parts = self.tuner, self.tuner.parts
        inputs = [_classed(controls.Weight(label=LABELS["omega"], step=0.01), "asd-omega")]
        traitlets.link((tuner, "omega"), (inputs[0], "value"))
        if parts.classifier:
            inputs.append(_classed(controls.Weight(label=LABELS["eta"], step=0.05), "asd-eta"))
            traitlets.link((tuner, "eta"), (inputs[1], "value"))
        options = {"k": list(parts.betas), "prior": list(parts.alphas), "system": list(parts.systems)}
        words = {
            "k": ("k of kNN", "asd-k"),
            "prior": ("k_scale", "asd-kscale"),
            "system": ("system", "asd-system"),
        }
        menus = []
        for trait, (label, name) in words.items():
            menu = ipywidgets.Dropdown(
                options=options[trait],
                value=getattr(tuner, trait),
                description=label,
                layout={"width": "215px"},
            )
            traitlets.link((tuner, trait), (menu, "value"))
            menus.append(_classed(menu, name))
        side = ipywidgets.VBox([self.words, self.drawn["asd-tuner-table"]])
        graph = _layers(self.drawn["asd-tuner-curves"], self.drawn["asd-tuner-live"])
        below = ipywidgets.HBox([graph, side], layout={"flex_flow": "row wrap"})
        top = ipywidgets.HBox(
            [ipywidgets.VBox(inputs), ipywidgets.HBox(menus, layout={"flex_flow": "row wrap"})],
            layout={"flex_flow": "row wrap"},
        )
        return _classed(ipywidgets.VBox([top, below, controls.Keys(within=".asd-tuner")]), "asd-tuner")

    def _chosen_widget(self) -> ipywidgets.Widget:
        buttons = []
        for name, rule in self.tuner.rules.items():
            go = ipywidgets.Button(
                description=f"Go to {LETTERS[name]}: {name}",
                disabled=rule.choice is None,
                layout={"width": "auto"},
            )
            go.on_click(lambda _, choice=rule.choice: self.tuner.choose(choice))
            buttons.append(_classed(go, f"asd-rule-{name}"))
        save = _classed(
            ipywidgets.Button(
                description=f"Write {self.path.name}", button_style="primary", layout={"width": "auto"}
            ),
            "asd-save",
        )
        save.on_click(self._save)
        row = ipywidgets.HBox([*buttons, save, self.status], layout={"flex_flow": "row wrap"})
        layers = _layers(self.drawn["asd-tuner-map"], self.drawn["asd-tuner-cell"])
        keys = controls.Keys(within=".asd-tuner-chosen")
        return _classed(
            ipywidgets.VBox([row, layers, self.drawn["asd-tuner-rules"], keys]), "asd-tuner-chosen"
        )

    def _save(self, _) -> None:
        try:
            self.tuner.save(self.path)
            self.status.value = (
                f"written to {tables.escape(self.path)}; chosen {tables.escape(self.tuner.rule())}"
            )
        except errors.InputError as refusal:
            self.status.value = str(tables.escape(refusal))

    # ---------------------------------------------------------------- drawing

    def _moved(self, change) -> None:
        self._tick() if change.name == "omega" else self._redraw()

    def _redraw(self) -> None:
        """Curves, the map where another one holds, then what a tick draws."""
        tuner = self.tuner
        self.drawn["asd-tuner-curves"].value = svg(*self.multiples.size, self._curves(), self._told())
        if (tuner.system, tuner.slot()) != self._mapped:
            self._mapped = tuner.system, tuner.slot()
            self.drawn["asd-tuner-map"].value = svg(*self.points.size, self._map(), MAPPED)
        self._tick()

    def _tick(self) -> None:
        tuner, table = self.tuner, self.tuner.table()
        self.drawn["asd-tuner-live"].value = svg(
            *self.multiples.size, self.multiples.live(tuner.omega, table)
        )
        self.drawn["asd-tuner-cell"].value = svg(
            *self.points.size, self.points.live(tuner.prior, tuner.k, tuner.omega)
        )
        self.drawn["asd-tuner-table"].value = self.table_html(table)
        self.words.value = str(tables.escape(self.sentence(table)))

    def _curves(self) -> str:
        return self.multiples.static(self.tuner.sweep.omegas, self.tuner.curves(), *self.tuner.bands())

    def _map(self) -> str:
        values, eta = self.tuner.map()
        name = "Ω" if np.isfinite(self.tuner.table()[-1, 3]) else "pAUC"
        letters = {}
        for rule in (rule for rule in self.tuner.rules.values() if rule.choice):
            elsewhere = "" if eta is None or eta == rule.choice.eta else f" (η {rule.choice.eta:g})"
            letters[LETTERS[rule.name]] = rule.choice.prior, rule.choice.k, rule.choice.omega, elsewhere
        return self.points.static(
            values, f"{name} of {self.tuner.system}" + (f" at η {eta:g}" if eta is not None else ""), letters
        )

    def _told(self) -> str:
        return (
            f"AUC source, AUC target, pAUC and harmonic mean over ω of {', '.join(self.multiples.rows)}; the"
            " numbers are in the table"
        )

    def sentence(self, table: np.ndarray) -> str:
        """The point in words."""
        tuner = self.tuner
        eta = f", η {tuner.eta:.2f}" if tuner.system == "ensemble" else ""
        return (
            f"{tuner.system}, ω {tuner.omega:.2f}{eta}, k {tuner.k}, k_scale {tuner.prior}: Ω"
            f" {tables.number(table[-1, 3])}"
        )

    def table_html(self, table: np.ndarray) -> tables.Html:
        """All metrics of the point with intervals, the paper's rows below."""
        low, high = self.tuner.interval()
        lines = []
        for i, name in enumerate(self.multiples.rows):
            lines.append((name, *map(_cell, table[i], low[i], high[i])))
            if name in self.multiples.paper:
                lines.append((f"{name}, paper", *map(_cell, self.multiples.paper[name])))
        share, count = self.tuner.parts.settings.confidence, sweeps.BAND_RESAMPLES
        note = f"Brackets: {share:.0%} interval, {count} resamples of the test clips, interpolated in ω."
        return tables.styled(
            pd.DataFrame(
                lines, columns=["", *(tables.METRIC_NAMES[name] for name in COLUMNS[:3]), "harm. mean, Ω"]
            ),
            note,
        )

    def rules_html(self, tuner: Tuner) -> tables.Html:
        """What each rule chooses, what it reaches there, and on what grounds."""
        system, lines = tuner.parts.systems[-1], []
        for name, rule in tuner.rules.items():
            cells = ["—"] * 6
            if choice := rule.choice:
                reached = [_cell(*row) for row in tuner.reached(choice)]
                cells = [
                    f"{choice.omega:g}",
                    f"{choice.eta:g}" if system == "ensemble" else "—",
                    str(choice.k),
                    choice.prior,
                    *reached,
                ]
                cells[5] = cells[5] if choice != tuner.parts.default else "—"
            lines.append((f"{LETTERS[name]}: {sweeps.named(name)}", *cells, rule.why))
        names = [
            "rule",
            "ω",
            "η",
            "k",
            "k_scale",
            f"Ω of {system}",
            "gain over the default",
            "on what grounds",
        ]
        return tables.styled(pd.DataFrame(lines, columns=names))

    # ---------------------------------------------------------------- static faces

    def live_html(self) -> str:
        """Curves with the point marked, and the table, without controls: for reports."""
        table = self.tuner.table()
        body = self._curves() + self.multiples.live(self.tuner.omega, table)
        words = f"<p><strong>{tables.escape(self.sentence(table))}</strong></p>"
        return (
            picture(svg(*self.multiples.size, body, self._told()), self._told())
            + words
            + self.table_html(table)
        )

    def chosen_html(self) -> str:
        """Map and rules, for reports."""
        body = self._map() + self.points.live(self.tuner.prior, self.tuner.k, self.tuner.omega)
        return picture(svg(*self.points.size, body, MAPPED), MAPPED, exact=True) + self.rules_html(self.tuner)


def paper_machines(machines: tuple[str, ...], synthetic: bool) -> str:
    """Why there are, or are not, rows of the paper beside these machines, in words."""
    shared = [machine for machine in machines if machine in metrics.PAPER_TABLE1]
    if synthetic or not shared:
        return "No row of the paper's Table 1 is drawn: " + (
            "the machines are synthetic." if synthetic else "no machine of this study is in it."
        )
    return f"Dashed: OEVAES in the paper's Table 1, for {', '.join(shared)}."


def _classed(widget, name: str):
    widget.add_class(name)
    return widget


def _layers(static: ipywidgets.HTML, live: ipywidgets.HTML) -> ipywidgets.GridBox:
    """Two drawings of one size in one place, the live one on top."""
    for layer in (static, live):
        layer.layout.grid_area = "1 / 1 / 2 / 2"
    return ipywidgets.GridBox([static, live], layout={"overflow": "visible", "flex": "0 0 auto"})


def _cell(value: float, low: float = np.nan, high: float = np.nan) -> str:
    return tables.signed(tables.number(value, low, high))


LOOKS = {"auc_source": plots.BLUE, "auc_target": plots.ORANGE, "pauc": plots.GREEN, "hmean": plots.VERMILION}
MARKS = {  # of 9 px around the origin
    "auc_source": "M-4.5 0a4.5 4.5 0 1 0 9 0a4.5 4.5 0 1 0 -9 0",
    "auc_target": "M-4-4h8v8h-8z",
    "pauc": "M0-5l5 9h-10z",
    "hmean": "M0-5.5l5.5 5.5l-5.5 5.5l-5.5-5.5z",
}
LEFT, TOP, WIDE, HIGH, GAP, FOOT = 96, 22, 138, 62, 10, 34
CELL_WIDE, CELL_HIGH, MAP_LEFT, MAP_TOP = 9, 17, 170, 24
NUMBERS = 34  # px beside the longest name of a machine, for the numbers of the axis
BOLD = FontProperties(family="DejaVu Sans", weight="bold")  # wider than what browsers show
FONT = 'font-family="system-ui,Helvetica,Arial,sans-serif" font-size="11"'


def svg(width: float, height: float, body: str, label: str = "") -> str:
    """A drawing; without a label it is a layer that adds nothing for a screen reader."""
    role = f'role="img" aria-label="{html.escape(label)}"' if label else 'aria-hidden="true"'
    frame = (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width:.0f}" height="{height:.0f}" viewBox="0 0'
        f' {width:.0f} {height:.0f}"'
    )
    return f'{frame} {role} {FONT} style="display:block;color:#1b1f24">{body}</svg>'


def text(x: float, y: float, words: str, anchor: str = "start", more: str = "") -> str:
    """Words at (x, y), px, as SVG.  anchor : start, middle or end.  more : further attributes, not escaped"""
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" fill="#1b1f24"'
        f" {more}>{html.escape(words)}</text>"
    )


def picture(drawing: str, alt: str, exact: bool = False) -> tables.Html:
    """A drawing as one <img>, as reports show figures.  exact : whether its colors are values, which a dark
    theme must not turn
    """
    kind = "plot exact" if exact else "plot"
    data = base64.b64encode(drawing.encode()).decode()
    return tables.Html(
        f'<div class="{kind}" tabindex="0"><img alt="{html.escape(alt)}"'
        f' src="data:image/svg+xml;base64,{data}"></div>'
    )


class Multiples:
    """Small multiples: a row for each machine and for all, a column for each metric, one curve with its band
    in each panel.

    machines : names.  paper : whether rows of the paper's Table 1 belong beside them (recorded machines of
        its names)
    """

    def __init__(self, machines: tuple[str, ...], paper: bool):
        self.rows = (*machines, "all")
        self.left = max(
            LEFT,
            max(TextPath((0, 0), machine, size=11, prop=BOLD).get_extents().width for machine in machines)
            + NUMBERS,
        )
        self.size = self.left + len(COLUMNS) * (WIDE + GAP), TOP + len(self.rows) * (HIGH + GAP) + FOOT
        self.paper = {m: _paper_row(m) for m in machines if paper and m in metrics.PAPER_TABLE1}
        self.low = 0.3

    def _place(self, row: int, column: int, omega, value) -> tuple:
        x = self.left + column * (WIDE + GAP) + np.asarray(omega) * WIDE
        y = TOP + row * (HIGH + GAP) + HIGH * (1 - (np.asarray(value) - self.low) / (1 - self.low))
        return x, y

    def static(
        self, omegas: np.ndarray, curves: np.ndarray, band_omegas: np.ndarray, bands: np.ndarray
    ) -> str:
        """Curves (W, rows, 4) and bands (V, 2, rows, 4); fixes the range of the axes for `live`."""
        seen = [
            np.nanmin(values) for values in (curves, bands, *self.paper.values()) if np.isfinite(values).any()
        ]
        self.low = max(0.0, np.floor(10 * min([0.45, *seen])) / 10)
        return "".join(
            self._panel(i, j, omegas, curves[:, i, j], band_omegas, bands[:, :, i, j])
            for i in range(len(self.rows))
            for j in range(4)
        )

    def _panel(self, i: int, j: int, omegas, curve, band_omegas, band) -> str:
        (x0, x1), (y1, y0) = self._place(i, j, np.array([0, 1]), np.array([self.low, 1.0]))
        out, name = (
            [
                f'<rect x="{x0:.1f}" y="{y0:.1f}" width="{WIDE}" height="{HIGH}" fill="#FFFFFF"'
                ' stroke="#C8CDD2"/>'
            ],
            COLUMNS[j],
        )
        middle = self._place(i, j, 0, 0.5)[1]
        out.append(f'<path d="M{x0:.1f} {middle:.1f}H{x1:.1f}" stroke="#6E6E6E" stroke-dasharray="2 2"/>')
        if i == 0:
            words = "harmonic mean, Ω" if name == "hmean" else tables.METRIC_NAMES[name]
            out.append(text((x0 + x1) / 2, TOP - 8, words, "middle", 'font-weight="600"'))
        if j == 0:
            out.append(text(4, (y0 + y1) / 2 + 4, self.rows[i], more='font-weight="600"'))
            for value, down in ((self.low, 1), (0.5, 4), (1.0, 9)):
                if value != self.low or self.low < 0.35:  # no room for it beside 0.5
                    out.append(
                        text(x0 - 4, float(self._place(i, 0, 0, value)[1]) + down, f"{value:g}", "end")
                    )
        if i == len(self.rows) - 1:
            out += [
                text(x, y1 + 14, words, anchor)
                for x, words, anchor in ((x0, "0", "start"), ((x0 + x1) / 2, "ω", "middle"), (x1, "1", "end"))
            ]
        if not np.isfinite(curve).all():
            return "".join(
                [
                    *out,
                    text((x0 + x1) / 2, (y0 + y1) / 2 + 4, "not available", "middle", 'font-style="italic"'),
                ]
            )
        edge = [self._place(i, j, band_omegas, band[:, side]) for side in (0, 1)]
        around = [*zip(*edge[0]), *list(zip(*edge[1]))[::-1]]
        out.append(f'<path d="{_line(around)}Z" fill="{LOOKS[name]}" fill-opacity="0.2"/>')
        out.append(
            f'<path d="{_line(zip(*self._place(i, j, omegas, curve)))}" fill="none" stroke="{LOOKS[name]}"'
            ' stroke-width="2"/>'
        )
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
                f'<path transform="translate({x:.1f} {y:.1f})" d="{MARKS[name]}" fill="{LOOKS[name]}"'
                ' stroke="#000000"/>'
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
        return (
            MAP_LEFT + (column + 0.5) * CELL_WIDE,
            MAP_TOP + (self.rows.index((prior, k)) + 0.5) * CELL_HIGH,
        )

    def static(self, values: np.ndarray, name: str, letters: dict[str, tuple[str, int, float, str]]) -> str:
        """The map as a picture for pages without controls.

        values : (P, K, W).  name : of what they are.  letters : letter -> prior, k, ω, and what is to be
        said after it
        """
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
            first = i == 0 or self.rows[i - 1][0] != prior
            out += [text(4, y + 13, f"k_scale {prior}")] if first else []
            out.append(text(MAP_LEFT - 6, y + 13, f"k {k}", "end"))
            cells = (
                f'<rect x="{MAP_LEFT + j * CELL_WIDE}" y="{y}" width="{CELL_WIDE}" height="{CELL_HIGH}"'
                f' fill="{matplotlib.colors.to_hex(c)}"/>'
                for j, c in enumerate(colors[i])
                if np.isfinite(flat[i, j])
            )
            out += cells
            out += (
                [
                    f'<path d="M4 {y}H{MAP_LEFT + len(self.omegas) * CELL_WIDE}" stroke="#FFFFFF"'
                    ' stroke-width="2"/>'
                ]
                if first and i
                else []
            )
        bottom = MAP_TOP + len(self.rows) * CELL_HIGH
        for value in (0, 0.25, 0.5, 0.75, 1):
            out.append(
                text(
                    MAP_LEFT + (value * (len(self.omegas) - 1) + 0.5) * CELL_WIDE,
                    bottom + 14,
                    f"{value:g}",
                    "middle",
                )
            )
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
            out.append(
                f'<rect x="{x - half:.1f}" y="{y - 7:.1f}" width="{2 * half:.0f}" height="14" rx="3"'
                ' fill="#FFFFFF" stroke="#000000"/>'
            )
            out.append(text(x, y + 4, words, "middle", 'font-weight="700"'))
        return "".join(out)

    def _box(
        self, prior: str, k: int, omega: float, half: float, others: list[tuple[float, float, float]]
    ) -> tuple[float, float, float]:
        """Middle and half width of the box of a letter: over its cell, within the map, beside those that
        stand in its row already.
        """
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
        frame = (  # letters fit in
            f'x="{x - 17:.1f}" y="{y - CELL_HIGH / 2 - 1:.1f}" width="34" height="{CELL_HIGH + 2}" rx="4"'
            ' fill="none"'
        )
        return (
            f'<rect {frame} stroke="#000000" stroke-width="4"/><rect {frame} stroke="{plots.VERMILION}"'
            ' stroke-width="2"/>'
        )


def _paper_row(machine: str) -> np.ndarray:
    """The paper's own system on a machine, fractions: AUC source, AUC target, pAUC, harmonic mean."""
    rows = metrics.paper_table1()
    own = rows[
        (rows["system"] == f"paper_{metrics.PAPER_SYSTEMS[-1]}") & (rows["machine"] == machine)
    ].set_index("metric")["value"]
    return own[list(COLUMNS)].to_numpy()


def _line(points) -> str:
    return "M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in points)


BY_HAND = "hand, in sight of test labels: not a claim"
BATCH = "a batch run"
WORTH = 0.3  # rank correlation from which the training rule is worth a word


class Tuner(traitlets.HasTraits):
    """One point of a study.

    parts, sweep : of `tuning.from_scores` and `tuning.open_sweep`;  seed : of the bootstrap
    """

    system = traitlets.Unicode(help="oevae or ensemble")
    omega = traitlets.Float(min=0.0, max=1.0, help="weight of α in OEVAE")
    eta = traitlets.Float(min=0.0, max=1.0, help="weight of OEVAE in the ensemble")
    k = traitlets.Int(help="neighbors of β")
    prior = traitlets.Unicode(help="k_scale of the prior")

    def __init__(self, parts: Parts, sweep: sweeps.Sweep, seed: int = 0):
        self.parts, self.sweep, self._weights = parts, sweep, sweeps.resamples(parts, seed)
        self.rules = sweeps.rules(parts, sweep, seed)
        self.worth, self._quality = sweeps.rule_validity(parts, sweep), sweeps.quality(parts, sweep)
        self._made: dict[tuple, tuple[np.ndarray, np.ndarray]] = {}
        super().__init__(system=parts.systems[-1], **parts.default._asdict())

    @traitlets.validate("system", "k", "prior")
    def _known(self, proposal):
        known = {
            "system": self.parts.systems,
            "k": tuple(self.parts.betas),
            "prior": tuple(self.parts.alphas),
        }[proposal.trait.name]
        if proposal.value not in known:
            raise errors.InputError(
                f"{proposal.trait.name}: got {proposal.value!r}, expected one of {', '.join(map(str, known))}"
            )
        return proposal.value

    @property
    def choice(self) -> Choice:
        """The point."""
        return Choice(self.omega, self.eta, self.k, self.prior)

    def choose(self, choice: Choice) -> None:
        """Go to a point, with one notification per trait that changed."""
        with self.hold_trait_notifications():
            self.omega, self.eta, self.k, self.prior = choice

    def table(self) -> np.ndarray:
        """All metrics of the point, float64 (machines + 1, 4): AUC source, AUC target, pAUC, hmean; the last
        row is all, with Ω.
        """
        return self.parts.point(self.system, self.choice)

    @property
    def _place(self) -> tuple[int, int]:
        return list(self.parts.alphas).index(self.prior), list(self.parts.betas).index(self.k)

    def slot(self) -> int:
        """The slot of the sweep that is shown, or the nearest η's."""
        return 0 if self.system == "oevae" else 1 + int(np.abs(self.sweep.etas - self.eta).argmin())

    def _exact(self) -> bool:
        return self.system == "oevae" or self.sweep.etas[self.slot() - 1] == self.eta

    def _live(self) -> tuple[np.ndarray, np.ndarray]:
        """Areas and bands over ω for an η that the sweep does not have; the last few are remembered."""
        key = (self.eta, self.k, self.prior)
        if key not in self._made:
            parts = self.parts
            oevae = parts.scaled(parts.oevae(self.prior, self.k, self.sweep.omegas[:, None, None, None]))
            test = parts.over_seeds(parts.ensemble(oevae, self.eta)).test
            areas = self.sweep.areas[(self.slot(), *self._place)] if self._exact() else parts.areas(test)
            self._made = dict(list(self._made.items())[-20:]) | {
                key: (areas, sweeps.band(parts, test[:: sweeps.EVERY], self._weights))
            }
        return self._made[key]

    def curves(self) -> np.ndarray:
        """All metrics over ω at this η, k and prior: float64 (W, machines + 1, 4)."""
        return self.parts.table(
            self.sweep.areas[(self.slot(), *self._place)] if self._exact() else self._live()[0]
        )

    def bands(self) -> tuple[np.ndarray, np.ndarray]:
        """Bootstrap bands of the curves: ω (V,) and low and high (V, 2, machines + 1, 4)."""
        ready = self.system == "oevae" or self.eta == self.parts.default.eta
        found = self.sweep.bands[(int(self.system == "ensemble"), *self._place)] if ready else self._live()[1]
        return self.sweep.omegas[:: sweeps.EVERY], found

    def interval(self) -> np.ndarray:
        """Low and high at the point, (2, machines + 1, 4): the bands, interpolated in ω."""
        omegas, found = self.bands()
        i = min(int(np.searchsorted(omegas, self.omega, side="right")), len(omegas) - 1)
        share = (self.omega - omegas[i - 1]) / (omegas[i] - omegas[i - 1])
        return (1 - share) * found[i - 1] + share * found[i]

    def map(self) -> tuple[np.ndarray, float | None]:
        """Ω over prior, k and ω, (P, K, W), and the η that it is of (the nearest in the sweep; None for OEVAE
        alone).
        """
        slot = self.slot()
        return self._quality[slot], float(self.sweep.etas[slot - 1]) if slot else None

    def reached(self, choice: Choice) -> np.ndarray:
        """What a point reaches over all machines: Ω and its gain over the default, each with low and high, on
        the same resamples; (2, 3).
        """
        system, parts = self.parts.systems[-1], self.parts
        values = [parts.point(system, point)[-1, 3] for point in (choice, parts.default)]
        boots = [
            sweeps.replicates(parts, parts.final(system, point).test, self._weights)[:, -1, 3]
            for point in (choice, parts.default)
        ]
        rows = ((values[0], boots[0]), (values[0] - values[1], boots[0] - boots[1]))
        return np.array([[value, *sweeps.interval(parts, resampled)] for value, resampled in rows])

    def verdict(self) -> str:
        """Whether the training rule pointed towards better detection, in words."""
        if np.isnan(self.worth):
            return (
                "without test labels and target training clips there is no telling whether the training rule"
                " points the right way"
            )
        told = f"rank correlation of a small mismatch with a high Ω over all points: {self.worth:+.2f}; "
        if self.worth < WORTH:
            return told + "here the training rule does not point towards better detection: do not follow it"
        return (
            told
            + "here the training rule points towards better detection; whether it does on other machines is"
            " not known"
        )

    def chosen_by(self) -> str:
        """The first rule that chooses the point, by name, or "hand"; a study that includes it keeps this. The
        default of a study is as it was chosen for that study.
        """
        found = next((name for name, rule in self.rules.items() if rule.choice == self.choice), "hand")
        return (self.parts.chosen_by or found) if found == "default" else found

    def rule(self) -> str:
        """By which rules the point is chosen, in words, or by hand."""
        return (
            "; and by ".join(
                sweeps.named(rule.name) for rule in self.rules.values() if rule.choice == self.choice
            )
            or BY_HAND
        )

    def toml(self, by: str = "a person") -> str:
        """The point as a file that a study can include. by : who writes it, for the file's head"""
        return f"""\
# chosen by {self.rule()}; written by {by}
# include it: asd run STUDY --include FILE, or include = [...] in the study's file
chosen_by = "{self.chosen_by()}"  # after oracle and hand the report makes no claim

[fusion]
omega = {self.omega!r}
eta = {self.eta!r}

[oevae]
neighbors = {self.k}  # another k, or another k_scale, trains OEVAE again

[oevae.condition]
k_scale = {float(self.parts.scales[self.prior])!r}
"""

    def save(self, path: Path, by: str = "a person") -> None:
        """Write `toml` whole or not at all. raises : errors.InputError where the folder cannot be written or
        a run is at work in it
        """
        with io.locked(path.parent), io.wrap_os_errors(path.parent):
            io.write_text(path, self.toml(by))

    def keep(self, path: Path, included: tuple[str, ...] = ()) -> str:
        """What a batch run writes: the default, for no rule has earned more; unless a person has chosen or
        this run itself builds on the file.

        included : the study's `include`.  returns : what was done, in words
        """
        if str(path) in included:
            return f"{path.name} is included by this study and stays as it is"
        if path.is_file() and f"; written by {BATCH}" not in path.read_text(encoding="utf-8"):
            return f"{path.name} was written by a person and stays as it is"
        before = self.choice
        self.choose(self.rules["default"].choice)
        self.save(path, BATCH)
        self.choose(before)
        return f"{path.name} holds the {sweeps.named('default')}"
