"""The embedding atlas: which map is shown, how it is coloured, which clip is chosen, and everything that is known about that clip.

Conventions
-----------
A view is a space (`projection.Space`), or one machine's part of it. A point is an item of the view: a clip, or a segment. The chosen clip is
kept by its store row, so that it stays chosen when view, items or projection change, wherever it has a point.
Scores stand in standard deviations (sd) above the mean of the machine's normal training scores.
Labels of test clips are shown to the reader; nothing here feeds back into a score.

Every colour has a shape beside it. Colour and shape carry the same thing; where colour is a number, the shape is the label. Filled marks are
test clips, hollow ones training clips.
Sources: METHOD 8.5.  Notebook: 06_embeddings
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
from traitlets import HasTraits, Int, Unicode

from asdlib import errors
from asdlib.analysis import projection as analysis_projection
from asdlib.data import index
from asdlib.viz import plots, tables
from asdlib.viz.embedding_plots import COLOURS, SHAPES, Points

MOST_GROUPS = 16  # named values of a colouring; further ones are "other"
WHY = {
    "most anomalous": "highest scores",
    "most missed": "anomalies with the lowest scores",
    "most falsely alarmed": "normal clips with the highest scores",
}
KNOWN = {
    "domain": {"source": (plots.BLUE, "circle"), "target": (plots.ORANGE, "square"), "unknown": (plots.GREY, "diamond")},
    "label": {"normal": (plots.BLUE, "circle"), "anomaly": (plots.VERMILION, "cross"), "unlabelled": (plots.GREY, "square")},
}  # as in all other figures


class Atlas(HasTraits):
    """All spaces of a study and seed, with the view that is shown of them.

    view, projection, items, colour : by name; the choices are `views`, `projections`, `all_items` and `colours`; set them by `choose`
    row, segment : the chosen clip and, where segments are shown, segment; -1: none; set them by `pick` and `step`
    raises : errors.Refusal without a space
    """

    view, projection, items, colour = Unicode(), Unicode(), Unicode(), Unicode()
    row, segment = Int(-1), Int(-1)

    def __init__(
        self,
        spaces: Sequence[analysis_projection.Space],
        xy: analysis_projection.Maps,
        table: pd.DataFrame,
        scores: pd.DataFrame,
        decisions: pd.DataFrame,
    ):
        """spaces, xy : of `maps`.  table : the store's clip table.  scores : SCORE_COLUMNS of one seed.  decisions : of `metrics.decisions`"""
        if not spaces:
            raise errors.Refusal("no embedding came, expected those of oevae or classifier; add one of them to the study's systems and run it")
        self.spaces, self.xy, self.table = {space.name: space for space in spaces}, xy, table
        self.scores, self.decisions = scores, decisions
        self.judged, self._referred = errors.by_references(table)["machine"], errors.by_references(scores)
        self.views = {}
        for space in spaces:
            machines = list(table["machine"].iloc[space.rows].unique())
            self.views[space.name if len(machines) == 1 else f"{space.name}, all machines"] = (space.name, "")
            if len(machines) > 1:
                self.views |= {f"{space.name}, {machine}": (space.name, machine) for machine in sorted(machines)}
        self._row_of = {name: row for row, name in enumerate(table["clip"])}
        self.standing, self._known = self._standing(), {}
        first = next(iter(self.views))
        made = [projection for space, projection, items in xy if space == self.views[first][0] and items == "clips"]
        super().__init__(view=first, projection=made[0], items="clips", colour="label")

    def fresh(self) -> Atlas:
        """Another atlas of the same maps and scores, whose choices are its own."""
        return Atlas(list(self.spaces.values()), self.xy, self.table, self.scores, self.decisions)

    def _standing(self) -> pd.DataFrame:
        """Score of every clip in sd above the normal training mean; index: store row, a column for each system."""
        own = self._referred[self._referred["component"] == "score"]
        train = own[own["split"] == "train"].groupby(["system", "machine"])["score"].agg(["mean", "std"])
        own = own.join(train, on=["system", "machine"])
        own = own.assign(row=own["clip"].map(self._row_of), sd=(own["score"] - own["mean"]) / own["std"].where(own["std"] > 0))
        return own.pivot_table(index="row", columns="system", values="sd")[tables.in_order(own["system"])]

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
        return [name for name in analysis_projection.PROJECTIONS if (self.space.name, name, self.items) in self.xy]

    @property
    def colours(self) -> list[str]:
        """What the view can be coloured by."""
        table = self.table.iloc[self._rows()]
        attributes = [f"attribute {key}" for key in index.attribute_keys(table)]
        machine = ["machine"] if table["machine"].nunique() > 1 else []
        return [*machine, "domain", "label", *attributes, *(f"score {system}" for system in self.standing)]

    def widest_attribute(self) -> str:
        """The colouring by the view's attribute with most values that can still be named; "" without attributes."""
        table = self.table.iloc[self._rows()]
        counts = {key: table[f"attr_{key}"].nunique() for key in index.attribute_keys(table)}
        few = {key: count for key, count in counts.items() if count <= MOST_GROUPS} or counts
        return f"attribute {max(few, key=few.get)}" if few else ""

    def choose(self, view: str = "", items: str = "", projection: str = "", colour: str = "") -> None:
        """Change what is shown; "" keeps it. What the new view does not have falls back to its first choice.

        raises : errors.Refusal for what the view asked for does not have
        """
        if view:
            errors.known_name("view", view, list(self.views))
        with self.hold_trait_notifications():
            self.view = view or self.view
            for name, wanted, there in (("items", items, "all_items"), ("projection", projection, "projections"), ("colour", colour, "colours")):
                if wanted:
                    errors.known_name(name, wanted, getattr(self, there))
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
        """The points of the view as it is coloured now."""
        clip = self.space.of(self.items)[1]
        row, xy = self.space.rows[clip], self.xy[self.space.name, self.projection, self.items].astype(float)
        number = np.arange(len(clip)) - np.searchsorted(clip, clip) if self.items == "segments" else np.full(len(clip), -1)
        keep = np.isin(row, self._rows())
        row, number, xy = row[keep], number[keep], xy[keep]
        low, high = xy.min(0), xy.max(0)
        span = np.maximum(high - low, 1e-12)
        xy = 0.5 + (xy - (low + high) / 2) / (span.max() if self.projection == "PCA" else span)
        table = self.table.iloc[row]
        facts = {"x": xy[:, 0].astype(np.float32), "y": xy[:, 1].astype(np.float32), "row": row, "segment": number}
        facts["colour"], facts["test"] = self.colour, (table["split"] == "test").to_numpy()
        if not self.colour.startswith("score "):
            key = self.colour.replace("attribute ", "attr_", 1)
            return Points(**facts, **self._groups(table[key].to_numpy(), key))
        value = self.standing[self.colour.removeprefix("score ")].reindex(row).to_numpy(float)
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
            looks = [(COLOURS[i % len(COLOURS)], SHAPES[(i + i // len(COLOURS)) % len(SHAPES)]) for i in range(len(names))]
            if len(names) > MOST_GROUPS or "" in found:
                rest = ["other"] if len(names) > MOST_GROUPS else ["none"]
                names, looks = names[:MOST_GROUPS] + rest, [*looks[:MOST_GROUPS], (plots.GREY, "circle")]
        place = {name: i for i, name in enumerate(names)}
        return {"group": np.array([place.get(str(value), len(names) - 1) for value in values]), "names": names, "looks": looks}

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

    def neighbours(self, n: int = 5) -> pd.DataFrame:
        """The n training clips next to the chosen item in the embedding, leave-clip-out: row, clip, distance, domain, attributes."""
        item = np.flatnonzero(self.space.rows[self.space.of(self.items)[1]] == self.row)[max(self.segment, 0)]
        return self._near(self.space, self.items, int(item), n)

    def neighbours_of(self, system: str, row: int, n: int = 5) -> pd.DataFrame:
        """`neighbours` of any clip in the space of a system; without a row where the system has no place for it."""
        for space in self.spaces.values():
            place = np.flatnonzero(space.rows == row)
            if space.system == system and len(place):
                return self._near(space, "clips", int(place[0]), n)
        return pd.DataFrame(columns=["row", "clip", "distance", "domain", "attributes"])

    def _near(self, space: analysis_projection.Space, items: str, item: int, n: int) -> pd.DataFrame:
        rows, away = analysis_projection.nearest_training(space, items, item, self.table, n)
        found = self.table.iloc[rows]
        facts = {"row": rows, "clip": found["clip"].to_numpy(), "distance": away, "domain": found["domain"].to_numpy()}
        return pd.DataFrame(facts | {"attributes": [self.attributes(row) for row in rows]})

    def explained(self) -> float:
        """Share of the variance of the view's space that its PCA keeps, 0..1."""
        return analysis_projection.explained(self.space.of(self.items)[0], self.xy[self.space.name, "PCA", self.items])

    def attributes(self, row: int) -> str:
        """Attributes of a clip in words."""
        facts = self.table.iloc[row]
        found = [f"{name[5:]} {facts[name]}" for name in self.table if name.startswith("attr_") and facts[name] != ""]
        return ", ".join(found) or "no attribute"

    def components(self, row: int) -> pd.DataFrame:
        """Every component that scored a clip: system, component, score, sd from the mean of training clips, share of training clips below."""
        machine, name, out = self.judged.iloc[row], self.table["clip"].iloc[row], []
        for (system, component), (values, train) in self._parts(machine).items():
            if name in values:
                spread = train.std(ddof=1) if len(train) > 1 else np.nan
                sd = (values[name] - train.mean()) / spread if spread > 0 else np.nan
                out.append((system, component, values[name], sd, float(np.mean(train < values[name])) if len(train) else np.nan))
        return pd.DataFrame(out, columns=["system", "component", "score", "sd", "training below"])

    def _parts(self, machine: str) -> dict[tuple[str, str], tuple[dict[str, float], np.ndarray]]:
        """Of each system and component its score of every clip of a machine, and the scores of the training clips."""
        if machine not in self._known:
            mine, found = self._referred[self._referred["machine"] == machine], {}
            groups = dict(iter(mine.groupby(["system", "component"], sort=False)))
            for system in tables.in_order(mine["system"]):
                for key, part in groups.items():
                    if key[0] == system:
                        found[key] = dict(zip(part["clip"], part["score"])), part.loc[part["split"] == "train", "score"].to_numpy(float)
            self._known[machine] = found
        return self._known[machine]

    def said(self) -> str:
        """The chosen clip in one sentence, for the eye and for a screen reader."""
        if self.row < 0:
            return "No clip is chosen. Click a point, or use the arrow keys; Enter plays the clip."
        facts, near = self.table.iloc[self.row], self.neighbours(1)
        part = f", segment {self.segment + 1}" if self.segment >= 0 else ""
        system = self.space.system
        sd = self.standing[system].get(self.row, np.nan) if system in self.standing else np.nan
        scored = f" {system} {tables.signed(f'{sd:+.1f}')} sd." if np.isfinite(sd) else ""
        next_to = f" Nearest training clip at distance {near['distance'].iloc[0]:.3g}: {short(near['clip'].iloc[0])}." if len(near) else ""
        words = ", ".join([*facts[["machine", "split", "domain", "label"]], self.attributes(self.row)])
        return f"{short(facts['clip'])}{part}: {words}.{scored}{next_to}"

    def listed(self, system: str, n: int, machine: str = "") -> pd.DataFrame:
        """The n test clips for each of WHY by one system: row, why, clip, machine, domain, label, attributes, sd, above_threshold (sd).

        machine : "" takes all.  Sorted from the most telling; a reason without labels has no rows.  Notebook: 06_embeddings
        """
        table = tables.standing(self.scores[self.scores["system"] == system], self.decisions)
        table = table[table["clip"].isin(self.table.loc[self.table["machine"] == machine, "clip"])] if machine else table
        high = table.sort_values("above_normal", ascending=False, kind="stable")
        parts = (high, high[high["label"] == "anomaly"].iloc[::-1], high[high["label"] == "normal"])
        found = pd.concat([part.head(n).assign(why=why) for why, part in zip(WHY, parts, strict=True)], ignore_index=True)
        found["row"] = found["clip"].map(self._row_of).astype(int)
        found["attributes"] = [self.attributes(row) for row in found["row"]]
        columns = ["row", "why", "clip", "machine", "domain", "label", "attributes", "above_normal", "above_threshold"]
        return found[columns].rename(columns={"above_normal": "sd"})


def short(clip: str) -> str:
    """A clip's name without folder and ending."""
    return clip.rsplit("/", 1)[-1].rsplit(".", 1)[0]
