"""Ablation of what is set against a saturated extractor: each setting alone, and all together, for a few
epochs.

Rows differ from the first only by what they name; everything else (features, condition, sizes) is the
study's. A few epochs show whether the extractor still learns and the VAE lives, not what a full training
would reach.
Sources: METHOD 3.9, 6.3.  Notebook: 05_oevae
"""

from __future__ import annotations

import pandas as pd

from asdlib.analysis import latents
from asdlib.detectors.base import detect
from asdlib.detectors.oevae import OEVAE
from asdlib.evaluation import metrics
from asdlib.models import oevae

OFF = {"outliers": False, "beta": 1.0, "attribute_weight": 0.0, "kl_warmup": 0.0, "near": 0.0}
ROWS = {
    "none of them": {},
    "mixup with pseudo-anomalies": {"outliers": True, "beta": 0.2},
    "attribute head": {"attribute_weight": 1.0},
    "KL warm-up": {"kl_warmup": 0.5},  # of the epochs
    "near pseudo-anomalies": {"near": 0.5},
}
EVERYTHING = {name: value for row in ROWS.values() for name, value in row.items()}


def variant(settings: oevae.OEVAESettings, epochs: int, **changed) -> oevae.OEVAESettings:
    """Settings of one row: all of OFF but what is changed, trained for `epochs`, without refits."""
    values = OFF | changed
    mixup = settings.mixup.replace(outliers=values["outliers"], beta=values["beta"])
    rest = {name: values[name] for name in ("attribute_weight", "near")}
    return settings.replace(
        mixup=mixup, kl_warmup=values["kl_warmup"] * epochs, epochs=epochs, k_scales=(), **rest
    )


def table(detector: OEVAE, metric: metrics.MetricsSettings, epochs: int) -> pd.DataFrame:
    """One training per row, on the clips and with the settings of a fitted detector.

    returns : settings, binary loss and separation accuracy on held-out clips, alive z_c (channels), R² of v
        from z_d, and the harmonic mean of AUC source, AUC target and pAUC of α and of β alone (NaN without
        labels)
    """
    store, machine, seed, rows = detector.store, detector.machine, detector.seed, []
    quick = metric.replace(bootstrap=20)
    for name, changed in (ROWS | {"all of them": EVERYTHING}).items():
        settings = variant(detector.settings, epochs, **changed)
        made = OEVAE(settings, seed=seed, device=detector.device, precision=detector.precision)
        found = metrics.table(detect(made, store, [machine]), quick, seed)
        reached = found[(found["machine"] == "all") & (found["metric"] == "omega")].set_index("component")[
            "value"
        ]
        latent = latents.arranged(made.tensors(), store.clips, machine, settings.domain_latent)
        tie = latents.tie(latent, latent.spaces["z_d"])
        last = made.history.iloc[-1].reindex(["held_out_loss", "held_out_accuracy", "alive_c"])
        rows.append((name, *last, tie, reached.get("alpha"), reached.get("beta")))
    columns = [
        "settings",
        "binary loss, held out",
        "accuracy, held out",
        "alive z_c",
        "R² of v from z_d",
        "α alone",
        "β alone",
    ]
    return pd.DataFrame(rows, columns=columns).astype({name: float for name in columns[1:]})
