"""The view of a tuner: sliders with number boxes, live curves and table, the map, and what each rule chooses.

`TunerView(tuner, path)` has two outputs, each with a static face for reports: `live` (controls, curves, table) and `chosen` (map, rules, buttons).
A change of ω re-sends marks and numbers only; η, k and k_scale re-send the curves too. Everything works by keyboard.

Class names for tests and styles: asd-tuner, asd-omega, asd-eta, asd-k, asd-kscale, asd-system, asd-tuner-curves (static), asd-tuner-live (marks),
asd-tuner-table, asd-tuner-words (read out), asd-tuner-map, asd-tuner-cell, asd-tuner-rules, asd-rule-default, -training, -oracle, asd-save.
Source: METHOD 8.5.  Notebook: 08_tuning
"""

from __future__ import annotations

from pathlib import Path

import ipywidgets
import numpy as np
import pandas as pd
import traitlets

from asdlib import errors
from asdlib.analysis import sweep as sweeps
from asdlib.analysis.tuning import COLUMNS
from asdlib.evaluation import metrics
from asdlib.viz import tables
from asdlib.viz.widgets import controls, curves
from asdlib.viz.widgets.tuner_model import Tuner

LETTERS = {"default": "D", "training": "T", "oracle": "O"}
MAPPED = "map of Ω over ω, k and k_scale with the choices of the rules; they are in the table below"
LABELS = {"omega": "ω, share of α", "eta": "η, share of OEVAE"}


class TunerView:
    """A tuner to look at.

    tuner : the model.  path : where the button writes.  paper : whether the paper's rows belong beside ours (never for synthetic machines)
    """

    def __init__(self, tuner: Tuner, path: Path, paper: bool):
        self.tuner, self.path = tuner, path
        parts = tuner.parts
        self.multiples = curves.Multiples(parts.machines, paper)
        self.points = curves.Map(list(parts.alphas), list(parts.betas), tuner.sweep.omegas)
        names = ("asd-tuner-curves", "asd-tuner-live", "asd-tuner-table", "asd-tuner-map", "asd-tuner-cell", "asd-tuner-rules")
        self.drawn = {name: _classed(ipywidgets.HTML(), name) for name in names}
        self.words, self.status = (_classed(controls.Region(), name) for name in ("asd-tuner-words", "asd-tuner-status"))
        self.live = controls.Face(self._live_widget(), self.live_html)
        self.chosen = controls.Face(self._chosen_widget(), self.chosen_html)
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
        words = {"k": ("k of kNN", "asd-k"), "prior": ("k_scale", "asd-kscale"), "system": ("system", "asd-system")}
        menus = []
        for trait, (label, name) in words.items():
            menu = ipywidgets.Dropdown(options=options[trait], value=getattr(tuner, trait), description=label, layout={"width": "215px"})
            traitlets.link((tuner, trait), (menu, "value"))
            menus.append(_classed(menu, name))
        side = ipywidgets.VBox([self.words, self.drawn["asd-tuner-table"]])
        graph = _layers(self.drawn["asd-tuner-curves"], self.drawn["asd-tuner-live"])
        below = ipywidgets.HBox([graph, side], layout={"flex_flow": "row wrap"})
        top = ipywidgets.HBox([ipywidgets.VBox(inputs), ipywidgets.HBox(menus, layout={"flex_flow": "row wrap"})], layout={"flex_flow": "row wrap"})
        return _classed(ipywidgets.VBox([top, below, controls.Keys(within=".asd-tuner")]), "asd-tuner")

    def _chosen_widget(self) -> ipywidgets.Widget:
        buttons = []
        for name, rule in self.tuner.rules.items():
            go = ipywidgets.Button(description=f"Go to {LETTERS[name]}: {name}", disabled=rule.choice is None, layout={"width": "auto"})
            go.on_click(lambda _, choice=rule.choice: self.tuner.choose(choice))
            buttons.append(_classed(go, f"asd-rule-{name}"))
        save = _classed(ipywidgets.Button(description=f"Write {self.path.name}", button_style="primary", layout={"width": "auto"}), "asd-save")
        save.on_click(self._save)
        row = ipywidgets.HBox([*buttons, save, self.status], layout={"flex_flow": "row wrap"})
        layers = _layers(self.drawn["asd-tuner-map"], self.drawn["asd-tuner-cell"])
        keys = controls.Keys(within=".asd-tuner-chosen")
        return _classed(ipywidgets.VBox([row, layers, self.drawn["asd-tuner-rules"], keys]), "asd-tuner-chosen")

    def _save(self, _) -> None:
        try:
            self.tuner.save(self.path)
            self.status.value = f"written to {tables.escape(self.path)}; chosen {tables.escape(self.tuner.rule())}"
        except errors.Refusal as refusal:
            self.status.value = str(tables.escape(refusal))

    # ---------------------------------------------------------------- drawing

    def _moved(self, change) -> None:
        self._tick() if change.name == "omega" else self._redraw()

    def _redraw(self) -> None:
        """Curves, the map where another one holds, then what a tick draws."""
        tuner = self.tuner
        self.drawn["asd-tuner-curves"].value = curves.svg(*self.multiples.size, self._curves(), self._told())
        if (tuner.system, tuner.slot()) != self._mapped:
            self._mapped = tuner.system, tuner.slot()
            self.drawn["asd-tuner-map"].value = curves.svg(*self.points.size, self._map(), MAPPED)
        self._tick()

    def _tick(self) -> None:
        tuner, table = self.tuner, self.tuner.table()
        self.drawn["asd-tuner-live"].value = curves.svg(*self.multiples.size, self.multiples.live(tuner.omega, table))
        self.drawn["asd-tuner-cell"].value = curves.svg(*self.points.size, self.points.live(tuner.prior, tuner.k, tuner.omega))
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
        return self.points.static(values, f"{name} of {self.tuner.system}" + (f" at η {eta:g}" if eta is not None else ""), letters)

    def _told(self) -> str:
        return f"AUC source, AUC target, pAUC and harmonic mean over ω of {', '.join(self.multiples.rows)}; the numbers are in the table"

    def sentence(self, table: np.ndarray) -> str:
        """The point in words."""
        tuner = self.tuner
        eta = f", η {tuner.eta:.2f}" if tuner.system == "ensemble" else ""
        return f"{tuner.system}, ω {tuner.omega:.2f}{eta}, k {tuner.k}, k_scale {tuner.prior}: Ω {tables.number(table[-1, 3])}"

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
        return tables.styled(pd.DataFrame(lines, columns=["", *(tables.METRIC_NAMES[name] for name in COLUMNS[:3]), "harm. mean, Ω"]), note)

    def rules_html(self, tuner: Tuner) -> tables.Html:
        """What each rule chooses, what it reaches there, and on what grounds."""
        system, lines = tuner.parts.systems[-1], []
        for name, rule in tuner.rules.items():
            cells = ["—"] * 6
            if choice := rule.choice:
                reached = [_cell(*row) for row in tuner.reached(choice)]
                cells = [f"{choice.omega:g}", f"{choice.eta:g}" if system == "ensemble" else "—", str(choice.k), choice.prior, *reached]
                cells[5] = cells[5] if choice != tuner.parts.default else "—"
            lines.append((f"{LETTERS[name]}: {sweeps.named(name)}", *cells, rule.why))
        names = ["rule", "ω", "η", "k", "k_scale", f"Ω of {system}", "gain over the default", "on what grounds"]
        return tables.styled(pd.DataFrame(lines, columns=names))

    # ---------------------------------------------------------------- static faces

    def live_html(self) -> str:
        """Curves with the point marked, and the table, without controls: for reports."""
        table = self.tuner.table()
        body = self._curves() + self.multiples.live(self.tuner.omega, table)
        words = f"<p><strong>{tables.escape(self.sentence(table))}</strong></p>"
        return curves.picture(curves.svg(*self.multiples.size, body, self._told()), self._told()) + words + self.table_html(table)

    def chosen_html(self) -> str:
        """Map and rules, for reports."""
        body = self._map() + self.points.live(self.tuner.prior, self.tuner.k, self.tuner.omega)
        return curves.picture(curves.svg(*self.points.size, body, MAPPED), MAPPED) + self.rules_html(self.tuner)


def paper_machines(machines: tuple[str, ...], synthetic: bool) -> str:
    """Why there are, or are not, rows of the paper beside these machines, in words."""
    shared = [machine for machine in machines if machine in metrics.PAPER_TABLE1]
    if synthetic or not shared:
        return "No row of the paper's Table 1 is drawn: " + ("the machines are synthetic." if synthetic else "no machine of this study is in it.")
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
