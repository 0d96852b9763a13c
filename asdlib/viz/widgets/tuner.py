"""Tuner: one point of ω, η, k and k_scale with all its metrics, what it gains over the default, and the file
that keeps it.

`Tuner` is the model, a traitlets class without widgets: set `omega`, `eta`, `k`, `prior` or `system`, read
`table()`, `curves()`, `bands()`, `gains()`, `map()`. A tick (`table`) costs less than 1 ms for 7 machines ×
200 clips and equals recomputation by scikit-learn; curves are looked up in the `Sweep`, or made at once for
an η that is not in it. `save` writes the point as a TOML file that any study can include, with the rule that
chose it: a point chosen by hand was chosen in sight of test labels.

`TunerView` shows it: `live` (controls, one large panel, table, pins, all curves on demand) and `chosen` (map
of Ω, rules, buttons), each with a static face for reports. A change of ω sends marks and numbers only.
Everything that takes a click also has a control for the keyboard.

Class names for tests and styles: asd-tuner, asd-omega, asd-eta, asd-k, asd-kscale, asd-system, asd-metric,
asd-machine, asd-tuner-panel, asd-tuner-table, asd-tuner-counts, asd-tuner-words (read out), asd-tuner-notes,
asd-pin-A, asd-go-A (and B), asd-tuner-pins, asd-tuner-all, asd-tuner-curves, asd-tuner-map, asd-tuner-rules,
asd-rule-default, -training, -oracle, asd-save.
Colors are Okabe and Ito's, text and lines the theme's. Values are fractions; chance is 0.5.
Sources: METHOD 3.7, 8.5.  Notebook: 08_tuning
"""

from __future__ import annotations

import asyncio
import base64
import html
from pathlib import Path

import ipywidgets
import matplotlib
import numpy as np
import pandas as pd
import traitlets

from asdlib import errors, io
from asdlib.analysis import tuning as sweeps
from asdlib.analysis.tuning import COLUMNS, Choice, Parts
from asdlib.evaluation import metrics
from asdlib.viz import plots, tables
from asdlib.viz.widgets import controls

LETTERS = {"default": "D", "training": "T", "oracle": "O"}
NAMES = [*(tables.METRIC_NAMES[name] for name in COLUMNS[:3]), "harmonic mean, Ω"]
LABELS = {"omega": "ω, share of α", "eta": "η, share of OEVAE"}
REST_S = 0.25  # a point that rests so long has its decisions counted: 20 ms per machine do not follow a key
PRIORS = (
    "k_scale ties the prior of the VAE to the condition. Trained: the study's own VAE. Refitted: the VAE"
    " alone, trained again with this k_scale on the embeddings as they are."
)


class TunerView:
    """A tuner to look at.

    tuner : the model.  path : where the button writes.  paper : whether the paper's rows belong beside ours
        (never for synthetic machines)
    """

    def __init__(self, tuner: Tuner, path: Path, paper: bool):
        self.tuner, self.path = tuner, path
        parts = tuner.parts
        self.rows = (*parts.machines, "all")
        self.paper = {m: _paper_row(m) for m in parts.machines if paper and m in metrics.PAPER_TABLE1}
        self.panel, self.map = Panel(), PointMap(list(parts.alphas), list(parts.betas), tuner.sweep.omegas)
        drawings, shown = ("panel", "map"), ("table", "counts", "notes", "pins", "curves", "rules")
        self.drawn = {name: _classed(controls.Drawing(), f"asd-tuner-{name}") for name in drawings}
        self.drawn |= {name: _classed(ipywidgets.HTML(), f"asd-tuner-{name}") for name in shown}
        self.words, self.status = (
            _classed(controls.Region(), name) for name in ("asd-tuner-words", "asd-tuner-status")
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
        tuner.observe(self._moved, ["omega", "eta", "k", "prior", "system"])

    # ---------------------------------------------------------------- controls

    def _live_widget(self) -> ipywidgets.Widget:
        tuner, parts = self.tuner, self.tuner.parts
        self.weights = {"omega": _classed(controls.Weight(label=LABELS["omega"], step=0.01), "asd-omega")}
        if parts.classifier:
            self.weights["eta"] = _classed(controls.Weight(label=LABELS["eta"], step=0.05), "asd-eta")
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
            self.menus[name] = _classed(menu, cls)
            if name in tuner.trait_names():
                traitlets.link((tuner, name), (menu, "value"))
            else:
                menu.observe(lambda _: self._redraw(), "value")
        self.all = _classed(
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
        return _classed(ipywidgets.VBox(body), "asd-tuner")

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
        save = _button(f"Write {self.path.name}", "asd-save", self._save)
        save.button_style = "primary"
        row = ipywidgets.HBox([*buttons, save, self.status], layout={"flex_flow": "row wrap"})
        keys = controls.Keys(within=".asd-tuner-chosen")
        return _classed(
            ipywidgets.VBox([row, self.drawn["map"], self.drawn["rules"], keys]), "asd-tuner-chosen"
        )

    def _save(self, _) -> None:
        try:
            self.tuner.save(self.path)
            self.status.value = (
                f"written to {tables.escape(self.path)}; chosen {tables.escape(self.tuner.rule())}"
            )
        except errors.InputError as refusal:
            self.status.value = str(tables.escape(refusal))

    def _pin(self, letter: str) -> None:
        """Keep the point under a letter; two of them are compared."""
        self.pinned[letter], self.goes[letter].disabled = (self.tuner.system, self.tuner.choice), False
        self.drawn["pins"].value = self.pins_html()
        self._tick()

    def _go(self, letter: str) -> None:
        self.tuner.system = self.pinned[letter][0]
        self.tuner.choose(self.pinned[letter][1])

    def _panel_message(self, message: dict) -> None:
        """A click on the panel sets ω; the pointer is told the values there."""
        omega = self.panel.omega_at(message["x"])
        if message["kind"] == "click":
            self.tuner.omega = omega
            return
        i, j = self._panel_place
        at, every = round(omega * (len(self.tuner.sweep.omegas) - 1)), self.tuner.gains()
        low, high = (np.interp(omega, every[0], every[1][:, side, i, j]) for side in (0, 1))
        value = self.tuner.curves()[at, i, j]
        text = f"ω {self.tuner.sweep.omegas[at]:.2f}: {NAMES[j]} {tables.number(value)}\n"
        text += f"against the default [{low:+.3f}, {high:+.3f}]\nclick: go there"
        self.drawn["panel"].send({"text": tables.signed(text)})

    def _map_message(self, message: dict) -> None:
        """A click on the map goes to the point; the pointer is told its Ω."""
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

    def _moved(self, change) -> None:
        self._tick() if change.name == "omega" else self._redraw()

    def _redraw(self) -> None:
        """The curve, the map where another one holds, then what a tick draws."""
        tuner = self.tuner
        self.drawn["panel"].still = svg(*self.panel.size, self._curve(), self._told())
        if (tuner.system, tuner.slot()) != self._mapped:
            self._mapped = tuner.system, tuner.slot()
            self.drawn["map"].still = svg(*self.map.size, self._map(), MAPPED)
        self._all_curves()
        self._tick()

    def _tick(self) -> None:
        tuner, table = self.tuner, self.tuner.table()
        pins = {letter: choice for letter, (system, choice) in self.pinned.items() if system == tuner.system}
        self.drawn["panel"].live = svg(*self.panel.size, self._mark(table))
        self.drawn["map"].live = svg(*self.map.size, self.map.live(tuner.choice, pins))
        self.words.value = str(tables.escape(self.sentence(table)))
        self.drawn["table"].value = self.table_html(table)
        self._able()
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

    def _able(self) -> None:
        """Controls that change nothing at this point are disabled, and say why."""
        tuner, why = self.tuner, {}
        if tuner.system == "oevae":
            why["eta"] = "oevae is shown alone: η has nothing to weigh"
        elif tuner.eta == 0:
            why |= dict.fromkeys(
                ("omega", "k", "prior"), "η is 0, the classifier alone: nothing of OEVAE counts"
            )
        if tuner.omega == 1:
            why.setdefault("k", "ω is 1: β has no weight")
        if tuner.omega == 0:
            why.setdefault("prior", "ω is 0: α has no weight")
        for name in ("k", "prior", "system"):
            if len(self.menus[name].options) < 2:
                why.setdefault(name, "the study has one value only")
        names = {"omega": "ω", "eta": "η", "k": "k of kNN", "prior": "k_scale", "system": "system"}
        for name, control in (self.weights | self.menus).items():
            control.disabled = name in why
        told: dict[str, list[str]] = {}
        for name, reason in why.items():
            if name in self.weights or name in self.menus:
                told.setdefault(reason, []).append(names[name])
        lines = [f"Disabled: {', '.join(found)} ({reason})." for reason, found in told.items()]
        self.drawn["notes"].value = "<br>".join(html.escape(line) for line in [PRIORS, *lines])

    def _all_curves(self) -> None:
        self.drawn["curves"].value = self.curves_figure()._repr_html_() if self.all.value else ""

    def _count_later(self) -> None:
        """Count the decisions once the point rests; without a running kernel at once."""
        if self._timer is not None:
            self._timer.cancel()
        try:
            loop = asyncio.get_running_loop()
        except RuntimeError:
            self._count()
            return
        self.drawn["counts"].value = "<p>Decisions at this point: counted when it rests.</p>"
        self._timer = loop.call_later(REST_S, self._count)

    def _count(self) -> None:
        self.drawn["counts"].value = self.counts_html()

    def _map(self) -> str:
        values, eta = self.tuner.map()
        name = "Ω" if np.isfinite(self.tuner.table()[-1, 3]) else "pAUC"
        letters = {}
        for rule in (rule for rule in self.tuner.rules.values() if rule.choice):
            elsewhere = "" if eta is None or eta == rule.choice.eta else "*"
            letters[LETTERS[rule.name] + elsewhere] = rule.choice
        name = f"{name} of {self.tuner.system}" + (f" at η {eta:g}" if eta is not None else "")
        return self.map.still(values, name, letters)

    def _told(self) -> str:
        i, j = self._panel_place
        return f"{NAMES[j]} of {self.rows[i]} over ω, with the interval of its gain over the default"

    def sentence(self, table: np.ndarray) -> str:
        """The point in words, and whether it differs from the default."""
        tuner = self.tuner
        eta = f", η {tuner.eta:.2f}" if tuner.system == "ensemble" else ""
        point = f"{tuner.system}, ω {tuner.omega:.2f}{eta}, k {tuner.k}, k_scale {tuner.prior}"
        told = f"{point}: Ω {tables.number(table[-1, 3])}"
        gain = table[-1, 3] - tuner.parts.point(tuner.system, tuner.parts.default)[-1, 3]
        if tuner.choice == tuner.parts.default or not np.isfinite(gain):
            return told + ("; this is the default" if tuner.choice == tuner.parts.default else "")
        low, high = tuner.interval(gain=True)[:, -1, 3]
        apart = "more" if low > 0 else "less" if high < 0 else "not told apart"
        return tables.signed(f"{told}; {gain:+.3f} [{low:+.3f}, {high:+.3f}] against the default: {apart}")

    def table_html(self, table: np.ndarray) -> tables.Html:
        """All metrics of the point with intervals, the paper's rows below."""
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
        """Decisions at the point, per machine."""
        found = sweeps.counts(self.tuner.parts, self.tuner.system, self.tuner.choice)
        names = ["", "hits", "misses", "false alarms", "correct rejections"]
        lines = [(name, *map(int, row)) for name, row in zip(self.tuner.parts.machines, found)]
        return tables.styled(
            pd.DataFrame(lines, columns=names), "Decisions at this point, by thresholds of training scores"
        )

    def pins_html(self) -> tables.Html:
        """The pinned points, and what B gains over A on the same resamples."""
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
        """What each rule chooses, what it reaches there, and on what grounds."""
        system, lines = tuner.parts.systems[-1], []
        for name, rule in tuner.rules.items():
            cells = ["—"] * 6
            if choice := rule.choice:
                eta = f"{choice.eta:g}" if system == "ensemble" else "—"
                cells = [f"{choice.omega:g}", eta, str(choice.k), choice.prior]
                cells += [_cell(*row) for row in tuner.reached(choice)]
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

    @matplotlib.rc_context(plots.STYLE)
    def curves_figure(self) -> plots.Plot:
        """Small multiples: a row for each machine and for all, a column for each metric, curves with their
        bands.
        """
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
            axis.fill_between(band_omegas, *bands[:, :, i, j].T, color=plots.pale(LOOKS[j]), lw=0)
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

    # ---------------------------------------------------------------- static faces

    def live_html(self) -> str:
        """The panel and all curves with the point marked, and the tables, without controls: for reports."""
        table = self.tuner.table()
        drawing = svg(*self.panel.size, self._curve() + self._mark(table), self._told())
        words = f"<p><strong>{tables.escape(self.sentence(table))}</strong></p>"
        return (
            picture(drawing, self._told())
            + words
            + self.table_html(table)
            + self.counts_html()
            + self.curves_figure()._repr_html_()
        )

    def chosen_html(self) -> str:
        """Map and rules, for reports."""
        body = self._map() + self.map.live(self.tuner.choice, {})
        return picture(svg(*self.map.size, body, MAPPED), MAPPED) + self.rules_html(self.tuner)


def paper_machines(machines: tuple[str, ...], synthetic: bool) -> str:
    """Why there are, or are not, rows of the paper beside these machines, in words."""
    shared = [machine for machine in machines if machine in metrics.PAPER_TABLE1]
    if synthetic or not shared:
        return "No row of the paper's Table 1 is drawn: " + (
            "the machines are synthetic." if synthetic else "no machine of this study is in it."
        )
    return f"Dashed: OEVAES in the paper's Table 1, for {', '.join(shared)}."


def _paper_row(machine: str) -> np.ndarray:
    """The paper's own system on a machine, fractions: AUC source, AUC target, pAUC, harmonic mean."""
    rows = metrics.paper_table1()
    own = rows[
        (rows["system"] == f"paper_{metrics.PAPER_SYSTEMS[-1]}") & (rows["machine"] == machine)
    ].set_index("metric")["value"]
    return own[list(COLUMNS)].to_numpy()


def _classed(widget, name: str):
    widget.add_class(name)
    return widget


def _button(label: str, name: str, act, disabled: bool = False) -> ipywidgets.Button:
    made = ipywidgets.Button(description=label, disabled=disabled, layout={"width": "auto"})
    made.on_click(act)
    return _classed(made, name)


def _cell(value: float, low: float = np.nan, high: float = np.nan) -> str:
    return tables.signed(tables.number(value, low, high))


# ---------------------------------------------------------------- drawings

LOOKS = (plots.BLUE, plots.ORANGE, plots.GREEN, plots.VERMILION)
LEFT, TOP, WIDE, HIGH = 56, 26, 600, 250  # of the panel, px
CELL_WIDE, CELL_HIGH, MAP_LEFT, MAP_TOP = 14, 20, 180, 24
FONT = 'font-family="system-ui,Helvetica,Arial,sans-serif" font-size="12"'
HALO = 'font-weight="700" paint-order="stroke" stroke="var(--jp-layout-color0, Canvas)" stroke-width="3"'
MAPPED = "map of Ω over ω, k and k_scale with the choices of the rules; they are in the table below"


def svg(width: float, height: float, body: str, label: str = "") -> str:
    """A drawing; without a label it is a layer that adds nothing for a screen reader."""
    role = f'role="img" aria-label="{html.escape(label)}"' if label else 'aria-hidden="true"'
    frame = f'<svg xmlns="http://www.w3.org/2000/svg" width="{width:.0f}" height="{height:.0f}"'
    look = (
        'style="display:block;color-scheme:light dark"'  # as an <img> of a page; inline the ink is inherited
    )
    return f'{frame} viewBox="0 0 {width:.0f} {height:.0f}" {role} {FONT} {look}>{body}</svg>'


def text(x: float, y: float, words: str, anchor: str = "start", more: str = "") -> str:
    """Words at (x, y), px, as SVG.  anchor : start, middle or end.  more : further attributes, not escaped"""
    place = f'x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}"'
    return f'<text {place} fill="currentColor" {more}>{html.escape(words)}</text>'


def picture(drawing: str, alt: str) -> tables.Html:
    """A drawing as one <img>, as reports show figures."""
    data = base64.b64encode(drawing.encode()).decode()
    return tables.Html(
        f'<div class="plot" tabindex="0"><img alt="{html.escape(alt)}"'
        f' src="data:image/svg+xml;base64,{data}"></div>'
    )


def _path(points, more: str) -> str:
    return f'<path d="M{"L".join(f"{x:.1f} {y:.1f}" for x, y in points)}" {more}/>'


class Panel:
    """One metric over ω. The band is the interval of the *difference* to the default, drawn around the
    default's value: where it leaves the line of the default, ω makes a difference.
    """

    size = LEFT + WIDE + 70, TOP + HIGH + 58

    def __init__(self):
        self.low, self.high = 0.0, 1.0

    def _place(self, omega, value) -> tuple:
        share = (np.asarray(value) - self.low) / (self.high - self.low)
        return LEFT + np.asarray(omega) * WIDE, TOP + HIGH * (1 - share)

    def omega_at(self, x: float) -> float:
        """ω at a place of the drawing, to 0.01."""
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
        """Axes, curve (W,) and band (V, 2) around the default's value `usual`; fixes the range for `live`."""
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
        legend = "line: the metric; band: interval of its difference to the default, on the same resamples"
        return "".join([*out, text(LEFT, TOP + HIGH + 52, legend)])

    def live(self, omega: float, value: float, pins: dict[str, tuple[float, float]]) -> str:
        """A line at ω and a mark at its value; the letters of pinned points."""
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
        """The middle of a point's cell."""
        column, row = choice.omega * (len(self.omegas) - 1), self.rows.index((choice.prior, choice.k))
        return MAP_LEFT + (column + 0.5) * CELL_WIDE, MAP_TOP + (row + 0.5) * CELL_HIGH

    def point_at(self, x: float, y: float) -> tuple[str, int, float] | None:
        """Prior, k and ω of the cell at a place of the drawing; None outside."""
        column, row = int((x - MAP_LEFT) // CELL_WIDE), int((y - MAP_TOP) // CELL_HIGH)
        if not (0 <= column < len(self.omegas) and 0 <= row < len(self.rows)):
            return None
        return *self.rows[row], float(self.omegas[column])

    def still(self, values: np.ndarray, name: str, letters: dict[str, Choice]) -> str:
        """Cells and letters.  values : (P, K, W).  name : of what they are."""
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
        """A frame around the point, and the letters of pinned points."""
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


# ---------------------------------------------------------------- the model

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
        self._usual = sweeps.default_replicates(parts, parts.systems[-1], self._weights)
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
                key: (areas, sweeps.band(parts, test[:: sweeps.EVERY], self._weights, self._usual))
            }
        return self._made[key]

    def curves(self) -> np.ndarray:
        """All metrics over ω at this η, k and prior: float64 (W, machines + 1, 4)."""
        return self.parts.table(
            self.sweep.areas[(self.slot(), *self._place)] if self._exact() else self._live()[0]
        )

    def _all_bands(self) -> np.ndarray:
        """`tuning.band` at every fifth ω."""
        ready = self.system == "oevae" or self.eta == self.parts.default.eta
        return self.sweep.bands[(int(self.system == "ensemble"), *self._place)] if ready else self._live()[1]

    def bands(self) -> tuple[np.ndarray, np.ndarray]:
        """Bootstrap bands of the curves: ω (V,) and low and high (V, 2, machines + 1, 4)."""
        return self.sweep.omegas[:: sweeps.EVERY], self._all_bands()[:, :2]

    def gains(self) -> tuple[np.ndarray, np.ndarray]:
        """Bands of the gain over the default, on the same resamples: as `bands`."""
        return self.sweep.omegas[:: sweeps.EVERY], self._all_bands()[:, 2:]

    def interval(self, gain: bool = False) -> np.ndarray:
        """Low and high at the point, (2, machines + 1, 4): `bands` or `gains`, interpolated in ω."""
        omegas, found = self.gains() if gain else self.bands()
        i = min(int(np.searchsorted(omegas, self.omega, side="right")), len(omegas) - 1)
        share = (self.omega - omegas[i - 1]) / (omegas[i] - omegas[i - 1])
        return (1 - share) * found[i - 1] + share * found[i]

    def gained(self, one: tuple[str, Choice], other: tuple[str, Choice]) -> np.ndarray:
        """What one (system, point) gains over another over all machines: each metric with low and high, (4,
        3).
        """
        parts = self.parts
        boots = [sweeps.replicates(parts, parts.final(*x).test, self._weights)[:, -1] for x in (one, other)]
        values = parts.point(*one)[-1] - parts.point(*other)[-1]
        return np.stack([values, *sweeps.interval(parts, boots[0] - boots[1])], axis=1)

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
