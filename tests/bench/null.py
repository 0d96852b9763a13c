"""Where there is nothing to find: do intervals leave out chance more often than they should?

Synthetic machines at severity 0: anomalies are draws of the normal distribution, so the AUC of each domain by
itself, its normals against its own anomalies, is 0.5. (The official AUC_source and AUC_target compare with
the anomalies of both domains and lie off 0.5 wherever the target scores higher at all.) Every seed makes new
machines and new, tiny trainings. A 95 % interval may leave out 0.5 in 1 of 20 cases; intervals of one
training's components, and of the domains of one machine, are not independent.
"""

import tempfile
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from scipy import stats

from asdlib import detectors
from asdlib.data import index, synthetic
from asdlib.data.store import open_store
from asdlib.detectors import base
from asdlib.evaluation import roc
from asdlib.scoring import fusion
from asdlib.studies import config
from tests.sizes import Context, detector_of

SEEDS = 8
TINY = (
    "synthetic.severity=[0.0]",
    "synthetic.seconds=3.0",
    "synthetic.train_source=40",
    "classifier.epochs=2",
    "oevae.width=8",
    "oevae.epochs=3",
    "oevae.k_scales=[]",
    "oevae.features.n_mels=32",
    "oevae.features.segments=3",
    "oevae.features.segment_s=1.0",
)


def main() -> None:
    """Print, per system and component, how many intervals leave out 0.5 and how likely so many are."""
    torch.set_num_threads(1)
    rows = []
    for seed in range(SEEDS):
        cfg = config.load("demo", [*TINY, f"synthetic.seed={seed}"])
        with tempfile.TemporaryDirectory() as folder:
            synthetic.write_tree(Path(folder) / "data", cfg.synthetic)
            store = open_store(*index.index([Path(folder) / "data"]), Path(folder) / "store", cfg.data)
            context = Context(cfg, store, torch.device("cpu"), seed)
            machines = sorted(store.clips["machine"].unique())
            tables = [
                base.detect(detector_of(detectors.DETECTORS[name], context), store, together)
                for name, groups in (("classifier", [machines]), ("oevae", [[one] for one in machines]))
                for together in groups
            ]
        table = fusion.systems(pd.concat(tables, ignore_index=True), cfg.fusion)
        table = table[table["split"] == "test"]
        for (system, component, _, domain), part in table.groupby(
            ["system", "component", "machine", "domain"]
        ):
            column = roc.THREE.index(f"auc_{domain}")
            arrays = [part[name].to_numpy() for name in ("score", "domain", "label")]
            weights = roc.bootstrap_weights(*arrays[1:], cfg.metrics.bootstrap, seed)
            low, high = np.quantile(roc.bootstrap(*arrays, weights)[:, column], [0.025, 0.975])
            rows.append((system, component, low > 0.5 or high < 0.5, roc.grid(*arrays)[column]))
        print(f"seed {seed}", flush=True)
    found = pd.DataFrame(rows, columns=["system", "component", "outside", "AUC"]).groupby(
        ["system", "component"]
    )
    told = found.agg(
        intervals=("AUC", "size"), outside=("outside", "sum"), mean=("AUC", "mean"), sd=("AUC", "std")
    )
    told["P(so many | 5 %)"] = stats.binom.sf(told["outside"] - 1, told["intervals"], 0.05)
    print(told.round(3).to_string())
