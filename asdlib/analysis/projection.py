"""Embedding spaces of trained networks, and their two-dimensional maps by PCA and UMAP.

Conventions
-----------
A space holds the items of one network: segments of one machine's clips (OEVAE, one network per machine), or
clips of all machines (classifier). Items are in clip order. The position of a clip is the mean of its items.
Classifier embeddings are normalized to unit length, as for its back-ends.

PCA preserves distances except for the variance outside two axes (`explained`). UMAP preserves neighborhoods;
distances between groups and sizes of groups have no meaning.

Maps are cached by the digest of their inputs: UMAP takes 10 to 17 s to compile in each process, then about
1 s per 1000 items.
Source: METHOD 8.5.  Notebook: 06_embeddings
"""

from __future__ import annotations

import functools
import hashlib
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import pandas as pd
from sklearn.decomposition import PCA

from asdlib import errors, io
from asdlib.analysis import latents
from asdlib.data.store import Clips
from asdlib.detectors import classifier
from asdlib.detectors.base import Detector
from asdlib.models import training
from asdlib.scoring import backends, distances
from asdlib.settings import Settings, digest, setting


class ProjectionSettings(Settings):
    """Maps of the embeddings in 06_embeddings (METHOD 8.5), in addition to PCA."""

    umap: Literal["none", "clips", "segments"] = setting(
        "segments", "items of the UMAP maps; segments includes clips"
    )
    neighbors: int = setting(
        15, "UMAP n_neighbors; more show the global structure, fewer the local one", 2, 200
    )
    min_dist: float = setting(0.1, "UMAP min_dist, smallest distance between items", 0.0, 0.99)
    epochs: int = setting(200, "UMAP n_epochs", 10, 5000)


PROJECTIONS = ("UMAP", "PCA")
ITEMS = ("clips", "segments")
MIN_CLIPS = 4  # clips needed for a map
Maps = dict[tuple[str, str, str], np.ndarray]  # (space, projection, items) -> float32 (n, 2)


@dataclass(frozen=True, eq=False)
class Space:
    """Items of one network.

    rows : int (clips,), store rows, ascending.  embedding : float32 (items, dim)
    clip : int (items,), position in rows, ascending
    latent : True for a part of a latent, False for an embedding used for scoring
    """

    name: str
    system: str
    rows: np.ndarray
    embedding: np.ndarray
    clip: np.ndarray
    latent: bool = False

    def of(self, items: str) -> tuple[np.ndarray, np.ndarray]:
        """Return vectors float32 (n, dim) and positions of their clips, by clip or by segment."""
        if items == "segments":
            return self.embedding, self.clip
        return self._means, np.arange(len(self.rows))

    @functools.cached_property
    def _means(self) -> np.ndarray:
        means = [
            distances.to_clips(column, self.clip, len(self.rows)) for column in self.embedding.T.astype(float)
        ]
        return np.stack(means, 1).astype(np.float32)

    @property
    def segmented(self) -> bool:
        """True if clips have more than one item."""
        return len(self.clip) > len(self.rows)


def oevae_spaces(folder: Path, table: pd.DataFrame, machine: str, domain: int) -> list[Space]:
    """Return the spaces of one machine's segments from 05_oevae: embedding, z_d and z_c (posterior means).

    table : clip table of the store.  domain : number of z_d channels
    """
    found = latents.load(folder, table, machine, domain)
    order = np.argsort(found.clip, kind="stable")
    rows = np.flatnonzero(table["clip"].isin(found.clips["clip"]))
    z = found.z_mean
    parts = zip(latents.SPACES, (found.embedding, z[:, :domain], z[:, domain:]), strict=True)
    return [
        Space(f"oevae {machine}" + f" {name}" * latent, "oevae", rows, x[order], found.clip[order], latent)
        for latent, (name, x) in zip((False, True, True), parts, strict=True)
        if x.shape[1]
    ]


def classifier_space(folder: Path) -> Space:
    """Return the space of all machines' clips from 04_classifier."""
    rows, embedding = classifier.load_embeddings(folder)
    rows = np.asarray(rows)
    order = np.argsort(rows)
    return Space(
        "classifier",
        "classifier",
        rows[order],
        backends.unit(embedding[order]).astype(np.float32),
        np.arange(len(rows)),
    )


def detector_space(detector: Detector, machine: str) -> Space:
    """Return the space of one machine's clips, embedded by a detector."""
    rows = np.flatnonzero(detector.store.clips["machine"] == machine)
    return Space(
        f"{detector.name} {machine}", detector.name, rows, *detector.embed(Clips(detector.store, rows))
    )


def pca(x: np.ndarray) -> np.ndarray:
    """Return the first two principal components, float32 (n, 2).  x : (n, dim)"""
    if x.shape[1] == 1:
        return np.c_[x - x.mean(0), np.zeros(len(x))].astype(np.float32)
    return PCA(2, svd_solver="full").fit_transform(x.astype(np.float64)).astype(np.float32)


def explained(x: np.ndarray, xy: np.ndarray) -> float:
    """Return the share of the variance of x (n, dim) kept by its linear projection xy (n, 2), 0..1."""
    total = x.astype(float).var(0).sum()
    return float(xy.astype(float).var(0).sum() / total) if total > 0 else 0.0


def umap(x: np.ndarray, settings: ProjectionSettings, seed: int) -> np.ndarray:
    """Return the UMAP layout, float32 (n, 2); deterministic on one computer.  x : (n, dim)"""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ImportWarning)  # optional part of umap that needs TensorFlow
        from umap import UMAP  # only here: the import compiles for seconds

    model = UMAP(
        n_neighbors=min(settings.neighbors, len(x) - 1),
        min_dist=settings.min_dist,
        n_epochs=settings.epochs,
        random_state=seed,
        n_jobs=1,
        init="pca",  # spectral initialization fails with few or disconnected items
    )
    with training.one_thread():  # numba would set torch's thread count for good
        return model.fit_transform(x).astype(np.float32)


def wanted(space: Space, settings: ProjectionSettings) -> list[tuple[str, str]]:
    """Return (projection, items) of the maps to make of a space; of latents PCA only."""
    items = ITEMS if space.segmented else ITEMS[:1]
    if space.latent:
        return [("PCA", kind) for kind in items]
    umap_items = {"none": (), "clips": ("clips",), "segments": ITEMS}[settings.umap]
    return [("UMAP", kind) for kind in items if kind in umap_items] + [("PCA", kind) for kind in items]


def coordinates(spaces: Sequence[Space], settings: ProjectionSettings, seed: int, folder: Path) -> Maps:
    """Return all maps, cached in `folder`.

    folder : for maps only; outdated ones are deleted
    raises : errors.InputError for a space with fewer than 4 clips.  Notebook: 06_embeddings
    """
    out: Maps = {}
    with io.wrap_os_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        used = set()
        for space in spaces:
            if len(space.rows) < MIN_CLIPS:
                raise errors.InputError(
                    f"{space.name}: got {len(space.rows)} clips, expected at least {MIN_CLIPS} for a map; add"
                    " recordings"
                )
            for projection, items in wanted(space, settings):
                x, _ = space.of(items)
                path = folder / f"{_digest(x, projection, settings, seed)}.parquet"
                used.add(path)
                if path.is_file():
                    out[space.name, projection, items] = io.table(path, ["x", "y"]).to_numpy(np.float32)
                    continue
                xy = pca(x) if projection == "PCA" else umap(x, settings, seed)
                io.write_table(path, pd.DataFrame(xy, columns=["x", "y"]))
                out[space.name, projection, items] = xy
        for old in set(folder.glob("*.parquet")) - used:
            old.unlink(missing_ok=True)
    return out


def _digest(x: np.ndarray, projection: str, settings: ProjectionSettings, seed: int) -> str:
    """Return the digest of a map's inputs, its file name."""
    inputs = (projection, x.shape)
    if projection == "UMAP":
        inputs += (settings.neighbors, settings.min_dist, settings.epochs, seed)
    return hashlib.sha256(digest(inputs).encode() + np.ascontiguousarray(x).tobytes()).hexdigest()[:20]


def nearest_training(
    space: Space, items: str, item: int, table: pd.DataFrame, n: int
) -> tuple[np.ndarray, np.ndarray]:
    """Return store rows and Euclidean distances of the n nearest training clips of an item, nearest first.

    Only other clips of the same machine count, each by its nearest segment.

    item : index of the clip or segment in `space.of(items)`.  table : clip table of the store
    Notebook: 06_embeddings
    """
    x, clip = space.of(items)
    row = space.rows[clip]
    own = row[item]
    split, label, machine = (table[name].to_numpy() for name in ("split", "label", "machine"))
    allowed = (split[row] == "train") & (label[row] == "normal") & (machine[row] == machine[own])
    allowed &= row != own
    distance = np.linalg.norm(x[allowed].astype(float) - x[item].astype(float), axis=1)
    order = np.argsort(distance, kind="stable")
    rows, first = np.unique(row[allowed][order], return_index=True)
    keep = np.argsort(first)[:n]
    return rows[keep], distance[order][first[keep]]
