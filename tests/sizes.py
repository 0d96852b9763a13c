"""Settings of networks that train in seconds, and detectors made with them, for the tests."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from asdlib.data.store import Clips, Store, machine_rows
from asdlib.models import autoencoder, classifier, oevae
from asdlib.models.encoders import YAMNet
from asdlib.studies import config


@dataclass(frozen=True)
class Context:
    """Settings and recordings of a test, and where to compute."""

    cfg: config.StudySettings
    store: Store
    device: torch.device
    seed: int = 0
    folder: Path | None = None


def detector_of(kind, context):
    """A detector with the settings of a test."""
    precision = "float32" if context.cfg.precision == "auto" else context.cfg.precision
    settings = getattr(context.cfg, kind.name)
    return kind(
        settings, seed=context.seed, device=context.device, precision=precision, checkpoints=context.folder
    )


def rows_of(context, machine, split):
    """Store rows of a machine's clips of a split."""
    return machine_rows(context.store.clips, machine, split)


def bound(detector, store, rows):
    """A detector that knows its training clips and has not been trained."""
    detector._bind(Clips(store, np.asarray(rows)))
    return detector


def fit(detector, store, rows):
    """Fit a detector to rows of a store, against the normal training clips of all other machines."""
    table = store.clips
    others = (
        (table["split"] == "train")
        & (table["label"] == "normal")
        & ~table["machine"].isin(table["machine"].iloc[rows])
    )
    return detector.fit(Clips(store, np.asarray(rows)), Clips(store, np.flatnonzero(others)))


BASELINE = autoencoder.AutoencoderSettings(epochs=2, n_mels=16, hidden=12, bottleneck=4)
FEATURES = oevae.OEVAEFeatureSettings(
    segments=3, segment_s=0.5, n_mels=16, n_fft=512, win_length=512, hop_length=256
)
TINY = oevae.OEVAESettings(
    features=FEATURES,
    width=4,
    hidden=16,
    latent=8,
    domain_latent=3,
    batch=16,
    epochs=2,
    refit_epochs=3,
    k_scales=(1.0, 5.0),
    drop_alpha=False,
)
SMALL = classifier.ClassifierSettings(
    clip_seconds=1.0, n_fft=256, hop_length=256, n_mels=40, dim=8, subclusters=2, kmeans=4, epochs=2, batch=8
)


class RandomYAMNet(YAMNet):
    """YAMNet with random weights, so that no test of a detector needs the extra `encoders`."""

    @classmethod
    def file(cls, path):
        return Path(path)

    @classmethod
    def load(cls, path="", sha256=""):
        with torch.random.fork_rng():
            torch.manual_seed(0)
            network = cls()
            for layer in network.convolutions:
                torch.nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
        return network.requires_grad_(False).eval()
