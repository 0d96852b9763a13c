"""Ablations: the benefit of training, settings against a saturated extractor, and layers for β.

`diagnosis` : when the binary loss saturated, and whether α is informative.
`control` : a trained classifier or OEVAE compared with its untrained network.
`table` : each setting alone, and all together, trained for a few epochs with otherwise the study's settings.
    This shows whether the extractor still learns and VAE channels are active, not the final performance.
`inner_layers` : β from each layer of a trained network and of its untrained version, without training.
Sources: METHOD 3.9, 3.10, 6.3.  Notebooks: 04_classifier, 05_oevae
"""

from __future__ import annotations

import numpy as np
import pandas as pd
import torch

from asdlib.analysis import latents
from asdlib.data.store import machine_rows
from asdlib.detectors.base import detect, score_table
from asdlib.detectors.classifier import Classifier
from asdlib.detectors.oevae import OEVAE
from asdlib.evaluation import comparison, metrics
from asdlib.models import oevae, training
from asdlib.scoring.distances import density_references, density_scores
from asdlib.scoring.pooling import POOLING, pool

OFF = {"outliers": False, "beta": 1.0, "attribute_weight": 0.0, "kl_warmup": 0.0, "near": 0.0}
ROWS = {
    "none of them": {},
    "mixup with pseudo-anomalies": {"outliers": True, "beta": 0.2},
    "attribute head": {"attribute_weight": 1.0},
    "KL warm-up": {"kl_warmup": 0.5},  # fraction of the epochs
    "near pseudo-anomalies": {"near": 0.5},
}
EVERYTHING = {name: value for row in ROWS.values() for name, value in row.items()}


def control(
    detector: Classifier | OEVAE, scores: pd.DataFrame, metric: metrics.MetricsSettings
) -> pd.DataFrame:
    """Compare a trained detector with its untrained version (`epochs = 0`).

    Takes one pass of the detector's clips through the network; the detector is not modified.

    Parameters
    ----------
    detector : fitted
    scores : its score table, from `detect` or `Run.fit_or_load`
    metric : metrics settings of the study

    Returns
    -------
    columns component, trained, untrained (harmonic mean of AUC source, AUC target and pAUC over the
    detector's machines, 0..1), gain (their difference) with its interval low, high; empty without labeled
    test clips.
    Source: METHOD 3.10. Notebooks: 04_classifier, 05_oevae
    """
    columns = ["component", "trained", "untrained", "gain", "low", "high"]
    if not (scores["split"].eq("test") & scores["label"].ne("unlabeled")).any():
        return pd.DataFrame(columns=columns)
    blank = {"epochs": 0} | ({"k_scales": ()} if isinstance(detector, OEVAE) else {})
    made = type(detector)(
        detector.settings.replace(**blank),
        seed=detector.seed,
        device=detector.device,
        precision=detector.precision,
    )
    machines = sorted(set(detector.store.clips["machine"].iloc[detector.train_rows]))
    untrained = detect(made, detector.store, machines)
    both = pd.concat([scores.assign(system="trained"), untrained.assign(system="untrained")])
    reached = {kind: _official(both[both["system"] == kind], metric) for kind in ("trained", "untrained")}
    rows = []
    for component in untrained["component"].unique():
        pair = comparison.over_all(
            comparison.paired(both, "trained", "untrained", metric, detector.seed, component)
        )
        sides = (reached[kind][component] for kind in ("trained", "untrained"))
        rows += [(component, *sides, *pair[["value", "low", "high"]].iloc[0])] if len(pair) else []
    return pd.DataFrame(rows, columns=columns)


def diagnosis(detector: OEVAE) -> pd.DataFrame:
    """Return one row on the saturated parts of a trained OEVAE.

    returns : columns machine; saturated from epoch (first epoch with a binary loss below 0.01 nats, NaN if
        none); active z_c (channels) and α with norm of h (correlation), on held-out clips, NaN without them;
        α in the fusion ("yes", or the reason why not).  Notebooks: 05_oevae, 09_report
    """
    found, history = detector.held_out_alpha, detector.history
    saturated = history.loc[history["machine"] < latents.SATURATED, "epoch"] if len(history) else []
    left_out = detector.alpha_fault if detector.settings.drop_alpha else ""
    row = {
        "machine": detector.machine,
        "saturated from epoch": min(saturated, default=np.nan),
        "active z_c": found.get("alive", np.nan),
        "α with norm of h": found.get(detector.settings.alpha_mode, np.nan),
        "α in the fusion": f"no: {left_out}" if left_out else "yes",
    }
    return pd.DataFrame([row])


def variant(settings: oevae.OEVAESettings, epochs: int, **changed) -> oevae.OEVAESettings:
    """Return settings with OFF and these changes, for `epochs` epochs and without refits."""
    values = OFF | changed
    mixup = settings.mixup.replace(outliers=values["outliers"], beta=values["beta"])
    rest = {name: values[name] for name in ("attribute_weight", "near")}
    return settings.replace(
        mixup=mixup, kl_warmup=values["kl_warmup"] * epochs, epochs=epochs, k_scales=(), **rest
    )


def table(detector: OEVAE, metric: metrics.MetricsSettings, epochs: int) -> pd.DataFrame:
    """Train a detector per row of ROWS, on the clips and with the settings of a fitted detector.

    returns : columns settings, binary loss and accuracy on held-out clips, active z_c (channels), R² of v
        from z_d, and the harmonic mean of AUC source, AUC target and pAUC of α and of β (NaN without labels)
    """
    store, machine, seed, rows = detector.store, detector.machine, detector.seed, []
    for name, changed in (ROWS | {"all of them": EVERYTHING}).items():
        settings = variant(detector.settings, epochs, **changed)
        trained = OEVAE(settings, seed=seed, device=detector.device, precision=detector.precision)
        reached = _official(detect(trained, store, [machine]), metric, seed)
        latent = latents.arranged(trained.tensors(), store.clips, machine, settings.domain_latent)
        tie = latents.tie(latent, latent.spaces["z_d"])
        last = trained.history.iloc[-1].reindex(["held_out_loss", "held_out_accuracy", "alive_c"])
        rows.append((name, *last, tie, reached.get("alpha"), reached.get("beta")))
    columns = [
        "settings",
        "binary loss, held out",
        "accuracy, held out",
        "active z_c",
        "R² of v from z_d",
        "α alone",
        "β alone",
    ]
    return pd.DataFrame(rows, columns=columns).astype({name: float for name in columns[1:]})


def _official(scores: pd.DataFrame, metric: metrics.MetricsSettings, seed: int = 0) -> pd.Series:
    """Return the harmonic mean of the three metrics over all machines, by component, without intervals."""
    found = metrics.table(scores, metric.replace(bootstrap=20), seed)
    whole = found[(found["machine"] == "all") & (found["metric"] == "omega")]
    return whole.set_index("component")["value"]


def inner_layers(detector: OEVAE, metric: metrics.MetricsSettings) -> pd.DataFrame:
    """Evaluate β from each layer and pooling, trained and untrained, with the local density of clips.

    Takes two passes of the machine's clips through the network; the detector is not modified. A row is β of a
    detector with these `layers` and `pooling` and backend = "local_density"; `untrained` has epochs = 0.

    Parameters
    ----------
    detector : fitted, of one machine
    metric : metrics settings of the study; intervals are not computed

    Returns
    -------
    columns layer, pooling, dim (vector length), trained, untrained (harmonic mean of AUC source, AUC target
    and pAUC, 0..1; NaN without labels), gain (their difference). Source: METHOD 3.10. Notebook: 05_oevae
    """
    store, train = detector.store, detector.train_rows
    test = machine_rows(store.clips, detector.machine, "test")
    group, dims, columns = detector.group_of(store.clips.iloc[test]), {}, {}
    nets = {"trained": detector.net, "untrained": detector.untrained()}
    of_train, of_test = (_profiles(detector, nets, rows) for rows in (train, test))
    for kind in nets:
        scores = {}
        for (layer, how), vectors in of_train[kind].items():
            dims[layer, how], values = vectors.shape[1], np.empty(len(test))
            for name in np.unique(group):
                references = density_references(vectors[detector.group == name])
                values[group == name] = density_scores(of_test[kind][layer, how][group == name], references)
            scores["oevae", f"{layer} {how}"] = values
        columns[kind] = _official(score_table(store.clips, test, scores, 0), metric) if len(test) else {}
    rows = [
        (layer, how, dim, *(columns[kind].get(f"{layer} {how}", np.nan) for kind in columns))
        for (layer, how), dim in dims.items()
    ]
    made = pd.DataFrame(rows, columns=["layer", "pooling", "dim", *columns])
    return made.assign(gain=made["trained"] - made["untrained"])


@training.one_thread()
@torch.inference_mode()
def _profiles(
    detector: OEVAE, nets: dict[str, oevae.OEVAE], rows: np.ndarray
) -> dict[str, dict[tuple[str, str], np.ndarray]]:
    """Return clip vectors by network, layer and pooling, averaged over segments, float32 (clips, dim)."""
    out = {kind: {(layer, how): [] for layer in oevae.LAYERS for how in POOLING} for kind in nets}
    for row in rows:
        x = detector.front.log_mel(detector.front.waves(detector.front.items(np.array([row]))))
        for kind, net in nets.items():
            stages = net.stages(x)
            for (layer, how), found in out[kind].items():
                found.append(pool([stages[layer]], how).cpu().numpy().mean(0, dtype=np.float64))
    return {kind: {key: np.array(found, np.float32) for key, found in of.items()} for kind, of in out.items()}
