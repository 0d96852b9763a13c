"""Embedding map: clips laid out in two dimensions, to filter, select, hear, see and compare.

`EmbeddingMap` is the model: which map is shown, how it is colored, what is filtered, chosen and selected.
`EmbeddingMapView` shows it in JupyterLab; in a report, which runs no script, it is small multiples of the
maps. `ClipMedia` makes the sounds and pictures of a clip; `listing` is the list of telling clips as plain
HTML.

Conventions
-----------
A view is a space (`projection.Space`), or one machine's part of it. A point is a clip or a segment. The
chosen clip and the selected clips are kept by store row, so they are the same in both maps and stay where
another view has them. Scores stand in standard deviations (sd) above the mean of the machine's normal
training scores; a decision compares with the machine's threshold. Labels of test clips are shown, and enter
no score. Color and shape say the same; where color is a number, the shape is the label. Filled: test clips,
hollow: training clips. All clips of a machine are played with one gain, so that levels can be compared by
ear. All colors of text and ground are the theme's. Source: METHOD 8.4, 8.5.  Notebook: 06_embeddings
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
from traitlets import Dict, HasTraits, Int, List, Unicode

from asdlib import errors, features, schemas
from asdlib.analysis import explain, projection
from asdlib.data import index
from asdlib.data.store import Store
from asdlib.evaluation import detectability
from asdlib.scoring import fusion
from asdlib.viz import audio, claims, embedding_plots, pages, plots, tables
from asdlib.viz.embedding_plots import COLORS, SHAPES, Points
from asdlib.viz.widgets import controls

HERE = Path(__file__).resolve().parent
LEVELS = 64  # steps of a numeric coloring; one more code is for what is not known
MOST_GROUPS = 16  # named values of a coloring; further ones are "other"
MOST_ROWS = 50  # of the table of selected clips; the CSV has all
INK = "currentColor"
DECISIONS = {  # of the clip's label and whether its score is above the threshold
    "hit": (plots.VERMILION, "cross"),
    "miss": (plots.ORANGE, "down"),
    "false alarm": (plots.PURPLE, "triangle"),
    "correct rejection": (plots.BLUE, "circle"),
    "alarm": (plots.GREEN, "diamond"),
    "no alarm": (plots.SKY, "square"),
    "no threshold": (plots.GRAY, "plus"),
    "training": (plots.GRAY, "circle"),
}
KNOWN = {  # as in all other figures
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
    "decision": DECISIONS,
}
WHY = {
    "most anomalous": "highest scores",
    "missed": "anomalies below the threshold, lowest scores first",
    "false alarms": "normal clips above the threshold, highest scores first",
}
FILTERS = ("machine", "split", "domain", "label", "decision", "attribute")
CSV_COLUMNS = ["clip", "machine", "split", "domain", "label", "attributes"]


class EmbeddingMap(HasTraits):
    """All maps of a study and seed, with what is shown of them.

    view, projection, items, color : by name; the choices are `views`, `projections`, `all_items`, `colors`;
        set them by `choose`
    beside : view of a second map, "": none
    filters : name of FILTERS or "search" -> value; clips that do not pass are faint and cannot be chosen
    row, segment : the chosen clip and segment; -1: none.  selected : store rows
    spaces, xy : of `projection`.  table : the store's clip table.  scores : SCORE_COLUMNS of one seed.
        decisions : of `metrics.decisions`
    raises : errors.InputError without a space
    """

    view, projection, items, color, beside = Unicode(), Unicode(), Unicode(), Unicode(), Unicode()
    row, segment = Int(-1), Int(-1)
    filters, selected = Dict(), List(Int())

    def __init__(
        self,
        spaces: Sequence[projection.Space],
        xy: projection.Maps,
        table: pd.DataFrame,
        scores: pd.DataFrame,
        decisions: pd.DataFrame,
    ):
        if not spaces:
            raise errors.InputError(
                "no embedding came, expected those of oevae or classifier; add one of them to the study's"
                " systems and run it"
            )
        self.spaces, self.xy, self.table, self.scores = {s.name: s for s in spaces}, xy, table, scores
        self._machine = table["machine"].to_numpy()
        self._judged, self._referred = schemas.by_references(table)["machine"], schemas.by_references(scores)
        self.views: dict[str, tuple[str, str]] = {}  # name -> space, machine ("": all)
        for space in spaces:
            machines = sorted(set(self._machine[space.rows]))
            self.views[space.name + ", all machines" * (len(machines) > 1)] = (space.name, "")
            if len(machines) > 1:
                self.views |= {f"{space.name}, {name}": (space.name, name) for name in machines}
        row_of = {name: row for row, name in enumerate(table["clip"])}
        self.standing, self._components = self._standing(row_of), {}
        tested = claims.standing(scores, decisions)
        self._tested = tested.assign(row=tested["clip"].map(row_of).astype(int))
        margins = self._tested.pivot_table(index="row", columns="system", values="above_threshold")
        self.margins = margins.reindex(
            range(len(table))
        )  # above the threshold, sd; NaN: training, no threshold
        keys = [f"attr_{key}" for key in index.attribute_keys(table)]
        named = [[f"{key[5:]} {value}" * (value != "") for value in table[key]] for key in keys]
        self.attributes = [", ".join(filter(None, row)) for row in zip(*named)] or [""] * len(table)
        self._text = [f"{c} {a}".lower() for c, a in zip(table["clip"], self.attributes, strict=True)]
        self.severity = (
            detectability.severities(table).to_numpy() if "path" in table else np.full(len(table), np.nan)
        )
        first = next(iter(self.views))
        made = [name for space, name, items in xy if space == self.views[first][0] and items == "clips"]
        super().__init__(view=first, projection=made[0], items="clips", color="label")

    def _standing(self, row_of: Mapping[str, int]) -> pd.DataFrame:
        """Score of every clip in sd above the normal training mean; index: store row, a column per system."""
        own = self._referred[self._referred["component"] == "score"]
        train = own[own["split"] == "train"].groupby(["system", "machine"])["score"].agg(["mean", "std"])
        own = own.join(train, on=["system", "machine"])
        sd = (own["score"] - own["mean"]) / own["std"].where(own["std"] > 0)
        own = own.assign(row=own["clip"].map(row_of), sd=sd)
        return own.pivot_table(index="row", columns="system", values="sd")[fusion.in_order(own["system"])]

    # ---------------------------------------------------------------- choices

    @property
    def space(self) -> projection.Space:
        """The space of the view."""
        return self.spaces[self.views[self.view][0]]

    @property
    def all_items(self) -> list[str]:
        """`clips`, and `segments` where clips have several."""
        return list(projection.ITEMS if self.space.segmented else projection.ITEMS[:1])

    @property
    def projections(self) -> list[str]:
        """Projections that were made of the view's space and items."""
        return [name for name in projection.PROJECTIONS if (self.space.name, name, self.items) in self.xy]

    @property
    def colors(self) -> list[str]:
        """What the view can be colored by."""
        return self.colors_of(self.view)

    def colors_of(self, view: str) -> list[str]:
        """What a view can be colored by."""
        rows = self.rows(view)
        names = ["machine"] * (len(set(self._machine[rows])) > 1) + ["domain", "label"]
        names += [f"attribute {key}" for key in index.attribute_keys(self.table.iloc[rows])]
        names += ["severity"] * bool(np.isfinite(self.severity[rows]).any())
        return [*names, *(f"{what} {system}" for what in ("decision", "score") for system in self.standing)]

    def rows(self, view: str) -> np.ndarray:
        """Store rows of a view's clips."""
        name, machine = self.views[view]
        rows = self.spaces[name].rows
        return rows[self._machine[rows] == machine] if machine else rows

    @property
    def shown(self) -> set[int]:
        """Store rows of the clips in the shown maps."""
        return set(self.rows(self.view)) | set(self.rows(self.beside) if self.beside else ())

    def widest_attribute(self, view: str) -> str:
        """The coloring by the view's attribute with most values that can still be named; "": no attribute."""
        table = self.table.iloc[self.rows(view)]
        counts = {key: table[f"attr_{key}"].nunique() for key in index.attribute_keys(table)}
        few = {key: count for key, count in counts.items() if count <= MOST_GROUPS} or counts
        return f"attribute {max(few, key=few.get)}" if few else ""

    def choose(
        self,
        view: str = "",
        items: str = "",
        projection: str = "",
        color: str = "",
        beside: str | None = None,
    ) -> None:
        """Change what is shown; "" keeps it (beside: None keeps, "" takes the second map away).

        What the new view does not have falls back to its first choice; clips that no shown map has are no
        longer chosen or selected, and filters that it cannot have are dropped.
        raises : errors.InputError for what the view asked for does not have
        """
        for name in (view, beside or ""):
            if name:
                errors.check_choice("view", name, list(self.views))
        with self.hold_trait_notifications():
            self.view, self.beside = view or self.view, self.beside if beside is None else beside
            for name, wanted in (("items", items), ("projection", projection), ("color", color)):
                there = {"items": "all_items"}.get(name, f"{name}s")
                there = getattr(self, there)
                if wanted:
                    errors.check_choice(name, wanted, there)
                wanted = wanted or getattr(self, name)
                setattr(self, name, wanted if wanted in there else there[0])
            self.filters = {
                k: v for k, v in self.filters.items() if k == "search" or v in self.filter_values(k)
            }
            shown = self.shown
            self.selected = [row for row in self.selected if row in shown]
            if self.row not in shown:
                self.row = self.segment = -1
            self.segment = -1 if self.items == "clips" or self.row < 0 else max(self.segment, 0)

    # ---------------------------------------------------------------- filters

    @property
    def system(self) -> str:
        """Whose decisions are filtered and told: the view's system."""
        return self.space.system

    def decisions(self, rows: np.ndarray, system: str) -> np.ndarray:
        """Decision of clips by a system, one of DECISIONS each."""
        missing = np.full(len(self.table), np.nan)
        margin = (self.margins[system].to_numpy() if system in self.margins else missing)[rows]
        label = self.table["label"].to_numpy()[rows]
        named = [("hit", "miss"), ("false alarm", "correct rejection"), ("alarm", "no alarm")]
        kind = np.select([label == "anomaly", label == "normal"], [0, 1], 2)
        found = np.array(named, dtype=object)[kind, np.where(margin > 0, 0, 1)]
        found[np.isnan(margin)] = "no threshold"
        found[self.table["split"].to_numpy()[rows] == "train"] = "training"
        return found

    def _values(self, name: str, rows: np.ndarray) -> np.ndarray:
        """What a filter compares, for each clip."""
        if name == "decision":
            return self.decisions(rows, self.system)
        return self.table[name].to_numpy()[rows]

    def filter_values(self, name: str) -> list[str]:
        """Values that a filter can ask for in the view."""
        rows = self.rows(self.view)
        if name == "attribute":
            table = self.table.iloc[rows]
            keys = index.attribute_keys(table)
            few = [key for key in keys if table[f"attr_{key}"].nunique() <= MOST_GROUPS]
            return [
                f"{key} {value}"
                for key in few
                for value in sorted(set(table[f"attr_{key}"]) - {""}, key=index.natural)
            ]
        found = set(self._values(name, rows))
        return [one for one in KNOWN.get(name, ()) if one in found] or sorted(found)

    def passing(self, rows: np.ndarray) -> np.ndarray:
        """Which clips pass all filters, bool like rows; a search finds parts of the name and the
        attributes.
        """
        keep = np.ones(len(rows), bool)
        for name, value in self.filters.items():
            if name == "search":
                words = value.lower().split()
                keep &= np.fromiter(
                    (all(w in self._text[row] for w in words) for row in rows), bool, len(rows)
                )
            elif name == "attribute":
                keep &= np.fromiter((value in self.attributes[r].split(", ") for r in rows), bool, len(rows))
            else:
                keep &= self._values(name, rows) == value
        return keep

    # ---------------------------------------------------------------- points

    def points(
        self, view: str = "", projection: str = "", items: str = "", color: str = ""
    ) -> embedding_plots.Points:
        """The points of a view; "" is what is shown now, or the nearest to it that the view has."""
        other, view = bool(view) and view != self.view, view or self.view
        name = self.views[view][0]
        items = items or ("clips" if other else self.items)
        made = [one for one in (projection, self.projection, "PCA") if (name, one, items) in self.xy]
        color = color or self.color
        color, projection = (color if color in self.colors_of(view) else "label"), made[0]
        clip = self.spaces[name].of(items)[1]
        row, xy = self.spaces[name].rows[clip], self.xy[name, projection, items].astype(float)
        number = np.arange(len(clip)) - np.searchsorted(clip, clip) if items == "segments" else None
        keep = np.isin(row, self.rows(view))
        segment = number[keep] if number is not None else np.full(keep.sum(), -1)
        row, xy = row[keep], xy[keep]
        low, high = xy.min(0), xy.max(0)
        span = np.maximum(high - low, 1e-12)
        xy = (0.5 + (xy - (low + high) / 2) / (span.max() if projection == "PCA" else span)).astype("f4")
        facts = {"x": xy[:, 0], "y": xy[:, 1], "row": row, "segment": segment, "color": color}
        facts |= {"test": self.table["split"].to_numpy()[row] == "test", "projection": projection}
        what, _, which = color.partition(" ")
        if what == "decision":
            return Points(**facts, **_groups(self.decisions(row, which), "decision"))
        if what not in ("score", "severity"):
            key = color.replace("attribute ", "attr_", 1)
            return Points(**facts, **_groups(self.table[key].to_numpy()[row], key))
        value = (
            self.severity[row] if what == "severity" else self.standing[which].reindex(row).to_numpy(float)
        )
        known = value[np.isfinite(value)]
        limits = tuple(np.quantile(known, [0.02, 0.98])) if len(known) else (0.0, 1.0)
        limits = limits if limits[1] > limits[0] else (limits[0], limits[0] + 1.0)
        groups = _groups(self.table["label"].to_numpy()[row], "label")
        return Points(**facts, **groups, value=value, limits=limits)

    def chosen(self, points: Points) -> int:
        """Number of the chosen point, -1: none."""
        same = points.row == self.row
        if len(points.segment) and points.segment[0] >= 0:
            same &= points.segment == max(self.segment, 0)
        return int(np.argmax(same)) if self.row >= 0 and same.any() else -1

    def pick(self, row: int, segment: int = -1) -> None:
        """Choose a clip of the shown maps, and a segment where segments are shown."""
        if row not in self.shown:
            raise errors.InputError(
                f"clip {row} came, expected one of the shown maps ({self.view}); choose a view that has it"
            )
        with self.hold_trait_notifications():
            self.row, self.segment = int(row), int(segment if self.items == "clips" else max(segment, 0))

    def mark(self, row: int) -> None:
        """Select a clip, or take it out of the selection."""
        self.selected = [r for r in self.selected if r != row] + [int(row)] * (row not in self.selected)

    def step(self, right: int, up: int, points: Points | None = None) -> bool:
        """Choose the nearest point within 45° of a direction that passes the filters; without a choice the
        one nearest to the middle.

        right, up : (1, 0), (-1, 0), (0, 1) or (0, -1).  points : of the map in which to step
        returns : False where nothing lies that way
        """
        points = self.points() if points is None else points
        at, passing = self.chosen(points), self.passing(points.row)
        if at < 0:
            away = (points.x - 0.5) ** 2 + (points.y - 0.5) ** 2
        else:
            dx, dy = (points.x - points.x[at]).astype(float), (points.y - points.y[at]).astype(float)
            along, aside = dx * right + dy * up, np.abs(dx * up + dy * right)
            away = np.where((along > 0) & (aside <= along), np.hypot(along, aside), np.inf)
        away = np.where(passing, away, np.inf)
        best = int(np.argmin(away))
        if not np.isfinite(away[best]):
            return False
        self.pick(points.row[best], points.segment[best])
        return True

    # ---------------------------------------------------------------- facts of clips

    def neighbors(self, n: int = 5) -> pd.DataFrame:
        """The n training clips next to the chosen item in the embedding, leave-clip-out: row, clip, distance,
        domain, attributes.
        """
        own = np.flatnonzero(self.space.rows[self.space.of(self.items)[1]] == self.row)
        if not len(own):  # a clip of the second map
            return self._near(self.spaces[self.views[self.beside][0]], "clips", self.row, n)
        return self._near(self.space, self.items, self.row, n, max(self.segment, 0))

    def neighbors_of(self, system: str, row: int, n: int = 5) -> pd.DataFrame:
        """`neighbors` of any clip in the space of a system; without a row where the system has no place for
        it.
        """
        for space in self.spaces.values():
            if space.system == system and row in space.rows:
                return self._near(space, "clips", row, n)
        return pd.DataFrame(columns=["row", "clip", "distance", "domain", "attributes"])

    def _near(self, space: projection.Space, items: str, row: int, n: int, segment: int = 0) -> pd.DataFrame:
        item = int(np.flatnonzero(space.rows[space.of(items)[1]] == row)[segment])
        rows, away = projection.nearest_training(space, items, item, self.table, n)
        found = self.table.iloc[rows]
        return pd.DataFrame(
            {
                "row": rows,
                "clip": found["clip"].to_numpy(),
                "distance": away,
                "domain": found["domain"].to_numpy(),
                "attributes": [self.attributes[row] or "no attribute" for row in rows],
            }
        )

    def explained(self) -> float:
        """Share of the variance of the view's space that its PCA keeps, 0..1."""
        name, items = self.space.name, self.items
        return projection.explained(self.spaces[name].of(items)[0], self.xy[name, "PCA", items])

    def components(self, row: int) -> pd.DataFrame:
        """Every component that scored a clip: system, component, score, sd from the mean of training clips,
        share of training clips below.
        """
        machine, name, out = self._judged.iloc[row], self.table["clip"].iloc[row], []
        if machine not in self._components:
            mine = self._referred[self._referred["machine"] == machine]
            parts = dict(iter(mine.groupby(["system", "component"], sort=False)))
            self._components[machine] = {
                key: (dict(zip(part["clip"], part["score"])), part.loc[part["split"] == "train", "score"])
                for system in fusion.in_order(mine["system"])
                for key, part in parts.items()
                if key[0] == system
            }
        for key, (values, train) in self._components[machine].items():
            if name in values:
                train = train.to_numpy(float)
                spread = train.std(ddof=1) if len(train) > 1 else np.nan
                sd = (values[name] - train.mean()) / spread if spread > 0 else np.nan
                below = float(np.mean(train < values[name])) if len(train) else np.nan
                out.append((*key, values[name], sd, below))
        return pd.DataFrame(out, columns=["system", "component", "score", "sd", "training below"])

    def told(self, row: int) -> str:
        """A clip in words: name, facts, score, decision."""
        facts, sd = self.table.iloc[row], np.nan
        if self.system in self.standing:
            sd = self.standing[self.system].get(row, np.nan)
        words = ", ".join(
            [*facts[["machine", "split", "domain", "label"]], self.attributes[row] or "no attribute"]
        )
        scored = f" {self.system} {tables.signed(f'{sd:+.1f}')} sd" if np.isfinite(sd) else ""
        [decision] = self.decisions(np.array([row]), self.system)
        judged = "" if decision in ("training", "no threshold") else f", {decision}"
        return (
            f"{short(facts['clip'])}: {words}.{scored}{judged}."
            if scored
            else f"{short(facts['clip'])}: {words}."
        )

    def said(self) -> str:
        """The chosen clip in one sentence, for the eye and for a screen reader."""
        if self.row < 0:
            return (
                "No clip is chosen. Click a point, or use the arrow keys on the map; Enter plays, B switches"
                " to the nearest normal clip, S selects, Escape clears the selection; plus, minus, 0 zoom."
            )
        near = self.neighbors(1)
        part = f" Segment {self.segment + 1}." if self.segment >= 0 else ""
        near = [
            f" Nearest training clip at distance {one.distance:.3g}: {short(one.clip)}."
            for one in near.itertuples()
        ]
        return self.told(self.row) + part + "".join(near)

    def ranked_clips(self, system: str, n: int, machine: str = "") -> pd.DataFrame:
        """The n test clips for each of WHY by one system: row, why, clip, machine, domain, label,
        attributes, sd, above_threshold (sd).

        machine : "" takes all.  Sorted from the most telling.  Without labels or a threshold there are
            neither missed clips nor false alarms.  Notebook: 06_embeddings
        """
        table = self._tested[self._tested["system"] == system]
        if machine:
            table = table[self._machine[table["row"]] == machine]
        high = table.sort_values("above_normal", ascending=False, kind="stable")
        above = high["above_threshold"]
        missed = high[(high["label"] == "anomaly") & (above <= 0)].iloc[::-1]
        false = high[(high["label"] == "normal") & (above > 0)]
        parts = zip(WHY, (high, missed, false), strict=True)
        found = pd.concat([part.head(n).assign(why=why) for why, part in parts], ignore_index=True)
        found["attributes"] = [self.attributes[row] or "no attribute" for row in found["row"]]
        columns = ["row", "why", *CSV_COLUMNS[:2], *CSV_COLUMNS[3:], "above_normal", "above_threshold"]
        return found[columns].rename(columns={"above_normal": "sd"})

    def selection(self) -> pd.DataFrame:
        """The selected clips: CSV_COLUMNS, and of each system its score (sd) and decision."""
        rows = np.array(self.selected, int)
        found = self.table.iloc[rows].assign(attributes=[self.attributes[row] for row in rows])[CSV_COLUMNS]
        for system in self.standing:
            found[f"{system} sd"] = self.standing[system].reindex(rows).to_numpy()
            found[f"{system} decision"] = self.decisions(rows, system)
        return found.reset_index(drop=True)


def _groups(values: np.ndarray, key: str) -> dict:
    """Group of each value, the names and their looks; known ones look as in all figures."""
    found = set(map(str, values))
    if key in KNOWN:
        names = [name for name in KNOWN[key] if name in found]
        looks = [KNOWN[key][name] for name in names]
    else:
        names = sorted(found - {""}, key=index.natural)
        looks = [
            (COLORS[i % len(COLORS)], SHAPES[(i + i // len(COLORS)) % len(SHAPES)]) for i in range(len(names))
        ]
        if len(names) > MOST_GROUPS or "" in found:
            rest = ["other"] if len(names) > MOST_GROUPS else ["none"]
            names, looks = names[:MOST_GROUPS] + rest, [*looks[:MOST_GROUPS], (plots.GRAY, "circle")]
    place = {name: i for i, name in enumerate(names)}
    group = np.array([place.get(str(value), len(names) - 1) for value in values])
    return {"group": group, "names": names, "looks": looks}


def short(clip: str) -> str:
    """A clip's name without folder and ending."""
    return clip.rsplit("/", 1)[-1].rsplit(".", 1)[0]


# ---------------------------------------------------------------- the view


class MapPanel(anywidget.AnyWidget):
    """One map. xy : float32 pairs, 0..1, y upwards.  codes : uint8 triples (color, shape, bits: 1 test, 2
    faint, 4 beyond the scale).  chosen, near, selected : numbers of points.
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
    """A table whose rows choose and play their clip. rows : {row, cells}.  caption : "" hides the table."""

    _esm = HERE / "clip_table.js"
    columns, rows = traitlets.List().tag(sync=True), traitlets.List().tag(sync=True)
    caption, csv = traitlets.Unicode().tag(sync=True), traitlets.Bool(False).tag(sync=True)


class EmbeddingMapView(ipywidgets.VBox):
    """The map and everything known about the chosen clip, in JupyterLab; in a report its static maps.

    explained : row -> what explains that clip, computed when asked for; None: no such button.  listed :
        clips per reason of the list
    """

    def __init__(
        self,
        model: EmbeddingMap,
        media: ClipMedia,
        explained: Callable[[int], explain.Why] | None = None,
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
            description="worth hearing",
            rows=min(3 * listed + 1, 12),
            layout={"width": "calc(100% - 1rem)", "height": "auto", "flex_flow": "column"},
            style={"description_width": "auto"},
        )
        self.button = ipywidgets.Button(
            description="Why this score", tooltip="Residual, slopes, segments and branches of the chosen clip"
        )
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
        right = ipywidgets.VBox([self.detail, self.near, *[self.button] * bool(explained)], layout=side)
        super().__init__(
            [
                ipywidgets.HBox(list(self.choices.values()), layout=row),
                ipywidgets.HBox(list(self.filters.values()), layout=row),
                ipywidgets.HBox([self.left, right], layout={**row, "align_items": "flex-start"}),
                self.selection,
                self.reason,
                controls.Keys(within=".asd-map"),
            ]
        )
        self.add_class("asd-map")
        self._busy, self._drawn, self._listed, self._shown = False, None, None, None
        model.observe(lambda _: self._redraw(), [*names, "filters", "row", "segment"])
        model.observe(lambda _: self._select(), "selected")
        self._redraw()
        self._select()

    # ---------------------------------------------------------------- what the user does

    def _choose(self, name: str, value: str | None) -> None:
        if not self._busy and value is not None:
            self.model.choose(**{name: "" if value == "no second map" else value})

    def _filter(self) -> None:
        if not self._busy:
            self.model.filters = {
                name: one.value for name, one in self.filters.items() if one.value not in ("any", "", None)
            }

    def _message(self, message: Mapping, number: int) -> None:
        """A message of a map (0, 1) or of a table."""
        kind, points = message.get("kind"), self._points[number]
        if kind in ("hover", "pick", "mark") and "number" in message:
            at = int(message["number"])
            if not 0 <= at < len(points.row):
                return
            row, segment = int(points.row[at]), int(points.segment[at])
            if kind == "hover":
                text = self.model.told(row).replace(": ", "\n", 1).replace(". ", "\n", 1)
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
        """Compute and show why the chosen clip was scored so."""
        if self.model.row < 0:
            self.reason.value = "<p>Choose a clip first.</p>"
            return
        self.button.disabled, before = True, self.button.description
        self.button.description = "computing"
        try:
            self.reason.value = why_figure(self.model, self.explained(self.model.row))._repr_html_()
        except errors.InputError as refusal:
            self.reason.value = f"<p>{html.escape(str(refusal))}</p>"
        finally:
            self.button.disabled, self.button.description = False, before

    # ---------------------------------------------------------------- what the user sees

    def _redraw(self) -> None:
        """Maps, menus, legend and list where they changed, then the chosen clip."""
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
        if self._shown != (now := (model.row, model.segment, *self._drawn[:5])):
            self._shown = now
            self._show()

    def _menus(self) -> None:
        model, offered = self.model, {}
        for name in ("view", "projection", "items", "color"):
            there = {"items": model.all_items, "view": list(model.views)}.get(name)
            offered[name] = getattr(model, f"{name}s") if there is None else there, getattr(model, name)
        others = [name for name in model.views if name != model.view]
        offered["beside"] = ["no second map", *others], model.beside or "no second map"
        for name, (there, value) in offered.items():
            if tuple(there) != self.choices[name].options:
                self.choices[name].options = there
            self.choices[name].value, self.choices[name].disabled = value, len(there) < 2
        for name in FILTERS:
            there = ["any", *model.filter_values(name)]
            if tuple(there) != self.filters[name].options:
                self.filters[name].options = there
            self.filters[name].value = model.filters.get(name, "any")
            self.filters[name].layout.display = None if len(there) > 2 else "none"
        self.filters["search"].value = model.filters.get("search", "")
        if self._listed == model.view:
            return
        self._listed, machines = model.view, set(model.table["machine"].iloc[model.rows(model.view)])
        listed = model.ranked_clips(model.system, self.most, *machines if len(machines) == 1 else ())
        options = [("—", None)]
        for row, why, clip, sd in listed[["row", "why", "clip", "sd"]].itertuples(index=False):
            options.append((f"{why}, {tables.signed(f'{sd:+.1f}')} sd: {short(clip)}", (row, -1)))
        self.list.options, self.list.value = options, None

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
        """The chosen clip, or that there is none: marks and words, then sound, then pictures and tables."""
        model, row = self.model, self.model.row
        near = model.neighbors() if row >= 0 else None
        for number in range(1 + bool(model.beside)):
            panel, points = self.panels[number], self._points[number]
            with panel.hold_sync():
                panel.chosen = model.chosen(points)
                dashed = row >= 0 and points.segment[0] < 0
                panel.near = np.flatnonzero(np.isin(points.row, near["row"])).tolist() if dashed else []
        self.words.value, self.reason.value, self._busy = html.escape(model.said()), "", True
        places = [place for _, place in self.list.options]
        self.list.value = next((place for place in places if place and place[0] == row), None)
        self._busy = False
        if row < 0:
            with self.players.hold_sync():
                self.players.a = self.players.a_name = self.players.b = self.players.b_name = ""
            self.near.caption, self.near.rows = "", []
            self.detail.value = (
                "<p>The chosen clip is shown here: its pictures, its neighbors and its scores.</p>"
            )
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
            "Its scores. sd: distance from the mean of training clips; training below: share of training"
            " clips with a lower score"
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
        """The selected clips, ringed in the maps and listed below."""
        model, rows = self.model, self.model.selected
        for number in range(1 + bool(model.beside)):
            ringed = np.flatnonzero(np.isin(self._points[number].row, rows))
            self.panels[number].selected = ringed.tolist()
        found = model.selection()
        system = model.system if model.system in model.standing else model.standing.columns[0]
        texts = found.assign(clip=[short(clip) for clip in found["clip"]])
        texts = texts[[*CSV_COLUMNS, f"{system} sd", f"{system} decision"]].head(MOST_ROWS)
        texts[f"{system} sd"] = [tables.signed(f"{sd:+.1f}") for sd in texts[f"{system} sd"]]
        more = f"; the first {MOST_ROWS} are shown, the CSV has all" if len(rows) > MOST_ROWS else ""
        with self.selection.hold_sync():
            self.selection.columns = list(texts)
            self.selection.rows = [
                {"row": row, "cells": list(cells)}
                for row, cells in zip(rows, texts.itertuples(index=False, name=None))
            ]
            self.selection.caption = f"Selected clips: {len(rows)}{more}" if rows else ""

    def _repr_mimebundle_(self, **wanted) -> dict:
        """Two faces: the live view for Lab, the static maps for a report."""
        live = super()._repr_mimebundle_(**wanted)
        static = "".join(figure._repr_html_() for figure in static_maps(self.model))
        return (live or {}) | {"text/html": static}


def _scale(steps: int) -> list[str]:
    """Colors of the numeric scale from low to high."""
    return [to_hex(c) for c in matplotlib.colormaps[embedding_plots.NUMBERS](np.linspace(0, 1, steps))]


def _legend(model: EmbeddingMap, points: Points) -> str:
    """Names of colors and shapes, how many clips pass the filters, and what the axes are."""
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
        dotted = f", the {beyond} beyond have a dot" if beyond else ""
        scale = f"<br>{html.escape(points.color)}: {low} {bar} {high}{unit}{dotted}"
    shown = f" {passing.sum()} of {len(passing)} pass the filters." if model.filters else ""
    return (
        f"<div>{marks}{scale}<br>{axes_words(model, points)}{shown} Filled: test, hollow: training, dashed"
        " rings: nearest training clips, thin rings: selected. Drag to move; after a click on the map the"
        " wheel zooms.</div>"
    )


def axes_words(model: EmbeddingMap, points: Points) -> str:
    """What the two axes of the shown map are, in a sentence."""
    if points.projection == "PCA":
        return f"PCA: the two axes hold {100 * model.explained():.0f} % of the variance."
    return "UMAP: near means near; distances between groups and their sizes mean nothing."


# ---------------------------------------------------------------- sounds and pictures


# of the pictures: fine enough to see, small enough to follow a key
N_FFT, HOP, MELS, LOW_HZ = 1024, 256, 96, 50.0
FLOOR_DB = 80.0  # below the loudest cell of a picture
FADE_DB = 50.0  # below it a phase is noise and fades
MOST_DB = 20.0  # ends of the scale of a difference
HEARD = 64  # clips, evenly spaced over a machine, that set its common gain


class ClipMedia:
    """Clips as they are heard and seen: one gain for all clips of a machine, log-mel, difference and
    phase.
    """

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

    def log_mel(self, row: int) -> np.ndarray:
        """Log-mel of a clip, dB, (mels, frames)."""
        wave = torch.from_numpy(self.store.int16(row) / np.float32(32768))[None]
        return features.log_mel(wave, n_mels=MELS, hop=HOP, **self._bands())[0, 0].numpy()

    def _bands(self) -> dict:
        return {"n_fft": N_FFT, "low_hz": LOW_HZ, "high_hz": 0.4875 * self.rate, "rate": self.rate}

    def pictures(self, row: int, normal: int = -1) -> str:
        """Pictures of a clip as inline SVGs: log-mel, level above a normal clip, phase.

        normal : row of the clip to compare with, -1: none. The two are not aligned in time: the difference
            is to the mean level of each band of the normal clip
        """
        mel, hz = self.log_mel(row), features.band_hz(MELS, **self._bands())
        top, step = float(mel.max()), HOP / self.rate
        shown = embedding_plots.picture(
            explain.Map(mel, hz, step),
            title="log-mel",
            unit="dB",
            colors="magma",
            limits=(top - FLOOR_DB, top),
        )
        if normal >= 0:
            usual = 10 * np.log10(np.mean(10 ** (self.log_mel(normal) / 10), axis=1, keepdims=True))
            title = "level above the mean of its nearest normal clip; orange: louder, purple: softer"
            shown += embedding_plots.picture(
                explain.Map(mel - usual, hz, step),
                title=title,
                unit="dB",
                colors="PuOr_r",
                limits=(-MOST_DB, MOST_DB),
            )
        wave = torch.from_numpy(self.store.int16(row) / np.float32(32768))[None]
        if wave.shape[1] < N_FFT:
            return shown
        turn = features.phase(wave, representation="if", n_fft=N_FFT, hop=HOP)[0, 0].numpy()
        loud = features.spectrogram(wave, n_fft=N_FFT, hop=HOP)[0, 0].numpy()
        weight = 1 + 20 * np.log10(np.maximum(loud / max(float(loud.max()), 1e-12), 1e-9)) / FADE_DB
        phase = explain.Map(turn, np.arange(len(turn)) * self.rate / N_FFT, step)
        title = "phase: turn from frame to frame beyond that of the bin's center; faint where it is soft"
        phase = embedding_plots.picture(
            phase, title=title, unit="π rad", colors="twilight", limits=(-1.0, 1.0), weight=weight
        )
        return shown + tables.folded("Phase", phase)


# ---------------------------------------------------------------- static twins


def static_maps(model: EmbeddingMap) -> list[plots.Plot]:
    """The maps of all embeddings, clip by clip, as figures: OEVAE a row for each machine, the classifier one
    for all.
    """
    out = []
    for system in dict.fromkeys(space.system for space in model.spaces.values()):
        rows, made = {}, ""
        for view, (name, machine) in model.views.items():
            space = model.spaces[name]
            if space.system != system or machine or space.latent:
                continue
            there = model.colors_of(view)
            names = ["domain", "label", f"score {system}"]
            names.insert(*((0, "machine") if "machine" in there else (2, model.widest_attribute(view))))
            made = next(one for one in projection.PROJECTIONS if (name, one, "clips") in model.xy)
            rows[view] = [
                model.points(view, made, "clips", color) if color in there else None for color in names
            ]
        out.append(embedding_plots.map_grid(rows, f"{system}, clips, {made}"))
    return out


def why_figure(model: EmbeddingMap, found: explain.Why) -> plots.Plot:
    """What explains one clip, with where the training clips of its machine lie."""
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
    """For each system with a map: the most anomalous clips, the missed ones and the false alarms, with
    players, usable without any script.

    players : at most so many in all, shared evenly; a clip that stands in several lists has its player once.
        Notebook: 06_embeddings
    """
    systems = list(dict.fromkeys(space.system for space in model.spaces.values()))
    n = max(players // (len(WHY) * len(systems)), 1)
    parts, heard = [], set()
    for system in systems:
        listed = model.ranked_clips(system, n)
        for why, meaning in WHY.items():
            items = []
            for place in listed[listed["why"] == why].itertuples():
                shown = '<p class="note">Its player stands further up.</p>' * (place.row in heard)
                if not shown and len(heard) < players:
                    heard.add(place.row)
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
