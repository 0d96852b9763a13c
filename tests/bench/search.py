"""Benchmarks of search, metrics and the tuner."""

import dataclasses

import numpy as np
import pandas as pd
import torch
from scipy.spatial.distance import cdist
from sklearn.cluster import KMeans
from sklearn.metrics import roc_auc_score
from sklearn.neighbors import NearestNeighbors

from asdlib import schemas
from asdlib.evaluation import roc
from asdlib.models import classifier
from asdlib.scoring import backends, distances
from asdlib.studies import config
from tests.bench.measure import Measure, compare

TESTS, CLIPS, SEGMENTS, DIM = 200, 990, 8, 512  # of a DCASE machine


def knn(device: torch.device) -> list[Measure]:
    """β of a machine: segments of 200 test clips and, leave-clip-out, of 990 training clips."""
    rng = np.random.default_rng(0)
    train, test = (rng.normal(size=(n * SEGMENTS, DIM)).astype(np.float32) for n in (CLIPS, TESTS))
    clip = np.arange(len(train)) // SEGMENTS

    def scikit() -> None:
        for k in (1, 2, 4):
            NearestNeighbors(n_neighbors=k, algorithm="brute").fit(train).kneighbors(test)

    def own_left_out() -> None:
        for number in range(3):
            mine = clip == number
            NearestNeighbors(n_neighbors=4, algorithm="brute").fit(train[~mine]).kneighbors(train[mine])

    kinds = {"rounds": 3, "says": "scikit-learn, brute, once per k"}
    pairs = len(test) * len(train)
    new = compare(
        "kNN, new clips",
        "items",
        lambda: distances.knn_distances(test, train, k_max=4),
        len(test),
        scikit,
        operations=2 * pairs * DIM,
        moved=4 * (test.size + train.size),
        **kinds,
        note=f"{len(train)} references, k = 1, 2, 4 at once, exact",
    )
    kinds["says"] = "scikit-learn, one search per clip without its own"
    own = compare(
        "kNN, leave-clip-out",
        "items",
        lambda: distances.knn_distances(train, train, k_max=4, test_clip=clip, train_clip=clip),
        len(train),
        own_left_out,
        3 * SEGMENTS,
        operations=2 * len(train) ** 2 * DIM,
        **kinds,
    )
    return [new, own]


def kmeans(device: torch.device) -> list[Measure]:
    """The classifier's back-end: centers, scores of new clips, and of training clips by folds."""
    rng = np.random.default_rng(0)
    train, test, settings = (
        rng.normal(size=(CLIPS, 384)),
        rng.normal(size=(TESTS, 384)),
        classifier.ClassifierSettings(),
    )
    target = np.arange(CLIPS) % 99 == 0

    def ours() -> None:
        made = backends.KMeansCosine(train, target, settings, 0)
        made(test), made.training()

    def plain() -> None:
        for fold in range(11):
            centers = (
                KMeans(settings.kmeans, n_init=1, random_state=0)
                .fit(train[np.arange(CLIPS) % 10 != fold])
                .cluster_centers_
            )
            scored = test if fold == 10 else train[fold::10]
            [cdist(x[None], np.vstack([centers, train[target]]), "cosine").min() for x in scored]

    return [
        compare(
            "k-means cosine",
            "clips",
            ours,
            CLIPS + TESTS,
            plain,
            rounds=3,
            says="the same fits by scikit-learn, scores clip by clip",
            note="11 fits of 16 centers, scikit-learn's own in both",
        )
    ]


def _machine(n: int = TESTS) -> tuple[np.ndarray, np.ndarray]:
    return (
        np.array(["source", "target"])[np.arange(n) % 2],
        np.array(["normal", "anomaly"])[np.arange(n) // 2 % 2],
    )


def _scikit(scores: np.ndarray, domain: np.ndarray, label: np.ndarray) -> list[float]:
    """The three metrics as the official evaluator takes them."""
    high, out = label == "anomaly", []
    for name in ("source", "target"):
        keep = high | (domain == name)
        out.append(roc_auc_score(high[keep], scores[keep]))
    return [*out, roc_auc_score(high, scores, max_fpr=0.1)]


def metrics_grid(device: torch.device) -> list[Measure]:
    """51 values of ω times 32 of k on 200 clips; and 2,000 resamples of 16 machines."""
    rng, (domain, label) = np.random.default_rng(0), _machine()
    scores = rng.normal(size=(51 * 32, TESTS)) + (label == "anomaly")
    grid = compare(
        "metrics grid",
        "score vectors",
        lambda: roc.grid(scores, domain, label),
        len(scores),
        lambda: [_scikit(row, domain, label) for row in scores[:8]],
        8,
        says="scikit-learn's roc_auc_score, three calls each",
    )
    wanted = np.random.default_rng(1).integers(0, TESTS, (4, TESTS))

    def ours() -> None:
        for machine in range(16):
            weights = roc.bootstrap_weights(domain, label, 2000, [0, machine])
            roc.bootstrap(scores[machine], domain, label, weights)

    boot = compare(
        "bootstrap",
        "resamples",
        ours,
        16 * 2000,
        lambda: [_scikit(scores[0][i], domain[i], label[i]) for i in wanted],
        4,
        rounds=3,
        says="scikit-learn on each resample written out",
    )
    return [
        grid,
        dataclasses.replace(boot, note=f"2,000 x 16 machines x 3 metrics: {32000 / boot.rate:.2f} s"),
    ]


def tick(device: torch.device, from_scores) -> list[Measure]:
    """One tick of the tuner for 7 machines of 200 clips.  from_scores : of `asdlib.analysis.tuning`"""
    rng, cfg, (domain, label) = np.random.default_rng(0), config.StudySettings(), _machine()
    names = ["alpha", *(f"alpha_k{k:g}" for k in cfg.oevae.k_scales), "beta", "beta_k1", "beta_k2", "beta_k4"]
    parts = []
    for machine in range(7):
        for split in ("test", "train"):
            facts = {"machine": f"m{machine}", "section": "00", "split": split, "domain": domain}
            facts |= {
                "clip": [f"m{machine}/{split}/{i}" for i in range(TESTS)],
                "label": label if split == "test" else "normal",
            }
            facts |= {"system": "oevae", "seed": 0}
            parts += [
                pd.DataFrame(facts | {"component": name, "score": rng.normal(size=TESTS)}) for name in names
            ]
    found = from_scores(
        schemas.score_table(pd.concat(parts, ignore_index=True)[list(schemas.SCORE_COLUMNS)]), cfg
    )
    scores = rng.normal(size=(7, TESTS))
    return [
        compare(
            "one tick",
            "ticks",
            lambda: [found.point("oevae", found.default) for _ in range(100)],
            100,
            lambda: [_scikit(row, domain, label) for row in scores],
            1,
            says="scikit-learn, three calls per machine",
            note="7 machines of 200 clips",
        )
    ]
