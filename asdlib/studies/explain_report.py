"""Pages that explain the score of a recording: what changed in words, the score along the recording, its
log-mel with the segments and regions that contribute to the score, and its nearest training clips.

Conventions
-----------
One self-contained page per recording (without scripts or network requests), and one `nearest.csv` for all of
them. Pages show what the detectors of the study provide (`asdlib.analysis.explain`); regions are gradients
and residuals, not causes. Distances between embeddings are:

    oevae          mean over the recording's segments of the distance to the clip's nearest segment
    classifier     distance of the unit embeddings; also for `pretrained`
    baseline_knn   distance of the scaled spectra
    multires       mean over views of the root mean square difference of the scaled features

Distances of different detectors have different units and cannot be compared. SMOTE items and mixtures among
the references are not clips and not listed.
Source: report 3.2; METHOD 3.4-3.6.  Used by: `asd score --explain`.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from asdlib import errors, io, schemas
from asdlib.analysis import changes, explain
from asdlib.data.store import Clips, Store, in_memory, training_rows
from asdlib.detectors.base import Detector
from asdlib.detectors.nearest import SMALLEST_DB
from asdlib.scoring import backends
from asdlib.scoring.distances import SMALLEST_DEVIATION
from asdlib.studies import scorer
from asdlib.viz import audio, embedding_plots, pages, tables

NEAREST = 5  # training clips shown for each detector
SECTION_S = 2.0  # length of the sections of a recording that are scored separately; at most half of it
COLUMNS = ("file", "detector", "rank", "clip", "distance", "path")


def _segments(detector: Detector, own: np.ndarray, new: Detector, row: int) -> np.ndarray:
    originals = detector.references.parents[:, 0] == detector.references.parents[:, 1]
    h, clip = detector.references.h[originals], detector.references.parents[originals, 0]
    distances = np.linalg.norm(
        new.embed(Clips(new.store, np.array([row])))[0][:, None] - h[None], axis=2
    )  # (segments, references)
    return np.array([distances[:, clip == each].min(1).mean() for each in own])


def _units(detector: Detector, own: np.ndarray, new: Detector, row: int) -> np.ndarray:
    place = {number: i for i, number in enumerate(detector.train_rows.tolist())}
    train = detector.train_vectors[[place[number] for number in own.tolist()]]
    return backends.distances(
        backends.unit(new.embed(Clips(new.store, np.array([row])))[0]), backends.unit(train)
    )[0]


def _spectra(detector: Detector, own: np.ndarray, new: Detector, row: int) -> np.ndarray:
    deviation = np.maximum(detector.train.std(0), SMALLEST_DB)
    return np.linalg.norm(
        (new.embed(Clips(new.store, np.array([row])))[0] - detector.train) / deviation, axis=1
    )


def _views(detector: Detector, own: np.ndarray, new: Detector, row: int) -> np.ndarray:
    found = []
    vectors = detector.split(new.embed(Clips(new.store, np.array([row])))[0])
    for vector, train in zip(vectors, detector.split(detector.train)):
        deviation = np.maximum(train.std(0), SMALLEST_DEVIATION)
        found.append(np.sqrt((((vector - train) / deviation) ** 2).mean(1)))
    return np.mean(found, axis=0)


DISTANCES = {
    "oevae": _segments,
    "classifier": _units,
    "baseline_knn": _spectra,
    "multires": _views,
    "pretrained": _units,
}


def nearest(
    name: str, detector: Detector, store: Store, row: int, machine: str, count: int = NEAREST
) -> pd.DataFrame:
    """Return the training clips of a machine whose embeddings are nearest to that of a recording.

    name : one of DISTANCES.  store, row : of the recording, which the detector was not trained on
    returns : detector, rank (1: nearest), clip, distance, path, row (in the study's store); nearest first
    raises : errors.InputError for a detector without embeddings of training clips
    """
    errors.check_choice("detector with embeddings of clips", name, list(DISTANCES))
    table = detector.store.clips
    own = training_rows(table, machine)
    distances = DISTANCES[name](detector, own, detector.at(store), row)
    first = np.argsort(distances, kind="stable")[:count]
    facts = table.iloc[own[first]][["clip", "path"]].reset_index(drop=True)
    return facts.assign(
        detector=name, rank=np.arange(1, len(first) + 1), distance=distances[first], row=own[first]
    )


def along(ready: scorer.Scorer, store: Store, row: int) -> np.ndarray:
    """Return the score of each section of a recording, relative to their mean, in sd of the training scores.

    returns : float64 (sections,); sections overlap by half.  They are shorter than the training clips, so
        only differences within the recording are meaningful
    """
    wave = store.int16(row)
    length = max(min(round(SECTION_S * store.rate), len(wave) // 2), 1)
    starts = np.arange(0, len(wave) - length + 1, max(length // 2, 1))
    facts = store.clips.iloc[np.full(len(starts), row)].reset_index(drop=True)
    facts = facts.assign(clip=[f"{number:09d}" for number in range(len(starts))], split="test")
    parts = in_memory(facts, [wave[start : start + length] for start in starts], store.rate)
    scores = ready.scores(parts)[ready.system, "score"]
    train = ready.train[(ready.train["system"] == ready.system) & (ready.train["component"] == "score")]
    return (scores - scores.mean()) / max(float(train["score"].std()), 1e-12)


def in_words(
    change: changes.Change, scored: np.ndarray, seconds: float, players: Sequence[tables.Html]
) -> tables.Html:
    """Return what changed in a clip, in words, over time and frequency, with its score along the clip.

    scored : (n,) from `along`.  seconds : of the clip
    players : from `pages.player`: the clip and the most similar normal training clip
    """
    strip = embedding_plots.strip("score of each section (sd)", scored, 2.0, seconds)
    legend = pages.legend("section with a score above the mean of all sections", "below")
    return tables.Html(
        f'{embedding_plots.change(change)}{strip}{legend}<div class="clips">{"".join(players)}</div>'
        '<p class="note">The second clip is the most similar normal training clip.</p>'
    )


class OfStudy:
    """`in_words` for clips of a study.

    run : run.Run with trained detectors.  scores : its score table.  Notebook: 06_embeddings
    """

    def __init__(self, run, scores: pd.DataFrame):
        self.run, self.scores, self.change = run, scores, functools.cache(self._change)
        self._normals = functools.cache(lambda machine: changes.Normals.of(run.store, machine))

    def _change(self, row: int) -> changes.Change:
        normals = self._normals(self.run.clips["machine"].iloc[row])
        return normals.describe(self.run.store.int16(row) / 32768.0)

    def __call__(self, row: int, system: str) -> tables.Html:
        """Describe a clip.  row : of the store.  system : whose score is shown along the clip

        raises : errors.InputError for a machine with a single training clip
        """
        run, change = self.run, self.change(row)
        clips, rate = run.clips, run.cfg.data.sample_rate
        machine, section = clips[["machine", "section"]].iloc[row]
        section = section if schemas.by_references(clips)["machine"].iloc[row] != machine else ""
        needed = scorer.detectors_of(system, views=run.cfg.fusion.views)
        found = {name: run.detector(name, machine) for name in needed}
        ready = scorer.Scorer(run.cfg, found, self.scores, machine, system, run.seed, section)
        shown = {"this clip": row, "most similar normal clip": change.like}
        waves = [run.store.int16(one) / 32768.0 for one in shown.values()]
        gain = audio.common_gain(waves)
        players = [
            pages.player(wave, rate, f"{what}: {clips['clip'].iloc[one]}", gain)
            for (what, one), wave in zip(shown.items(), waves)
        ]
        return in_words(change, along(ready, run.store, row), len(waves[0]) / rate, players)


def write(
    run,
    ready: scorer.Scorer,
    paths: Sequence[str | Path],
    scores: pd.DataFrame,
    folder: str | Path,
    first: int = 0,
) -> list[Path]:
    """Write pages for scored recordings, and their lines in nearest.csv; return the pages.

    run : run.Run.  paths, scores : recordings and their rows of `ready(paths)`.  first : number of the
        first recording in the names of the pages
    returns : paths; recordings that could not be scored have no page
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    store, _ = ready.decoded(paths)
    known = {name: run.detector(name, ready.machine) for name in scorer.detectors_of(*run.cfg.systems)}
    maps = (
        {name: known[name].at(store) for name in ("autoencoder", "oevae", "classifier") if name in known}
        if store is not None
        else {}
    )
    train = ready.train[ready.train["component"].isin(["alpha", "beta"])].groupby("component")["score"]
    usual = {name: (part.mean(), part.std()) for name, part in train}
    normals = changes.Normals.of(run.store, ready.machine) if store is not None else None
    written = []
    for row in range(len(store) if store is not None else 0):
        place = int(store.clips["clip"].iloc[row])
        result, shown = scores.iloc[place], scores["file"].iloc[place]
        name, title = f"{first + place:04d}_{Path(shown).stem}", Path(shown).name
        found = explain.why(store, row, run.cfg.oevae.features, **maps)
        near = pd.concat(
            [nearest(name, known[name], store, row, ready.machine) for name in DISTANCES if name in known]
            or [pd.DataFrame()]
        )
        change = normals.describe(store.int16(row) / 32768.0)
        clips = dict.fromkeys([change.like, *(near["row"] if len(near) else [])])
        waves = {shown: store.int16(row)}
        waves |= {run.store.clips["clip"].iloc[each]: run.store.int16(each) for each in clips}
        gain = audio.common_gain([wave / 32768.0 for wave in waves.values()])
        players = [
            pages.player(wave / 32768.0, run.cfg.data.sample_rate, caption, gain)
            for caption, wave in waves.items()
        ]
        above = "above" if result["decision"] == "anomaly" else "not above"
        summary = (
            f"{ready.system} of {ready.name}: score {result['score']:.4g}, {above} the threshold"
            f" {result['threshold']:.4g}: {result['decision']}."
        )
        summary += f" Remark: {result['remark']}." if result["remark"] else ""
        picture = embedding_plots.why(found, usual, title)._repr_html_()
        none = tables.Html("<p>None of the systems embeds clips.</p>")
        listed = tables.styled(near[["detector", "rank", "clip", "distance"]]) if len(near) else none
        seconds = len(store.int16(row)) / store.rate
        words = in_words(change, along(ready, store, row), seconds, players[:2])
        body = (
            f"<p>{tables.escape(summary)}</p><h2>What changed</h2>{words}<h2>By the detectors</h2>{picture}"
            f"<h2>Nearest training clips</h2>{listed}"
            f'<div class="clips">{"".join(players[2:])}</div>'
        )
        io.write_text(folder / f"{name}.html", pages.page(title, body))
        written.append(folder / f"{name}.html")
        lines = near.assign(file=shown).reindex(columns=list(COLUMNS))
        lines.to_csv(
            folder / "nearest.csv", mode="a", index=False, header=not os.path.exists(folder / "nearest.csv")
        )
    return written
