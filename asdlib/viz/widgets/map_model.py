"""Model of the embedding map: clips in two dimensions with colors, filters, a chosen clip and a selection.

Conventions
-----------
A view is a space (`projection.Space`), or one machine's part of it. A point is a clip or a segment. The
chosen clip and the selected clips are stored by store row: they are the same in both maps, and persist when
the view changes to one that contains them. Scores are in standard deviations (sd) above the mean of the
machine's normal training scores; decisions use the machine's threshold. Labels of test clips are shown but do
not affect scores. Color and shape are redundant; with a numeric coloring, the shape shows the label.
Source: METHOD 8.4, 8.5.  Notebook: 06_embeddings
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from traitlets import Dict, HasTraits, Int, List, Unicode

from asdlib import errors, schemas
from asdlib.analysis import projection
from asdlib.data import index
from asdlib.evaluation import detectability
from asdlib.scoring import fusion
from asdlib.viz import claims, embedding_plots, plots, tables
from asdlib.viz.embedding_plots import COLORS, SHAPES, Points

MAX_GROUPS = 16  # named values of a coloring; the rest are "other"
DECISIONS = {  # by the clip's label, and whether its score is above the threshold
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
    """All maps of a study and seed, and the state of the display.

    view, projection, items, color : names out of `views`, `projections`, `all_items`, `colors`; set with
        `choose`
    beside : view of a second map, "": none
    filters : name of FILTERS or "search" -> value; clips that do not pass are faint and cannot be chosen
    row, segment : the chosen clip and segment; -1: none.  selected : store rows
    spaces, xy : from `projection`.  table : the store's clip table.  scores : SCORE_COLUMNS of one seed
    decisions : from `metrics.decisions`
    raises : errors.InputError without a space
    """

    view, projection, items, color, beside = Unicode(), Unicode(), Unicode(), Unicode(), Unicode()
    row, segment = Int(-1), Int(-1)
    filters, selected = Dict(), List()  # of ints; a type would check 20,000 one by one

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
                "no embeddings given; expected those of oevae or classifier; add one of them to the study's"
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
        self.sd, self._components = self._scores_in_sd(row_of), {}
        tested = claims.standardized(scores, decisions)
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
        self.colors_of, self._offered = functools.cache(self._colors_of), functools.cache(self._values_of)
        first = next(iter(self.views))
        available = [name for space, name, items in xy if space == self.views[first][0] and items == "clips"]
        super().__init__(view=first, projection=available[0], items="clips", color="label")

    def _scores_in_sd(self, row_of: Mapping[str, int]) -> pd.DataFrame:
        """Return scores in sd above the normal training mean; index: store row, columns: systems."""
        own = self._referred[self._referred["component"] == "score"]
        train = own[own["split"] == "train"].groupby(["system", "machine"])["score"].agg(["mean", "std"])
        own = own.join(train, on=["system", "machine"])
        sd = (own["score"] - own["mean"]) / own["std"].where(own["std"] > 0)
        own = own.assign(row=own["clip"].map(row_of), sd=sd)
        return own.pivot_table(index="row", columns="system", values="sd")[fusion.in_order(own["system"])]

    # ---------------------------------------------------------------- choices

    @property
    def space(self) -> projection.Space:
        """Space of the view."""
        return self.spaces[self.views[self.view][0]]

    @property
    def all_items(self) -> list[str]:
        """Kinds of items: `clips`, and `segments` if clips have several."""
        return list(projection.ITEMS if self.space.segmented else projection.ITEMS[:1])

    @property
    def projections(self) -> list[str]:
        """Projections available for the view's space and items."""
        return [name for name in projection.PROJECTIONS if (self.space.name, name, self.items) in self.xy]

    @property
    def colors(self) -> list[str]:
        """Colorings available for the view."""
        return self.colors_of(self.view)

    def _colors_of(self, view: str) -> list[str]:
        rows = self.rows(view)
        names = ["machine"] * (len(set(self._machine[rows])) > 1) + ["domain", "label"]
        names += [f"attribute {key}" for key in index.attribute_keys(self.table.iloc[rows])]
        names += ["severity"] * bool(np.isfinite(self.severity[rows]).any())
        return [*names, *(f"{what} {system}" for what in ("decision", "score") for system in self.sd)]

    def rows(self, view: str) -> np.ndarray:
        """Return the store rows of a view's clips, (clips,)."""
        name, machine = self.views[view]
        rows = self.spaces[name].rows
        return rows[self._machine[rows] == machine] if machine else rows

    @property
    def shown(self) -> set[int]:
        """Store rows of the clips in the displayed maps."""
        return set(self.rows(self.view)) | set(self.rows(self.beside) if self.beside else ())

    def widest_attribute(self, view: str) -> str:
        """Return the attribute with most values, up to MAX_GROUPS if possible, as a coloring; "": none."""
        table = self.table.iloc[self.rows(view)]
        counts = {key: table[f"attr_{key}"].nunique() for key in index.attribute_keys(table)}
        few = {key: count for key, count in counts.items() if count <= MAX_GROUPS} or counts
        return f"attribute {max(few, key=few.get)}" if few else ""

    def choose(
        self,
        view: str = "",
        items: str = "",
        projection: str = "",
        color: str = "",
        beside: str | None = None,
    ) -> None:
        """Change the display; "" keeps a value (beside: None keeps it, "" removes the second map).

        Values that the new view does not offer are replaced by its first choice. Clips that are in no
        displayed map are deselected, and filters that do not apply are removed.
        raises : errors.InputError for a value that the view does not offer
        """
        for name in (view, beside or ""):
            if name:
                errors.check_choice("view", name, list(self.views))
        with self.hold_trait_notifications():
            self.view, self.beside = view or self.view, self.beside if beside is None else beside
            for name, wanted in (("items", items), ("projection", projection), ("color", color)):
                options = getattr(self, {"items": "all_items"}.get(name, f"{name}s"))
                if wanted:
                    errors.check_choice(name, wanted, options)
                wanted = wanted or getattr(self, name)
                setattr(self, name, wanted if wanted in options else options[0])
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
        """System of the view, whose decisions are shown and filtered."""
        return self.space.system

    def decisions(self, rows: np.ndarray, system: str) -> np.ndarray:
        """Return a system's decision on each clip, one of DECISIONS."""
        missing = np.full(len(self.table), np.nan)
        margin = (self.margins[system].to_numpy() if system in self.margins else missing)[rows]
        label = self.table["label"].to_numpy()[rows]
        named = [("hit", "miss"), ("false alarm", "correct rejection"), ("alarm", "no alarm")]
        kind = np.select([label == "anomaly", label == "normal"], [0, 1], 2)
        found = np.array(named, dtype=object)[kind, np.where(margin > 0, 0, 1)]
        found[np.isnan(margin)] = "no threshold"
        found[self.table["split"].to_numpy()[rows] == "train"] = "training"
        return found

    def filter_values(self, name: str) -> list[str]:
        """Return the values of a filter in the view."""
        return self._offered(self.view, name)

    def _values_of(self, view: str, name: str) -> list[str]:
        rows = self.rows(view)
        if name == "attribute":
            table = self.table.iloc[rows]
            keys = index.attribute_keys(table)
            few = [key for key in keys if table[f"attr_{key}"].nunique() <= MAX_GROUPS]
            return [
                f"{key} {value}"
                for key in few
                for value in sorted(set(table[f"attr_{key}"]) - {""}, key=index.natural)
            ]
        system = self.spaces[self.views[view][0]].system
        found = set(self.decisions(rows, system) if name == "decision" else self.table[name].to_numpy()[rows])
        return [one for one in KNOWN.get(name, ()) if one in found] or sorted(found)

    def passing(self, rows: np.ndarray) -> np.ndarray:
        """Return the mask of clips that pass all filters; a search matches parts of names and attributes."""
        keep = np.ones(len(rows), bool)
        for name, value in self.filters.items():
            if name == "search":
                words = value.lower().split()
                keep &= np.fromiter(
                    (all(w in self._text[row] for w in words) for row in rows), bool, len(rows)
                )
            elif name == "attribute":
                keep &= np.fromiter((value in self.attributes[r].split(", ") for r in rows), bool, len(rows))
            elif name == "decision":
                keep &= self.decisions(rows, self.system) == value
            else:
                keep &= self.table[name].to_numpy()[rows] == value
        return keep

    # ---------------------------------------------------------------- points

    def points(
        self, view: str = "", projection: str = "", items: str = "", color: str = ""
    ) -> embedding_plots.Points:
        """Return the points of a view; "" is the current value, or else a value that the view offers."""
        other, view = bool(view) and view != self.view, view or self.view
        name = self.views[view][0]
        items = items or ("clips" if other else self.items)
        available = [one for one in (projection, self.projection, "PCA") if (name, one, items) in self.xy]
        color = color or self.color
        color, projection = (color if color in self.colors_of(view) else "label"), available[0]
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
        value = self.severity[row] if what == "severity" else self.sd[which].reindex(row).to_numpy(float)
        known = value[np.isfinite(value)]
        limits = tuple(np.quantile(known, [0.02, 0.98])) if len(known) else (0.0, 1.0)
        limits = limits if limits[1] > limits[0] else (limits[0], limits[0] + 1.0)
        groups = _groups(self.table["label"].to_numpy()[row], "label")
        return Points(**facts, **groups, value=value, limits=limits)

    def chosen(self, points: Points) -> int:
        """Return the index of the chosen point, -1: none."""
        same = points.row == self.row
        if len(points.segment) and points.segment[0] >= 0:
            same &= points.segment == max(self.segment, 0)
        return int(np.argmax(same)) if self.row >= 0 and same.any() else -1

    def pick(self, row: int, segment: int = -1) -> None:
        """Choose a clip of the displayed maps, and a segment if segments are displayed.

        raises : errors.InputError for a clip that is not displayed
        """
        if row not in self.shown:
            raise errors.InputError(
                f"clip {row} is not in the displayed maps ({self.view}); choose a view that contains it"
            )
        with self.hold_trait_notifications():
            self.row, self.segment = int(row), int(segment if self.items == "clips" else max(segment, 0))

    def mark(self, row: int) -> None:
        """Add a clip to the selection, or remove it."""
        self.selected = [r for r in self.selected if r != row] + [int(row)] * (row not in self.selected)

    def step(self, right: int, up: int, points: Points | None = None) -> bool:
        """Choose the nearest point within 45° of a direction that passes the filters.

        If no point is chosen yet, choose the one nearest to the center.

        right, up : (1, 0), (-1, 0), (0, 1) or (0, -1).  points : of the map in which to step
        returns : False if there is no such point
        """
        points = self.points() if points is None else points
        at, passing = self.chosen(points), self.passing(points.row)
        if at < 0:
            distance = (points.x - 0.5) ** 2 + (points.y - 0.5) ** 2
        else:
            dx, dy = (points.x - points.x[at]).astype(float), (points.y - points.y[at]).astype(float)
            along, across = dx * right + dy * up, np.abs(dx * up + dy * right)
            distance = np.where((along > 0) & (across <= along), np.hypot(along, across), np.inf)
        distance = np.where(passing, distance, np.inf)
        best = int(np.argmin(distance))
        if not np.isfinite(distance[best]):
            return False
        self.pick(points.row[best], points.segment[best])
        return True

    # ---------------------------------------------------------------- facts of clips

    def neighbors(self, n: int = 5) -> pd.DataFrame:
        """Return the n nearest other training clips of the chosen item.

        returns : columns row, clip, distance (in the embedding), domain, attributes
        """
        own = np.flatnonzero(self.space.rows[self.space.of(self.items)[1]] == self.row)
        if not len(own):  # a clip of the second map
            return self._near(self.spaces[self.views[self.beside][0]], "clips", self.row, n)
        return self._near(self.space, self.items, self.row, n, max(self.segment, 0))

    def neighbors_of(self, system: str, row: int, n: int = 5) -> pd.DataFrame:
        """Return `neighbors` of any clip in the space of a system; empty if the system did not embed it."""
        for space in self.spaces.values():
            if space.system == system and row in space.rows:
                return self._near(space, "clips", row, n)
        return pd.DataFrame(columns=["row", "clip", "distance", "domain", "attributes"])

    def _near(self, space: projection.Space, items: str, row: int, n: int, segment: int = 0) -> pd.DataFrame:
        item = int(np.flatnonzero(space.rows[space.of(items)[1]] == row)[segment])
        rows, distances = projection.nearest_training(space, items, item, self.table, n)
        found = self.table.iloc[rows]
        return pd.DataFrame(
            {
                "row": rows,
                "clip": found["clip"].to_numpy(),
                "distance": distances,
                "domain": found["domain"].to_numpy(),
                "attributes": [self.attributes[row] or "no attribute" for row in rows],
            }
        )

    def explained(self) -> float:
        """Return the share of the variance of the view's space that its PCA preserves, 0..1."""
        name, items = self.space.name, self.items
        return projection.explained(self.spaces[name].of(items)[0], self.xy[name, "PCA", items])

    def components(self, row: int) -> pd.DataFrame:
        """Return all scores of a clip.

        returns : columns system, component, score, sd (from the mean of training clips), training below
            (share of training clips with a lower score)
        """
        machine, name, out = self._judged.iloc[row], self.table["clip"].iloc[row], []
        if machine not in self._components:
            of_machine = self._referred[self._referred["machine"] == machine]
            parts = dict(iter(of_machine.groupby(["system", "component"], sort=False)))
            self._components[machine] = {
                key: (dict(zip(part["clip"], part["score"])), part.loc[part["split"] == "train", "score"])
                for system in fusion.in_order(of_machine["system"])
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

    def describe(self, row: int) -> str:
        """Describe a clip: name, attributes, score, decision."""
        facts, sd = self.table.iloc[row], np.nan
        if self.system in self.sd:
            sd = self.sd[self.system].get(row, np.nan)
        words = ", ".join(
            [*facts[["machine", "split", "domain", "label"]], self.attributes[row] or "no attribute"]
        )
        scored = f" {self.system} {tables.signed(f'{sd:+.1f}')} sd" if np.isfinite(sd) else ""
        [decision] = self.decisions(np.array([row]), self.system)
        decided = "" if decision in ("training", "no threshold") else f", {decision}"
        return (
            f"{short(facts['clip'])}: {words}.{scored}{decided}."
            if scored
            else f"{short(facts['clip'])}: {words}."
        )

    def describe_chosen(self, near: pd.DataFrame | None = None) -> str:
        """Describe the chosen clip, as displayed and for screen readers.  near : its `neighbors`, if known"""
        if self.row < 0:
            return (
                "No clip is chosen. Click a point, or use the arrow keys on the map; Enter plays, B switches"
                " to the nearest normal clip, S selects, Escape clears the selection; plus, minus, 0 zoom."
            )
        near = (self.neighbors(1) if near is None else near).head(1)
        part = f" Segment {self.segment + 1}." if self.segment >= 0 else ""
        near = [
            f" Nearest training clip at distance {one.distance:.3g}: {short(one.clip)}."
            for one in near.itertuples()
        ]
        return self.describe(self.row) + part + "".join(near)

    def ranked_clips(self, system: str, n: int, machine: str = "") -> pd.DataFrame:
        """Return the first n test clips of each category of WHY for one system.

        machine : "" for all
        returns : columns row, why, clip, machine, domain, label, attributes, sd, above_threshold (sd); no
            missed clips or false alarms without labels or a threshold.  Notebook: 06_embeddings
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

    def selection(self, most: int | None = None) -> pd.DataFrame:
        """Return the (first `most`) selected clips: CSV_COLUMNS, score (sd) and decision of each system."""
        rows = np.array(self.selected[:most], int)
        found = self.table.iloc[rows].assign(attributes=[self.attributes[row] for row in rows])[CSV_COLUMNS]
        for system in self.sd:
            found[f"{system} sd"] = self.sd[system].reindex(rows).to_numpy()
            found[f"{system} decision"] = self.decisions(rows, system)
        return found.reset_index(drop=True)


def _groups(values: np.ndarray, key: str) -> dict:
    """Return the group of each value, and names and styles of the groups (the same as in other figures)."""
    found, place_of = np.unique(np.asarray(values, dtype=str), return_inverse=True)
    if key in KNOWN:
        names = [name for name in KNOWN[key] if name in found]
        looks = [KNOWN[key][name] for name in names]
    else:
        names = sorted(set(found.tolist()) - {""}, key=index.natural)
        looks = [
            (COLORS[i % len(COLORS)], SHAPES[(i + i // len(COLORS)) % len(SHAPES)]) for i in range(len(names))
        ]
        if len(names) > MAX_GROUPS or "" in found:
            rest = ["other"] if len(names) > MAX_GROUPS else ["none"]
            names, looks = names[:MAX_GROUPS] + rest, [*looks[:MAX_GROUPS], (plots.GRAY, "circle")]
    place = {name: i for i, name in enumerate(names)}
    group = np.array([place.get(value, len(names) - 1) for value in found.tolist()], int)[place_of]
    return {"group": group, "names": names, "looks": looks}


def short(clip: str) -> str:
    """Return a clip's name without folder and extension."""
    return clip.rsplit("/", 1)[-1].rsplit(".", 1)[0]
