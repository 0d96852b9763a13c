"""Anomalous sound detection of machines: features, augmentations, losses, models, detectors, scores and
metrics.

    import asdlib as asd

    clips = asd.load_dcase("dev_data/raw", machines=["fan", "valve"])
    det = asd.OEVAE(epochs=20, seed=0).fit(clips.train("fan"), others=clips.train(without="fan"))
    scores = det.score(clips.test("fan"))
    asd.evaluate(scores)

Nothing here needs a study, a notebook or a folder convention: `from_arrays` takes waveforms and a table.
Names are loaded when they are first used, so `import asdlib` is quick. Higher scores are more anomalous
throughout.
"""

from __future__ import annotations

import importlib

__version__ = "0.1.0"

_MODULES = {  # modules and packages under the name that a user writes
    **{
        name: f"asdlib.{name}"
        for name in (
            "features",
            "augment",
            "data",
            "models",
            "scoring",
            "detectors",
            "evaluation",
            "analysis",
            "viz",
        )
    },
    "losses": "asdlib.models.losses",
}
_NAMES = {  # classes and functions, with the module that they live in
    "InputError": "asdlib.errors",
    "load_dcase": "asdlib.data.store",
    "from_arrays": "asdlib.data.store",
    "Clips": "asdlib.data.store",
    "NearestNeighbor": "asdlib.detectors.nearest",
    "MultiResolution": "asdlib.detectors.multires",
    "Pretrained": "asdlib.detectors.pretrained",
    "Autoencoder": "asdlib.detectors.autoencoder",
    "Classifier": "asdlib.detectors.classifier",
    "OEVAE": "asdlib.detectors.oevae",
    "evaluate": "asdlib.evaluation.metrics",
    "load_detector": "asdlib.studies.export",
}
__all__ = [*_MODULES, *_NAMES]


def __getattr__(name: str):
    if name in _MODULES:
        return importlib.import_module(_MODULES[name])
    if name in _NAMES:
        return getattr(importlib.import_module(_NAMES[name]), name)
    raise AttributeError(f"module 'asdlib' has no attribute {name!r}; it has {', '.join(__all__)}")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
