"""Maps are made once, neighbors equal a slow search and leave the clip's own out, every key has a nearest
point, the lists say what they claim.
"""

import dataclasses
import io
import re
import warnings

import numpy as np
import pandas as pd
import pytest
import torch

from asdlib import errors, schemas
from asdlib.analysis import explain, projection
from asdlib.viz import audio
from asdlib.viz.embedding_plots import map_grid, picture, why
from asdlib.viz.widgets import embedding_map
from asdlib.viz.widgets.embedding_map import (
    WHY,
    ClipMedia,
    EmbeddingMap,
    EmbeddingMapView,
    listing,
    static_maps,
    why_figure,
)

SETTINGS = projection.ProjectionSettings(umap="none")
SEGMENTS = 3


@pytest.fixture(scope="module")
def atlas_parts():
    """Two machines with segments in a space of their own, and a classifier's space; scores that rise with the
    row.
    """
    rng, rows = np.random.default_rng(0), []
    for machine in ("fan", "pump"):
        for split, label, count in (("test", "anomaly", 4), ("test", "normal", 4), ("train", "normal", 9)):
            for i in range(count):
                domain = "target" if i % 3 == 2 else "source"
                name = f"{machine}/{split}/{domain}_{label}_{i}.wav"
                speed = str(10 * (i % 3)) if machine == "fan" else ""
                rows.append((name, machine, "00", split, domain, label, speed, 16000))
    table = pd.DataFrame(
        rows, columns=["clip", "machine", "section", "split", "domain", "label", "attr_spd", "samples"]
    )
    spaces = []
    for machine in ("fan", "pump"):
        own = np.flatnonzero(table["machine"] == machine)
        clip = np.repeat(np.arange(len(own)), SEGMENTS)
        spaces.append(
            projection.Space(
                f"oevae {machine}", "oevae", own, rng.normal(size=(len(clip), 6)).astype(np.float32), clip
            )
        )
    every = np.arange(len(table))
    spaces.append(
        projection.Space(
            "classifier", "classifier", every, rng.normal(size=(len(table), 5)).astype(np.float32), every
        )
    )
    facts = table[["machine", "section", "split", "domain", "label", "clip"]]
    parts = [
        facts.assign(system=system, component=component, seed=0, score=rng.normal(size=len(table)))
        for system, component in (
            ("oevae", "score"),
            ("oevae", "alpha"),
            ("oevae", "beta"),
            ("classifier", "score"),
        )
    ]
    scores = pd.concat(parts, ignore_index=True)[list(schemas.SCORE_COLUMNS)]
    limits = pd.DataFrame([(s, m, 0, 1.0) for s in ("oevae", "classifier") for m in ("fan", "pump")])
    limits.columns = ["system", "machine", "seed", "threshold"]
    return table, spaces, scores, limits


@pytest.fixture
def mapped(atlas_parts, tmp_path):
    table, spaces, scores, limits = atlas_parts
    return EmbeddingMap(spaces, projection.coordinates(spaces, SETTINGS, 0, tmp_path), table, scores, limits)


class Store:
    """Tones, one for each clip."""

    def __init__(self, table):
        self.clips = table

    def int16(self, row):
        return np.round(3000 * np.sin(2 * np.pi * (200 + 10 * row) * np.arange(16000) / 16000)).astype(
            np.int16
        )


# ---------------------------------------------------------------- maps


def test_pca_keeps_the_distances_of_a_plane():
    rng = np.random.default_rng(0)
    plane = rng.normal(size=(30, 2)) @ np.linalg.qr(rng.normal(size=(8, 2)))[0].T
    found = projection.pca(plane.astype(np.float32))
    gaps = (np.linalg.norm(x[:, None] - x[None], axis=2) for x in (found, plane))
    np.testing.assert_allclose(*gaps, atol=1e-4)
    assert projection.explained(plane, found) == pytest.approx(1, abs=1e-4)


def test_maps_are_made_once_and_again_when_the_embedding_changes(atlas_parts, tmp_path, monkeypatch):
    spaces, made = atlas_parts[1][:1], []
    real = projection.pca
    monkeypatch.setattr(projection, "pca", lambda x: made.append(len(x)) or real(x))
    first = projection.coordinates(spaces, SETTINGS, 0, tmp_path)
    again = projection.coordinates(spaces, SETTINGS, 0, tmp_path)
    assert made == [17, 51] and set(first) == {
        ("oevae fan", "PCA", "clips"),
        ("oevae fan", "PCA", "segments"),
    }
    for key, xy in first.items():
        np.testing.assert_array_equal(xy, again[key])
    moved = spaces[0].embedding.copy()
    moved[0, 0] += 1
    projection.coordinates([dataclasses.replace(spaces[0], embedding=moved)], SETTINGS, 0, tmp_path)
    assert made == [17, 51, 17, 51] and len(list(tmp_path.glob("*.parquet"))) == 2  # the old ones are gone


@pytest.mark.slow
def test_umap_is_seeded_and_keeps_groups_apart(tmp_path):
    rng = np.random.default_rng(0)
    group = np.repeat([0, 1], 30)
    space = projection.Space(
        "classifier",
        "classifier",
        np.arange(60),
        (rng.normal(size=(60, 8)) + 12 * group[:, None]).astype(np.float32),
        np.arange(60),
    )
    settings, threads = projection.ProjectionSettings(umap="clips", epochs=60), torch.get_num_threads()
    found = projection.coordinates([space], settings, 0, tmp_path)["classifier", "UMAP", "clips"]
    assert torch.get_num_threads() == threads == 1  # numba's start gives torch a thread per core
    np.testing.assert_array_equal(
        found, projection.umap(space.embedding, settings, 0)
    )  # made afresh, equal to the kept one
    away = np.linalg.norm(found[:, None] - found[None], axis=2) + np.diag(np.full(60, np.inf))
    assert (group[away.argmin(1)] == group).all()
    assert projection.wanted(space, settings) == [("UMAP", "clips"), ("PCA", "clips")]


def test_too_few_clips_make_no_map(tmp_path):
    space = projection.Space("oevae fan", "oevae", np.arange(3), np.zeros((3, 4), np.float32), np.arange(3))
    with pytest.raises(
        errors.InputError, match="oevae fan: got 3 clips, expected at least 4 for a map; add recordings"
    ):
        projection.coordinates([space], SETTINGS, 0, tmp_path)


# ---------------------------------------------------------------- the model


@pytest.mark.parametrize("items", ["clips", "segments"])
def test_neighbors_equal_a_slow_search_without_the_clip_itself(atlas_parts, items):
    table, spaces, *_ = atlas_parts
    for space in spaces:
        if items == "segments" and not space.segmented:
            continue
        x, clip = space.of(items)
        for item in range(0, len(clip), 5):
            own, best = space.rows[clip[item]], {}
            for other in range(len(clip)):
                row = space.rows[clip[other]]
                if (
                    row != own
                    and table["split"][row] == "train"
                    and table["machine"][row] == table["machine"][own]
                ):
                    best[row] = min(
                        best.get(row, np.inf), float(np.sqrt(((x[other].astype(float) - x[item]) ** 2).sum()))
                    )
            expected = sorted(best, key=best.get)[:4]
            rows, away = projection.nearest_training(space, items, item, table, 4)
            assert rows.tolist() == expected
            np.testing.assert_allclose(away, [best[row] for row in expected])


def test_a_clip_is_the_mean_of_its_segments(atlas_parts):
    space = atlas_parts[1][0]
    np.testing.assert_allclose(space.of("clips")[0][3], space.embedding[9:12].mean(0), rtol=1e-5)


def test_views_choices_and_fallbacks(mapped):
    assert list(mapped.views) == [
        "oevae fan",
        "oevae pump",
        "classifier, all machines",
        "classifier, fan",
        "classifier, pump",
    ]
    named, of_systems = ["domain", "label", "attribute spd"], ["oevae", "classifier"]
    of_systems = [f"{what} {system}" for what in ("decision", "score") for system in of_systems]
    assert mapped.colors == [*named, *of_systems] and mapped.all_items == ["clips", "segments"]
    mapped.choose(items="segments", color="attribute spd")
    mapped.pick(2, 1)
    assert len(mapped.points().x) == 51 and mapped.points().row[mapped.chosen(mapped.points())] == 2
    with pytest.raises(errors.InputError, match="clip 20 is not in the displayed maps"):
        mapped.pick(20)
    mapped.choose(view="classifier, all machines")
    assert (mapped.items, mapped.row, mapped.segment) == ("clips", 2, -1) and "machine" in mapped.colors
    mapped.choose(view="oevae pump")
    assert mapped.row == -1 and mapped.color == "domain"  # the pump has no attribute
    with pytest.raises(errors.InputError, match="unknown view 'oevae fun'; did you mean oevae fan"):
        mapped.choose(view="oevae fun")
    with pytest.raises(errors.InputError, match="unknown color 'machine'"):
        mapped.choose(color="machine")


def test_a_study_without_maps_says_so(atlas_parts):
    with pytest.raises(errors.InputError, match="no embeddings given; expected those of oevae or classifier"):
        EmbeddingMap([], {}, *[atlas_parts[i] for i in (0, 2, 3)])


@pytest.mark.parametrize("right, up", [(1, 0), (-1, 0), (0, 1), (0, -1)])
def test_an_arrow_goes_to_the_nearest_point_that_way(mapped, right, up):
    points = mapped.points()
    for at in range(len(points.x)):
        mapped.pick(points.row[at])
        ways = []
        for other in range(len(points.x)):
            dx, dy = float(points.x[other] - points.x[at]), float(points.y[other] - points.y[at])
            along = dx * right + dy * up
            if along > 0 and abs(dx * up + dy * right) <= along:
                ways.append((np.hypot(dx, dy), other))
        moved = mapped.step(right, up)
        assert moved == bool(ways)
        assert mapped.row == points.row[min(ways)[1] if ways else at]


def test_every_point_has_a_color_and_a_shape_and_training_is_hollow(mapped):
    for view in mapped.views:
        mapped.choose(view=view)
        for color in mapped.colors:
            mapped.choose(color=color)
            points = mapped.points()
            assert len(points.group) == len(points.row) == len(points.x) and points.group.max() < len(
                points.looks
            ) == len(points.names)
            assert (
                len(set(points.looks)) == len(points.looks)
                and (points.test == (mapped.table["split"].to_numpy()[points.row] == "test")).all()
            )
            assert 0 <= points.x.min() and points.x.max() <= 1 and 0 <= points.y.min() and points.y.max() <= 1


def test_scores_are_in_sd_of_training_scores(mapped):
    mine = mapped.scores[
        (mapped.scores["system"] == "oevae")
        & (mapped.scores["component"] == "score")
        & (mapped.scores["machine"] == "fan")
    ]
    train = mine.loc[mine["split"] == "train", "score"]
    first = mine[mine["clip"] == mapped.table["clip"][0]]["score"].iloc[0]
    assert mapped.sd["oevae"][0] == pytest.approx((first - train.mean()) / train.std())
    row = mapped.components(0).set_index(["system", "component"]).loc[("oevae", "score")]
    assert row["sd"] == pytest.approx(mapped.sd["oevae"][0]) and row["training below"] == np.mean(
        train < first
    )
    assert set(mapped.components(0)["component"]) == {"score", "alpha", "beta"}


def test_the_lists_are_what_they_say(mapped):
    found, whole = mapped.ranked_clips("oevae", 2), mapped.ranked_clips("oevae", 99)
    score, test = mapped.sd["oevae"], mapped.table[mapped.table["split"] == "test"]
    above = mapped.scores.query("system == 'oevae' and component == 'score'").set_index("clip")["score"] > 1.0
    above = above[test["clip"]].to_numpy()
    missed = score[test.index[(test["label"] == "anomaly") & ~above]].nsmallest(99)
    false = score[test.index[(test["label"] == "normal") & above]].nlargest(99)
    expected = dict(zip(WHY, (score[test.index].nlargest(99), missed, false), strict=True))
    assert len(missed) and len(false) < (test["label"] == "normal").sum()
    for why_listed, rows in expected.items():
        assert whole.loc[whole["why"] == why_listed, "row"].tolist() == rows.index.tolist()
        assert found.loc[found["why"] == why_listed, "row"].tolist() == rows.index[:2].tolist()
    assert set(mapped.ranked_clips("oevae", 9, "fan")["machine"]) == {"fan"}


def test_decisions_compare_the_score_with_the_threshold(mapped):
    scores = mapped.scores.query("system == 'classifier' and component == 'score'").set_index("clip")["score"]
    for row, decision in enumerate(mapped.decisions(np.arange(len(mapped.table)), "classifier")):
        facts = mapped.table.iloc[row]
        alarm = scores[facts["clip"]] > 1.0
        names = {"anomaly": ("miss", "hit"), "normal": ("correct rejection", "false alarm")}[facts["label"]]
        assert decision == ("training" if facts["split"] == "train" else names[int(alarm)])
    assert set(mapped.decisions(np.arange(8), "ensemble")) == {"no threshold"}


def test_filters_keep_what_they_name_and_faint_clips_are_not_reached(mapped):
    rows = mapped.points().row
    for filters, expected in (
        ({"domain": "target"}, mapped.table["domain"] == "target"),
        (
            {"attribute": "spd 10", "split": "test"},
            (mapped.table["attr_spd"] == "10") & (mapped.table["split"] == "test"),
        ),
        ({"search": "TARGET_normal spd"}, mapped.table["clip"].str.contains("target_normal")),
        ({"decision": "miss"}, pd.Series(mapped.decisions(np.arange(len(mapped.table)), "oevae") == "miss")),
    ):
        mapped.filters = filters
        np.testing.assert_array_equal(mapped.passing(rows), expected[rows])
        assert 0 < mapped.passing(rows).sum() < len(rows)
        mapped.row = -1
        mapped.step(1, 0)
        assert mapped.passing(np.array([mapped.row])).all()
    assert mapped.filter_values("attribute") == ["spd 0", "spd 10", "spd 20"]
    mapped.filters = {"attribute": "spd 10", "label": "normal", "search": "a"}
    mapped.choose(view="oevae pump")
    assert mapped.filters == {"label": "normal", "search": "a"}  # the pump has no attribute


def test_the_chosen_clip_in_words(mapped):
    assert "arrow keys" in mapped.describe_chosen()
    mapped.pick(1)
    words = mapped.describe_chosen()
    assert (
        words.startswith("source_anomaly_1: fan, test, source, anomaly, spd 10. oevae ")
        and "Nearest training clip at" in words
        and "oevae" in words
    )


# ---------------------------------------------------------------- the views, without a browser


def viewed(mapped):
    """A view, and the messages that its players and its selection send."""
    view, sent = EmbeddingMapView(mapped, ClipMedia(Store(mapped.table), 16000)), []
    for one in (view.players, view.selection, *view.panels):
        one.send = sent.append
    return view, sent


def test_the_view_follows_clicks_keys_and_choices(mapped):
    view, sent = viewed(mapped)
    panel = view.panels[0]
    xy = np.frombuffer(panel.xy, "<f4").reshape(-1, 2)
    assert (len(xy), len(panel.codes), panel.chosen, view.players.a) == (17, 51, -1, "")
    view._message({"kind": "hover", "number": 4}, 0)
    assert sent.pop()["text"].startswith("source_normal_0\nfan, test, source, normal, spd 0\noevae ")
    view._message({"kind": "pick", "number": 4}, 0)
    assert panel.chosen == 4 and sent == [{"kind": "play"}] and mapped.describe_chosen() in view.words.value
    assert view.detail.value.count("<svg") == 3 and len(panel.near) == 5  # log-mel, difference, phase
    nearest = mapped.neighbors(1)["row"].iloc[0]
    assert view.players.a_name == "source_normal_0" and view.players.a.startswith("data:audio/ogg")
    assert view.players.b_name.endswith(mapped.table["clip"][nearest].split("/")[-1][:-4]) and view.players.b
    view._message({"kind": "pick", "row": int(nearest)}, 0)  # a click in the table of neighbors
    assert mapped.row == nearest and len(sent) == 2
    before = view.players.a
    for right, up in ((1, 0), (-1, 0), (0, 1), (0, -1)):
        view._message({"kind": "step", "right": right, "up": up}, 0)
    assert view.players.a != before and len(sent) == 2  # arrows choose, Enter plays
    view._message({"kind": "play"}, 0)
    assert sent[2:] == [{"kind": "play"}]
    view.choices["view"].value = "classifier, all machines"
    assert len(panel.codes) == 3 * 34 and view.choices["items"].options == ("clips",)
    view.choices["color"].value = "score classifier"
    assert len(panel.colors) > 20 and "sd from the training mean" in view.legend.value
    label, place = view.list.options[1]
    view.list.value = place
    assert mapped.row == place[0] and label.startswith("most anomalous")
    view._message({"kind": "pick", "number": 10_000}, 0)
    assert mapped.row == place[0]


def test_nothing_of_an_old_view_remains(mapped):
    view, _ = viewed(mapped)
    view._message({"kind": "lasso", "numbers": [0, 1, 2]}, 0)
    view.list.value = view.list.options[1][1]
    chosen = mapped.row
    view._message({"kind": "pick", "number": (chosen + 1) % 8}, 0)
    assert view.list.value is None or view.list.value[0] == mapped.row != chosen
    view.reason.value = "why"
    mapped.choose(view="oevae pump")
    assert (
        "No clip is chosen" in view.words.value and view.panels[0].chosen == -1 and view.panels[0].near == []
    )
    assert not any(
        (view.players.a, view.players.a_name, view.players.b, view.players.b_name, view.reason.value)
    )
    assert view.near.rows == view.selection.rows == [] and view.near.caption == view.selection.caption == ""
    assert view.list.value is None and "<svg" not in view.detail.value and view.panels[0].selected == []


def test_two_maps_have_one_choice_and_one_selection(mapped):
    view, _ = viewed(mapped)
    view.choices["beside"].value = "classifier, all machines"
    first, second = view.panels
    assert second.layout.display is None and len(second.codes) == 3 * 34
    view._message({"kind": "pick", "number": 20}, 1)  # a pump: only the second map has it
    assert (first.chosen, second.chosen, mapped.row) == (-1, 20, 20)
    assert mapped.neighbors()["clip"].str.startswith("pump").all()
    view._message({"kind": "step", "right": 1, "up": 0}, 0)  # from the middle of the first
    assert first.chosen >= 0 and mapped.points(mapped.beside).row[second.chosen] == mapped.row
    view._message({"kind": "lasso", "numbers": [3, 20]}, 1)
    assert mapped.selected == [3, 20] and (first.selected, second.selected) == ([3], [3, 20])
    view._message({"kind": "lasso", "numbers": [0, 3], "more": True}, 0)
    view._message({"kind": "mark", "number": 3}, 0)
    assert mapped.selected == [20, 0]
    view._message({"kind": "clear"}, 0)
    assert mapped.selected == []
    mapped.choose(beside="")
    assert second.layout.display == "none"
    with pytest.raises(errors.InputError, match="unknown view 'oevae fun'"):
        mapped.choose(beside="oevae fun")


def test_the_selection_is_a_table_and_a_csv(mapped):
    view, sent = viewed(mapped)
    view._message({"kind": "lasso", "numbers": [9, 2]}, 0)
    assert [row["row"] for row in view.selection.rows] == [9, 2] and "2" in view.selection.caption
    view._message({"kind": "csv"}, 0)
    read = pd.read_csv(io.StringIO(sent[-1]["text"]), keep_default_na=False)
    assert read["clip"].tolist() == mapped.table["clip"][[9, 2]].tolist()
    assert read["oevae sd"][1] == pytest.approx(mapped.sd["oevae"][2])
    assert read["oevae decision"][0] == "training"


def test_values_beyond_the_scale_are_marked(mapped):
    mapped.choose(color="score oevae")
    view, _ = viewed(mapped)
    points, bits = mapped.points(), np.frombuffer(view.panels[0].codes, np.uint8).reshape(-1, 3)[:, 2]
    beyond = (points.value < points.limits[0]) | (points.value > points.limits[1])
    assert 0 < beyond.sum() < len(beyond) and ((bits & 4 > 0) == beyond).all()
    assert ((bits & 1 > 0) == points.test).all() and f"the {beyond.sum()} clips outside" in view.legend.value
    mapped.filters = {"label": "anomaly"}
    bits = np.frombuffer(view.panels[0].codes, np.uint8).reshape(-1, 3)[:, 2]
    assert ((bits & 2 > 0) == (mapped.table["label"].to_numpy()[points.row] == "normal")).all()


def test_colors_of_text_and_ground_are_the_theme_s(mapped):
    view, _ = viewed(mapped)
    mapped.pick(3)
    for shown in (view.detail.value, view.legend.value):
        assert not re.search("#(1b1f24|000000|fff)", shown, re.IGNORECASE)


def test_a_hostile_name_stays_text(atlas_parts, tmp_path):
    table, spaces, scores, limits = atlas_parts
    evil = "fan/test/<img src=x onerror=alert(1)>.wav"
    swap = {table["clip"][0]: evil}
    renamed = table.assign(
        clip=table["clip"].replace(swap), attr_spd=table["attr_spd"].replace({"0": "<b>0</b>"})
    )
    maps, scores = projection.coordinates(spaces, SETTINGS, 0, tmp_path), scores.replace({"clip": swap})
    mapped = EmbeddingMap(spaces, maps, renamed, scores, limits)
    view, _ = viewed(mapped)
    view._message({"kind": "pick", "number": 0}, 0)
    view.choices["color"].value = "attribute spd"
    shown = (view.detail.value, view.legend.value, view.words.value, listing(mapped, view.media, 30))
    assert not any("<img src=x" in text or "<b>0" in text for text in shown)
    assert "innerHTML" not in (embedding_map.HERE / "clip_table.js").read_text()


class Review:
    """Accepts in memory, and refuses training clips."""

    def __init__(self):
        self.shown, self.kept = None, []

    def preview(self, row, system):
        if row >= 8:
            raise errors.InputError("is a training clip")
        self.shown = row
        return f"{system}: 1 of 8 <decisions> change"

    def keep(self):
        self.kept.append(self.shown)
        return "kept"

    def listed(self):
        facts = {"machine": "fan", "when": "2026-01-01 00:00:00"}
        return pd.DataFrame([{"digest": str(row), "file": f"a/{row}.wav", **facts} for row in self.kept])

    def revoke(self, digest):
        self.kept.remove(int(digest))
        return "revoked"


def test_only_what_was_shown_can_be_accepted(mapped):
    review = Review()
    view = EmbeddingMapView(mapped, ClipMedia(Store(mapped.table), 16000), review=review).accept
    assert view.show.disabled and view.keep.disabled  # no clip is chosen
    mapped.pick(3)
    assert not view.show.disabled and view.keep.disabled
    view.show.click()
    assert "oevae: 1 of 8 &lt;decisions&gt; change" in view.words.value and not view.keep.disabled
    assert review.kept == []
    mapped.pick(4)  # another clip: what was shown holds no more
    assert view.keep.disabled and view.words.value == ""
    view.show.click()
    view.keep.click()
    assert review.kept == [4] and view.keep.disabled and len(view.list.children) == 1
    assert "4.wav" in view.list.children[0].children[1].value
    view.list.children[0].children[0].click()
    assert review.kept == [] and view.list.children == () and "revoked" in view.words.value
    mapped.pick(12)
    view.show.click()
    assert "is a training clip" in view.words.value and view.keep.disabled


def test_why_is_asked_for_the_chosen_clip_and_the_system_of_the_view(mapped):
    asked = []
    explained = lambda *given: asked.append(given) or "<p class='change'>a tone</p>"  # noqa: E731
    view = EmbeddingMapView(mapped, ClipMedia(Store(mapped.table), 16000), explained)
    view.button.click()
    assert asked == [] and "Choose a clip first" in view.reason.value
    mapped.pick(3)
    view.button.click()
    assert asked == [(3, "oevae")] and "a tone" in view.reason.value
    mapped.choose(color="domain")
    assert "a tone" in view.reason.value  # another coloring leaves the clip as it is
    mapped.pick(4)
    assert view.reason.value == ""


def test_both_faces_of_the_view(mapped):
    mapped.choose(view="oevae pump")
    mapped.pick(20)
    bundle = EmbeddingMapView(mapped, ClipMedia(Store(mapped.table), 16000))._repr_mimebundle_()
    static = bundle["text/html"]
    assert "application/vnd.jupyter.widget-view+json" in bundle and "<script" not in static
    assert static.count("<img alt=") == 2
    assert (mapped.view, mapped.row) == ("oevae pump", 20)  # drawing the twin leaves the model as it was


def test_the_view_follows_the_model(mapped):
    view, _ = viewed(mapped)
    mapped.choose(view="oevae pump", color="domain")
    mapped.pick(20)
    assert view.choices["view"].value == "oevae pump" and view.choices["color"].value == "domain"
    assert mapped.points().row[view.panels[0].chosen] == 20 and mapped.describe_chosen() in view.words.value


def test_lists_with_players_are_limited(mapped):
    sounds = ClipMedia(Store(mapped.table), 16000)
    for most in (0, 6, 9):
        shown = listing(mapped, sounds, most)
        assert shown.count("<audio") <= most and "missed" in shown and "<script" not in shown
    assert listing(mapped, sounds, 30).count("<audio") > 6


def test_one_gain_for_all_clips_of_a_machine(mapped):
    sounds = ClipMedia(Store(mapped.table), 16000)
    assert sounds.gain("fan") == pytest.approx(0.5 * audio.PEAK / (3000 / 32768), rel=1e-3)


def test_figures_are_drawn_without_a_warning(mapped):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for figure in static_maps(mapped):
            assert "<img" in figure._repr_html_() and figure.alt
        level = explain.Map(np.random.default_rng(0).normal(size=(32, 50)), np.linspace(50, 7800, 32), 0.02)
        segments = {"alpha": np.ones(2), "beta": np.arange(2.0)}
        found = explain.Why(
            0, 1.0, level, level, level, "beta", np.array([0.0, 0.5]), 0.5, segments, {"fft": 0.2, "mel": 0.8}
        )
        assert "residual" in why_figure(mapped, found).alt
        drawn = why(found, {"alpha": (1.2, 0.1), "beta": (0.5, 0.2)}, "a clip")
        low, high = next(axis.get_ylim() for axis in drawn.axes if axis.get_ylabel() == "α")
        assert (
            low < 1.0 and high > 1.3 and "fft 20.0 %, mel 80.0 %" in drawn.axes[-2].get_xlabel()
        )  # neither clip nor training clips on the frame
        bare = explain.Why(0, 1.0, level, None, None, "beta", None, 0.5, None, None)
        assert why(bare, {}, "a clip")._repr_html_().startswith('<div class="plot" tabindex="0">')
        assert map_grid({"a": [mapped.points(), None]}, "PCA").alt
    shown = picture(level, title="<b>", unit="dB", colors="magma", limits=(-3, 3))
    assert shown.startswith('<svg role="img"') and "<b>" not in shown
