"""The interactive embedding map for JupyterLab, and its static version for reports: maps, lists, players.

Filled marks are test clips, hollow ones training clips. Text and background use the colors of the theme.
Source: METHOD 8.4, 8.5.  Notebook: 06_embeddings
"""

from __future__ import annotations

import html
import math
from collections.abc import Callable, Mapping
from pathlib import Path

import anywidget
import ipywidgets
import matplotlib
import numpy as np
import traitlets
from matplotlib.colors import to_hex

from asdlib import errors
from asdlib.analysis import explain, projection
from asdlib.viz import embedding_plots, pages, plots, tables
from asdlib.viz.embedding_plots import SHAPES, Points
from asdlib.viz.widgets import accept, controls
from asdlib.viz.widgets.clip_media import ClipMedia
from asdlib.viz.widgets.map_model import CSV_COLUMNS, FILTERS, WHY, EmbeddingMap, short

HERE = Path(__file__).resolve().parent
LEVELS = 64  # steps of a numeric coloring; one more code is for unknown values
MAX_ROWS = 50  # of the table of selected clips; the CSV file contains all
INK = "currentColor"


class MapPanel(anywidget.AnyWidget):
    """One map.

    xy : float32 pairs, 0..1, y upwards.  codes : uint8 triples (color, shape, bits: 1 test, 2 faint, 4
        outside the color scale).  chosen, near, selected : indices of points
    """

    _esm, _css = HERE / "embedding_map.js", HERE / "widgets.css"
    xy, codes = traitlets.Bytes().tag(sync=True), traitlets.Bytes().tag(sync=True)
    colors, shapes = traitlets.List().tag(sync=True), traitlets.List().tag(sync=True)
    chosen, near = traitlets.Int(-1).tag(sync=True), traitlets.List().tag(sync=True)
    selected, name = traitlets.List().tag(sync=True), traitlets.Unicode().tag(sync=True)


class Players(anywidget.AnyWidget):
    """Two players, A and B, as data URIs with names; "" hides one."""

    _esm = HERE / "players.js"
    a, a_name = traitlets.Unicode().tag(sync=True), traitlets.Unicode().tag(sync=True)
    b, b_name = traitlets.Unicode().tag(sync=True), traitlets.Unicode().tag(sync=True)


class ClipTable(anywidget.AnyWidget):
    """A table whose rows select and play a clip.  rows : {row, cells}.  caption : "" hides the table."""

    _esm = HERE / "clip_table.js"
    columns, rows = traitlets.List().tag(sync=True), traitlets.List().tag(sync=True)
    caption, csv = traitlets.Unicode().tag(sync=True), traitlets.Bool(False).tag(sync=True)


class EmbeddingMapView(ipywidgets.VBox):
    """The map and details of the selected clip in JupyterLab; static maps in a report.

    explained : (row, system of the view) -> explanation as HTML, computed on request; None: no button
    review : for "This is normal", see `accept.AcceptView`; None: no button
    listed : number of clips per category of the list
    """

    def __init__(
        self,
        model: EmbeddingMap,
        media: ClipMedia,
        explained: Callable[[int, str], str] | None = None,
        review=None,
        listed: int = 6,
    ):
        self.model, self.media, self.explained, self.most = model, media, explained, listed
        self.panels, self._points = [MapPanel(), MapPanel()], {}
        self.players, self.words = Players(), controls.Region()
        self.legend, self.detail, self.reason = (ipywidgets.HTML() for _ in range(3))
        self.near, self.selection = ClipTable(), ClipTable(csv=True)
        narrow = {"layout": {"width": "auto", "min_width": "11rem", "max_width": "22rem"}}
        narrow["style"] = {"description_width": "auto"}
        names = ("view", "projection", "items", "color", "beside")
        self.choices = {name: ipywidgets.Dropdown(description=name, **narrow) for name in names}
        self.filters = {name: ipywidgets.Dropdown(description=name, **narrow) for name in FILTERS}
        self.filters["search"] = ipywidgets.Text(
            description="search", placeholder="part of a name or attribute", continuous_update=True, **narrow
        )
        self.list = ipywidgets.Select(
            description="notable clips",
            rows=min(3 * listed + 1, 12),
            layout={"width": "calc(100% - 1rem)", "height": "auto", "flex_flow": "column"},
            style={"description_width": "auto"},
        )
        self.button = ipywidgets.Button(
            description="Why this score", tooltip="How the clip differs from normal; what raised its score"
        )
        explain_buttons = [self.button] * bool(explained)
        self.accept = accept.AcceptView(model, review, explain_buttons) if review else None
        for name, one in self.choices.items():
            one.observe(lambda change, name=name: self._choose(name, change["new"]), "value")
        for one in self.filters.values():
            one.observe(lambda _: self._filter(), "value")
        self.list.observe(lambda change: self._pick(change["new"]), "value")
        self.button.on_click(lambda _: self._explain())
        for number, panel in enumerate(self.panels):
            panel.on_msg(lambda _, message, buffers, number=number: self._message(message, number))
        for one in (self.near, self.selection):
            one.on_msg(lambda _, message, buffers: self._message(message, 0))
        classed = self.choices | {f"filter-{name}": one for name, one in self.filters.items()}
        classed |= {
            name: getattr(self, name)
            for name in ("words", "legend", "detail", "reason", "list", "near", "selection")
        }
        for name, one in (classed | {"why": self.button}).items():
            one.add_class(f"asd-map-{name}")
        row = {"flex_flow": "row wrap"}
        side = {"flex": "1 1 24rem", "min_width": "min(18rem, 100%)"}
        maps = ipywidgets.HBox(self.panels, layout={**row, "align_items": "flex-start"})
        self.left = ipywidgets.VBox([maps, self.legend, self.words, self.players, self.list], layout=side)
        right = ipywidgets.VBox([self.detail, self.near], layout=side)
        super().__init__(
            [
                ipywidgets.HBox(list(self.choices.values()), layout=row),
                ipywidgets.HBox(list(self.filters.values()), layout=row),
                ipywidgets.HBox([self.left, right], layout={**row, "align_items": "flex-start"}),
                *([self.accept] if review else explain_buttons),
                self.reason,
                self.selection,
                controls.Keys(within=".asd-map"),
            ]
        )
        self.add_class("asd-map")
        self._busy, self._drawn, self._listed, self._shown = False, None, None, None
        model.observe(lambda _: self._redraw(), [*names, "filters", "row", "segment"])
        model.observe(lambda _: self._select(), "selected")
        self._redraw()
        self._select()

    # ---------------------------------------------------------------- input

    def _choose(self, name: str, value: str | None) -> None:
        if not self._busy and value is not None:
            self.model.choose(**{name: "" if value == "no second map" else value})

    def _filter(self) -> None:
        if not self._busy:
            self.model.filters = {
                name: one.value for name, one in self.filters.items() if one.value not in ("any", "", None)
            }

    def _message(self, message: Mapping, number: int) -> None:
        """Handle a message from a map (0, 1) or a table."""
        kind, points = message.get("kind"), self._points[number]
        if kind in ("hover", "pick", "mark") and "number" in message:
            at = int(message["number"])
            if not 0 <= at < len(points.row):
                return
            row, segment = int(points.row[at]), int(points.segment[at])
            if kind == "hover":
                text = self.model.describe(row).replace(": ", "\n", 1).replace(". ", "\n", 1)
                self.panels[number].send({"kind": "tip", "number": at, "text": text})
            elif kind == "mark":
                self.model.mark(row)
            else:
                self._pick((row, segment), play=True)
        elif kind == "pick":
            self._pick((int(message["row"]), -1), play=True)
        elif kind == "mark" and self.model.row >= 0:
            self.model.mark(self.model.row)
        elif kind == "lasso":
            rows = dict.fromkeys(points.row[np.array(message["numbers"], int)].tolist())
            before = self.model.selected if message.get("more") else []
            self.model.selected = list(dict.fromkeys([*before, *rows]))
        elif kind == "clear":
            self.model.selected = []
        elif kind == "step":
            self.model.step(int(message["right"]), int(message["up"]), points)
        elif kind in ("play", "switch"):
            self.players.send({"kind": kind})
        elif kind == "csv":
            text = self.model.selection().to_csv(index=False)
            self.selection.send({"kind": "csv", "name": "selected_clips.csv", "text": text})

    def _pick(self, place: tuple[int, int] | None, play: bool = False) -> None:
        if place is None or self._busy:
            return
        self.model.pick(*place)
        if play:
            self.players.send({"kind": "play"})

    def _explain(self) -> None:
        """Compute and show the explanation of the selected clip's score."""
        if self.model.row < 0:
            self.reason.value = "<p>Choose a clip first.</p>"
            return
        self.button.disabled, before = True, self.button.description
        self.button.description = "computing"
        try:
            self.reason.value = str(self.explained(self.model.row, self.model.system))
        except errors.InputError as error:
            self.reason.value = f"<p>{html.escape(str(error))}</p>"
        finally:
            self.button.disabled, self.button.description = False, before

    # ---------------------------------------------------------------- output

    def _redraw(self) -> None:
        """Redraw maps, menus, legend and list if they changed, then the selected clip."""
        model = self.model
        now = (model.view, model.projection, model.items, model.color, model.beside, model.filters)
        if self._drawn != now:
            self._drawn, self._busy = now, True
            self._menus()
            for number, panel in enumerate(self.panels):
                shown = number == 0 or bool(model.beside)
                panel.layout.display = None if shown else "none"
                self._points[number] = points = model.points("" if number == 0 else model.beside)
                if shown:
                    self._map(panel, points, model.beside if number else model.view)
            self.left.layout.flex = "1 1 100%" if model.beside else "1 1 24rem"  # two maps side by side
            self.legend.value = _legend(model, self._points[0])
            self._busy = False
            self._select()
        if self._shown != (now := (model.row, model.segment, model.view, model.items, model.beside)):
            self._shown = now
            self._show()

    def _menus(self) -> None:
        model, menus = self.model, {}
        for name in ("view", "projection", "items", "color"):
            options = {"items": model.all_items, "view": list(model.views)}.get(name)
            menus[name] = getattr(model, f"{name}s") if options is None else options, getattr(model, name)
        others = [name for name in model.views if name != model.view]
        menus["beside"] = ["no second map", *others], model.beside or "no second map"
        for name, (options, value) in menus.items():
            if tuple(options) != self.choices[name].options:
                self.choices[name].options = options
            self.choices[name].value, self.choices[name].disabled = value, len(options) < 2
        for name in FILTERS:
            options = ["any", *model.filter_values(name)]
            if tuple(options) != self.filters[name].options:
                self.filters[name].options = options
            self.filters[name].value = model.filters.get(name, "any")
            self.filters[name].layout.display = None if len(options) > 2 else "none"
        self.filters["search"].value = model.filters.get("search", "")
        if self._listed == model.view:
            return
        self._listed, machines = model.view, set(model.table["machine"].iloc[model.rows(model.view)])
        listed = model.ranked_clips(model.system, self.most, *machines if len(machines) == 1 else ())
        entries = [("—", None)]
        for row, why, clip, sd in listed[["row", "why", "clip", "sd"]].itertuples(index=False):
            entries.append((f"{why}, {tables.signed(f'{sd:+.1f}')} sd: {short(clip)}", (row, -1)))
        self.list.options, self.list.value = entries, None

    def _map(self, panel: MapPanel, points: Points, view: str) -> None:
        model = self.model
        color, names = points.group, [INK if c == plots.BLACK else c for c, _ in points.looks]
        bits = points.test + 2 * ~model.passing(points.row)
        if points.value is not None:
            low, high = points.limits
            known = np.isfinite(points.value)
            share = np.clip((np.nan_to_num(points.value, nan=low) - low) / (high - low), 0, 1)
            color, names = (
                np.where(known, np.rint(share * (LEVELS - 1)), LEVELS),
                [*_scale(LEVELS), plots.GRAY],
            )
            bits = bits + 4 * (known & ((points.value < low) | (points.value > high)))
        shape = np.array([SHAPES.index(name) for _, name in points.looks], np.uint8)[points.group]
        with panel.hold_sync():
            panel.xy = np.stack([points.x, points.y], 1).astype("<f4").tobytes()
            panel.codes = np.stack([color, shape, bits], 1).astype(np.uint8).tobytes()
            panel.colors, panel.shapes = names, list(SHAPES)
            panel.name = (
                f"Map of {len(points.row)} {model.items}: {view}, {points.projection}, colored by"
                f" {points.color}. Arrow keys choose, Enter plays."
            )

    def _show(self) -> None:
        """Show the selected clip: marks and text, then audio, then pictures and tables."""
        model, row = self.model, self.model.row
        near = model.neighbors() if row >= 0 else None
        for number in range(1 + bool(model.beside)):
            panel, points = self.panels[number], self._points[number]
            with panel.hold_sync():
                panel.chosen = model.chosen(points)
                dashed = row >= 0 and points.segment[0] < 0
                panel.near = np.flatnonzero(np.isin(points.row, near["row"])).tolist() if dashed else []
        self.words.value, self.reason.value, self._busy = html.escape(model.describe_chosen(near)), "", True
        places = [place for _, place in self.list.options]
        self.list.value = next((place for place in places if place and place[0] == row), None)
        self._busy = False
        if row < 0:
            with self.players.hold_sync():
                self.players.a = self.players.a_name = self.players.b = self.players.b_name = ""
            self.near.caption, self.near.rows = "", []
            self.detail.value = "<p>Pictures, neighbors and scores of the chosen clip appear here.</p>"
            return
        nearest = int(near["row"].iloc[0]) if len(near) else -1
        with self.players.hold_sync():
            self.players.a, self.players.a_name = self.media.uri(row), short(model.table["clip"].iloc[row])
            self.players.b = self.media.uri(nearest) if nearest >= 0 else ""
            self.players.b_name = f"nearest normal, {short(near['clip'].iloc[0])}" if nearest >= 0 else ""
        self.near.columns = ["clip", "distance", "domain", "attributes"]
        with self.near.hold_sync():
            self.near.rows = [
                {
                    "row": int(one.row),
                    "cells": [short(one.clip), f"{one.distance:.3g}", one.domain, one.attributes],
                }
                for one in near.itertuples()
            ]
            self.near.caption = f"Nearest training clips in the embedding, by {model.items}"
        caption = (
            "Scores. sd: difference from the mean of training clips in standard deviations; training below:"
            " share of training clips with a lower score"
        )
        scores = model.components(row)
        main = scores["component"].isin(("score", "alpha", "beta"))
        clip = short(model.table["clip"].iloc[row])
        heading = f"{clip}, segment {model.segment + 1}: the whole clip" if model.segment >= 0 else clip
        parts = [f"<strong>{tables.breakable(heading)}</strong>", self.media.pictures(row, nearest)]
        parts += [
            tables.styled(scores[main], caption),
            tables.folded("All components", tables.styled(scores[~main])),
        ]
        self.detail.value = "".join(parts)

    def _select(self) -> None:
        """Mark the clips of the selection with rings in the maps, and list them."""
        model, rows = self.model, self.model.selected
        for number in range(1 + bool(model.beside)):
            ringed = np.flatnonzero(np.isin(self._points[number].row, rows))
            self.panels[number].selected = ringed.tolist()
        found = model.selection(MAX_ROWS)
        system = model.system if model.system in model.sd else model.sd.columns[0]
        texts = found.assign(clip=[short(clip) for clip in found["clip"]])
        texts = texts[[*CSV_COLUMNS, f"{system} sd", f"{system} decision"]]
        texts[f"{system} sd"] = [tables.signed(f"{sd:+.1f}") for sd in texts[f"{system} sd"]]
        more = f"; {MAX_ROWS} are shown, the CSV file contains all" if len(rows) > MAX_ROWS else ""
        with self.selection.hold_sync():
            self.selection.columns = list(texts)
            self.selection.rows = [
                {"row": row, "cells": list(cells)}
                for row, cells in zip(rows, texts.itertuples(index=False, name=None))
            ]
            self.selection.caption = f"Selected clips: {len(rows)}{more}" if rows else ""

    def _repr_mimebundle_(self, **wanted) -> dict:
        """Return the interactive view for JupyterLab and the static maps for a report."""
        live = super()._repr_mimebundle_(**wanted)
        static = "".join(figure._repr_html_() for figure in static_maps(self.model))
        return (live or {}) | {"text/html": static}


def _scale(steps: int) -> list[str]:
    """Return the colors of the numeric scale from low to high."""
    return [to_hex(c) for c in matplotlib.colormaps[embedding_plots.NUMBERS](np.linspace(0, 1, steps))]


def _legend(model: EmbeddingMap, points: Points) -> str:
    """Return the legend: colors and shapes with counts, axes, number of clips that pass the filters."""
    marks, passing = "", model.passing(points.row)
    for number, (name, (color, shape)) in enumerate(zip(points.names, points.looks)):
        color = INK if points.value is not None or color == plots.BLACK else color
        glyph = f'<span style="color:{color}">{embedding_plots.GLYPHS[shape]}</span>'
        count = int((passing & (points.group == number)).sum())
        marks += f'<span class="asd-map-mark">{glyph} {html.escape(name)} ({count})</span> '
    scale = ""
    if points.value is not None:
        look = f"background:linear-gradient(90deg,{','.join(_scale(9))})"
        bar, unit = f'<span class="asd-map-scale" style="{look}"></span>', ""
        low, high = (tables.signed(f"{end:.2g}") for end in points.limits)
        if points.color != "severity":
            low, high, unit = (
                f"≤ {low}",
                f"≥ {high}",
                " sd from the training mean; ends: 2nd and 98th percentile",
            )
        beyond = int(np.sum((points.value < points.limits[0]) | (points.value > points.limits[1])))
        dotted = f"; the {beyond} clips outside this range have a dot" if beyond else ""
        scale = f"<br>{html.escape(points.color)}: {low} {bar} {high}{unit}{dotted}"
    shown = f" {passing.sum()} of {len(passing)} pass the filters." if model.filters else ""
    return (
        f"<div>{marks}{scale}<br>{axes_words(model, points)}{shown} Filled: test, hollow: training, dashed"
        " rings: nearest training clips, thin rings: selected. Drag to move; click the map, then use"
        " the mouse wheel to zoom.</div>"
    )


def axes_words(model: EmbeddingMap, points: Points) -> str:
    """Describe the axes of the map in a sentence."""
    if points.projection == "PCA":
        return f"PCA: the two axes contain {100 * model.explained():.0f} % of the variance."
    return "UMAP: neighborhoods are preserved; distances between groups and their sizes have no meaning."


# ---------------------------------------------------------------- static versions


def static_maps(model: EmbeddingMap) -> list[plots.Plot]:
    """Plot the maps of all embeddings by clip: one row per machine for OEVAE, one row for the classifier."""
    out = []
    for system in dict.fromkeys(space.system for space in model.spaces.values()):
        rows, projected = {}, ""
        for view, (name, machine) in model.views.items():
            space = model.spaces[name]
            if space.system != system or machine or space.latent:
                continue
            colors = model.colors_of(view)
            names = ["domain", "label", f"score {system}"]
            names.insert(*((0, "machine") if "machine" in colors else (2, model.widest_attribute(view))))
            projected = next(one for one in projection.PROJECTIONS if (name, one, "clips") in model.xy)
            rows[view] = [
                model.points(view, projected, "clips", color) if color in colors else None for color in names
            ]
        out.append(embedding_plots.map_grid(rows, f"{system}, clips, {projected}"))
    return out


def why_figure(model: EmbeddingMap, found: explain.Why) -> plots.Plot:
    """Plot the explanation of one clip, with the range of the training clips of its machine."""
    machine, scores = model.table["machine"].iloc[found.row], model.scores
    train = scores[
        (scores["machine"] == machine) & (scores["split"] == "train") & (scores["system"] == "oevae")
    ]
    usual = {
        name: (part["score"].mean(), part["score"].std())
        for name, part in train.groupby("component")
        if name in ("alpha", "beta")
    }
    return embedding_plots.why(found, usual, f"{machine}: {short(model.table['clip'].iloc[found.row])}")


def listing(model: EmbeddingMap, media: ClipMedia, players: int) -> tables.Html:
    """List most anomalous clips, missed anomalies and false alarms of each system, with players.

    players : maximum number, divided evenly; a clip in several lists has one player.  Notebook: 06_embeddings
    """
    systems = list(dict.fromkeys(space.system for space in model.spaces.values()))
    n = max(players // (len(WHY) * len(systems)), 1)
    parts, played = [], set()
    for system in systems:
        listed = model.ranked_clips(system, n)
        for why, meaning in WHY.items():
            items = []
            for place in listed[listed["why"] == why].itertuples():
                shown = '<p class="note">See the player above.</p>' * (place.row in played)
                if not shown and len(played) < players:
                    played.add(place.row)
                    shown = pages.sound(media.uri(place.row), short(place.clip))
                near = "".join(
                    f"Nearest training clip at distance {one.distance:.3g}: {short(one.clip)},"
                    f" {one.attributes}."
                    for one in model.neighbors_of(system, place.row, 1).itertuples()
                )
                facts = (
                    f"{place.machine}, {place.domain}, {place.label}, {place.attributes}; {place.sd:+.1f} sd"
                )
                limit = place.above_threshold
                facts += " from the training mean, " + (
                    f"{limit:+.1f} sd from the threshold" if math.isfinite(limit) else "no threshold"
                )
                words = (
                    f"<strong>{tables.breakable(short(place.clip))}</strong>"
                    f" ({tables.escape(tables.signed(facts))}). {tables.breakable(near)}"
                )
                items.append(pages.clip(tables.Html(shown), tables.Html(words)))
            body = f"<div class='clips'>{''.join(items)}</div>" if items else '<p class="note">none</p>'
            parts.append(f"<h3>{html.escape(system)}: {why} ({meaning})</h3>{body}")
    return tables.Html(f'<div class="asd-map-clips">{"".join(parts)}</div>')
