"""Embedding spaces and their maps: what the trained networks left, laid out in two dimensions.

Conventions
-----------
A space holds the items of one network: segments of one machine's clips (OEVAE, one network per machine), or
clips of all machines (classifier, one network). Items come in clip order. A clip's place is the mean of its
items. Embeddings of the classifier have unit length, as its back-ends see them. Nothing is computed again
that a stage wrote.

Maps show neighborhoods. In PCA distances are those of the embedding, less what two axes cannot hold
(`explained`). In UMAP near means near, but distances between groups and the sizes of groups mean nothing.

Maps are kept by the digest of what they were made from: UMAP costs 10 to 17 s of compilation in each process,
then about 1 s per 1000 items.
Sources: METHOD 8.5.  Notebook: 06_embeddings
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
    """Maps of the embeddings in 06_embeddings (METHOD 8.5); PCA is always there."""

    umap: Literal["none", "clips", "segments"] = setting(
        "segments", "UMAP of nothing, of the clips, or of clips and every segment"
    )
    neighbors: int = setting(
        15, "neighbors that UMAP keeps together; more show the coarse order, fewer the fine one", 2, 200
    )
    min_dist: float = setting(0.1, "how close UMAP may bring items", 0.0, 0.99)
    epochs: int = setting(200, "of UMAP's layout", 10, 5000)


PROJECTIONS = ("UMAP", "PCA")
ITEMS = ("clips", "segments")
FEWEST = 4  # items: fewer make no map
Maps = dict[tuple[str, str, str], np.ndarray]  # (space, projection, items) -> float32 (n, 2)


@dataclass(frozen=True, eq=False)
class Space:
    """Items of one network.

    rows : int (clips,), store rows, rising.  embedding : float32 (items, dim).  clip : int (items,), position
        in rows, rising.  latent : whether it is a part of a latent, not the embedding that is scored
    """

    name: str
    system: str
    rows: np.ndarray
    embedding: np.ndarray
    clip: np.ndarray
    latent: bool = False

    def of(self, items: str) -> tuple[np.ndarray, np.ndarray]:
        """Vectors float32 (n, dim) and the position of each one's clip, by clip or by segment."""
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
        """Whether clips have more than one item."""
        return len(self.clip) > len(self.rows)


def oevae_spaces(folder: Path, table: pd.DataFrame, machine: str, domain: int) -> list[Space]:
    """Segments of one machine, from what 05_oevae left: the embedding, then z_d and z_c of the VAE (means).

    table : the store's clip table.  domain : channels of z_d
    """
    found = latents.load(folder, table, machine, domain)
    order = np.argsort(found.clip, kind="stable")
    places = np.flatnonzero(table["clip"].isin(found.clips["clip"]))
    z = found.z_mean
    parts = zip(latents.SPACES, (found.embedding, z[:, :domain], z[:, domain:]), strict=True)
    return [
        Space(f"oevae {machine}" + f" {name}" * latent, "oevae", places, x[order], found.clip[order], latent)
        for latent, (name, x) in zip((False, True, True), parts, strict=True)
        if x.shape[1]
    ]


def classifier_space(folder: Path) -> Space:
    """Clips of all machines, from what 04_classifier left."""
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
    """All clips of one machine, by a detector that embeds any clip."""
    rows = np.flatnonzero(detector.store.clips["machine"] == machine)
    return Space(
        f"{detector.name} {machine}", detector.name, rows, *detector.embed(Clips(detector.store, rows))
    )


def pca(x: np.ndarray) -> np.ndarray:
    """The first two principal components, float32 (n, 2).  x : (n, dim)"""
    found = (
        PCA(2, svd_solver="full").fit_transform(x.astype(np.float64))
        if x.shape[1] > 1
        else np.c_[x - x.mean(0), np.zeros(len(x))]
    )
    return found.astype(np.float32)


def explained(x: np.ndarray, xy: np.ndarray) -> float:
    """Share of the variance of x (n, dim) that a linear map to xy (n, 2) keeps, 0..1."""
    total = x.astype(float).var(0).sum()
    return float(xy.astype(float).var(0).sum() / total) if total > 0 else 0.0


def umap(x: np.ndarray, settings: ProjectionSettings, seed: int) -> np.ndarray:
    """UMAP, float32 (n, 2); equal for equal x, settings and seed on one machine.  x : (n, dim)"""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ImportWarning)  # of an optional part that needs another framework
        from umap import (
            UMAP,
            # here: the import alone compiles for seconds, which a finished study and one of PCA only need not
            # pay
        )

    neighbors = min(settings.neighbors, len(x) - 1)
    model = UMAP(
        n_neighbors=neighbors,
        min_dist=settings.min_dist,
        n_epochs=settings.epochs,
        random_state=seed,
        n_jobs=1,
        init="pca",  # the spectral start of few or disconnected items warns and falls back to chance
    )
    with training.one_thread():  # numba's start gives torch, too, a thread per core, and that would stay
        return model.fit_transform(x).astype(np.float32)


def wanted(space: Space, settings: ProjectionSettings) -> list[tuple[str, str]]:
    """(projection, items) of the maps that the settings ask of a space; of a latent PCA alone."""
    items = ITEMS if space.segmented else ITEMS[:1]
    if space.latent:
        return [("PCA", kind) for kind in items]
    made = {"none": (), "clips": ("clips",), "segments": ITEMS}[settings.umap]
    return [("UMAP", kind) for kind in items if kind in made] + [("PCA", kind) for kind in items]


def coordinates(spaces: Sequence[Space], settings: ProjectionSettings, seed: int, folder: Path) -> Maps:
    """Every map that the settings ask for, from `folder` where it was made before of the same embeddings,
    else made and kept there.

    folder : of the maps alone; those that no space asks for any more are deleted.  Notebook: 06_embeddings
    raises : errors.InputError for a space with fewer than 4 clips
    """
    out: Maps = {}
    with io.wrap_os_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        used = set()
        for space in spaces:
            if len(space.rows) < FEWEST:
                raise errors.InputError(
                    f"{space.name}: {len(space.rows)} clips came, expected at least {FEWEST} for a map; add"
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
    """Name of a map: everything that shapes it."""
    shaped_by = (
        (projection, x.shape)
        if projection == "PCA"
        else (projection, x.shape, settings.neighbors, settings.min_dist, settings.epochs, seed)
    )
    return hashlib.sha256(digest(shaped_by).encode() + np.ascontiguousarray(x).tobytes()).hexdigest()[:20]


def nearest_training(
    space: Space, items: str, item: int, table: pd.DataFrame, n: int
) -> tuple[np.ndarray, np.ndarray]:
    """Store rows and Euclidean distances of the n training clips next to an item, nearest first.

    item : number of the clip or segment in `space.of(items)`.  A training clip has no neighbor in itself,
        nor in another machine's clips; of
    several segments of a clip the nearest counts.  table : the store's clip table.  Notebook: 06_embeddings
    """
    x, clip = space.of(items)
    own = space.rows[clip[item]]
    facts = table.iloc[space.rows[clip]]
    allowed = (
        (facts["split"] == "train")
        & (facts["label"] == "normal")
        & (facts["machine"] == table["machine"].iloc[own])
    ).to_numpy()
    allowed = allowed & (space.rows[clip] != own)
    away = np.linalg.norm(x[allowed].astype(float) - x[item].astype(float), axis=1)
    order = np.argsort(away, kind="stable")
    rows, first = np.unique(space.rows[clip[allowed]][order], return_index=True)
    keep = np.argsort(first)[:n]
    return rows[keep], away[order][first[keep]]
