"""From embeddings to clip scores: distances, back-ends, fusion, thresholds.

`KNN`, `KMeansCosine`, `LocalDensity`, `StandardizedDensity` and `Mahalanobis` accept any embeddings.
"""

import importlib


def __getattr__(name: str):
    if name in ("KNN", "KMeansCosine", "LocalDensity", "StandardizedDensity", "Mahalanobis"):
        return getattr(importlib.import_module("asdlib.scoring.estimators"), name)
    raise AttributeError(f"module 'asdlib.scoring' has no attribute {name!r}")
