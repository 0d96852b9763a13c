"""The view of the embedding atlas: controls, map, the chosen clip as sound and pictures, the lists beside it; and its static twin.

Conventions
-----------
The model is `explore.atlas.Atlas`; this module only shows it. The map is one anywidget canvas (`atlas.js`): a click chooses and plays, arrow keys
go to the nearest point that way, Enter plays. What is chosen is said in words in an aria-live region. In a report, which runs no
script, the same object is its static twin: small multiples of the maps. The lists are plain HTML in both (`embedding_map_static.listing`).

DOM classes, for tests: asd-atlas (the whole), asd-atlas-view, -projection, -items, -colour (choices), asd-atlas-map, -canvas, -player, -said
(canvas widget), asd-atlas-legend, asd-atlas-list (choice of listed clips), asd-atlas-detail (pictures and tables), asd-atlas-why (button),
asd-atlas-reason (its answer), asd-atlas-clips (static lists).
Source: METHOD 8.5, 8.4.  Notebook: 06_embeddings
"""

from __future__ import annotations

import html
from collections.abc import Callable, Mapping
from pathlib import Path

import anywidget
import ipywidgets
import matplotlib
import numpy as np
import traitlets
from matplotlib.colors import to_hex

from asdlib import errors
from asdlib.analysis import explain
from asdlib.viz import embedding_plots, tables
from asdlib.viz.widgets.embedding_map_model import Atlas, short
from asdlib.viz.widgets.embedding_map_static import Sounds, static_maps, why_figure

LEVELS = 64  # steps of a numeric colouring
PLAIN = "font:13px/1.5 system-ui,sans-serif;color:#1b1f24"


class Canvas(anywidget.AnyWidget):
    """The map. xy : float32 pairs, 0..1, y upwards.  codes : uint8 triples (colour, shape, test).  chosen, near : numbers of points."""

    _esm = Path(__file__).with_name("embedding_map.js")
    _css = ".asd-atlas .plot img { max-width: 100%; height: auto; } .asd-atlas .asd-atlas-list > label { text-align: left; }"
    _css += ".asd-atlas .asd-atlas-list > select { flex: 0 0 auto; width: 100%; height: auto; }"
    xy, codes = traitlets.Bytes().tag(sync=True), traitlets.Bytes().tag(sync=True)
    colours, shapes = traitlets.List().tag(sync=True), traitlets.List().tag(sync=True)
    chosen, near = traitlets.Int(-1).tag(sync=True), traitlets.List().tag(sync=True)
    name, said = traitlets.Unicode().tag(sync=True), traitlets.Unicode().tag(sync=True)
    sound, sound_name = traitlets.Unicode().tag(sync=True), traitlets.Unicode().tag(sync=True)


class AtlasView(ipywidgets.VBox):
    """The atlas in JupyterLab; in a report its static twin."""

    def __init__(self, atlas: Atlas, sounds: Sounds, explained: Callable[[int], explain.Why] | None = None, listed: int = 6):
        """explained : row -> what explains that clip, computed when asked for; None: no such button.  listed : clips per reason of the list"""
        self.atlas, self.sounds, self.explained, self.most = atlas, sounds, explained, listed
        self.canvas, self.legend, self.detail, self.reason = Canvas(), ipywidgets.HTML(), ipywidgets.HTML(), ipywidgets.HTML()
        self.choices = {name: ipywidgets.Dropdown(description=name) for name in ("view", "projection", "items", "colour")}
        wide = {"layout": {"width": "calc(100% - 1rem)", "height": "auto", "flex_flow": "column"}, "style": {"description_width": "auto"}}
        self.list = ipywidgets.Select(description="worth hearing", rows=min(3 * listed + 1, 12), **wide)
        self.button = ipywidgets.Button(description="Why this score", tooltip="Residual, slopes, segments and branches of the chosen clip")
        for name, one in self.choices.items():
            one.add_class(f"asd-atlas-{name}")
            one.observe(lambda change, name=name: self._chosen(name, change["new"]), "value")
        named = {"legend": self.legend, "detail": self.detail, "reason": self.reason, "list": self.list, "why": self.button}
        for name, one in named.items():
            one.add_class(f"asd-atlas-{name}")
        self.list.observe(lambda change: self._pick(change["new"], play=False), "value")
        self.button.on_click(lambda _: self._explain())
        self.canvas.on_msg(lambda _, message, buffers: self._message(message))
        left = ipywidgets.VBox([self.canvas, self.legend, self.list], layout={"flex": "1 1 26rem", "min_width": "20rem", "max_width": "40rem"})
        right = ipywidgets.VBox([self.detail, *([self.button] if explained else [])], layout={"flex": "1 1 30rem", "min_width": "20rem"})
        body = ipywidgets.HBox([left, right], layout={"flex_flow": "row wrap", "align_items": "flex-start"})
        controls = ipywidgets.HBox(list(self.choices.values()), layout={"flex_flow": "row wrap"})
        super().__init__([controls, body, self.reason])
        self.add_class("asd-atlas")
        self._busy, self._drawn, self._shown = False, (), ()
        atlas.observe(lambda _: self._redraw(), ["view", "projection", "items", "colour"])
        atlas.observe(lambda _: self._show(), ["row", "segment"])
        self._redraw()

    # ---------------------------------------------------------------- what the user does

    def _chosen(self, name: str, value: str) -> None:
        if not self._busy and value is not None:
            self.atlas.choose(**{name: value})

    def _message(self, message: Mapping) -> None:
        if message.get("kind") == "pick":
            points = self._points
            number = int(message["number"])
            if 0 <= number < len(points.row):
                self._pick((int(points.row[number]), int(points.segment[number])), play=True)
        elif message.get("kind") == "step":
            self.atlas.step(int(message["right"]), int(message["up"]))

    def _pick(self, place: tuple[int, int] | None, play: bool) -> None:
        if place is None or self._busy:
            return
        self.atlas.pick(*place)
        if play:
            self.canvas.send({"kind": "play"})

    def _explain(self) -> None:
        """Compute and show why the chosen clip was scored so."""
        if self.atlas.row < 0:
            self.reason.value = f'<p style="{PLAIN}">Choose a clip first.</p>'
            return
        self.button.disabled, before = True, self.button.description
        self.button.description = "computing"
        try:
            self.reason.value = why_figure(self.atlas, self.explained(self.atlas.row))._repr_html_()
        except errors.Refusal as refusal:
            self.reason.value = f'<p style="{PLAIN}">{html.escape(str(refusal))}</p>'
        finally:
            self.button.disabled, self.button.description = False, before

    # ---------------------------------------------------------------- what the user sees

    def _redraw(self) -> None:
        """Everything that follows from view, projection, items and colour; nothing if they are what is drawn."""
        atlas = self.atlas
        if self._drawn == (now := (atlas.view, atlas.projection, atlas.items, atlas.colour)):
            return
        self._drawn, self._shown, self._busy = now, (), True
        self._points = points = atlas.points()
        for name, there in (("view", list(atlas.views)), ("projection", atlas.projections), ("items", atlas.all_items), ("colour", atlas.colours)):
            if tuple(there) != self.choices[name].options:
                self.choices[name].options = there
            self.choices[name].value = getattr(atlas, name)
            self.choices[name].disabled = len(there) < 2
        listed = atlas.listed(atlas.space.system, self.most, atlas.views[atlas.view][1] or self._only_machine())
        options = [("—", None)]
        for row, why, clip, sd in listed[["row", "why", "clip", "sd"]].itertuples(index=False):
            options.append((f"{why}, {tables.signed(f'{sd:+.1f}')} sd: {short(clip)}", (row, -1)))
        self.list.options, self.list.value = options, None
        self._busy = False
        colour, names = self._coloured(points)
        shape = np.array([embedding_plots.SHAPES.index(name) for _, name in points.looks], np.uint8)[points.group]
        with self.canvas.hold_sync():
            self.canvas.xy = np.stack([points.x, points.y], 1).astype("<f4").tobytes()
            self.canvas.codes = np.stack([colour, shape, points.test], 1).astype(np.uint8).tobytes()
            self.canvas.colours, self.canvas.shapes = names, list(embedding_plots.SHAPES)
            shown = f"{atlas.view}, {atlas.projection}, coloured by {atlas.colour}"
            self.canvas.name = f"Map of {len(points.row)} {atlas.items}: {shown}. Arrow keys choose, Enter plays."
        self.legend.value = _legend(atlas, points)
        self._show()

    def _only_machine(self) -> str:
        machines = self.atlas.table["machine"].iloc[self.atlas.space.rows].unique()
        return str(machines[0]) if len(machines) == 1 else ""

    @staticmethod
    def _coloured(points: embedding_plots.Points) -> tuple[np.ndarray, list[str]]:
        """Number of each point's colour, and the colours."""
        if points.value is None:
            return points.group.astype(np.uint8), [colour for colour, _ in points.looks]
        low, high = points.limits
        step = np.clip((np.nan_to_num(points.value, nan=low) - low) / (high - low), 0, 1) * (LEVELS - 1)
        return np.rint(step).astype(np.uint8), _scale(LEVELS)

    def _show(self) -> None:
        """The chosen clip: first what is heard and marked, then the pictures; nothing if it is what is shown."""
        atlas, row = self.atlas, self.atlas.row
        if self._drawn != (atlas.view, atlas.projection, atlas.items, atlas.colour):
            return  # the map comes first, and calls this
        if self._shown == (now := (row, atlas.segment, *self._drawn)):
            return
        self._shown, points = now, self._points
        near = atlas.neighbours() if row >= 0 else None
        with self.canvas.hold_sync():
            self.canvas.chosen = atlas.chosen(points)
            self.canvas.near = np.flatnonzero(np.isin(points.row, near["row"])).tolist() if row >= 0 and atlas.items == "clips" else []
            self.canvas.said = atlas.said()
            self.canvas.sound = self.sounds.uri(row) if row >= 0 else ""
            self.canvas.sound_name = short(atlas.table["clip"].iloc[row]) if row >= 0 else ""
        self.reason.value = ""
        if row < 0:
            self.detail.value = f'<p style="{PLAIN}">The chosen clip is shown here: its log-mel and phase, its neighbours and its scores.</p>'
            return
        parts = [f"<strong>{html.escape(self._heading())}</strong>", self.sounds.pictures(row)]
        columns = near.assign(clip=[short(clip) for clip in near["clip"]]).drop(columns="row")
        parts.append(tables.styled(columns, f"Nearest training clips in the embedding ({atlas.view.split(',')[0]}, by {atlas.items})"))
        caption = "Its scores. sd: distance from the mean of training clips; training below: share of training clips with a lower score"
        scores = atlas.components(row)
        main = scores["component"].isin(("score", "alpha", "beta"))
        parts += [tables.styled(scores[main], caption), tables.folded("All components", tables.styled(scores[~main]))]
        self.detail.value = f'<div style="{PLAIN}">{"".join(parts)}</div>'

    def _heading(self) -> str:
        """Whose pictures these are; the rest is said below the map."""
        clip = short(self.atlas.table["clip"].iloc[self.atlas.row])
        return f"{clip}, segment {self.atlas.segment + 1}: the whole clip" if self.atlas.segment >= 0 else clip

    def _repr_mimebundle_(self, **wanted) -> dict:
        """Two faces: the live view for Lab, the static maps for a report."""
        live = super()._repr_mimebundle_(**wanted)
        static = "".join(figure._repr_html_() for figure in static_maps(self.atlas))
        return (live or {}) | {"text/html": static}


def _scale(steps: int) -> list[str]:
    """Colours of the numeric scale from low to high."""
    return [to_hex(colour) for colour in matplotlib.colormaps[embedding_plots.NUMBERS](np.linspace(0, 1, steps))]


def _legend(atlas: Atlas, points: embedding_plots.Points) -> str:
    """Names of colours and shapes as inline SVG marks, and what the axes are."""
    marks = ""
    for name, (colour, shape) in zip(points.names, points.looks):
        glyph = f'<span style="color:{colour if points.value is None else "#555"}">{embedding_plots.GLYPHS[shape]}</span>'
        marks += f'<span style="white-space:nowrap;margin-right:.9em">{glyph} {html.escape(name)}</span> '
    scale = ""
    if points.value is not None:
        look = f"display:inline-block;width:9em;height:.8em;vertical-align:middle;background:linear-gradient(90deg,{','.join(_scale(9))})"
        bar = f'<span style="{look}"></span>'
        low, high = (tables.signed(f"{end:+.1f}") for end in points.limits)
        scale = f"<br>{html.escape(atlas.colour)}: {low} {bar} {high} sd from the training mean"
    return f'<div style="{PLAIN}">{marks}{scale}<br>{axes_words(atlas)} Filled: test, hollow: training, dashed rings: nearest training clips.</div>'


def axes_words(atlas: Atlas) -> str:
    """What the two axes of the shown map are, in a sentence."""
    if atlas.projection == "PCA":
        kept = atlas.explained()
        return f"PCA: the two axes hold {100 * kept:.0f} % of the variance."
    return "UMAP: near means near; distances between groups and their sizes mean nothing."
