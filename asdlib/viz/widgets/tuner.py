"""The tuner in JupyterLab and in reports: controls, drawings, tables, and a button that saves the point.

`TunerView` has two widgets: `live` (controls, one large panel, table, pins, all curves on demand) and
`chosen` (map of Ω, rules, buttons), each with a static version for reports. A change of ω sends only marks
and numbers. Everything that can be clicked can also be operated by keyboard.

Class names for tests and styles: asd-tuner, asd-omega, asd-eta, asd-k, asd-kscale, asd-system, asd-metric,
asd-machine, asd-tuner-panel, asd-tuner-table, asd-tuner-counts, asd-tuner-words (read out), asd-tuner-notes,
asd-pin-A, asd-go-A (and B), asd-tuner-pins, asd-tuner-all, asd-tuner-curves, asd-tuner-map, asd-tuner-rules,
asd-rule-default, -training, -oracle, asd-save.
Colors are Okabe and Ito's, text and lines the theme's. Values are fractions; chance is 0.5.
Sources: METHOD 3.7, 8.5.  Notebook: 08_tuning
"""

from __future__ import annotations

import asyncio
import html
from pathlib import Path

import ipywidgets
import matplotlib
import numpy as np
import pandas as pd
import traitlets

from asdlib import errors
from asdlib.analysis import tuning as sweeps
from asdlib.analysis.tuning import COLUMNS, Choice
from asdlib.evaluation import metrics
from asdlib.viz import plots, tables
from asdlib.viz.widgets import controls
from asdlib.viz.widgets.tuner_drawings import LOOKS, MAPPED, Panel, PointMap, picture, svg
from asdlib.viz.widgets.tuner_model import Tuner

LETTERS = {"default": "D", "training": "T", "oracle": "O"}
NAMES = [*(tables.METRIC_NAMES[name] for name in COLUMNS[:3]), "harmonic mean, Ω"]
LABELS = {"omega": "ω, weight of α", "eta": "η, weight of OEVAE"}
COUNT_DELAY_S = 0.25  # delay before decisions are counted, which takes 20 ms per machine
PRIORS = (
    "k_scale ties the prior of the VAE to the condition. Trained: the study's own VAE. Refitted: a VAE"
    " trained with this k_scale on the unchanged embeddings."
)


class TunerView:
    """View of a tuner.

    tuner : the model.  path : file that the button writes
    paper : whether to show the paper's results (never for synthetic machines)
    """

    def __init__(self, tuner: Tuner, path: Path, paper: bool):
        self.tuner, self.path = tuner, path
        parts = tuner.parts
        self.rows = (*parts.machines, "all")
        self.paper = {m: _paper_row(m) for m in parts.machines if paper and m in metrics.PAPER_TABLE1}
        self.panel, self.map = Panel(), PointMap(list(parts.alphas), list(parts.betas), tuner.sweep.omegas)
        drawings, shown = ("panel", "map"), ("table", "counts", "notes", "pins", "curves", "rules")
        self.drawn = {name: _add_class(controls.Drawing(), f"asd-tuner-{name}") for name in drawings}
        self.drawn |= {name: _add_class(ipywidgets.HTML(), f"asd-tuner-{name}") for name in shown}
        self.words, self.status = (
            _add_class(controls.Region(), name) for name in ("asd-tuner-words", "asd-tuner-status")
        )
        self.pinned: dict[str, tuple[str, Choice]] = {}
        self._mapped: tuple = ()
        self._timer = None
        self.live = controls.DualView(self._live_widget(), self.live_html)
        self.chosen = controls.DualView(self._chosen_widget(), self.chosen_html)
        self.drawn["rules"].value = self.rules_html(tuner)
        self.drawn["panel"].on_msg(lambda _, message, buffers: self._panel_message(message))
        self.drawn["map"].on_msg(lambda _, message, buffers: self._map_message(message))
        self._redraw()
        tuner.observe(self._on_change, ["omega", "eta", "k", "prior", "system"])

    # ---------------------------------------------------------------- controls

    def _live_widget(self) -> ipywidgets.Widget:
        tuner, parts = self.tuner, self.tuner.parts
        self.weights = {"omega": _add_class(controls.Weight(label=LABELS["omega"], step=0.01), "asd-omega")}
        if parts.classifier:
            self.weights["eta"] = _add_class(controls.Weight(label=LABELS["eta"], step=0.05), "asd-eta")
        for trait, weight in self.weights.items():
            traitlets.link((tuner, trait), (weight, "value"))
        priors = [(name.replace(" (", ", ").rstrip(")"), name) for name in parts.alphas]
        options = {
            "k": ("k of kNN", "asd-k", list(parts.betas)),
            "prior": ("k_scale", "asd-kscale", priors),
            "system": ("system", "asd-system", list(parts.systems)),
            "metric": ("metric", "asd-metric", list(zip(NAMES, range(4)))),
            "machine": ("machine", "asd-machine", list(zip(self.rows, range(len(self.rows))))),
        }
        self.menus = {}
        for name, (label, cls, there) in options.items():
            value = {"metric": 3, "machine": len(self.rows) - 1}.get(name, getattr(tuner, name, None))
            look = {"layout": {"width": "auto", "max_width": "17rem"}, "style": {"description_width": "auto"}}
            menu = ipywidgets.Dropdown(options=there, value=value, description=label, **look)
            self.menus[name] = _add_class(menu, cls)
            if name in tuner.trait_names():
                traitlets.link((tuner, name), (menu, "value"))
            else:
                menu.observe(lambda _: self._redraw(), "value")
        self.all = _add_class(
            ipywidgets.Checkbox(description="all machines and metrics", indent=False), "asd-tuner-all"
        )
        self.all.observe(lambda _: self._all_curves(), "value")
        pins = [_button(f"Pin {x}", f"asd-pin-{x}", lambda _, x=x: self._pin(x)) for x in "AB"]
        self.goes = {x: _button(f"Go to {x}", f"asd-go-{x}", lambda _, x=x: self._go(x), True) for x in "AB"}
        row, wide = {"flex_flow": "row wrap"}, {"flex": "3 1 34rem", "min_width": "min(20rem, 100%)"}
        side = ipywidgets.VBox([self.words, self.drawn["table"], self.drawn["counts"]])
        side.layout = {"flex": "2 1 26rem", "min_width": "min(20rem, 100%)"}
        graph = ipywidgets.VBox([self.drawn["panel"]], layout=wide)
        body = [
            ipywidgets.HBox([ipywidgets.VBox(list(self.weights.values())), *self.menus.values()], layout=row),
            self.drawn["notes"],
            ipywidgets.HBox([graph, side], layout=row),
            ipywidgets.HBox([*pins, *self.goes.values(), self.all], layout=row),
            self.drawn["pins"],
            self.drawn["curves"],
            controls.Keys(within=".asd-tuner"),
        ]
        return _add_class(ipywidgets.VBox(body), "asd-tuner")

    def _chosen_widget(self) -> ipywidgets.Widget:
        buttons = [
            _button(
                f"Go to {LETTERS[name]}: {name}",
                f"asd-rule-{name}",
                lambda _, rule=rule: self.tuner.choose(rule.choice),
                rule.choice is None,
            )
            for name, rule in self.tuner.rules.items()
        ]
        save = _button(f"Save {self.path.name}", "asd-save", self._save)
        save.button_style = "primary"
        row = ipywidgets.HBox([*buttons, save, self.status], layout={"flex_flow": "row wrap"})
        keys = controls.Keys(within=".asd-tuner-chosen")
        return _add_class(
            ipywidgets.VBox([row, self.drawn["map"], self.drawn["rules"], keys]), "asd-tuner-chosen"
        )

    def _save(self, _) -> None:
        try:
            self.tuner.save(self.path)
            self.status.value = (
                f"saved to {tables.escape(self.path)}; chosen by {tables.escape(self.tuner.rule())}"
            )
        except errors.InputError as refusal:
            self.status.value = str(tables.escape(refusal))

    def _pin(self, letter: str) -> None:
        """Pin the point under a letter; two pinned points are compared."""
        self.pinned[letter], self.goes[letter].disabled = (self.tuner.system, self.tuner.choice), False
        self.drawn["pins"].value = self.pins_html()
        self._update_marks()

    def _go(self, letter: str) -> None:
        self.tuner.system = self.pinned[letter][0]
        self.tuner.choose(self.pinned[letter][1])

    def _panel_message(self, message: dict) -> None:
        """Set ω by a click on the panel; show the values in a tooltip while hovering."""
        omega = self.panel.omega_at(message["x"])
        if message["kind"] == "click":
            self.tuner.omega = omega
            return
        i, j = self._panel_place
        at, every = round(omega * (len(self.tuner.sweep.omegas) - 1)), self.tuner.gains()
        low, high = (np.interp(omega, every[0], every[1][:, side, i, j]) for side in (0, 1))
        value = self.tuner.curves()[at, i, j]
        text = f"ω {self.tuner.sweep.omegas[at]:.2f}: {NAMES[j]} {tables.number(value)}\n"
        text += f"difference from the default [{low:+.3f}, {high:+.3f}]\nclick to select"
        self.drawn["panel"].send({"text": tables.signed(text)})

    def _map_message(self, message: dict) -> None:
        """Select a point by a click on the map; show Ω in a tooltip while hovering."""
        place = self.map.point_at(message["x"], message["y"])
        if place is None:
            if message["kind"] == "hover":
                self.drawn["map"].send({"text": ""})
            return
        prior, k, omega = place
        if message["kind"] == "click":
            self.tuner.choose(self.tuner.choice._replace(prior=prior, k=k, omega=omega))
            return
        p, j = list(self.tuner.parts.alphas).index(prior), list(self.tuner.parts.betas).index(k)
        value = self.tuner.map()[0][p, j, round(omega * (len(self.tuner.sweep.omegas) - 1))]
        self.drawn["map"].send({"text": f"ω {omega:.2f}, k {k}, k_scale {prior}: {tables.number(value)}"})

    # ---------------------------------------------------------------- drawing

    @property
    def _panel_place(self) -> tuple[int, int]:
        """Row (machine) and column (metric) of the panel."""
        return self.menus["machine"].value, self.menus["metric"].value

    def _on_change(self, change) -> None:
        self._update_marks() if change.name == "omega" else self._redraw()

    def _redraw(self) -> None:
        """Redraw the curve, the map if it changed, and the marks."""
        tuner = self.tuner
        self.drawn["panel"].still = svg(*self.panel.size, self._curve(), self._caption())
        if (tuner.system, tuner.slot()) != self._mapped:
            self._mapped = tuner.system, tuner.slot()
            self.drawn["map"].still = svg(*self.map.size, self._map(), MAPPED)
        self._all_curves()
        self._update_marks()

    def _update_marks(self) -> None:
        tuner, table = self.tuner, self.tuner.table()
        pins = {letter: choice for letter, (system, choice) in self.pinned.items() if system == tuner.system}
        self.drawn["panel"].live = svg(*self.panel.size, self._mark(table))
        self.drawn["map"].live = svg(*self.map.size, self.map.live(tuner.choice, pins))
        self.words.value = str(tables.escape(self.sentence(table)))
        self.drawn["table"].value = self.table_html(table)
        self._update_enabled()
        self._count_later()

    def _curve(self) -> str:
        (i, j), tuner = self._panel_place, self.tuner
        omegas, gains = tuner.gains()
        usual = tuner.parts.point(tuner.system, tuner.parts.default)[i, j]
        paper = self.paper[self.rows[i]][j] if self.rows[i] in self.paper else np.nan
        name = f"{NAMES[j]} of {tuner.system}, {self.rows[i]}"
        return self.panel.still(
            tuner.sweep.omegas, tuner.curves()[:, i, j], omegas, gains[:, :, i, j], usual, name, paper
        )

    def _mark(self, table: np.ndarray) -> str:
        i, j = self._panel_place
        pins = {x: self.tuner.parts.point(*pin)[i, j] for x, pin in self.pinned.items()}
        marks = {x: (self.pinned[x][1].omega, value) for x, value in pins.items()}
        return self.panel.live(self.tuner.omega, table[i, j], marks)

    def _update_enabled(self) -> None:
        """Disable controls without an effect at this point, and give the reason."""
        tuner, why = self.tuner, {}
        if tuner.system == "oevae":
            why["eta"] = "η has no effect on oevae alone"
        elif tuner.eta == 0:
            why |= dict.fromkeys(("omega", "k", "prior"), "η is 0: OEVAE has no weight")
        if tuner.omega == 1:
            why.setdefault("k", "ω is 1: β has no weight")
        if tuner.omega == 0:
            why.setdefault("prior", "ω is 0: α has no weight")
        for name in ("k", "prior", "system"):
            if len(self.menus[name].options) < 2:
                why.setdefault(name, "the study has only one value")
        names = {"omega": "ω", "eta": "η", "k": "k of kNN", "prior": "k_scale", "system": "system"}
        for name, control in (self.weights | self.menus).items():
            control.disabled = name in why
        reasons: dict[str, list[str]] = {}
        for name, reason in why.items():
            if name in self.weights or name in self.menus:
                reasons.setdefault(reason, []).append(names[name])
        lines = [f"Disabled: {', '.join(found)} ({reason})." for reason, found in reasons.items()]
        self.drawn["notes"].value = "<br>".join(html.escape(line) for line in [PRIORS, *lines])

    def _all_curves(self) -> None:
        self.drawn["curves"].value = self.curves_figure()._repr_html_() if self.all.value else ""

    def _count_later(self) -> None:
        """Count the decisions after a short pause; immediately if no event loop is running."""
        if self._timer is not None:
            self._timer.cancel()
        try:
            loop = asyncio.get_running_loop()
        except RuntimeError:
            self._count()
            return
        self.drawn["counts"].value = "<p>Counting decisions at this point.</p>"
        self._timer = loop.call_later(COUNT_DELAY_S, self._count)

    def _count(self) -> None:
        self.drawn["counts"].value = self.counts_html()

    def _map(self) -> str:
        values, eta = self.tuner.map()
        name = "Ω" if np.isfinite(self.tuner.table()[-1, 3]) else "pAUC"
        letters = {}
        for rule in (rule for rule in self.tuner.rules.values() if rule.choice):
            other_eta = "" if eta is None or eta == rule.choice.eta else "*"
            letters[LETTERS[rule.name] + other_eta] = rule.choice
        name = f"{name} of {self.tuner.system}" + (f" at η {eta:g}" if eta is not None else "")
        return self.map.still(values, name, letters)

    def _caption(self) -> str:
        i, j = self._panel_place
        return f"{NAMES[j]} of {self.rows[i]} over ω, with the interval of the difference from the default"

    def sentence(self, table: np.ndarray) -> str:
        """Return a sentence on the point and its difference from the default."""
        tuner = self.tuner
        eta = f", η {tuner.eta:.2f}" if tuner.system == "ensemble" else ""
        point = f"{tuner.system}, ω {tuner.omega:.2f}{eta}, k {tuner.k}, k_scale {tuner.prior}"
        text = f"{point}: Ω {tables.number(table[-1, 3])}"
        gain = table[-1, 3] - tuner.parts.point(tuner.system, tuner.parts.default)[-1, 3]
        if tuner.choice == tuner.parts.default or not np.isfinite(gain):
            return text + ("; this is the default" if tuner.choice == tuner.parts.default else "")
        low, high = tuner.interval(gain=True)[:, -1, 3]
        verdict = "better" if low > 0 else "worse" if high < 0 else "not significant"
        change = f"{gain:+.3f} [{low:+.3f}, {high:+.3f}]"
        return tables.signed(f"{text}; difference from the default {change}: {verdict}")

    def table_html(self, table: np.ndarray) -> tables.Html:
        """Return all metrics of the point with intervals, and the paper's results."""
        low, high = self.tuner.interval()
        lines = []
        for i, name in enumerate(self.rows):
            lines.append((name, *map(_cell, table[i], low[i], high[i])))
            if name in self.paper:
                lines.append((f"{name}, paper", *map(_cell, self.paper[name])))
        share, count = self.tuner.parts.settings.confidence, sweeps.BAND_RESAMPLES
        note = f"Brackets: {share:.0%} interval, {count} resamples of the test clips, interpolated in ω."
        return tables.styled(pd.DataFrame(lines, columns=["", *NAMES[:3], "harm. mean, Ω"]), note)

    def counts_html(self) -> tables.Html:
        """Return the decisions at the point, per machine."""
        found = sweeps.counts(self.tuner.parts, self.tuner.system, self.tuner.choice)
        names = ["", "hits", "misses", "false alarms", "correct rejections"]
        lines = [(name, *map(int, row)) for name, row in zip(self.tuner.parts.machines, found)]
        return tables.styled(
            pd.DataFrame(lines, columns=names), "Decisions at this point; thresholds from training scores"
        )

    def pins_html(self) -> tables.Html:
        """Return the pinned points, and the difference B − A on the same resamples."""
        lines = []
        for letter, (system, choice) in sorted(self.pinned.items()):
            eta = f", η {choice.eta:.2f}" if system == "ensemble" else ""
            words = f"{letter}: {system}, ω {choice.omega:.2f}{eta}, k {choice.k}, k_scale {choice.prior}"
            lines.append((words, *map(_cell, self.tuner.parts.point(system, choice)[-1])))
        if len(self.pinned) == 2:
            gained = self.tuner.gained(self.pinned["B"], self.pinned["A"])
            lines.append(("B − A", *(_cell(*row) for row in gained)))
        return tables.styled(pd.DataFrame(lines, columns=["pinned, all machines", *NAMES]))

    def rules_html(self, tuner: Tuner) -> tables.Html:
        """Return the point chosen by each rule, its results, and the reason."""
        system, lines = tuner.parts.systems[-1], []
        for name, rule in tuner.rules.items():
            cells = ["—"] * 6
            if choice := rule.choice:
                eta = f"{choice.eta:g}" if system == "ensemble" else "—"
                cells = [f"{choice.omega:g}", eta, str(choice.k), choice.prior]
                cells += [_cell(*row) for row in tuner.reached(choice)]
                cells[5] = cells[5] if choice != tuner.parts.default else "—"
            lines.append((f"{LETTERS[name]}: {sweeps.named(name)}", *cells, rule.why))
        names = ["rule", "ω", "η", "k", "k_scale", f"Ω of {system}", "gain over the default", "reason"]
        return tables.styled(pd.DataFrame(lines, columns=names))

    @matplotlib.rc_context(plots.STYLE)
    def curves_figure(self) -> plots.Plot:
        """Draw curves with bands: one row per machine and one for all, one column per metric."""
        tuner, alt = (
            self.tuner,
            f"{', '.join(NAMES)} over ω of {', '.join(self.rows)}; numbers are in the table",
        )
        omegas, curves, (band_omegas, bands) = tuner.sweep.omegas, tuner.curves(), tuner.bands()
        figure, axes = plots.panels(len(self.rows), 4, 0.6 + 1.1 * len(self.rows), alt, share="both")
        for (i, j), axis in np.ndenumerate(axes):
            axis.axhline(0.5, **plots.CHANCE)
            if not np.isfinite(curves[:, i, j]).all():
                plots.note(axis, 0.5, 0.5, "not available", axis.transAxes, ha="center")
                continue
            axis.fill_between(band_omegas, *bands[:, :, i, j].T, color=LOOKS[j], alpha=0.35, lw=0)
            axis.plot(omegas, curves[:, i, j], color=LOOKS[j])
            axis.plot(tuner.omega, tuner.table()[i, j], color=LOOKS[j], marker="osD^"[j], mec=plots.BLACK)
            if self.rows[i] in self.paper:
                axis.axhline(
                    self.paper[self.rows[i]][j], color=plots.BLACK, lw=1, ls=(0, (7, 3)), label="paper"
                )
        for j, name in enumerate(NAMES):
            axes[0, j].set_title(name)
            axes[-1, j].set_xlabel("ω")
        for i, name in enumerate(self.rows):
            axes[i, 0].set_ylabel(name)
        return figure

    # ---------------------------------------------------------------- static versions

    def live_html(self) -> str:
        """Return panel, curves and tables without controls, for reports."""
        table = self.tuner.table()
        drawing = svg(*self.panel.size, self._curve() + self._mark(table), self._caption())
        words = f"<p><strong>{tables.escape(self.sentence(table))}</strong></p>"
        return (
            picture(drawing, self._caption())
            + words
            + self.table_html(table)
            + self.counts_html()
            + self.curves_figure()._repr_html_()
        )

    def chosen_html(self) -> str:
        """Return map and rules, for reports."""
        body = self._map() + self.map.live(self.tuner.choice, {})
        return picture(svg(*self.map.size, body, MAPPED), MAPPED) + self.rules_html(self.tuner)


def paper_machines(machines: tuple[str, ...], synthetic: bool) -> str:
    """Explain why results of the paper are shown for these machines, or not."""
    shared = [machine for machine in machines if machine in metrics.PAPER_TABLE1]
    if synthetic or not shared:
        return "No results of the paper's Table 1 are shown: " + (
            "the machines are synthetic." if synthetic else "no machine of this study is in it."
        )
    return f"Dashed: OEVAES in the paper's Table 1, of {', '.join(shared)}."


def _paper_row(machine: str) -> np.ndarray:
    """Return the results of the paper's system: AUC source, AUC target, pAUC, harmonic mean; fractions."""
    rows = metrics.paper_table1()
    own = rows[
        (rows["system"] == f"paper_{metrics.PAPER_SYSTEMS[-1]}") & (rows["machine"] == machine)
    ].set_index("metric")["value"]
    return own[list(COLUMNS)].to_numpy()


def _add_class(widget, name: str):
    widget.add_class(name)
    return widget


def _button(label: str, name: str, act, disabled: bool = False) -> ipywidgets.Button:
    button = ipywidgets.Button(description=label, disabled=disabled, layout={"width": "auto"})
    button.on_click(act)
    return _add_class(button, name)


def _cell(value: float, low: float = np.nan, high: float = np.nan) -> str:
    return tables.signed(tables.number(value, low, high))
