"""The view of the embedding atlas: controls, map, the chosen clip as sound and pictures, the lists beside it;
and its static twin.

Conventions
-----------
`EmbeddingMap` is the model, `EmbeddingMapView` shows it. The map is one anywidget canvas
(`embedding_map.js`): a click chooses and plays, arrow keys go to the nearest point that way, Enter plays.
What is chosen is said in words in an aria-live region. In a report, which runs no script, the same object is
its static twin: small multiples of the maps. The lists are plain HTML in both (`embedding_map.listing`).

DOM classes, for tests: asd-atlas (the whole), asd-atlas-view, -projection, -items, -color (choices),
asd-atlas-map, -canvas, -player, -said (canvas widget), asd-atlas-legend, asd-atlas-list (choice of listed
clips), asd-atlas-detail (pictures and tables), asd-atlas-why (button), asd-atlas-reason (its answer),
asd-atlas-clips (static lists).
Source: METHOD 8.5, 8.4.  Notebook: 06_embeddings

The embedding atlas: which map is shown, how it is colored, which clip is chosen, and everything that is
known about that clip.

Conventions
-----------
A view is a space (`projection.Space`), or one machine's part of it. A point is an item of the view: a clip,
or a segment. The chosen clip is kept by its store row, so that it stays chosen when view, items or projection
change, wherever it has a point. Scores stand in standard deviations (sd) above the mean of the machine's
normal training scores. Labels of test clips are shown to the reader; nothing here feeds back into a score.

Every color has a shape beside it. Color and shape carry the same thing; where color is a number, the shape
is the label. Filled marks are test clips, hollow ones training clips.
Sources: METHOD 8.5.  Notebook: 06_embeddings

What an atlas shows without any script: sounds and pictures of a clip, maps as figures, lists with players,
reasons of a score.

Conventions
-----------
Used by the live view (`widgets.atlas`) for its chosen clip and by reports for everything. All clips of a
machine have one gain, so that levels can be compared by ear; pictures have one scale from the loudest cell
down. Everything that comes from data is escaped.
Source: METHOD 8.4.  Notebook: 06_embeddings
"""

from __future__ import annotations

import html
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import anywidget
import ipywidgets
import matplotlib
import numpy as np
import pandas as pd
import torch
import traitlets
from matplotlib.colors import to_hex
from traitlets import HasTraits, Int, Unicode

from asdlib import errors, features, schemas
from asdlib.analysis import explain
from asdlib.analysis import projection as analysis_projection
from asdlib.data import index
from asdlib.data.store import Store
from asdlib.scoring import fusion
from asdlib.viz import audio, claims, embedding_plots, pages, plots, tables
from asdlib.viz.embedding_plots import COLORS, SHAPES, Points

LEVELS = 64  # steps of a numeric coloring
PLAIN = "font:13px/1.5 system-ui,sans-serif;color:#1b1f24"


class Canvas(anywidget.AnyWidget):
    """The map. xy : float32 pairs, 0..1, y upwards.  codes : uint8 triples (color, shape, test).  chosen,
    near : numbers of points.
    """

    _esm = Path(__file__).with_name("embedding_map.js")
    _css = (
        ".asd-atlas .plot img { max-width: 100%; height: auto; } .asd-atlas .asd-atlas-list > label {"
        " text-align: left; }"
    )
    _css += ".asd-atlas .asd-atlas-list > select { flex: 0 0 auto; width: 100%; height: auto; }"
    xy, codes = traitlets.Bytes().tag(sync=True), traitlets.Bytes().tag(sync=True)
    colors, shapes = traitlets.List().tag(sync=True), traitlets.List().tag(sync=True)
    chosen, near = traitlets.Int(-1).tag(sync=True), traitlets.List().tag(sync=True)
    name, said = traitlets.Unicode().tag(sync=True), traitlets.Unicode().tag(sync=True)
    sound, sound_name = traitlets.Unicode().tag(sync=True), traitlets.Unicode().tag(sync=True)


class EmbeddingMapView(ipywidgets.VBox):
    """The atlas in JupyterLab; in a report its static twin."""

    def __init__(
        self,
        atlas: EmbeddingMap,
        sounds: ClipMedia,
        explained: Callable[[int], explain.Why] | None = None,
        listed: int = 6,
    ):
        """The map and its controls.

        explained : row -> what explains that clip, computed when asked for; None: no such button.  listed
        : clips per reason of the list
        """
        self.atlas, self.sounds, self.explained, self.most = atlas, sounds, explained, listed
        self.canvas, self.legend, self.detail, self.reason = (
            Canvas(),
            ipywidgets.HTML(),
            ipywidgets.HTML(),
            ipywidgets.HTML(),
        )
        self.choices = {
            name: ipywidgets.Dropdown(description=name) for name in ("view", "projection", "items", "color")
        }
        wide = {
            "layout": {"width": "calc(100% - 1rem)", "height": "auto", "flex_flow": "column"},
            "style": {"description_width": "auto"},
        }
        self.list = ipywidgets.Select(description="worth hearing", rows=min(3 * listed + 1, 12), **wide)
        self.button = ipywidgets.Button(
            description="Why this score", tooltip="Residual, slopes, segments and branches of the chosen clip"
        )
        for name, one in self.choices.items():
            one.add_class(f"asd-atlas-{name}")
            one.observe(lambda change, name=name: self._chosen(name, change["new"]), "value")
        named = {
            "legend": self.legend,
            "detail": self.detail,
            "reason": self.reason,
            "list": self.list,
            "why": self.button,
        }
        for name, one in named.items():
            one.add_class(f"asd-atlas-{name}")
        self.list.observe(lambda change: self._pick(change["new"], play=False), "value")
        self.button.on_click(lambda _: self._explain())
        self.canvas.on_msg(lambda _, message, buffers: self._message(message))
        left = ipywidgets.VBox(
            [self.canvas, self.legend, self.list],
            layout={"flex": "1 1 26rem", "min_width": "20rem", "max_width": "40rem"},
        )
        right = ipywidgets.VBox(
            [self.detail, *([self.button] if explained else [])],
            layout={"flex": "1 1 30rem", "min_width": "20rem"},
        )
        body = ipywidgets.HBox([left, right], layout={"flex_flow": "row wrap", "align_items": "flex-start"})
        controls = ipywidgets.HBox(list(self.choices.values()), layout={"flex_flow": "row wrap"})
        super().__init__([controls, body, self.reason])
        self.add_class("asd-atlas")
        self._busy, self._drawn, self._shown = False, (), ()
        atlas.observe(lambda _: self._redraw(), ["view", "projection", "items", "color"])
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
        except errors.InputError as refusal:
            self.reason.value = f'<p style="{PLAIN}">{html.escape(str(refusal))}</p>'
        finally:
            self.button.disabled, self.button.description = False, before

    # ---------------------------------------------------------------- what the user sees

    def _redraw(self) -> None:
        """Redraw what follows from view, projection, items and color, if any of them changed."""
        atlas = self.atlas
        if self._drawn == (now := (atlas.view, atlas.projection, atlas.items, atlas.color)):
            return
        self._drawn, self._shown, self._busy = now, (), True
        self._points = points = atlas.points()
        for name, there in (
            ("view", list(atlas.views)),
            ("projection", atlas.projections),
            ("items", atlas.all_items),
            ("color", atlas.colors),
        ):
            if tuple(there) != self.choices[name].options:
                self.choices[name].options = there
            self.choices[name].value = getattr(atlas, name)
            self.choices[name].disabled = len(there) < 2
        listed = atlas.ranked_clips(
            atlas.space.system, self.most, atlas.views[atlas.view][1] or self._only_machine()
        )
        options = [("—", None)]
        for row, why, clip, sd in listed[["row", "why", "clip", "sd"]].itertuples(index=False):
            options.append((f"{why}, {tables.signed(f'{sd:+.1f}')} sd: {short(clip)}", (row, -1)))
        self.list.options, self.list.value = options, None
        self._busy = False
        color, names = self._colored(points)
        shape = np.array([SHAPES.index(name) for _, name in points.looks], np.uint8)[points.group]
        with self.canvas.hold_sync():
            self.canvas.xy = np.stack([points.x, points.y], 1).astype("<f4").tobytes()
            self.canvas.codes = np.stack([color, shape, points.test], 1).astype(np.uint8).tobytes()
            self.canvas.colors, self.canvas.shapes = names, list(SHAPES)
            shown = f"{atlas.view}, {atlas.projection}, colored by {atlas.color}"
            self.canvas.name = (
                f"Map of {len(points.row)} {atlas.items}: {shown}. Arrow keys choose, Enter plays."
            )
        self.legend.value = _legend(atlas, points)
        self._show()

    def _only_machine(self) -> str:
        machines = self.atlas.table["machine"].iloc[self.atlas.space.rows].unique()
        return str(machines[0]) if len(machines) == 1 else ""

    @staticmethod
    def _colored(points: Points) -> tuple[np.ndarray, list[str]]:
        """Number of each point's color, and the colors."""
        if points.value is None:
            return points.group.astype(np.uint8), [color for color, _ in points.looks]
        low, high = points.limits
        step = np.clip((np.nan_to_num(points.value, nan=low) - low) / (high - low), 0, 1) * (LEVELS - 1)
        return np.rint(step).astype(np.uint8), _scale(LEVELS)

    def _show(self) -> None:
        """Show the chosen clip, if it changed: first sound and marks, then the pictures."""
        atlas, row = self.atlas, self.atlas.row
        if self._drawn != (atlas.view, atlas.projection, atlas.items, atlas.color):
            return  # the map comes first, and calls this
        if self._shown == (now := (row, atlas.segment, *self._drawn)):
            return
        self._shown, points = now, self._points
        near = atlas.neighbors() if row >= 0 else None
        with self.canvas.hold_sync():
            self.canvas.chosen = atlas.chosen(points)
            self.canvas.near = (
                np.flatnonzero(np.isin(points.row, near["row"])).tolist()
                if row >= 0 and atlas.items == "clips"
                else []
            )
            self.canvas.said = atlas.said()
            self.canvas.sound = self.sounds.uri(row) if row >= 0 else ""
            self.canvas.sound_name = short(atlas.table["clip"].iloc[row]) if row >= 0 else ""
        self.reason.value = ""
        if row < 0:
            self.detail.value = (
                f'<p style="{PLAIN}">The chosen clip is shown here: its log-mel and phase, its neighbors and'
                " its scores.</p>"
            )
            return
        parts = [f"<strong>{html.escape(self._heading())}</strong>", self.sounds.pictures(row)]
        columns = near.assign(clip=[short(clip) for clip in near["clip"]]).drop(columns="row")
        parts.append(
            tables.styled(
                columns,
                f"Nearest training clips in the embedding ({atlas.view.split(',')[0]}, by {atlas.items})",
            )
        )
        caption = (
            "Its scores. sd: distance from the mean of training clips; training below: share of training"
            " clips with a lower score"
        )
        scores = atlas.components(row)
        main = scores["component"].isin(("score", "alpha", "beta"))
        parts += [
            tables.styled(scores[main], caption),
            tables.folded("All components", tables.styled(scores[~main])),
        ]
        self.detail.value = f'<div style="{PLAIN}">{"".join(parts)}</div>'

    def _heading(self) -> str:
        """Whose pictures these are; the rest is said below the map."""
        clip = short(self.atlas.table["clip"].iloc[self.atlas.row])
        return (
            f"{clip}, segment {self.atlas.segment + 1}: the whole clip" if self.atlas.segment >= 0 else clip
        )

    def _repr_mimebundle_(self, **wanted) -> dict:
        """Two faces: the live view for Lab, the static maps for a report."""
        live = super()._repr_mimebundle_(**wanted)
        static = "".join(figure._repr_html_() for figure in static_maps(self.atlas))
        return (live or {}) | {"text/html": static}


def _scale(steps: int) -> list[str]:
    """Colors of the numeric scale from low to high."""
    return [
        to_hex(color) for color in matplotlib.colormaps[embedding_plots.NUMBERS](np.linspace(0, 1, steps))
    ]


def _legend(atlas: EmbeddingMap, points: Points) -> str:
    """Names of colors and shapes as inline SVG marks, and what the axes are."""
    marks = ""
    for name, (color, shape) in zip(points.names, points.looks):
        glyph = (
            "<span"
            f' style="color:{color if points.value is None else "#555"}">'
            f"{embedding_plots.GLYPHS[shape]}</span>"
        )
        marks += f'<span style="white-space:nowrap;margin-right:.9em">{glyph} {html.escape(name)}</span> '
    scale = ""
    if points.value is not None:
        bar = f"background:linear-gradient(90deg,{','.join(_scale(9))})"
        look = f"display:inline-block;width:9em;height:.8em;vertical-align:middle;{bar}"
        bar = f'<span style="{look}"></span>'
        low, high = (tables.signed(f"{end:+.1f}") for end in points.limits)
        scale = f"<br>{html.escape(atlas.color)}: {low} {bar} {high} sd from the training mean"
    return (
        f'<div style="{PLAIN}">{marks}{scale}<br>{axes_words(atlas)} Filled: test, hollow: training, dashed'
        " rings: nearest training clips.</div>"
    )


def axes_words(atlas: EmbeddingMap) -> str:
    """What the two axes of the shown map are, in a sentence."""
    if atlas.projection == "PCA":
        kept = atlas.explained()
        return f"PCA: the two axes hold {100 * kept:.0f} % of the variance."
    return "UMAP: near means near; distances between groups and their sizes mean nothing."


MOST_GROUPS = 16  # named values of a coloring; further ones are "other"
WHY = {
    "most anomalous": "highest scores",
    "most missed": "anomalies with the lowest scores",
    "most falsely alarmed": "normal clips with the highest scores",
}
KNOWN = {
    "domain": {
        "source": (plots.BLUE, "circle"),
        "target": (plots.ORANGE, "square"),
        "unknown": (plots.GRAY, "diamond"),
    },
    "label": {
        "normal": (plots.BLUE, "circle"),
        "anomaly": (plots.VERMILION, "cross"),
        "unlabeled": (plots.GRAY, "square"),
    },
}  # as in all other figures


class EmbeddingMap(HasTraits):
    """All spaces of a study and seed, with the view that is shown of them.

    view, projection, items, color : by name; the choices are `views`, `projections`, `all_items` and
        `colors`; set them by `choose`
    row, segment : the chosen clip and, where segments are shown, segment; -1: none; set them by `pick` and
        `step`
    raises : errors.InputError without a space
    """

    view, projection, items, color = Unicode(), Unicode(), Unicode(), Unicode()
    row, segment = Int(-1), Int(-1)

    def __init__(
        self,
        spaces: Sequence[analysis_projection.Space],
        xy: analysis_projection.Maps,
        table: pd.DataFrame,
        scores: pd.DataFrame,
        decisions: pd.DataFrame,
    ):
        """spaces, xy : of `maps`.  table : the store's clip table.  scores : SCORE_COLUMNS of one seed.
        decisions : of `metrics.decisions`
        """
        if not spaces:
            raise errors.InputError(
                "no embedding came, expected those of oevae or classifier; add one of them to the study's"
                " systems and run it"
            )
        self.spaces, self.xy, self.table = {space.name: space for space in spaces}, xy, table
        self.scores, self.decisions = scores, decisions
        self.judged, self._referred = schemas.by_references(table)["machine"], schemas.by_references(scores)
        self.views = {}
        for space in spaces:
            machines = list(table["machine"].iloc[space.rows].unique())
            self.views[space.name if len(machines) == 1 else f"{space.name}, all machines"] = (space.name, "")
            if len(machines) > 1:
                self.views |= {
                    f"{space.name}, {machine}": (space.name, machine) for machine in sorted(machines)
                }
        self._row_of = {name: row for row, name in enumerate(table["clip"])}
        self.standing, self._known = self._standing(), {}
        first = next(iter(self.views))
        made = [
            projection
            for space, projection, items in xy
            if space == self.views[first][0] and items == "clips"
        ]
        super().__init__(view=first, projection=made[0], items="clips", color="label")

    def fresh(self) -> EmbeddingMap:
        """Another atlas of the same maps and scores, whose choices are its own."""
        return EmbeddingMap(list(self.spaces.values()), self.xy, self.table, self.scores, self.decisions)

    def _standing(self) -> pd.DataFrame:
        """Score of every clip in sd above the normal training mean; index: store row, a column for each
        system.
        """
        own = self._referred[self._referred["component"] == "score"]
        train = own[own["split"] == "train"].groupby(["system", "machine"])["score"].agg(["mean", "std"])
        own = own.join(train, on=["system", "machine"])
        own = own.assign(
            row=own["clip"].map(self._row_of),
            sd=(own["score"] - own["mean"]) / own["std"].where(own["std"] > 0),
        )
        return own.pivot_table(index="row", columns="system", values="sd")[fusion.in_order(own["system"])]

    # ---------------------------------------------------------------- choices

    @property
    def space(self) -> analysis_projection.Space:
        """The space of the view."""
        return self.spaces[self.views[self.view][0]]

    @property
    def all_items(self) -> list[str]:
        """`clips`, and `segments` where clips have several."""
        return list(analysis_projection.ITEMS if self.space.segmented else analysis_projection.ITEMS[:1])

    @property
    def projections(self) -> list[str]:
        """Projections that were made of the view's space and items."""
        return [
            name for name in analysis_projection.PROJECTIONS if (self.space.name, name, self.items) in self.xy
        ]

    @property
    def colors(self) -> list[str]:
        """What the view can be colored by."""
        table = self.table.iloc[self._rows()]
        attributes = [f"attribute {key}" for key in index.attribute_keys(table)]
        machine = ["machine"] if table["machine"].nunique() > 1 else []
        return [*machine, "domain", "label", *attributes, *(f"score {system}" for system in self.standing)]

    def widest_attribute(self) -> str:
        """The coloring by the view's attribute with most values that can still be named; "" without
        attributes.
        """
        table = self.table.iloc[self._rows()]
        counts = {key: table[f"attr_{key}"].nunique() for key in index.attribute_keys(table)}
        few = {key: count for key, count in counts.items() if count <= MOST_GROUPS} or counts
        return f"attribute {max(few, key=few.get)}" if few else ""

    def choose(self, view: str = "", items: str = "", projection: str = "", color: str = "") -> None:
        """Change what is shown; "" keeps it. What the new view does not have falls back to its first choice.

        raises : errors.InputError for what the view asked for does not have
        """
        if view:
            errors.check_choice("view", view, list(self.views))
        with self.hold_trait_notifications():
            self.view = view or self.view
            for name, wanted, there in (
                ("items", items, "all_items"),
                ("projection", projection, "projections"),
                ("color", color, "colors"),
            ):
                if wanted:
                    errors.check_choice(name, wanted, getattr(self, there))
                wanted = wanted or getattr(self, name)
                setattr(self, name, wanted if wanted in getattr(self, there) else getattr(self, there)[0])
            if self.row not in self._rows():
                self.row = self.segment = -1
            elif self.items == "clips":
                self.segment = -1
            else:
                self.segment = max(self.segment, 0)

    # ---------------------------------------------------------------- points

    def _rows(self) -> np.ndarray:
        """Store rows of the view's clips."""
        space, machine = self.space, self.views[self.view][1]
        return space.rows[self.table["machine"].to_numpy()[space.rows] == machine] if machine else space.rows

    def points(self) -> Points:
        """The points of the view as it is colored now."""
        clip = self.space.of(self.items)[1]
        row, xy = self.space.rows[clip], self.xy[self.space.name, self.projection, self.items].astype(float)
        number = (
            np.arange(len(clip)) - np.searchsorted(clip, clip)
            if self.items == "segments"
            else np.full(len(clip), -1)
        )
        keep = np.isin(row, self._rows())
        row, number, xy = row[keep], number[keep], xy[keep]
        low, high = xy.min(0), xy.max(0)
        span = np.maximum(high - low, 1e-12)
        xy = 0.5 + (xy - (low + high) / 2) / (span.max() if self.projection == "PCA" else span)
        table = self.table.iloc[row]
        facts = {
            "x": xy[:, 0].astype(np.float32),
            "y": xy[:, 1].astype(np.float32),
            "row": row,
            "segment": number,
        }
        facts["color"], facts["test"] = self.color, (table["split"] == "test").to_numpy()
        if not self.color.startswith("score "):
            key = self.color.replace("attribute ", "attr_", 1)
            return Points(**facts, **self._groups(table[key].to_numpy(), key))
        value = self.standing[self.color.removeprefix("score ")].reindex(row).to_numpy(float)
        known = value[np.isfinite(value)]
        limits = tuple(np.quantile(known, [0.02, 0.98])) if len(known) else (0.0, 1.0)
        limits = limits if limits[1] > limits[0] else (limits[0], limits[0] + 1.0)
        return Points(**facts, **self._groups(table["label"].to_numpy(), "label"), value=value, limits=limits)

    @staticmethod
    def _groups(values: np.ndarray, key: str) -> dict:
        """Group of each value, the names and their looks; known ones look as in all figures."""
        found = set(map(str, values))
        if key in KNOWN:
            names = [name for name in KNOWN[key] if name in found]
            looks = [KNOWN[key][name] for name in names]
        else:
            names = sorted(found - {""}, key=index.natural)
            looks = [
                (COLORS[i % len(COLORS)], SHAPES[(i + i // len(COLORS)) % len(SHAPES)])
                for i in range(len(names))
            ]
            if len(names) > MOST_GROUPS or "" in found:
                rest = ["other"] if len(names) > MOST_GROUPS else ["none"]
                names, looks = names[:MOST_GROUPS] + rest, [*looks[:MOST_GROUPS], (plots.GRAY, "circle")]
        place = {name: i for i, name in enumerate(names)}
        return {
            "group": np.array([place.get(str(value), len(names) - 1) for value in values]),
            "names": names,
            "looks": looks,
        }

    def chosen(self, points: Points) -> int:
        """Number of the chosen point, -1: none."""
        found = np.flatnonzero((points.row == self.row) & (points.segment == self.segment))
        return int(found[0]) if len(found) and self.row >= 0 else -1

    def pick(self, row: int, segment: int = -1) -> None:
        """Choose a clip of the view, and a segment where segments are shown."""
        with self.hold_trait_notifications():
            self.row, self.segment = int(row), int(segment if self.items == "clips" else max(segment, 0))

    def step(self, right: int, up: int) -> bool:
        """Choose the nearest point within 45° of a direction; without a choice the one nearest to the middle.

        right, up : (1, 0), (-1, 0), (0, 1) or (0, -1)
        returns : False where nothing lies that way
        """
        points = self.points()
        at = self.chosen(points)
        if at < 0:
            best = int(np.argmin((points.x - 0.5) ** 2 + (points.y - 0.5) ** 2))
        else:
            dx, dy = (points.x - points.x[at]).astype(float), (points.y - points.y[at]).astype(float)
            along, aside = dx * right + dy * up, np.abs(dx * up + dy * right)
            away = np.where((along > 0) & (aside <= along), np.hypot(along, aside), np.inf)
            best = int(np.argmin(away))
            if not np.isfinite(away[best]):
                return False
        self.pick(points.row[best], points.segment[best])
        return True

    # ---------------------------------------------------------------- the chosen clip

    def neighbors(self, n: int = 5) -> pd.DataFrame:
        """The n training clips next to the chosen item in the embedding, leave-clip-out: row, clip, distance,
        domain, attributes.
        """
        item = np.flatnonzero(self.space.rows[self.space.of(self.items)[1]] == self.row)[max(self.segment, 0)]
        return self._near(self.space, self.items, int(item), n)

    def neighbors_of(self, system: str, row: int, n: int = 5) -> pd.DataFrame:
        """`neighbors` of any clip in the space of a system; without a row where the system has no place for
        it.
        """
        for space in self.spaces.values():
            place = np.flatnonzero(space.rows == row)
            if space.system == system and len(place):
                return self._near(space, "clips", int(place[0]), n)
        return pd.DataFrame(columns=["row", "clip", "distance", "domain", "attributes"])

    def _near(self, space: analysis_projection.Space, items: str, item: int, n: int) -> pd.DataFrame:
        rows, away = analysis_projection.nearest_training(space, items, item, self.table, n)
        found = self.table.iloc[rows]
        facts = {
            "row": rows,
            "clip": found["clip"].to_numpy(),
            "distance": away,
            "domain": found["domain"].to_numpy(),
        }
        return pd.DataFrame(facts | {"attributes": [self.attributes(row) for row in rows]})

    def explained(self) -> float:
        """Share of the variance of the view's space that its PCA keeps, 0..1."""
        return analysis_projection.explained(
            self.space.of(self.items)[0], self.xy[self.space.name, "PCA", self.items]
        )

    def attributes(self, row: int) -> str:
        """Attributes of a clip in words."""
        facts = self.table.iloc[row]
        found = [
            f"{name[5:]} {facts[name]}"
            for name in self.table
            if name.startswith("attr_") and facts[name] != ""
        ]
        return ", ".join(found) or "no attribute"

    def components(self, row: int) -> pd.DataFrame:
        """Every component that scored a clip: system, component, score, sd from the mean of training clips,
        share of training clips below.
        """
        machine, name, out = self.judged.iloc[row], self.table["clip"].iloc[row], []
        for (system, component), (values, train) in self._parts(machine).items():
            if name in values:
                spread = train.std(ddof=1) if len(train) > 1 else np.nan
                sd = (values[name] - train.mean()) / spread if spread > 0 else np.nan
                out.append(
                    (
                        system,
                        component,
                        values[name],
                        sd,
                        float(np.mean(train < values[name])) if len(train) else np.nan,
                    )
                )
        return pd.DataFrame(out, columns=["system", "component", "score", "sd", "training below"])

    def _parts(self, machine: str) -> dict[tuple[str, str], tuple[dict[str, float], np.ndarray]]:
        """Of each system and component its score of every clip of a machine, and the scores of the training
        clips.
        """
        if machine not in self._known:
            mine, found = self._referred[self._referred["machine"] == machine], {}
            groups = dict(iter(mine.groupby(["system", "component"], sort=False)))
            for system in fusion.in_order(mine["system"]):
                for key, part in groups.items():
                    if key[0] == system:
                        found[key] = (
                            dict(zip(part["clip"], part["score"])),
                            part.loc[part["split"] == "train", "score"].to_numpy(float),
                        )
            self._known[machine] = found
        return self._known[machine]

    def said(self) -> str:
        """The chosen clip in one sentence, for the eye and for a screen reader."""
        if self.row < 0:
            return "No clip is chosen. Click a point, or use the arrow keys; Enter plays the clip."
        facts, near = self.table.iloc[self.row], self.neighbors(1)
        part = f", segment {self.segment + 1}" if self.segment >= 0 else ""
        system = self.space.system
        sd = self.standing[system].get(self.row, np.nan) if system in self.standing else np.nan
        scored = f" {system} {tables.signed(f'{sd:+.1f}')} sd." if np.isfinite(sd) else ""
        next_to = (
            f" Nearest training clip at distance {near['distance'].iloc[0]:.3g}:"
            f" {short(near['clip'].iloc[0])}."
            if len(near)
            else ""
        )
        words = ", ".join([*facts[["machine", "split", "domain", "label"]], self.attributes(self.row)])
        return f"{short(facts['clip'])}{part}: {words}.{scored}{next_to}"

    def ranked_clips(self, system: str, n: int, machine: str = "") -> pd.DataFrame:
        """The n test clips for each of WHY by one system: row, why, clip, machine, domain, label, attributes,
        sd, above_threshold (sd).

        machine : "" takes all.  Sorted from the most telling; a reason without labels has no rows.  Notebook:
            06_embeddings
        """
        table = claims.standing(self.scores[self.scores["system"] == system], self.decisions)
        table = (
            table[table["clip"].isin(self.table.loc[self.table["machine"] == machine, "clip"])]
            if machine
            else table
        )
        high = table.sort_values("above_normal", ascending=False, kind="stable")
        parts = (high, high[high["label"] == "anomaly"].iloc[::-1], high[high["label"] == "normal"])
        found = pd.concat(
            [part.head(n).assign(why=why) for why, part in zip(WHY, parts, strict=True)], ignore_index=True
        )
        found["row"] = found["clip"].map(self._row_of).astype(int)
        found["attributes"] = [self.attributes(row) for row in found["row"]]
        columns = [
            "row",
            "why",
            "clip",
            "machine",
            "domain",
            "label",
            "attributes",
            "above_normal",
            "above_threshold",
        ]
        return found[columns].rename(columns={"above_normal": "sd"})


def short(clip: str) -> str:
    """A clip's name without folder and ending."""
    return clip.rsplit("/", 1)[-1].rsplit(".", 1)[0]


N_FFT, HOP, MELS, LOW_HZ = (
    1024,
    256,
    96,
    50.0,
)  # of the pictures: fine enough to see, small enough to follow a key
FLOOR_DB = 80.0  # below the loudest cell of a picture
FADE_DB = 50.0  # below it a phase is noise and fades
HEARD = 64  # clips, evenly spaced over a machine, that set its common gain


class ClipMedia:
    """Clips as they are heard and seen: one gain for all clips of a machine, log-mel and phase."""

    def __init__(self, store: Store, rate: int):
        self.store, self.rate, self._gains = store, rate, {}

    def gain(self, machine: str) -> float:
        """The gain of a machine's clips, from some of them, with 6 dB to spare for louder ones."""
        if machine not in self._gains:
            rows = np.flatnonzero(self.store.clips["machine"] == machine)
            some = rows[:: max(len(rows) // HEARD, 1)]
            self._gains[machine] = 0.5 * audio.common_gain([self.store.int16(row) / 32768.0 for row in some])
        return self._gains[machine]

    def uri(self, row: int) -> str:
        """The clip for an <audio>; only a clip that would be cut off at full scale is made softer."""
        wave, gain = self.store.int16(row) / 32768.0, self.gain(self.store.clips["machine"].iloc[row])
        return audio.vorbis(wave, self.rate, min(gain, audio.PEAK / max(float(np.abs(wave).max()), 1e-9)))

    def pictures(self, row: int) -> str:
        """Log-mel and phase of a clip as two inline SVGs."""
        wave = torch.from_numpy(self.store.int16(row) / np.float32(32768))[None]
        high_hz = 0.4875 * self.rate  # 7800 Hz of 16 kHz
        bands = {"n_fft": N_FFT, "low_hz": LOW_HZ, "high_hz": high_hz, "rate": self.rate}
        mel = features.log_mel(wave, n_mels=MELS, hop=HOP, **bands)[0, 0].numpy()
        top = float(mel.max())
        level = explain.Map(mel, features.band_hz(MELS, **bands), HOP / self.rate)
        shown = embedding_plots.picture(
            level, title="log-mel", unit="dB", colors="magma", limits=(top - FLOOR_DB, top)
        )
        if wave.shape[1] < N_FFT:
            return shown
        turn = features.phase(wave, representation="if", n_fft=N_FFT, hop=HOP)[0, 0].numpy()
        loud = features.spectrogram(wave, n_fft=N_FFT, hop=HOP)[0, 0].numpy()
        weight = 1 + 20 * np.log10(np.maximum(loud / max(float(loud.max()), 1e-12), 1e-9)) / FADE_DB
        phase = explain.Map(turn, np.arange(len(turn)) * self.rate / N_FFT, HOP / self.rate)
        title = "phase: turn from frame to frame beyond that of the bin's center; faint where it is soft"
        return shown + embedding_plots.picture(
            phase, title=title, unit="π rad", colors="twilight", limits=(-1.0, 1.0), weight=weight
        )


def static_maps(shown: EmbeddingMap) -> list[plots.Plot]:
    """The maps of all spaces, clip by clip, as figures: OEVAE a row for each machine, the classifier one for
    all.
    """
    atlas, out = shown.fresh(), []
    for system in dict.fromkeys(space.system for space in atlas.spaces.values()):
        whole = [
            view
            for view, (space, machine) in atlas.views.items()
            if atlas.spaces[space].system == system and not machine
        ]
        rows = {}
        for view in whole:
            atlas.choose(view=view, items="clips")
            atlas.choose(projection=atlas.projections[0])
            names = ["domain", "label", f"score {system}"]
            names.insert(*((0, "machine") if "machine" in atlas.colors else (2, atlas.widest_attribute())))
            rows[view] = [_colored(atlas, name) for name in names]
        out.append(embedding_plots.map_grid(rows, f"{system}, clips, {atlas.projection}"))
    return out


def _colored(atlas: EmbeddingMap, color: str) -> Points | None:
    if color not in atlas.colors:
        return None
    atlas.choose(color=color)
    return atlas.points()


def why_figure(atlas: EmbeddingMap, found: explain.Why) -> plots.Plot:
    """What explains one clip, with where the training clips of its machine lie."""
    machine = atlas.table["machine"].iloc[found.row]
    train = atlas.scores[
        (atlas.scores["machine"] == machine)
        & (atlas.scores["split"] == "train")
        & (atlas.scores["system"] == "oevae")
    ]
    usual = {
        name: (part["score"].mean(), part["score"].std())
        for name, part in train.groupby("component")
        if name in ("alpha", "beta")
    }
    return embedding_plots.why(found, usual, f"{machine}: {short(atlas.table['clip'].iloc[found.row])}")


def listing(atlas: EmbeddingMap, sounds: ClipMedia, players: int) -> tables.Html:
    """For each system with a map: the most anomalous, most missed and most falsely alarmed clips, with
    players, usable without any script.

    players : at most so many in all, shared evenly; a clip that stands in several lists has its player once.
        Notebook: 06_embeddings
    """
    systems = list(dict.fromkeys(space.system for space in atlas.spaces.values()))
    n = max(players // (len(WHY) * len(systems)), 1)
    parts, heard = [], set()
    for system in systems:
        listed = atlas.ranked_clips(system, n)
        for why, rows in listed.groupby("why", sort=False):
            items = []
            for place in rows.itertuples():
                audio_part = '<p class="note">Its player stands further up.</p>'
                if place.row not in heard and len(heard) < players:
                    heard.add(place.row)
                    audio_part = pages.sound(sounds.uri(place.row), short(place.clip))
                elif place.row not in heard:
                    audio_part = ""
                near = _nearest(atlas, system, place.row)
                facts = (
                    f"{place.machine}, {place.domain}, {place.label}, {place.attributes}; {place.sd:+.1f} sd"
                    " from the training mean, "
                )
                facts += (
                    f"{place.above_threshold:+.1f} sd from the threshold"
                    if math.isfinite(place.above_threshold)
                    else "no threshold"
                )
                words = (
                    f"<strong>{tables.breakable(short(place.clip))}</strong>"
                    f" ({tables.escape(tables.signed(facts))}). {tables.breakable(near)}"
                )
                items.append(pages.clip(audio_part, words))
            parts.append(
                f"<h3>{html.escape(system)}: {why} ({WHY[why]})</h3><div class='clips'>{''.join(items)}</div>"
            )
    return tables.Html(f'<div class="asd-atlas-clips">{"".join(parts)}</div>')


def _nearest(atlas: EmbeddingMap, system: str, row: int) -> str:
    """The training clip next to a clip, in words."""
    found = atlas.neighbors_of(system, row, 1)
    return "".join(
        f"Nearest training clip at distance {one.distance:.3g}: {short(one.clip)}, {one.attributes}."
        for one in found.itertuples()
    )
