"""Maps of many points: random clips of one machine, as the notebook of `test_views` shows them."""

import numpy as np
import pandas as pd

from asdlib import schemas
from asdlib.analysis import projection
from asdlib.viz.widgets.embedding_map import ClipMedia, EmbeddingMap, EmbeddingMapView

RATE = 16000


class Tones:
    """A store in which every clip is a tone of 2 s."""

    def __init__(self, table):
        self.clips = table

    def int16(self, row):
        wave = 3000 * np.sin(2 * np.pi * (200 + row % 4000) * np.arange(2 * RATE) / RATE)
        return np.round(wave).astype(np.int16)


def view(points: int, folder) -> EmbeddingMapView:
    """A map of so many clips: three quarters train, an attribute of five values, two systems.

    folder : where the projection is kept
    """
    rng, row = np.random.default_rng(0), np.arange(points)
    train, faulty = row % 4 > 0, row % 8 == 0
    table = pd.DataFrame(
        {
            "clip": [
                f"fan/{'train' if one else 'test'}/{number:06d}.wav" for number, one in enumerate(train)
            ],
            "machine": "fan",
            "section": "00",
            "split": np.where(train, "train", "test"),
            "domain": np.where(row % 3 == 2, "target", "source"),
            "label": np.where(faulty, "anomaly", "normal"),
            "attr_spd": (row % 5).astype(str),
            "samples": 2 * RATE,
        }
    )
    x = rng.normal(size=(points, 64)).astype(np.float32) + 3 * faulty[:, None].astype(np.float32)
    space = projection.Space("classifier", "classifier", row, x, row)
    facts = table[["machine", "section", "split", "domain", "label", "clip"]]
    parts = [
        facts.assign(system=system, component="score", seed=0, score=rng.normal(size=points) + 2 * faulty)
        for system in ("oevae", "classifier")
    ]
    scores = pd.concat(parts, ignore_index=True)[list(schemas.SCORE_COLUMNS)]
    limits = pd.DataFrame({"system": ["oevae", "classifier"], "machine": "fan", "seed": 0, "threshold": 1.5})
    made = projection.coordinates([space], projection.ProjectionSettings(umap="none"), 0, folder)
    return EmbeddingMapView(EmbeddingMap([space], made, table, scores, limits), ClipMedia(Tones(table), RATE))
