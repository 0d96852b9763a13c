"""Detectors: a network or feature, its training and its back-ends behind one interface (`base`).

`base.detect` fits a detector to the training clips of some machines and scores all their clips. Notebooks:
03_baseline, 04_classifier, 05_oevae.
"""

from __future__ import annotations

from asdlib.detectors.autoencoder import Autoencoder
from asdlib.detectors.base import Detector
from asdlib.detectors.classifier import Classifier
from asdlib.detectors.multires import MultiResolution
from asdlib.detectors.nearest import NearestNeighbor
from asdlib.detectors.oevae import OEVAE
from asdlib.detectors.pretrained import Pretrained

DETECTORS: dict[str, type[Detector]] = {
    detector.name: detector
    for detector in (NearestNeighbor, MultiResolution, Pretrained, Autoencoder, OEVAE, Classifier)
}
# system -> detector
SYSTEMS = {system: detector.name for detector in DETECTORS.values() for system in detector.systems}
